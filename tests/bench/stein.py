"""The analytic bench of the solvers and of SteinDiff's corrections: measured | target | held.

    python -m tests.bench.stein [--seeds 5] [--only PART ...]

Exact denoisers of Gaussian mixtures (tests/oracle.py), K=10 components, EDM grid from 80 to 0.02
with rho 7, 2,000 samples, sliced Wasserstein-2 distance to as many samples of the truth. Exits 1
when a target is missed.
"""

import argparse
import math
import sys
import time
from dataclasses import replace
from statistics import mean, stdev

import torch
from sklearn.datasets import load_digits

from stages.methods import grids, lipschitz, path, sit, solvers, stein
from stages.methods.draws import Draws
from stages.methods.ema import EMA, adamw
from stages.methods.losses import Batch
from stages.methods.solvers.divergence import output_and_divergence
from stages.methods.solvers.trajectories import trajectory
from stages.methods.solvers.whole import teacher
from stages.nets.sit import SiT
from tests import oracle
from tests.methods.test_lipschitz import exact_norms
from tests.methods.test_stein import (
    LEVELS,
    NUM_SAMPLES,
    UNCLIPPED,
    ExactDivergence,
    matched_gamma,
    straight,
    with_history_held_constant,
)

NUM_STATES = 2000
missed: list[str] = []


def report(label: str, measured: str, target: str = "", held: bool | None = None) -> None:
    """One line of the table; `held` is None where nothing is asked for."""
    verdict = {None: "", True: "held", False: "MISSED"}[held]
    print(f"{label:<52} | {measured:<30} | {target:<26} | {verdict}", flush=True)
    if held is False:
        missed.append(label)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def grid(solver: str, nfe: int) -> torch.Tensor:
    return grids.edm(solvers.levels_for_evaluations(solver, nfe), 80, 0.02)


class MixtureBench:
    """One mixture, with its own truth, data and noise for every sampling seed."""

    def __init__(self, mixture: oracle.Mixture, seed: int):
        d = mixture.means.shape[1]
        self.mixture = mixture
        self.truth = mixture.sample(NUM_STATES, generator(1000 + seed))
        self.data = mixture.sample(NUM_STATES, generator(2000 + seed))
        self.z = oracle.noise((NUM_STATES, d), 3000 + seed)
        self.noise = oracle.noise((512, d), 4000 + seed)
        self.seed = seed

    def distance(self, nfe: int, solver: str, made=None, correction=None) -> float:
        levels = grid(solver, nfe)
        end = solvers.solve(
            self.mixture.denoiser,
            levels[0] * self.z,
            levels,
            made or solver,
            correction,
            generator(self.seed),
        )
        return oracle.sliced_wasserstein(end, self.truth)

    def calibrated(self, nfe: int, solver: str) -> float:
        gammas = stein.calibrate(
            self.mixture.denoiser,
            self.data,
            grid(solver, nfe),
            solver,
            generator=generator(5000 + self.seed),
        )
        return self.distance(nfe, solver, correction=stein.calibrated(gammas))

    def fitted_gammas(self, nfe: int, solver: str) -> float:
        levels = grid(solver, nfe)
        gammas = stein.fit_gammas(self.mixture.denoiser, 80 * self.noise, levels, solver)
        return self.distance(nfe, solver, correction=stein.calibrated(gammas))

    def online(self, nfe: int, solver: str) -> float:
        center = self.data.mean(0)
        variance = float((self.data - center).square().sum(1).mean())
        return self.distance(nfe, solver, correction=stein.online(center, variance))

    def literal(self, nfe: int, solver: str) -> float:
        return self.distance(nfe, solver, correction=stein.literal(0.0))

    def fitted(self, nfe: int, solver: str) -> float:
        make = solvers.fit_heun if solver == "heun" else solvers.fit
        made = make(self.mixture.denoiser, 80 * self.noise, grid(solver, nfe))
        return self.distance(nfe, solver, made)


# What the calibrated form must stay below, and the published numbers, to be met within 10 %; 2M at
# 20 calibrated is asked to be near its own vanilla.
BOUNDS = {
    ("dpmpp2m", 5, "calibrated"): 0.17,
    ("dpmpp2m", 6, "calibrated"): 0.145,
    ("heun", 5, "calibrated"): 0.35,
    ("heun", 11, "calibrated"): 0.20,
}
PUBLISHED = {
    ("euler", 5, "vanilla"): 0.294,
    ("euler", 5, "calibrated"): 0.294,
    ("dpmpp2m", 5, "vanilla"): 0.235,
    ("dpmpp2m", 6, "vanilla"): 0.166,
    ("dpmpp2m", 10, "vanilla"): 0.091,
    ("dpmpp2m", 10, "calibrated"): 0.090,
    ("dpmpp2m", 20, "vanilla"): 0.056,
    ("unipc", 5, "vanilla"): 0.244,
    ("unipc", 5, "calibrated"): 0.118,
    ("heun", 5, "vanilla"): 2.56,
    ("heun", 11, "vanilla"): 0.289,
}


