"""ICR's numbers beside their targets: `python -m tests.bench.icr [PART ...]`, all parts by default.

synthetic  Gaussian features of known ratio; invariance; shards          seconds
cost       a scan of 10 checkpoints, without the network's forward time  half a minute
digits     training on 64 and on 1,500 digits, 3 seeds each              about 15 core-minutes
sigma      the scan over noise levels of a rich run, with the probe      about 3 core-minutes
"""

import argparse
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from stages.artifacts.network import TrainedModel
from stages.methods import edm, grids
from stages.methods.alarm import FIRST_LOOK, alarm
from stages.methods.draws import Draws
from stages.methods.ema import EMA, adamw
from stages.methods.icr import ViewMoments, icr, merge
from stages.methods.losses import Batch
from stages.methods.memorization import ratio
from stages.methods.representation import alignment, probe_accuracy, rankme, uniformity
from stages.methods.solvers import solve
from stages.methods.views import Views
from stages.nets.taps import view_features
from stages.nets.unet import UNet
from stages.papers.icr import measure
from stages.settings.scans import ViewOptions

SEEDS = (0, 1, 2)
CHECKPOINTS = (25, 35, 50, 71, 100, 141, 200, 283, 400, 566, 800, 1131, 1333)
LIMITED, RICH, HELD_OUT = 64, 1500, 256
SIGMA, NUM_VIEWS, VIEW_SEEDS = 0.15, 6, (0, 1, 2, 3)
BATCH, LEARNING_RATE, WARM_UP, EMA_DECAY = 64, 1e-3, 20, 0.99


