"""Coverage of 95 % intervals and verdicts where the truth is known, and the alarm on known curves.

    python -m tests.bench.errors [coverage | alarm ...] [--repetitions 500] [--sizes 500 2000]

coverage  single scores, paired and independent differences, and verdicts where nothing is true, on
          Gaussians and on embedded features of digits, resampled; labels in fixed shares ("shares")
          and drawn at random ("random"); the reference is fixed, as errors say. About a quarter of
          a second a repetition at 500 samples, and three at 2,000.
alarm     false alarms and power over 13 looks at curves with wiggles of a known size; seconds.

The truth of a score at N samples is its mean over all repetitions; that of an equal pair is 0. The
alarm on trainings on digits is in `python -m tests.bench.icr digits --seeds 0 1 2 ...`.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.encoders.classifier import train_classifier
from stages.encoders.embedded import extract
from stages.methods import influence, quality
from stages.methods.alarm import first_alarms
from stages.methods.decisions import quantile
from stages.methods.gaussians import Moments
from stages.methods.strata import in_turn
from tests.bench.icr import RICH, digits

TARGET = (0.92, 0.98)
LOOKS, VIEW_ERROR, ALARM_RUNS = 13, 0.0015, 4000
Drawn = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Population:
    """Sets of samples whose distribution is known.

    draw(labels, others, generator): features (n, d) of four sets. The first two are paired and
    differ; the third, of the labels `others`, is from other noise like the first; the fourth is
    paired with the first, and each is as far off as the other, so that their scores are equal but
    for chance.
    """

    name: str
    counts: Sequence[int]
    reference: Tensor
    draw: Callable[[Tensor, Tensor, torch.Generator], Drawn]


def gaussians(classes: int = 10, d: int = 32) -> Population:
    """Classes that are Gaussians far from each other; the sets have wider ones than the
    reference."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.linspace(1, 0.3, d, dtype=torch.float64)

    def normal(n: int, generator: torch.Generator = generator) -> Tensor:
        return spread * torch.randn(n, d, generator=generator, dtype=torch.float64)

    centres = 2 * normal(classes)
    reference = centres[torch.arange(3000) % classes] + normal(3000)

    def draw(labels: Tensor, others: Tensor, generator: torch.Generator) -> Drawn:
        n = len(labels)
        shared, own = normal(n, generator), [0.3 * normal(n, generator) for _ in range(2)]
        a, b = (centres[labels] + 1.15 * shared + one for one in own)
        c = centres[labels] + 1.10 * shared + own[0]
        other = centres[others] + 1.15 * normal(n, generator) + 0.3 * normal(n, generator)
        return a, c, other, b

    return Population("Gaussians", [1] * classes, reference, draw)


def features_of_digits() -> Population:
    """Embedded features of noisy digits, drawn again and again from all 1,797; the reference is of
    the 1,500 training images without noise."""
    train, held_out, labels = digits()
    network = train_classifier(train, labels[:RICH], 10)
    images, generator = torch.cat([train, held_out]), torch.Generator().manual_seed(0)

    def seen(*sigmas: float) -> list[Tensor]:
        noise = torch.randn(images.shape, generator=generator)
        noisy = ((images + sigma * noise).clamp(-1, 1) for sigma in sigmas)
        return [extract(network, one).features.double() for one in noisy]

    (less, more), (again,) = seen(0.25, 0.3), seen(0.25)
    of_label = [(labels == label).nonzero().flatten() for label in range(10)]

    def places(wanted: Tensor, generator: torch.Generator) -> Tensor:
        drawn = torch.rand(len(wanted), generator=generator)
        found = torch.empty_like(wanted)
        for label, some in enumerate(of_label):
            mine = wanted == label
            found[mine] = some[(drawn[mine] * len(some)).long()]
        return found

    def draw(wanted: Tensor, others: Tensor, generator: torch.Generator) -> Drawn:
        first, second = places(wanted, generator), places(others, generator)
        swap = torch.rand(len(wanted), generator=generator) < 0.5
        a, b = less[first].clone(), again[first].clone()
        a[swap], b[swap] = again[first][swap], less[first][swap]
        return a, more[first], less[second], b

    reference = extract(network, train).features.double()
    return Population("digits", torch.bincount(labels).tolist(), reference, draw)