def verdict(
    solver: str, nfe: int, kind: str, measured: float, vanilla: float
) -> tuple[str, bool | None]:
    """What is asked of a distance, in words, and whether it is held; None where nothing is."""
    case = (solver, nfe, kind)
    if case in BOUNDS:
        return f"<= {BOUNDS[case]}", measured <= BOUNDS[case]
    if case in PUBLISHED:
        target = PUBLISHED[case]
        return f"{target} within 10 %", abs(measured / target - 1) <= 0.1
    if case == ("dpmpp2m", 20, "calibrated"):
        return "within 15 % of vanilla", abs(measured / vanilla - 1) <= 0.15
    if case == ("dpmpp2m", 5, "literal"):
        return "diverges: above 10", measured > 10
    return "", None


def distances(seeds: int) -> None:
    """Sliced W2 of solvers and corrections, one mixture, mean and spread over sampling seeds."""
    benches = [MixtureBench(oracle.bench_mixture(0), seed) for seed in range(seeds)]
    floor = [oracle.sliced_wasserstein(bench.truth, bench.data) for bench in benches]
    report("sampling floor (truth against truth)", f"{mean(floor):.3f}", "about 0.053")
    kinds = ("calibrated", "fitted_gammas", "online", "literal", "fitted")
    for solver, counts in {
        "euler": (5, 10),
        "dpmpp2m": (3, 5, 6, 8, 10, 20),
        "dpmpp3m": (5, 10, 20),
        "unipc": (5, 6, 10, 20),
        "heun": (5, 9, 11),
    }.items():
        for nfe in counts:
            plain = [bench.distance(nfe, solver) for bench in benches]
            asked = verdict(solver, nfe, "vanilla", mean(plain), mean(plain))
            label = f"{solver} at {nfe}, vanilla"
            report(label, f"{mean(plain):.3f} +- {spread(plain):.3f}", *asked)
            for kind in kinds:
                if kind == "fitted" and solver not in ("dpmpp2m", "heun"):
                    continue
                if kind in ("online", "literal") and solver == "unipc":
                    continue
                values = [getattr(bench, kind)(nfe, solver) for bench in benches]
                asked = verdict(solver, nfe, kind, mean(values), mean(plain))
                label = f"{solver} at {nfe}, {kind.replace('_', ' ')}"
                report(label, f"{mean(values):.3f} +- {spread(values):.3f}", *asked)


def spread(values: list[float]) -> float:
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def ddim(seeds: int) -> None:
    """A perfect denoiser with DDIM needs no correction before the last step."""
    data = oracle.bench_mixture(0)
    clean = data.sample(20_000, generator(0))
    for nfe in (5, 10):
        gammas = stein.calibrate(data.denoiser, clean, grid("euler", nfe), "euler")
        worst = float((gammas[:-1] - 1).abs().max())
        report(f"DDIM at {nfe}, largest |gamma - 1|", f"{worst:.4f}", "< 0.01", worst < 0.01)


def fitted(seeds: int) -> None:
    """The fitted multistep solver against 2M, mean over three mixtures."""
    bounds = {5: 0.6, 6: 0.65, 8: 0.55, 10: 0.75}
    cases = [(16, 1.0, nfe) for nfe in (5, 6, 8, 10, 20)]
    cases += [(64, 1.0, 3), (64, 1.0, 5), (64, 1.0, 8), (16, 1.5, 5), (16, 1.5, 8)]
    for dimension, sharpness, nfe in cases:
        plain, made = [], []
        for seed in range(3):
            mixture = replace(oracle.bench_mixture(seed, dimension), sharpness=sharpness)
            bench = MixtureBench(mixture, seed)
            plain.append(bench.distance(nfe, "dpmpp2m"))
            made.append(bench.fitted(nfe, "dpmpp2m"))
        ratio = mean(made) / mean(plain)
        kind = "" if sharpness == 1 else f", logits x {sharpness}"
        bound = bounds.get(nfe) if (dimension, sharpness) == (16, 1.0) else None
        report(
            f"fitted / 2M, d={dimension} at {nfe}{kind}",
            f"{mean(plain):.3f} / {mean(made):.3f}, ratio {ratio:.2f}",
            "" if bound is None else f"ratio <= {bound}",
            None if bound is None else ratio <= bound,
        )


# What section 9's ratios to DPM-Solver++ 2M must stay below, by dimension and evaluations.
WHOLE = {(16, 3): 0.55, (16, 5): 0.35, (16, 8): 0.5, (64, 3): 0.85, (64, 5): 0.4, (64, 8): None}
MIXTURES = (11, 12, 13)


