"""CSFlow: speed of the spectrum, and the published weights from the published spectrum.

    python -m tests.bench.csflow [imagenet256_rapsd.json]

The file holds `frequency_cycles_per_pixel` and `power`; without it only the speed is measured.
"""

import argparse
import json
import time

import torch

from stages.methods import csflow, density

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


def measure_speed() -> None:
    print("speed of radial_power against the bare real FFT of the same batch (target >= 0.25)")
    for channels in (1, 3):
        for batch in (16, 64, 256, 1024):
            images = torch.rand(batch, channels, 64, 64) * 2 - 1
            grey = images.mean(1)
            ours, bare, bare_grey = least_seconds(
                lambda images=images: csflow.radial_power(images),
                lambda images=images: torch.fft.rfft2(images),
                lambda grey=grey: torch.fft.rfft2(grey),
            )
            print(
                f"  {batch:5d} x {channels} x 64 x 64: {1e6 * ours / batch:6.1f} us an image, "
                f"speed {bare / ours:.2f}; against the FFT of one channel {bare_grey / ours:.2f}"
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
    print("\nK w at clean fraction tau      measured  target")
    for tau, target in zip(CLEAN_FRACTIONS, WEIGHTS, strict=True):
        print(f"  {tau:<28} {500 * weights[round(500 * tau)]:9.4f} {target:7.4f}")
    print(f"  peak at tau {int(weights.argmax()) / 500:<16} (target 0.168)")
    for mix, targets in GRIDS.items():
        print(f"10-step grid in tau, a = {mix}     measured  target")
        for tau, target in zip(1 - csflow.time_grid(weights, 10, mix), targets, strict=True):
            print(f"  {'':<28} {tau:9.5f} {target:7.5f}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("reference", nargs="?", help="JSON file with the published spectrum")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    measure_speed()
    measure_densities()
    if arguments.reference:
        compare_with_reference(arguments.reference)


if __name__ == "__main__":
    main()
