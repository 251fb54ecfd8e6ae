"""Fréchet distances: speed against clean-fid's route, and bias and coverage of the error bars.

    python -m tests.bench.frechet [speed | truth] [--dimension 2048] [--repeats 100]

Speed is process time on one thread, features to distance. The truth is known for Gaussians.
"""

import argparse
import math
import time
import warnings

import torch

from stages.methods import frechet
from stages.methods.torchvision_shim import prepare_torchvision

TARGETS = {6000: 3, 500: 50}  # times clean-fid's speed at 2048 dimensions
TRACE = 24.0


def decaying_features(n: int, d: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    spread = (1 + torch.arange(d, dtype=torch.float64)).rsqrt()
    return torch.randn(n, d, generator=generator, dtype=torch.float64) * spread * scale


def seconds(function, *arguments) -> tuple[float, float]:
    start = time.process_time()
    value = function(*arguments)
    return value, time.process_time() - start


def measure_speed(d: int) -> None:
    prepare_torchvision()
    from cleanfid.fid import fid_from_feats

    print(f"seconds for one distance, d = {d}, both sets of n images")
    print("      n    here  clean-fid   times faster (target)   difference / distance")
    for n, target in TARGETS.items():
        x, y = decaying_features(n, d, 0), decaying_features(n, d, 1, 1.1)
        ours, here = seconds(frechet.distance_from_features, x, y)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs, there = seconds(fid_from_feats, x.numpy(), y.numpy())
        print(
            f"  {n:5d} {here:7.2f} {there:10.2f} {there / here:14.1f} ({target})"
            f"{abs(ours - theirs) / theirs:24.1e}",
            flush=True,
        )
        result, whole = seconds(frechet.from_features, x, y)
        print(f"        with its error, 21 distances: {whole:.1f} s. {result.caution}", flush=True)


def measure_truth(repeats: int, d: int = 64) -> None:
    """Gaussians whose spreads differ by a factor: the distance is trace x (factor - 1)^2."""
    spread = torch.linspace(1, 0.2, d, dtype=torch.float64)
    spread *= math.sqrt(TRACE / spread.square().sum())
    print(
        f"\nGaussians, d = {d}, trace {TRACE:g}, {repeats} pairs of sets; +- is one standard error"
    )
    print("     N   true  bias of FD        bias of FD-infinity   spread  mean error  within 1, 2")
    for n in (500, 2000):
        for factor in (1.0, 1.1, 1.3):
            generator = torch.Generator().manual_seed(n)

            def draw(scale: float, n=n, generator=generator) -> torch.Tensor:
                noise = torch.randn(n, d, generator=generator, dtype=torch.float64)
                return noise * spread * scale

            found = [frechet.from_features(draw(1.0), draw(factor)) for _ in range(repeats)]
            true = TRACE * (factor - 1) ** 2
            raw, infinity = (
                torch.tensor([getattr(f, name) for f in found], dtype=torch.float64) - true
                for name in ("distance", "infinity")
            )
            error = torch.tensor([f.standard_error for f in found], dtype=torch.float64)
            within = [(infinity.abs() <= k * error).double().mean().item() for k in (1, 2)]
            of_mean = infinity.std().item() / math.sqrt(repeats)
            print(
                f"  {n:4d} {true:6.3f} {raw.mean():+8.3f}"
                f"          {infinity.mean():+8.4f} +- {of_mean:.4f} {infinity.std():10.4f}"
                f" {error.mean():11.4f}  {within[0]:6.2f} {within[1]:.2f}",
                flush=True,
            )
    print("  (a right error bar holds the truth in .68 and .95 of the cases)")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=("speed", "truth"), default=None)
    parser.add_argument("--dimension", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=100)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    if options.what != "truth":
        measure_speed(options.dimension)
    if options.what != "speed":
        measure_truth(options.repeats)


if __name__ == "__main__":
    main()
