"""Data: memory of every pass over a set, a conversion killed and taken up again, reading speed.

    python -m tests.bench.data [memory] [flat] [kill] [speed] [--images 5000] [--side 256]
        [--npy-gib 4] [--kinds folder npy tar parquet] [--phases prepare read ...]
        [--storages packed mapped] [--most 50000] [--tasks 2]

Everything is synthetic and made in a temporary folder (`--folder` keeps it). `memory`: what all
processes together grow by above their size after imports, in `prepare`, in reading for training, in
`features` of training images, in those of held-out ones with their nearest training images, and in
`spectrum`. What counts is anonymous memory: pages of files can be dropped at any time. `flat`: the
same for 1,000 images and for `--most`. `kill`: `kill -9` of all processes in the middle, then once
more; the bytes are those of a run without. `speed`: images a second of CPU time beside
torchvision's ImageFolder with a DataLoader, on the same files, in turns.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from pipeline.artifact import Artifact, open_artifact
from pipeline.stage import resolve
from tests.bench._synthetic import CLASSES, KINDS, made
from tests.bench.engine import line
from tests.stages.context import Context, Work, context, digests, sealed

PHASES = ("prepare", "read", "features", "neighbours", "spectrum")
STORAGES = ("packed", "mapped")
HELD_OUT = 64
TARGET_MIB, FLAT_MIB = 1024, 96
BATCH, ROUNDS = 64, 7
WARM = (
    *("stages.data.convert", "stages.scoring.features", "stages.encoders.embedded"),
    *("stages.methods.memorization", "stages.methods.spectrum", "stages.data.spectrum"),
    *("stages.training.loop", "pyarrow.parquet"),
)


# --- what is measured, each in a process of its own ---------------------------------------------


@dataclass(frozen=True)
class Spec:
    """A phase over a set. folder: of its payloads. path: of its source."""

    phase: str
    folder: str
    path: str
    tasks: int
    mapped_gib: float
    shard_mib: float
    count: int

    @property
    def place(self) -> Path:
        return Path(self.folder)


@dataclass
class Spread(Context):
    """A context whose tasks run in processes of their own, as the engine's do."""

    pool: Any = None

    def map(self, function: Callable[..., Any], items: Sequence[Any], *common: Any) -> list[Any]:
        arrived = tuple(value.path if isinstance(value, Work) else value for value in common)
        if len(items) == 1:
            return [function(items[0], *arrived)]
        return self.pool.map(functools.partial(_called, function, arrived), items, chunksize=1)


def _called(function: Callable[..., Any], common: tuple, item: Any) -> Any:
    return function(item, *common)


def warm(shard_mib: float) -> None:
    """Import what the stages import, once, before anything is measured."""
    import importlib

    import torch
    from PIL import Image

    torch.set_num_threads(1)
    Image.init()
    for module in WARM:
        importlib.import_module(module)
    if shard_mib:
        importlib.import_module(WARM[0]).SMALL_SHARD_BYTES = int(shard_mib * 2**20)


def child(spec: Spec) -> None:
    """Import, say so, wait, work."""
    pool = multiprocessing.get_context("spawn").Pool(spec.tasks, warm, (spec.shard_mib,))
    warm(spec.shard_mib)
    pool.map(time.sleep, [0.5] * spec.tasks, chunksize=1)  # every process is up and has imported
    print("ready", flush=True)
    sys.stdin.readline()
    begun = time.perf_counter()
    works = {"prepare": _prepare, "read": _read, "spectrum": _spectrum}
    works.get(spec.phase, _features)(spec, pool)
    print(json.dumps({"seconds": time.perf_counter() - begun}), flush=True)
    pool.terminate()


def _run(spec: Spec, stage: Any, settings: Any, pool: Any, **inputs: Any) -> Artifact:
    at = context(spec.place / spec.phase, settings, **inputs)
    at = Spread(at.settings, at.inputs, at.path, at.work, pool=pool)
    return sealed(at, stage, resolve(stage.run)(at))


