"""CSFlow: speed of the spectrum, and the published weights from the published spectrum.

    python -m tests.bench.csflow [imagenet256_rapsd.json]

The file holds `frequency_cycles_per_pixel` and `power`; without it only the speed is measured.
Prints measured | target | held, and exits 1 when a target is missed.
"""

import argparse
import json
import sys
import time

import torch

from stages.methods import csflow, density
from stages.methods.spectrum import radial_power

missed: list[str] = []
CLEAN_FRACTIONS = [0, 0.02, 0.05, 0.1, 0.168, 0.3, 0.5, 0.8, 0.998]
WEIGHTS = [0.6530, 0.9122, 1.3728, 1.6332, 1.7161, 1.5670, 1.1261, 0.4038, 0.0459]
GRIDS = {
    1.0: [0, 0.08403, 0.14435, 0.20276, 0.26261, 0.32598, 0.39504, 0.47289, 0.5653, 0.68712, 1],
    0.4: [0, 0.09178, 0.17033, 0.24863, 0.32964, 0.41519, 0.50707, 0.6075, 0.71961, 0.8482, 1],
}


def least_seconds(*functions, rounds: int = 25) -> list[float]:
    """The least process time of each; taken in turn, so that a busy machine slows all alike."""
    best = [float("inf")] * len(functions)
    for _ in range(rounds):
        for i, function in enumerate(functions):
            start = time.process_time()
            function()
            best[i] = min(best[i], time.process_time() - start)
    return best


def report(label: str, measured: str, target: str = "", held: bool | None = None) -> None:
    """One line of the table; `held` is None where nothing is asked for."""
    verdict = {None: "", True: "held", False: "MISSED"}[held]
    print(f"{label:<44} | {measured:>34} | {target:>8} | {verdict}", flush=True)
    if held is False:
        missed.append(label)


def measure_speed() -> None:
    """64x64 images against the bare real FFT of the same batches: a data set as it comes in
    batches, and one batch by itself, of which each 16 images begun cost as much as 16."""
    print("speed of radial_power against the bare real FFT of the same batches")
    for channels in (1, 3):
        for size in (1, 2, 4, 8, 16, 17, 64, 256, 1024):
            whole = (torch.rand(max(size, 1024), channels, 64, 64) * 2 - 1).split(size)
            for batches, words in ((whole, "batches of"), (whole[:1], "one batch of")):
                count = sum(map(len, batches))
                ours, bare = least_seconds(
                    lambda batches=batches: radial_power(iter(batches)),
                    lambda batches=batches: [torch.fft.rfft2(batch) for batch in batches],
                )
                asked = words == "batches of" or size % 16 == 0
                report(
                    f"{words} {size} x {channels} x 64 x 64",
                    f"{1e6 * ours / count:6.1f} us an image, speed {bare / ours:.2f}",
                    ">= 0.25" if asked else "",
                    bare / ours >= 0.25 if asked else None,
                )


def measure_densities() -> None:
    print("microseconds to draw 256 training times")
    u = torch.rand(256)
    target = density.PiecewiseConstant(torch.rand(500))
    for name, member in {
        "logit-normal": density.LogitNormal(),
        "piecewise constant": target,
        "mixed with uniform": density.Mixture(target),
        "mixed with logit-normal": density.Mixture(target, density.LogitNormal()),
    }.items():
        (seconds,) = least_seconds(lambda member=member: member.sample(u), rounds=200)
        print(f"  {name:24s} {1e6 * seconds:7.0f}")


def compare_with_reference(path: str) -> None:
    with open(path) as file:
        spectrum = json.load(file)
    weights = csflow.interval_weights(spectrum["frequency_cycles_per_pixel"], spectrum["power"])
    print("\nthe published weights and grids, to as many digits as are given")
    for tau, target in zip(CLEAN_FRACTIONS, WEIGHTS, strict=True):
        found = float(500 * weights[round(500 * tau)])
        close = abs(found - target) <= 0.5e-4 + 1e-9
        report(f"K w at clean fraction tau = {tau}", f"{found:.4f}", f"{target:.4f}", close)
    peak = int(weights.argmax()) / 500
    report("tau of the peak", f"{peak}", "0.168", peak == 0.168)
    for mix, targets in GRIDS.items():
        grid = 1 - csflow.time_grid(weights, 10, mix)
        for k, (tau, target) in enumerate(zip(grid.tolist(), targets, strict=True)):
            close = abs(tau - target) <= 0.5e-5 + 1e-9
            report(f"10-step grid in tau, a = {mix}, {k}", f"{tau:.5f}", f"{target:.5f}", close)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("reference", nargs="?", help="JSON file with the published spectrum")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    measure_speed()
    measure_densities()
    if arguments.reference:
        compare_with_reference(arguments.reference)
    if missed:
        sys.exit(f"\n{len(missed)} targets missed: {'; '.join(missed)}")


if __name__ == "__main__":
    main()