def repetitions(
    of: Population, n: int, shares: bool, count: int
) -> Iterator[dict[str, tuple[float, float]]]:
    """Value and standard error of every quantity, for each repetition."""
    generator = torch.Generator().manual_seed(n + shares)
    fixed = torch.from_numpy(in_turn(of.counts, n))
    weights = torch.tensor(of.counts, dtype=torch.float64)
    moments = Moments.of(of.reference)
    among = influence.kernel_means(of.reference).mean().item()
    for _ in range(count):
        labels = others = fixed
        if not shares:
            labels, others = (
                weights.multinomial(n, replacement=True, generator=generator) for _ in range(2)
            )
        strata = labels if shares else None
        a, c, other, b = of.draw(labels, others, generator)
        fd = {
            name: influence.Principal.of(x).distance_to(moments)
            for name, x in (("a", a), ("c", c), ("other", other), ("b", b))
        }
        error = {name: influence.standard_error(psi, strata) for name, (_, psi) in fd.items()}

        def paired(x: str, y: str, fd=fd, strata=strata) -> tuple[float, float]:
            psi = fd[x][1] - fd[y][1]
            return fd[x][0] - fd[y][0], influence.standard_error(psi, strata)

        kid = quality.kernel_distance(a, of.reference, strata, among)
        apart = (error["a"] ** 2 + error["other"] ** 2) ** 0.5
        yield {
            "FD": (fd["a"][0], error["a"]),
            "KID": (kid.value, kid.standard_error),
            "paired FD - FD": paired("c", "a"),
            "equal, paired": paired("b", "a"),
            "equal, independent": (fd["a"][0] - fd["other"][0], apart),
        }


def coverage(count: int, sizes: Sequence[int]) -> None:
    print(
        f"coverage of 95 % intervals over {count} repetitions (target {TARGET[0]} to {TARGET[1]})"
    )
    print("  'decided' is how often a verdict is given where nothing is true (target .02 to .08)")
    for of in (gaussians(), features_of_digits()):
        for n in sizes:
            for shares in (True, False):
                found = list(repetitions(of, n, shares, count))
                for name in found[0]:
                    _line(f"{of.name} {n} {'shares' if shares else 'random'}", name, found)


def _line(where: str, name: str, found: Sequence[dict[str, tuple[float, float]]]) -> None:
    values, errors = torch.tensor([one[name] for one in found], dtype=torch.float64).T
    equal = name.startswith("equal")
    truth = 0.0 if equal else values.mean()
    held = ((values - truth).abs() <= quantile() * errors).double().mean().item()
    print(
        f"  {where:24s} {name:20s} value {values.mean():8.4f} spread {values.std():.4f} error "
        f"{errors.mean():.4f}  " + (f"decided {1 - held:.3f}" if equal else f"coverage {held:.3f}"),
        flush=True,
    )


def alarms() -> None:
    """False alarms on curves that do not rise, power on those that do."""
    at, generator = torch.arange(LOOKS, dtype=torch.float64), torch.Generator().manual_seed(0)
    level = 0.777 - 0.047 * (1 - (-at / 3).exp())
    late = level.clone()
    late[-3:] += 0.01 * torch.tensor([0.3, 0.6, 1.0])
    limited = torch.tensor(
        [0.779, 0.772, 0.765, 0.758, 0.752, 0.748, 0.747, 0.752, 0.759, 0.766, 0.771, 0.774, 0.776]
    )
    curves = {
        "falls and flattens": (level, "at most .05"),
        "falls": (0.777 - 0.047 * at / 12, "at most .05"),
        "falls, rises by .01 at the end": (late, "at most .05"),
        "flat from the start": (torch.full((LOOKS,), 0.75), "none: nothing falls"),
        "falls by .032 and rises by .029": (limited, "at least .8"),
    }
    print(f"alarms in {LOOKS} looks, views' error {VIEW_ERROR}, {ALARM_RUNS} runs; wiggles of")
    sizes = (0.0015, 0.003, 0.005)
    print(f"  {'':34s}" + "".join(f"{size:8.4f}" for size in sizes) + "   target")
    for name, (curve, target) in curves.items():
        rates = []
        for size in sizes:
            noise = torch.randn(ALARM_RUNS, LOOKS, generator=generator, dtype=torch.float64)
            alarmed = first_alarms(curve.double() + size * noise, VIEW_ERROR) > 0
            rates.append(alarmed.double().mean().item())
        print(f"  {name:34s}" + "".join(f"{rate:8.3f}" for rate in rates) + f"   {target}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.errors", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("parts", nargs="*", choices=("coverage", "alarm", []), default=[])
    parser.add_argument("--repetitions", type=int, default=500)
    parser.add_argument("--sizes", type=int, nargs="+", default=(500, 2000))
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    parts = options.parts or ("alarm", "coverage")
    if "alarm" in parts:
        alarms()
    if "coverage" in parts:
        coverage(options.repetitions, options.sizes)


if __name__ == "__main__":
    main()
