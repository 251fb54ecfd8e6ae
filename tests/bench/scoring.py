"""Memory and time of scoring large sets: 50,000 samples, 10,000 reference images, 2,048 features.

    python -m tests.bench.scoring [--samples 50000] [--reference 10000] [--dimension 2048]
        [--device cpu] [--folder FOLDER] [--adm]

Features are synthetic and lie in mapped files. Memory is what the process takes beyond them and
beyond what it had before (anonymous pages at most; on a GPU also what torch allocated there). ADM's
precision and recall compare all samples with each other, which takes most of an hour of a core.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stages.methods import frechet, quality, suite
from stages.methods.gaussians import Rows
from stages.methods.influence import Principal

TARGET_GIB = 2.0
FLOOR_REPEATS = 3


class Peak:
    """Most anonymous memory of this process within, beyond what it had at the start: `mib`. Pages
    of mapped files are none of it."""

    def __init__(self) -> None:
        self._stop, self.mib = threading.Event(), 0.0

    def __enter__(self) -> Peak:
        self._before, self._most = anonymous(), 0.0
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self._most = max(self._most, anonymous())

    def __exit__(self, *error: Any) -> None:
        self._stop.set()
        self._thread.join()
        self.mib = max(self._most, anonymous()) - self._before


def anonymous() -> float:
    """MiB of this process that are of no file."""
    with open("/proc/self/status", encoding="utf-8") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def written(folder: Path, name: str, count: int, dimension: int, seed: int) -> torch.Tensor:
    """Features whose variances fall off as those of networks do, in a mapped file."""
    file = folder / f"{name}.npy"
    stored = np.lib.format.open_memmap(file, "w+", np.float32, (count, dimension))
    spread = (1 + torch.arange(dimension)).rsqrt() * (1 + 0.1 * seed)
    generator = torch.Generator().manual_seed(seed)
    for first in range(0, count, 5000):
        shape = len(stored[first : first + 5000]), dimension
        stored[first : first + 5000] = torch.randn(shape, generator=generator) * spread
    stored.flush()
    del stored
    return torch.from_numpy(np.load(file, mmap_mode="c"))


def phases(x: torch.Tensor, y: torch.Tensor, device: str) -> dict[str, Callable[[], Any]]:
    """What scoring samples x against reference y takes, in its order; ADM's part last."""
    count = min(len(x), len(y), quality.LARGEST_MATRIX)
    made: dict[str, Any] = {}

    def moments() -> None:
        """Means and covariances, of all images and of those outside each block."""
        for name, features in (("x", x), ("y", y)):
            generator = torch.Generator().manual_seed(0)
            made[name] = frechet.dealt(features, generator, device=device)

    def distance() -> None:
        """The Fréchet distance, FD-infinity, influence values."""
        made["axes"] = Principal.of(x, made["x"].moments(), device)
        _, psi = made["axes"].distance_to(made["y"].moments())
        frechet.extrapolated(made["x"], made["y"], psi)

    def floor() -> None:
        """Of real images, as often as with so many features."""
        rows = Rows([x, y])
        frechet.real_floor(rows, len(x), len(y), FLOOR_REPEATS, device=device)

    def kernel() -> None:
        quality.kernel_distance(x[:count], y[:count], device=device)

    def manifolds() -> None:
        """Precision, recall, density and coverage, of 10,000 images each."""
        quality.precision_recall(x[:count], y[:count], device=device)

    def adm() -> None:
        suite.precision_recall(x, y, device=device)

    return {one.__name__: one for one in (moments, distance, floor, kernel, manifolds, adm)}


def measured(call: Callable[[], Any], device: str) -> tuple[float, float, float]:
    """Seconds, MiB of the host, MiB of the GPU."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    with Peak() as peak:
        call()
        if device == "cuda":
            torch.cuda.synchronize()
    there = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else 0.0
    return time.perf_counter() - start, peak.mib, there


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--reference", type=int, default=10_000)
    parser.add_argument("--dimension", type=int, default=2048)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--adm", action="store_true", help="ADM's precision and recall too")
    parser.add_argument("--folder", type=Path, help="where the features are written for the while")
    options = parser.parse_args(argv)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=options.folder)))
        x, y = (
            written(folder, name, count, options.dimension, seed)
            for seed, (name, count) in enumerate((("x", options.samples), ("y", options.reference)))
        )
        size = (x.nbytes + y.nbytes) / 2**20
        print(
            f"{len(x)} samples, {len(y)} reference images, {x.shape[1]} features ({size:.0f} MiB) "
            f"on {options.device}, {torch.get_num_threads()} threads"
        )
        print("| | seconds | MiB beyond the features | MiB of the GPU |\n|---|---|---|---|")
        with Peak() as whole:
            for name, call in phases(x, y, options.device).items():
                if name == "adm" and not options.adm:
                    continue
                seconds, host, there = measured(call, options.device)
                print(f"| {name} | {seconds:.1f} | {host:.0f} | {there:.0f} |", flush=True)
        met = "met" if whole.mib < TARGET_GIB * 1024 else "MISSED"
        print(f"| at most, of all | | {whole.mib:.0f} (target {TARGET_GIB:g} GiB: {met}) | |")


if __name__ == "__main__":
    main()