def _prepare(spec: Spec, pool: Any) -> None:
    from stages.data import prepare

    held_out = min(HELD_OUT, spec.count // 4)
    settings = prepare.PrepareSettings(
        path=spec.path, mapped_gib=spec.mapped_gib, held_out=held_out
    )
    _run(spec, prepare.STAGE, settings, pool)


def _data(spec: Spec) -> Any:
    return open_artifact(spec.place / "prepare" / "payload")


def _read(spec: Spec, pool: Any) -> None:
    """Batches as a training takes them: shuffled, finished on the device."""
    from stages.training.loop import Batches

    images = _data(spec).load().train
    batches = Batches(images, images.labels, min(BATCH, len(images)), seed=0)
    for step in range(min(50, len(images) // batches.batch_size)):
        batches(step)


def _features(spec: Spec, pool: Any) -> None:
    from stages.scoring import features

    part = "train" if spec.phase == "features" else "test"
    data = _data(spec)
    settings = features.FeatureSettings(part=part, shard_size=1024)
    _run(spec, features.STAGE, settings, pool, data=data, extractor=_extractor(spec, data))


def _extractor(spec: Spec, data: Any) -> Artifact:
    """An untrained network of few channels: what is measured is the reading."""
    import torch
    from safetensors.torch import save_file

    from pipeline.stage import Result
    from stages.artifacts.extractor import WEIGHTS, Extractor
    from stages.nets.encoders import EmbeddedCNN
    from stages.scoring import extractor

    at = context(spec.place / "extractor", extractor.ExtractorSettings())
    network = EmbeddedCNN(data.description["shape"][0], CLASSES, (2, 7, 2))
    network.reset_parameters(torch.Generator().manual_seed(0))
    save_file(network.state_dict(), at.path / WEIGHTS)
    facts = {"name": "embedded", "weights_hash": "0", "resize": "none", "dimension": 64}
    Extractor.describe(at.path, facts | {"validation": {}})
    return sealed(at, extractor.STAGE, Result())


def _spectrum(spec: Spec, pool: Any) -> None:
    from stages.data import spectrum

    _run(spec, spectrum.STAGE, spectrum.SpectrumSettings(shard_size=1024), pool, data=_data(spec))


# --- measuring ----------------------------------------------------------------------------------


def started(spec: Spec) -> subprocess.Popen:
    """A phase's process, which has imported and waits."""
    command = [sys.executable, "-m", "tests.bench.data", "--child", json.dumps(spec.__dict__)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen(command, text=True, start_new_session=True, **pipes)
    if process.stdout.readline() != "ready\n":
        raise SystemExit(f"{spec.phase} of {spec.path} did not start")
    return process


def released(process: subprocess.Popen) -> None:
    process.stdin.write("\n")
    process.stdin.flush()


def anonymous(process: subprocess.Popen) -> int:
    """Bytes that a process and those below it hold and that no file does."""
    total = 0
    try:
        family = psutil.Process(process.pid)
        for one in (family, *family.children(recursive=True)):
            memory = one.memory_info()
            total += memory.rss - memory.shared
    except psutil.NoSuchProcess:
        pass
    return total


def grown(spec: Spec) -> tuple[float, float]:
    """(MiB, seconds): what a phase grows by at most, and how long it takes."""
    shutil.rmtree(spec.place / spec.phase, ignore_errors=True)
    process = started(spec)
    before = most = anonymous(process)
    released(process)
    while process.poll() is None:
        most = max(most, anonymous(process))
        time.sleep(0.02)
    said = process.stdout.read()
    if process.returncode:
        raise SystemExit(f"{spec.phase} of {spec.path} ended with {process.returncode}")
    return (most - before) / 2**20, json.loads(said)["seconds"]


def _spec(
    options: argparse.Namespace,
    phase: str,
    at: Path,
    path: Path,
    count: int,
    mapped_gib: float = 0,
) -> Spec:
    return Spec(phase, str(at), str(path), options.tasks, mapped_gib, options.shard_mib, count)


def memory(options: argparse.Namespace, folder: Path) -> None:
    for kind in options.kinds:
        count = options.images
        if kind == "npy":
            count = max(BATCH, int(options.npy_gib * 2**30 / (3 * options.side**2)))
        path = made(folder, kind, count, options.side)
        # The JPEGs of the default size would fit the bound for mapped arrays: packed is the harder.
        for phase in options.phases:
            mib, seconds = grown(_spec(options, phase, folder / f"of-{kind}", path, count))
            name = f"{kind}, {count} images, {phase} ({seconds:.0f} s): memory"
            line(name, mib, TARGET_MIB, "MiB")


def flat(options: argparse.Namespace, folder: Path) -> None:
    few, most = min(1000, options.most // 2), options.most
    for storage in options.storages:
        mapped_gib = 0 if storage == "packed" else 1000
        for phase in options.phases:
            found = []
            for count in (few, most):
                path = made(folder, "folder", count, options.flat_side)
                at = folder / f"flat-{storage}-{count}"
                found.append(grown(_spec(options, phase, at, path, count, mapped_gib))[0])
            name = f"{storage}, {phase}: {found[0]:.0f} MiB at {few}; more at {most}"
            line(name, found[1] - found[0], FLAT_MIB, "MiB")


def kill(options: argparse.Namespace, folder: Path) -> None:
    """Kill a conversion when a third of its shards are there; go on; compare."""
    count = options.images
    path = made(folder, "folder", count, options.side)
    whole, killed = (
        _spec(options, "prepare", folder / name, path, count) for name in ("whole", "killed")
    )
    for spec in (whole, killed):
        shutil.rmtree(spec.place, ignore_errors=True)
    seconds = [grown(whole)[1]]
    work, expected = killed.place / "prepare" / "work", digests(whole.place / "prepare" / "payload")
    enough = max(1, sum(name.startswith("train-") for name in expected) // 3)
    process = started(killed)
    released(process)
    while len(list(work.glob("train-*.json"))) < enough:
        if process.poll() is not None:
            raise SystemExit("the conversion ended before it could be killed")
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = {file: file.stat().st_mtime_ns for file in _finished(work)}
    shutil.rmtree(killed.place / "prepare" / "payload")  # as the engine does: a fresh one each time
    process = started(killed)
    released(process)
    seconds.append(json.loads(process.stdout.readline())["seconds"])
    process.wait()
    again = sum(file.stat().st_mtime_ns != mtime for file, mtime in kept.items())
    differ = expected != digests(killed.place / "prepare" / "payload")
    print(
        f"killed with {len(kept)} finished shards; {seconds[0]:.1f} s whole, {seconds[1]:.1f} s on"
    )
    line("finished shards that were made again", again, 0, "")
    line("files that differ from a run without kill -9", int(differ), 0, "")


def _finished(work: Path) -> list[Path]:
    return [file.with_suffix("") for file in work.glob("*.json")]


def speed(options: argparse.Namespace, folder: Path) -> None:
    """Ours and torchvision's in turns, on one core."""
    import torch

    from stages.methods.torchvision_shim import prepare_torchvision

    prepare_torchvision()
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    torch.set_num_threads(1)
    count = options.images
    path = made(folder, "folder", count, options.side)
    spec = _spec(options, "prepare", folder / "speed", path, count)
    if not (spec.place / "prepare" / "payload" / "data.json").exists():
        grown(spec)
    images = _data(spec).load().train
    theirs = ImageFolder(str(path), transforms.ToTensor())
    order = np.random.RandomState(0)
    rounds = max(BATCH, min(512, len(images) // BATCH * BATCH))
    found: dict[str, list[float]] = {"ours": [], "torchvision": []}
    for _ in range(ROUNDS):
        which = order.permutation(len(images))[:rounds]
        sampler = order.permutation(len(theirs))[:rounds].tolist()
        loader = DataLoader(theirs, BATCH, sampler=sampler)
        passes = {
            "ours": (images[which[i : i + BATCH]] for i in range(0, rounds, BATCH)),
            "torchvision": (batch for batch, _ in loader),
        }
        for name, batches in passes.items():
            begun = time.process_time()
            number = sum(len(batch) for batch in batches)
            found[name].append(number / (time.process_time() - begun))
    for name, rates in found.items():
        print(f"{name}: {statistics.median(rates):.0f} images a second of one core", flush=True)
    ratios = [b / a for a, b in zip(found["ours"], found["torchvision"], strict=True)]
    line("torchvision's images a second over ours", statistics.median(ratios), 1.0, "")


PARTS = {"memory": memory, "flat": flat, "kill": kill, "speed": speed}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.data", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--npy-gib", type=float, default=4)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=list(PHASES))
    parser.add_argument("--storages", nargs="+", choices=STORAGES, default=list(STORAGES))
    parser.add_argument("--most", type=int, default=50_000)
    parser.add_argument("--flat-side", type=int, default=64)
    parser.add_argument("--tasks", type=int, default=2, help="processes, as on so many cores")
    parser.add_argument("--shard-mib", type=float, default=0, help="smallest shard; 0 as it is")
    parser.add_argument("--folder", help="where sets and payloads are kept")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(Spec(**json.loads(options.child)))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.folder or temporary).absolute()
        for part in options.parts or PARTS:
            PARTS[part](options, folder)


if __name__ == "__main__":
    main()