def whole(seeds: int) -> None:
    """The solver of a whole trajectory, on EDM's levels and its own, mean over three mixtures."""
    for (dimension, nfe), bound in WHOLE.items():
        found: dict[str, list[float]] = {}
        took = 0.0
        for seed in MIXTURES:
            bench = MixtureBench(oracle.bench_mixture(seed, dimension), seed)
            denoiser, levels = bench.mixture.denoiser, grid("dpmpp2m", nfe)
            on_edm = solvers.fit_whole(denoiser, bench.noise, nfe, 80.0, levels)
            begun = time.perf_counter()
            own = solvers.fit_whole(denoiser, bench.noise, nfe, 80.0)
            took += time.perf_counter() - begun
            ends = {"whole": (on_edm, levels), "whole + levels": (own, own.levels)}
            found.setdefault("2M", []).append(bench.distance(nfe, "dpmpp2m"))
            found.setdefault("UniPC", []).append(bench.distance(nfe, "unipc"))
            found.setdefault("fitted", []).append(bench.fitted(nfe, "dpmpp2m"))
            for name, (solver, on) in ends.items():
                end = solvers.solve(denoiser, 80.0 * bench.z, on, solver)
                found.setdefault(name, []).append(oracle.sliced_wasserstein(end, bench.truth))
        means = {name: mean(values) for name, values in found.items()}
        for name, value in means.items():
            ratio = value / means["2M"]
            asked = bound if name == "whole + levels" else None
            report(
                f"d={dimension} at {nfe}, {name}",
                f"{value:.3f}, ratio to 2M {ratio:.2f}",
                "" if asked is None else f"ratio <= {asked}",
                None if asked is None else ratio <= asked,
            )
        report(f"d={dimension} at {nfe}, seconds of a fit", f"{took / len(MIXTURES):.1f}")


def trained_on_digits(steps: int = 1600) -> torch.nn.Module:
    """A SiT on scikit-learn's digits as the preset digits has it, its moving average."""
    images = torch.from_numpy(load_digits().images[:, None] / 8 - 1).float()
    labels = torch.from_numpy(load_digits().target)
    torch.manual_seed(0)
    network = SiT(image_size=8, channels=1, patch_size=2, width=64, depth=4, num_heads=2)
    average, loss = EMA(network, 0.998), sit.Loss()
    optimizer = adamw(network.parameters(), 5e-3, (0.9, 0.95))
    order = generator(1)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * min(1.0, (step + 1) / 20)
        which = torch.randint(len(images), (64,), generator=order)
        batch = Batch(images[which], labels[which], Draws(0, torch.arange(64), step))
        optimizer.zero_grad()
        loss(network, batch).total.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        average.update(network)
    return average.network.eval().requires_grad_(False)


# rms over DPM-Solver++ 2M's that a solver of a whole trajectory must reach, by evaluations.
DIGITS = {3: 0.065 / 0.149, 5: 0.020 / 0.066, 8: 0.008 / 0.032}


def digits(seeds: int) -> None:
    """rms to a digits SiT's own samples of 100 Heun steps, on fresh noise: 1,600 training steps."""
    network, count = trained_on_digits(), 128

    def of(seed: int) -> tuple[path.Denoiser, torch.Tensor]:
        labels = torch.arange(count) % 10
        denoiser = path.VelocityDenoiser(network, {"labels": labels}, dtype=torch.float32)
        return denoiser, oracle.noise((count, 1, 8, 8), seed)

    (fitting, noise), (fresh, z) = of(100), of(200)
    s_max = grids.S_START
    begun = time.perf_counter()
    known = teacher(fitting, noise, s_max)
    report("seconds of the teacher, once for all", f"{time.perf_counter() - begun:.1f}")
    start, end = s_max * z, teacher(fresh, z, s_max).states[-1]

    def rms(levels: torch.Tensor, solver) -> float:
        made = solvers.solve(fresh, start, levels, solver)
        return float((made - end).square().mean().sqrt())

    for nfe, bound in DIGITS.items():
        levels = grids.uniform_t(nfe)
        plain = rms(levels, "dpmpp2m")
        fit = solvers.fit(fitting, s_max * noise, levels)
        on_uniform = solvers.fit_whole(fitting, noise, nfe, s_max, levels, of=known)
        begun = time.perf_counter()
        own = solvers.fit_whole(fitting, noise, nfe, s_max, of=known)
        took = time.perf_counter() - begun
        report(f"digits at {nfe}, 2M", f"{plain:.4f}")
        for name, (on, solver) in {
            "UniPC": (levels, "unipc"),
            "fitted": (levels, fit),
            "whole": (levels, on_uniform),
            "whole + levels": (own.levels, own),
        }.items():
            value, asked = rms(on, solver), name == "whole + levels"
            report(
                f"digits at {nfe}, {name}",
                f"{value:.4f}, ratio to 2M {value / plain:.3f}",
                f"ratio <= {bound:.3f}" if asked else "",
                value <= bound * plain if asked else None,
            )
        report(f"digits at {nfe}, seconds of a fit", f"{took:.1f}")


