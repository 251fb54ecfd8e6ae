"""Few-step sampling in the report: solvers and corrections over NFE, gamma and the largest
singular value of every step."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stages.methods import table as names
from stages.pages import pairs
from stages.pages.curves import (
    LITERAL,
    METRICS,
    PLAIN,
    Curves,
    Which,
    collect,
    most_seeds,
    over_nfe,
    plot_over_nfe,
    without_densities,
)
from stages.pages.figures import Axes, Curve, Figure, plot
from stages.pages.findings import FAILS, HOLDS
from stages.pages.looks import score_name
from stages.pages.page import Section, folded, table
from stages.papers.stein import gains
from stages.papers.stein.claims import corrected, peak

if TYPE_CHECKING:
    from stages.artifacts.scores import Row
    from stages.pages.made import Made


def sections(inputs: Mapping[str, Any], scores: Mapping[str, Sequence[Row]]) -> list[Section]:
    """The sections on few-step sampling; those that the run has nothing for are left out.

    inputs: the report's. scores: its curves over NFE, by node, without grids of densities.
    """
    parts = []
    if curves := _compared(collect(scores)):
        parts.append(_scores(curves))
    schedules = list(inputs.get("schedules", {}).values())
    if gammas := _gammas(schedules, inputs.get("samples", {}).values()):
        parts.append(_steps(gammas))
    if gains.gains(schedules):
        parts.append(gains.section(schedules))
    if inputs.get("lipschitz"):
        parts.append(_contractivity(list(inputs["lipschitz"].values())))
    return parts


def _compared(curves: Curves) -> Curves:
    """Without the models that were solved in one way: those have nothing to be compared."""
    ways = Counter(which.model for which in curves)
    return {which: metrics for which, metrics in curves.items() if ways[which.model] > 1}


def _scores(curves: Curves) -> Section:
    lines = {
        (ours, theirs): pairs.lines(curves[ours], curves[theirs], METRICS)
        for ours, theirs in corrected(curves)
    }
    numbers = "".join(pairs.claim_table(_claim(*pair), line) for pair, line in lines.items())
    tables = [folded("Corrected against plain, in numbers", numbers)] if lines else []
    figures = [figure for metric in METRICS for figure in _plots(curves, metric)]
    text = f"<p>{_words(curves)}</p>{_where(curves, lines)}"
    return Section("Few-step sampling: solvers and corrections", text, tables, figures)


def _claim(ours: Which, theirs: Which) -> str:
    return f"{ours.solved} is better than {theirs.solved}, grid {ours.grid} ({ours.model})"


def _words(curves: Curves) -> str:
    grids: dict[str, list[str]] = {}
    for which in curves:
        solvers = grids.setdefault(which.grid, [])
        if which.solver not in solvers:
            solvers.append(which.solver)
    listed = "; ".join(
        f"{html.escape(grid)}: {', '.join(solvers)}" for grid, solvers in grids.items()
    )
    seeds = most_seeds(curves)
    error = (
        f"Errors are one standard error over {seeds} seeds of the noise on one trained model; they "
        "hold neither the spread over trainings nor that over calibrations."
        if seeds > 1
        else "One seed of the noise: the errors are those of the samples of one set."
    )
    return (
        "trajectory_rms is the root mean square distance per pixel to the same model's own sample "
        "from the same noise with many evaluations: it tells how well a solver solves. FID tells "
        "how close the samples are to the data, and at small scale does not rank solvers. A "
        "correction may leave the model's trajectory and still gain FID, so both are shown. Each "
        f"solver has a grid of its own, on which alone it is compared ({listed}): a difference "
        "between solvers on different grids is one of the grids too. Heun stands at its true odd "
        f"counts. What a sample took in wall time stands beside the evaluations in <a href='#run'>"
        f"the run's measured speeds</a>. {error}"
    )


def _where(
    curves: Curves, compared: Mapping[tuple[Which, Which], Sequence[tuple[Any, ...]]]
) -> str:
    """A list of where each correction helps, and where it does not, from the verdicts."""
    several = len({which.model for which in curves}) > 1
    items = []
    for (ours, theirs), lines in compared.items():
        said = "; ".join(pairs.in_words(lines, {HOLDS: "better", FAILS: "worse"}))
        if said:
            against = "" if ours.solver == theirs.solver else f" against {theirs.solver}"
            model = f" ({ours.model})" if several else ""
            items.append(f"<li>{html.escape(f'{ours.solved}{against}{model}: {said}')}</li>")
    if not items:
        return ""
    return (
        "<p>Where corrections help here and where they do not, beyond the 95 % interval "
        "of the logarithm of the ratio (evaluations):</p><ul>" + "".join(items) + "</ul>"
        "<p>What an exact denoiser leads to expect: DDIM's own step already has the right length, "
        "so that its gamma is near 1; at 3 evaluations a step is too long for one number; at 20 "
        "and more there is little left to correct; the look-ahead corrector helps from about 10 "
        "evaluations on. The calibrated gamma is right on the straight path from an image to "
        "noise, on which no solver stays exactly. A trained denoiser has errors of its own, which "
        "a gamma calibrated on data corrects too: it may gain FID while it leaves the model's "
        "trajectory, at many evaluations as well. The literal correction is the paper's: it jumps "
        "to the clean image, leaves the noise level, and is shown for comparison.</p>"
    )


def _plots(curves: Curves, metric: str) -> list[Figure]:
    """The plain and fitted solvers together, then every solver with its corrections; the literal
    one, which is orders away, with all solvers on a figure of its own."""
    figures = []
    for index, model in enumerate(dict.fromkeys(which.model for which in curves)):
        of = [which for which in curves if which.model == model and metric in curves[which]]
        literal = [which for which in of if which.correction == LITERAL]
        of = [which for which in of if which.correction != LITERAL]
        plain = [which for which in of if which.correction == PLAIN]
        solvers = dict.fromkeys(which.solver for which in of if which.correction != PLAIN)
        groups = {"solvers": plain, LITERAL: literal} | {
            solver: [
                which
                for which in of
                if which.solver == solver
                or (which.solver in names.FITTED_SOLVERS and _same_grid(which, solver, of))
            ]
            for solver in solvers
        }
        end = f"-{index}" if index else ""
        for name, group in groups.items():
            if group:
                stem = f"few-steps-{metric.replace('_', '-')}-{name}{end}"
                figures.append(_plot(stem, metric, group, curves, model))
    return figures


def _same_grid(fitted: Which, solver: str, among: Sequence[Which]) -> bool:
    return any(which.solver == solver and which.grid == fitted.grid for which in among)


def _plot(stem: str, metric: str, group: Sequence[Which], curves: Curves, model: str) -> Figure:
    of = {which: curves[which][metric] for which in group}
    grids = dict.fromkeys(which.grid for which in group)
    lines = [
        over_nfe(which.solved + (f" ({which.grid})" if len(grids) > 1 else ""), by_nfe)
        for which, by_nfe in of.items()
    ]
    seeds = [by_seed for by_nfe in of.values() for by_seed in by_nfe.values()]
    counts = {score.protocol.num_samples for by_seed in seeds for score in by_seed.values()}
    most = max(map(len, seeds))
    bars = f"over {most} seeds of the noise" if most > 1 else "of the samples, one seed"
    caption = (
        f"{score_name(metric)} over network evaluations; {model}; grids: {', '.join(grids)}; "
        f"{', '.join(map(str, sorted(counts)))} samples a point; bars: one standard error ({bars})."
    )
    return plot_over_nfe(stem, metric, lines, caption)


@dataclass(frozen=True)
class Gammas:
    """gamma of every step of a solver at one NFE, over the times t at which the steps begin."""

    solver: str
    correction: str
    grid: str
    nfe: int
    t: tuple[float, ...]
    gamma: tuple[float, ...]
    clip: tuple[float, float] | None = None


def _gammas(schedules: Sequence[Any], samples: Iterator[Any]) -> list[Gammas]:
    """Those of stored schedules, and those that samples were corrected with on their batch."""
    gammas = []
    for schedule in schedules:
        facts = schedule.description
        if not isinstance(facts["values"][0], list):  # weights of a fitted solver
            where = (facts["solver"], schedule.name, facts["grid"], facts["nfe"])
            clip = facts.get("clip")  # schedules of earlier runs do not say it
            values, t = tuple(facts["values"]), _times(facts["levels"][:-1])
            gammas.append(Gammas(*where, t, values, None if clip is None else tuple(clip)))
    for artifact in samples:
        facts = artifact.description
        if facts.get("correction") in ("online", "literal"):
            where = (facts["solver"], facts["correction"], facts["grid"], facts["nfe"])
            steps = artifact.steps
            gammas.append(Gammas(*where, _times(steps["level"]), tuple(steps["gamma"])))
    return sorted(gammas, key=lambda g: (g.correction, g.solver, g.grid, g.nfe))


def _clips(gammas: Sequence[Gammas]) -> str:
    """Which bounds gammas were kept within."""
    solvers: dict[tuple[float, float], set[str]] = {}
    for one in gammas:
        if one.clip is not None:
            solvers.setdefault(one.clip, set()).add(one.solver)
    stored = [
        f"[{low:g}, {high:g}] ({', '.join(sorted(of))})" for (low, high), of in solvers.items()
    ]
    said = f"Stored schedules are clipped to {', '.join(stored)}. " if stored else ""
    if any(one.correction == "calibrated on trajectories" for one in gammas):
        said += "What was fitted to trajectories is not clipped. "
    kinds = {one.correction for one in gammas}
    if "online" in kinds:
        said += "Estimates on the batch are clipped to [0.8, 1.2]. "
    if "literal" in kinds:
        said += "The literal gamma has no upper bound. "
    return said


def _times(levels: Sequence[float]) -> tuple[float, ...]:
    return tuple(s / (1 + s) for s in levels)


def _steps(gammas: Sequence[Gammas]) -> Section:
    groups: dict[tuple[str, str, str], list[Gammas]] = {}
    for one in gammas:
        groups.setdefault((one.correction, one.solver, one.grid), []).append(one)
    text = (
        "<p>A step from y with the solver's proposal T(y) ends at y - gamma (y - T(y)); gamma = 1 "
        f"is the solver's own step. {_clips(gammas)}{_repeated(groups)}</p>"
    )
    figures = []
    for (correction, solver, grid), members in groups.items():
        if solver == "unipc" and _same_as_2m(groups, correction, grid):
            continue
        curves = [Curve(f"NFE {one.nfe}", one.t, one.gamma) for one in members]
        caption = f"gamma of every step: {solver}, {correction}, grid {grid}."
        stem = f"gamma-{solver}-{correction.replace(' ', '-')}-{grid.split()[0].replace('_', '-')}"
        label = "t at the step's start (1 noise, 0 data)"
        figures.append(plot(stem, caption, curves, Axes(label, "gamma")))
    return Section("Corrections: gamma of every step", text, (), figures)


def _same_as_2m(groups: Mapping[tuple[str, str, str], list[Gammas]], *where: str) -> bool:
    ours, theirs = (
        [(one.nfe, one.gamma) for one in groups.get((where[0], solver, where[1]), [])]
        for solver in ("unipc", "dpmpp2m")
    )
    return bool(ours) and ours == theirs


def _repeated(groups: Mapping[tuple[str, str, str], list[Gammas]]) -> str:
    if any(s == "unipc" and _same_as_2m(groups, c, g) for c, s, g in groups):
        return (
            "UniPC's gammas are those of DPM-Solver++ 2M, its predictor: gamma rectifies the "
            "predicted state, before the corrector of the next step reads it."
        )
    return ""


def _contractivity(measured: Sequence[Any]) -> Section:
    lines = [
        ("solver", "grid", "NFE", "mean over steps", "largest", "at t", "steps above 1, of states")
    ]
    curves: dict[tuple[str, str], list[Any]] = {}
    for artifact in sorted(measured, key=lambda a: (a.description["solver"], a.description["nfe"])):
        facts, rows = artifact.description, artifact.load()
        largest, above = peak(rows)
        mean = sum(row.mean for row in rows) / len(rows)
        lines.append(
            (facts["solver"], facts["grid"], facts["nfe"], mean, largest.maximum, largest.t, above)
        )
        t = [row.t for row in rows]
        curves.setdefault((facts["solver"], facts["grid"]), []).extend(
            Curve(f"{name}, NFE {facts['nfe']}", t, [getattr(row, name) for row in rows])
            for name in ("mean", "maximum")
        )
    facts = measured[0].description
    text = (
        "<p>The largest singular value of a step's Jacobian along the solver's own trajectories: "
        "above 1 a step drives neighbouring states apart. For a multistep solver it is the "
        "one-step map with its history held constant, J = r I + b dD/dy. The power method "
        f"({facts['iterations']} iterations, {facts['num_trajectories']} trajectories) gives a "
        "lower bound; the maximum is over trajectories and grows with their number.</p>"
    )
    figures = [
        plot(
            f"lipschitz-{solver}",
            f"Largest singular value of every step, mean and maximum over "
            f"{facts['num_trajectories']} trajectories: {solver}, grid {grid}.",
            of_steps,
            Axes("t at the step's start (1 noise, 0 data)", "largest singular value"),
        )
        for (solver, grid), of_steps in curves.items()
    ]
    return Section("Contractivity of steps", text, [table(lines)], figures)


def report(made: Made) -> Iterator[Section]:
    """The sections on what a run made."""
    inputs = {
        "schedules": made.of("calibrate"),
        "lipschitz": made.of("lipschitz"),
        "samples": made.inputs.get("samples", {}),
    }
    yield from sections(inputs, without_densities(made.over_nfe))