def synthetic() -> None:
    """Known ratio, invariance to linear maps, shards against the whole."""
    print("synthetic: d = 32, true ICR .754, tau 1e-3; mean over 200 draws")
    lambdas = torch.linspace(0.2, 1.8, 32, dtype=torch.float64) * (1 / 0.754 - 1)

    def features(num_images: int, num_views: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        signal = torch.randn(num_images, 1, 32, generator=generator, dtype=torch.float64)
        noise = torch.randn(num_images, num_views, 32, generator=generator, dtype=torch.float64)
        return signal * lambdas.sqrt() + noise

    for num_views, num_images, naive, unbiased in (
        (2, 64, 0.366, 0.747),
        (4, 16, 0.351, 0.752),
        (8, 256, 0.687, 0.756),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            runs = [icr(features(num_images, num_views, seed), tau=1e-3) for seed in range(200)]
        found_naive = np.mean([run.naive_value for run in runs])
        values = np.array([run.value for run in runs])
        print(
            f"  V {num_views} n {num_images:3d}: naive {found_naive:.3f} (target {naive:.3f}), "
            f"unbiased {values.mean():.3f} +- {values.std() / 200**0.5:.3f} (target {unbiased:.3f})"
        )
    plain = features(256, 6, 0)
    mix = torch.randn(32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    change = abs(icr(plain @ mix, tau=0).value - icr(plain, tau=0).value)
    shifted = plain + 1e4
    shards = [ViewMoments.collect(part, shifted[0, 0]) for part in shifted.split(17)]
    difference = abs(merge(shards).icr().value / icr(shifted).value - 1)
    print(f"  a random invertible map changes it by {change:.1e} (target at most 1e-6)")
    print(f"  shards against whole, offset 1e4: {difference:.1e} relative (target at most 1e-12)")


class Timed:
    """A denoiser that adds up the process time of its calls, those cut short at a layer too."""

    def __init__(self, denoiser: Callable[[Tensor, float], Tensor]) -> None:
        self.denoiser, self.seconds = denoiser, 0.0

    def __call__(self, y: Tensor, sigma: float) -> Tensor:
        start = time.process_time()
        try:
            return self.denoiser(y, sigma)
        finally:
            self.seconds += time.process_time() - start


def cost(checkpoints: int = 10) -> None:
    """Core-seconds of a scan of 10 checkpoints beyond the network's own, by the stage's code."""
    training_images, held_out, labels = digits()
    options, network = ViewOptions(), UNet()
    model = TrainedModel(Path(), "unet", {"num_classes": 0}, "edm", (), (1, 8, 8), 10)
    subject = measure.subject_of(model, network, options)
    timed = Timed(subject.denoiser)
    subject = replace(subject, denoiser=timed)
    train = training_images, labels[:RICH]
    test = held_out, labels[RICH:]
    start = time.process_time()
    viewer = measure.Viewer(held_out[:HELD_OUT], options)
    for _ in range(checkpoints):
        measure.measure(subject, viewer, SIGMA)
        for images in (held_out[:HELD_OUT], training_images[:LIMITED]):
            measure.denoising_error(timed, images, SIGMA, 1, options.batch_size)
        measure.probe_right(subject, train, test, SIGMA, options.batch_size)
    beside = time.process_time() - start - timed.seconds
    print(
        f"cost: {checkpoints} checkpoints, n {HELD_OUT}, V {NUM_VIEWS}, {len(VIEW_SEEDS)} view "
        f"seeds, d 64, probe of {RICH}: {beside:.2f} core-seconds beside the network's "
        f"{timed.seconds:.2f} (target at most 5)"
    )


def digits() -> tuple[Tensor, Tensor, Tensor]:
    """(1500, 1, 8, 8) training images, (297, 1, 8, 8) held out, in [-1, 1], and all labels."""
    data = load_digits()
    order = np.random.RandomState(0).permutation(len(data.data))
    images = torch.tensor(data.data[order], dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1
    return images[:RICH], images[RICH:], torch.tensor(data.target[order])


def train(images: Tensor, seed: int) -> Iterator[tuple[int, UNet]]:
    """Train a U-Net; yields each checkpoint's step and its averaged network."""
    generator = torch.Generator().manual_seed(seed)
    network, loss = UNet(), edm.Loss()
    network.reset_parameters(generator)
    average = EMA(network, EMA_DECAY)
    optimizer = adamw(network.parameters(), lr=LEARNING_RATE)
    for step in range(1, CHECKPOINTS[-1] + 1):
        chosen = torch.randint(len(images), (BATCH,), generator=generator)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1, step / WARM_UP)
        batch = Batch(images[chosen], None, Draws(seed, torch.arange(BATCH), step))
        optimizer.zero_grad()
        loss(network, batch).total.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        average.update(network)
        if step in CHECKPOINTS:
            yield step, average.network


@torch.no_grad()
def memorised(network: UNet, training_images: Tensor) -> float:
    """Memorisation ratio of 256 samples: DPM-Solver++ 2M, 12 evaluations."""
    noise = torch.randn(256, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return ratio(solve(network, 80 * noise, grids.edm(12, s_max=80.0)), training_images)


def run(name: str, images: Tensor, held_out: Tensor, seed: int) -> tuple[Tensor, list[float]]:
    """ICR (checkpoints, view seeds) and the memorisation ratio along one training.

    The rich run, which does not memorise, is sampled at its last checkpoint only (nan before).
    """
    views, values, memorisation = _views(held_out), [], []
    for step, network in train(images, seed):
        results = [
            icr(view_features(network, network, view, SIGMA, "inner.mid", "spatial"))
            for view in views
        ]
        values.append([result.value for result in results])
        sampled = name == "limited" or step == CHECKPOINTS[-1]
        memorisation.append(memorised(network, images) if sampled else float("nan"))
        mean, spread = np.mean(values[-1]), np.std(values[-1], ddof=1) / len(views) ** 0.5
        naive = np.mean([result.naive_value for result in results])
        print(
            f"  {name} seed {seed} step {step:4d}: ICR {mean:.4f} +- {spread:.4f} over view seeds, "
            f"naive {naive:.4f}, memorised {memorisation[-1]:.3f}",
            flush=True,
        )
    return torch.tensor(values, dtype=torch.float64), memorisation


def first_alarm(values: Tensor) -> int | None:
    """The checkpoint at which a run that is watched live is first alarmed."""
    for count in range(FIRST_LOOK, len(CHECKPOINTS) + 1):
        if alarm(CHECKPOINTS[:count], values[:count]).confirmed:
            return CHECKPOINTS[count - 1]
    return None


def digits_table(seeds: Sequence[int] = SEEDS) -> None:
    """The limited and the rich run, over the seeds."""
    print(f"digits: sigma {SIGMA}, strong views, n {HELD_OUT} held out, V {NUM_VIEWS}")
    training_images, held_out, _ = digits()
    rises, falls, margins, warned, false = [], [], [], [], []
    for seed in seeds:
        values, memorisation = run("limited", training_images[:LIMITED], held_out, seed)
        passed = [s for s, m in zip(CHECKPOINTS, memorisation, strict=True) if m > 0.05]
        found = alarm(CHECKPOINTS, values)
        rises.append(found.rise)
        margins.append(bool(passed) and found.step < passed[0])
        live = first_alarm(values)
        warned.append(live is not None and (not passed or live < passed[0]))
        print(
            f"  limited seed {seed}: minimum {found.minimum:.4f} at {found.step}, confirmed at "
            f"{found.confirmed_step} (live: {live}), memorisation above .05 at "
            f"{passed[0] if passed else None}"
        )
        values, _ = run("rich", training_images, held_out, seed)
        falls.append((values[0] - values[-1]).mean().item())
        found = alarm(CHECKPOINTS, values)
        false.append(first_alarm(values) is not None)
        print(
            f"  rich seed {seed}: {values[0].mean():.4f} to {values[-1].mean():.4f}, minimum at "
            f"{found.step}, an alarm confirmed at {found.confirmed_step} (live: "
            f"{first_alarm(values)})"
        )
    print(f"  limited: minimum before memorisation passes .05: {margins} (target: every seed)")
    print(
        f"  limited: alarmed before it does: {np.mean(warned):.0%} of {len(warned)} (target 80 %)"
    )
    print(f"  rich: alarmed at any look: {np.mean(false):.0%} of {len(false)} (target at most 5 %)")
    for name, values, target in (
        ("limited: final minus minimum", rises, 0.015),
        ("rich: start minus final", falls, 0.03),
    ):
        print(
            f"  {name}: {np.mean(values):.4f} +- {np.std(values, ddof=1):.4f} over seeds, least "
            f"{min(values):.4f} (target at least {target})"
        )


def sigma_table() -> None:
    """ICR and probe accuracy over noise levels at the end of a rich run, as seen."""
    print("sigma: rich run, last checkpoint; probe trained on 1,500, tested on 297 noisy images")
    training_images, held_out, labels = digits()
    *_, (_, network) = train(training_images, seed=0)
    for sigma in (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.8):
        rows = []
        for seed in VIEW_SEEDS:
            views = Views("strong", NUM_VIEWS, seed)(
                held_out[:HELD_OUT], range(RICH, RICH + HELD_OUT), sigma
            )
            features = view_features(network, network, views, sigma, "inner.mid", "spatial")
            rows.append(
                (
                    icr(features).value,
                    icr(features, components=16).value,
                    alignment(features),
                    uniformity(features),
                    rankme(features),
                )
            )
        images = torch.cat([training_images, held_out])
        noisy = Views("none", 2)(images, range(len(images)), sigma)
        probed = view_features(network, network, noisy, sigma, "inner.mid", "spatial")[:, 0]
        accuracy = probe_accuracy(probed[:RICH], labels[:RICH], probed[RICH:], labels[RICH:])
        means, errors = np.mean(rows, axis=0), np.std(rows, axis=0, ddof=1) / len(rows) ** 0.5
        print(
            f"  sigma {sigma:4.2f}: ICR {means[0]:.4f} +- {errors[0]:.4f}, PCA-16 {means[1]:.4f} "
            f"+- {errors[1]:.4f}, probe {accuracy:.3f}, alignment {means[2]:.4f}, uniformity "
            f"{means[3]:.3f}, RankMe {means[4]:.2f}",
            flush=True,
        )


def _views(held_out: Tensor) -> list[Tensor]:
    indices = range(RICH, RICH + HELD_OUT)
    return [
        Views("strong", NUM_VIEWS, seed)(held_out[:HELD_OUT], indices, SIGMA) for seed in VIEW_SEEDS
    ]


PARTS = {"synthetic": synthetic, "cost": cost, "digits": digits_table, "sigma": sigma_table}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.icr", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS, help="of part digits")
    arguments = parser.parse_args()
    parts = arguments.parts or list(PARTS)
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no part is named {', '.join(sorted(unknown))}; choose of {', '.join(PARTS)}")
    torch.set_num_threads(1)
    for part in parts:
        PARTS[part](arguments.seeds) if part == "digits" else PARTS[part]()


if __name__ == "__main__":
    main()