def identities(seeds: int) -> None:
    """gamma by Stein's identity against the exact inner product, s = 1.5, .667, .25, 0, 2M."""
    for dimension in (2, 16, 64):
        data = oracle.bench_mixture(0, dimension)
        clean, on_path = straight(data, "dpmpp2m", NUM_SAMPLES[dimension], ExactDivergence(data))
        y = clean + LEVELS[0] * oracle.noise(tuple(clean.shape), 9)
        solver = solvers.named("dpmpp2m")
        run = trajectory(data.denoiser, y, LEVELS, solver, ExactDivergence(data))
        for name, steps in (
            ("straight path", on_path),
            ("own trajectory (online bias)", [advance.step for advance in run]),
        ):
            for step in steps[:2]:
                exact, ours = matched_gamma(step, clean), UNCLIPPED.gamma(step)
                held = abs(ours - exact) < 0.02 if name == "straight path" else None
                report(
                    f"d={dimension}, {name}, step {step.index + 1}: gamma",
                    f"{ours:.3f}, exact {exact:.3f}",
                    "" if held is None else "within 0.02",
                    held,
                )
        biased, exact = with_history_held_constant(on_path[1]), matched_gamma(on_path[1], clean)
        report(
            f"d={dimension}, history held constant, step 2: gamma",
            f"{biased:.3f}, exact {exact:.3f}",
            "wrong: off by > 0.04",
            abs(biased - exact) > 0.04,
        )


def contractivity(seeds: int) -> None:
    """Power iteration against whole Jacobians, d=16, and the norms of more steps."""
    data, y = oracle.bench_mixture(0), 80 * oracle.noise((64, 16), 0)
    for solver in ("dpmpp2m", "heun", "unipc"):
        levels = grids.edm(6, 80, 0.02)
        exact = exact_norms(data.denoiser, y, levels, solver)
        short = lipschitz.step_norms(data.denoiser, y, levels, solver, 20)
        long = lipschitz.step_norms(data.denoiser, y, levels, solver, 40)
        off = float((short.mean / exact.mean(1) - 1).abs().max())
        off_max = float((long.maximum / exact.amax(1) - 1).abs().max())
        report(f"{solver}, mean norm against exact, 20 iterations", f"{off:.2%}", "2 %", off < 0.02)
        report(f"{solver}, largest norm, 40 iterations", f"{off_max:.2%}", "2 %", off_max < 0.02)
    for nfe in (5, 10, 20, 50, 100):
        norms = lipschitz.step_norms(data.denoiser, y, grid("dpmpp2m", nfe), "dpmpp2m")
        report(
            f"dpmpp2m at {nfe}: largest over the steps",
            f"mean {float(norms.mean.max()):.3f}, maximum {float(norms.maximum.max()):.3f}",
        )


def divergence_cost(seeds: int) -> None:
    """One Hutchinson divergence with its evaluation, in forward passes of a small SiT."""
    network = SiT(image_size=8, channels=1, patch_size=2, width=64, depth=4, num_heads=2)
    network.eval().requires_grad_(False)
    y = torch.randn(128, 1, 8, 8, generator=generator(0))
    denoiser = path.VelocityDenoiser(network)

    def output(point: torch.Tensor) -> torch.Tensor:
        return denoiser(point, 2.0)

    def with_divergence() -> None:
        output_and_divergence(output, y, generator(1))

    with torch.no_grad():
        plain, whole = least_seconds(lambda: output(y), with_divergence)
    extra = whole / plain - 1
    report("divergence, extra forward passes", f"{extra:.2f}", "<= 2.0", extra <= 2.0)


def least_seconds(*functions, rounds: int = 15) -> list[float]:
    """The least process time of each, taken in turn."""
    best = [math.inf] * len(functions)
    for _ in range(rounds):
        for i, function in enumerate(functions):
            start = time.process_time()
            function()
            best[i] = min(best[i], time.process_time() - start)
    return best


PARTS = {
    "distances": distances,
    "ddim": ddim,
    "fitted": fitted,
    "whole": whole,
    "digits": digits,
    "identities": identities,
    "contractivity": contractivity,
    "divergence_cost": divergence_cost,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="sampling seeds of the distances")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.only:
        print(f"\n{PARTS[name].__doc__}")
        PARTS[name](arguments.seeds)
    if missed:
        sys.exit(f"\n{len(missed)} targets missed: {'; '.join(missed)}")


if __name__ == "__main__":
    main()
