"""The report on MaskAlign: beside its ancestors, without its parts, and its alignment gradients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stages.pages import pairs
from stages.pages.curves import STEP, grouped, mean_curve
from stages.pages.figures import Axes, Curve, Figure, plot, svg
from stages.pages.page import Section, table
from stages.papers.maskalign.claims import ANCESTORS, METRIC, OURS, over_steps

if TYPE_CHECKING:
    from stages.artifacts.diagnosis import Measured
    from stages.pages.made import Made
    from stages.papers.maskalign.claims import Curves

HEADING = ("compared with", *(STEP if word == "NFE" else word for word in pairs.HEADING[1:]))


def _curves(scores: Mapping[str, Any]) -> Curves:
    """Every curve over training steps, of single sets of samples."""
    return over_steps(
        {
            node: artifact.load(every_seed=True)
            for node, artifact in scores.items()
            if artifact.settings["abscissa"] == "training_step"
        }
    )


def _compared(ours: Any, others: Mapping[str, Any], steps: Sequence[int]) -> list[tuple[Any, ...]]:
    lines = []
    for name, theirs in others.items():
        at = {step: theirs[step] for step in steps if step in theirs}
        lines += [(name, *line[1:]) for line in pairs.lines({METRIC: ours}, {METRIC: at}, [METRIC])]
    return [HEADING, *lines] if lines else []


def against_ancestors(scores: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    curves = _curves(scores)
    if OURS not in curves:
        return []
    others = {name: of for name, of in curves.items() if name in ANCESTORS and len(of) > 1}
    return _compared(curves[OURS], others, sorted(curves[OURS]))


def ablation(scores: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    curves = _curves(scores)
    if OURS not in curves:
        return []
    others = {name: curve for name, curve in curves.items() if name.startswith(f"{OURS}-")}
    variants = [max(curve) for curve in others.values()]
    if others and "reg" in curves:
        others["reg"] = curves["reg"]
    return _compared(curves[OURS], others, [max(variants, default=max(curves[OURS]))])


def alignment(diagnoses: Mapping[str, Any]) -> Section:
    """Heatmaps of the last checkpoints, their summaries over steps, and the stability gap."""
    groups = {
        name: [artifact.load() for artifact in many] for name, many in grouped(diagnoses).items()
    }
    summaries = {
        attribute: [_of_measured(name, many, attribute) for name, many in groups.items()]
        for _, attribute, *_ in SUMMARIES
    }
    figures = [
        plot(stem, caption, summaries[attribute], Axes(STEP, label))
        for stem, attribute, label, caption in SUMMARIES
        if any(len(curve.x) for curve in summaries[attribute])
    ]
    panels = [
        _heatmap(name, many[0][-1], which)
        for name, many in groups.items()
        for which in (("full", "masked") if name == OURS else ("full",))
    ]
    text = (
        "<p>Of every training image: which patches have the largest gradients of the alignment "
        "loss, at the alignment layer. The paper finds a ratio of 21 between the most and the "
        "least frequent patch for alignment over all tokens; it is infinite, and in no figure, "
        "where a patch is never among the largest, and with few patches the coefficient of "
        "variation is steadier. The stability gap is the alignment loss of the kept tokens with "
        "the others masked, minus that of the same tokens with the others present; of the "
        "paper's, MaskAlign's is 13.8 % of REG's, and the claim has the ratio here. All on the "
        "averaged weights, the same images, times (drawn as in training), noise and masks for "
        "every method.</p>"
    )
    return Section("Alignment", text, figures=figures, panels=panels)


SUMMARIES = (
    (
        "stability-gap",
        "gap",
        "G = L_align(masked) - L_align(full)",
        "Stability gap over training; bars: one standard error over seeds, or over blocks of "
        "images where there is one seed.",
    ),
    (
        "alignment-ratio",
        "max_min_ratio",
        "largest / smallest probability",
        "How unevenly the largest alignment gradients fall on patches, all tokens present.",
    ),
    (
        "alignment-variation",
        "variation",
        "coefficient of variation",
        "How unevenly the largest alignment gradients fall on patches, all tokens present: the "
        "standard deviation over the mean of the probability.",
    ),
)


def _of_measured(name: str, many: Sequence[Sequence[Measured]], attribute: str) -> Any:
    if len(many) > 1:
        rows = [
            [(m.step, getattr(m, attribute)) for m in one if getattr(m, attribute) is not None]
            for one in many
        ]
        return mean_curve(name, rows)
    shown = [m for m in many[0] if getattr(m, attribute) is not None]
    errors = [m.gap_error for m in shown] if attribute == "gap" else None
    return Curve(name, [m.step for m in shown], [getattr(m, attribute) for m in shown], errors)


def _heatmap(name: str, measured: Measured, which: str) -> Figure:
    """Probabilities of the patches as coloured squares."""
    import numpy as np

    rows = getattr(measured, which)
    ratio = measured.max_min_ratio if which == "full" else measured.masked_max_min_ratio
    variation = measured.variation if which == "full" else measured.masked_variation

    def draw(ax: Any) -> None:
        values = np.array(rows, float)
        mesh = ax.pcolormesh(values, cmap="viridis", vmin=0)
        ax.set_aspect("equal")
        ax.invert_yaxis()
        ax.grid(False)
        for axis, size in zip((ax.yaxis, ax.xaxis), values.shape, strict=True):
            first = range(0, size, -(-size // 8))
            axis.set_ticks([i + 0.5 for i in first], [str(i) for i in first])
        ax.set_xlabel("patch column")
        ax.set_ylabel("patch row")
        ax.figure.colorbar(mesh, ax=ax, label="probability of a largest gradient")

    tokens = "every token present" if which == "full" else "a quarter masked, where present"
    caption = (
        f"{name}, step {measured.step}, {tokens}: max/min "
        f"{'infinite' if ratio is None else f'{ratio:.2f}'}, coefficient of variation "
        f"{variation:.3f}."
    )
    stem = f"heatmap-{name}-{which}"
    columns = ("row", *(f"column {i}" for i in range(len(rows[0]))))
    lines = [columns, *((i, *row) for i, row in enumerate(rows))]
    return Figure(stem, caption, svg(draw, stem, (4.9, 3.4)), lines)


def report(made: Made) -> Iterator[Section]:
    """MaskAlign at equal steps beside its ancestors and without its parts, and its alignment."""
    scores = made.inputs.get("scores", {})
    parts = (
        ("At equal steps: fid, lower is better", against_ancestors(scores)),
        ("Parts taken away: fid, lower is better", ablation(scores)),
    )
    text = (
        "<p>Differences are MaskAlign's score minus the other's, seed by seed where there are "
        "several; a verdict holds beyond the 95 % interval of the logarithm of the ratio. "
        "Without mask and mixing MaskAlign is REG.</p>"
    )
    if tables := [f"<h3>{title}</h3>{table(lines)}" for title, lines in parts if lines]:
        yield Section("MaskAlign", text, tables)
    if diagnoses := made.of("diagnose"):
        yield alignment(diagnoses)
