"""The ICR in the report: over training steps beside memorisation, and over noise levels."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from stages.pages.curves import STEP, grouped
from stages.pages.figures import SMALL, Figure, legend_above, logarithmic, narrow, svg
from stages.pages.findings import mean_with_error
from stages.pages.looks import looks
from stages.pages.page import Section, table
from stages.papers.icr.claims import fall, warned_before

if TYPE_CHECKING:
    from stages.artifacts.scan import Scan, ScanRow
    from stages.pages.made import Made

SIGMA = "sigma (standard deviations of the training pixels)"
BESIDE = {
    "memorization_ratio": "memorised share\nof samples",
    "denoising_mse": "held-out error\n(pixel variances)",
    "denoising_ratio": "held-out over\ntraining error",
    "fid": "FID",
}
WIDTH = 6.4  # inches of the figures
FURTHER = {
    "alignment": "alignment",
    "uniformity": "uniformity",
    "rankme": "RankMe",
    "trace_signal": "trace of signal",
    "trace_noise": "trace of noise",
    "naive": "naive ICR",
}


@dataclass(frozen=True)
class Group:
    """Scans of one kind of model, one for each training seed, over the same abscissa."""

    name: str
    scans: Sequence[Scan]

    @property
    def facts(self) -> Mapping[str, Any]:
        return self.scans[0].description

    @property
    def rows(self) -> list[list[ScanRow]]:
        return [scan.load() for scan in self.scans]

    @property
    def label(self) -> str:
        """The model's name and how many images it was trained on."""
        count = self.facts["model"]["num_images"]
        return self.name if count is None else f"{self.name}, {count} images"

    def curve(self, value: Callable[[ScanRow], float | None]) -> tuple[list, list, list]:
        """Abscissae, means over training seeds, and their standard errors (None for one seed)."""
        at = {}
        over_steps = self.facts["abscissa"] == "training_step"
        for rows in self.rows:
            for row in rows:
                if (number := value(row)) is not None:
                    at.setdefault(row.step if over_steps else row.sigma, []).append(number)
        xs = sorted(at)
        means = [mean_with_error(at[x]) for x in xs]
        return xs, [mean for mean, _ in means], [error for _, error in means]

    def icr(self) -> tuple[list, list, list]:
        """As `curve`; for one training seed the error is the pooled one over view seeds."""
        xs, means, errors = self.curve(lambda row: row.icr)
        if len(self.scans) == 1:
            errors = [self.facts["icr_error"]] * len(xs)
        return xs, means, errors


def sections(inputs: Mapping[str, Any]) -> list[Section]:
    """One section, or none where nothing was scanned."""
    groups = [Group(name, scans) for name, scans in grouped(inputs.get("scans", {})).items()]
    if not groups:
        return []
    over_steps = [g for g in groups if g.facts["abscissa"] == "training_step"]
    over_sigma = [g for g in groups if g not in over_steps]
    tables, figures = [], []
    if over_steps:
        tables.append(_claims(over_steps))
        figures.append(_steps(over_steps))
        figures.append(_further(over_steps))
    if over_sigma:
        tables.append(_windows(over_sigma))
        figures.append(_sigmas(over_sigma))
    return [Section("ICR: a warning of memorisation", _words(groups), tables, figures)]


def _words(groups: Sequence[Group]) -> str:
    facts = groups[0].facts
    guards = {guard for g in groups for rows in g.rows for row in rows for guard in row.guards}
    said, images = "", {"held_out": "held-out images", "training": "training images"}
    images = images[facts["images"]]
    rates = [f["false_alarms"] for f in _alarms(groups) if f["false_alarms"] is not None]
    rate = f"{max(rates):.1%}" if rates else "an unknown share"
    if guards:
        listed = "; ".join(html.escape(guard) for guard in sorted(guards))
        said = f" Safeguards that acted: {listed}."
    return (
        "<p>The invariant contamination ratio (ICR) says what share of a layer's features changes "
        "with the view of an image instead of telling which image it is: 1 tells nothing. It is "
        f"measured on {facts['num_images']} {images} of {html.escape(facts['dataset'])}, "
        f"{facts['num_views']} views each ({facts['strength']} augmentation and diffusion noise), "
        f"with {len(facts['view_seeds'])} seeds of views that all checkpoints share, and without "
        "sampling. The paper, which views the images trained on, finds: trained on few images, it "
        "falls and then rises again before samples become copies. The alarm is the step of its "
        "minimum, confirmed when it has risen since by scan.alarm_errors errors, of the views or "
        "of the training's own jitter, and by half of what it fell; on a curve that only falls, at "
        f"the noise seen here, that happens in {rate} of runs. Beside it stands the denoising "
        "error on held-out images over that on training images. A standard "
        f"deviation of the training pixels is {facts['std']:.3f} of images in [-1, 1].{said}</p>"
    )


def _alarms(groups: Sequence[Group]) -> Iterator[Mapping[str, Any]]:
    for group in groups:
        yield from (one.description["alarm"] for one in group.scans if one.description["alarm"])


def _claims(groups: Sequence[Group]) -> str:
    """Mean and spread over training seeds of what the paper says of ICR along a training."""
    heading = ("model", "of ICR", "mean", "spread", "least", "training seeds", "each")
    lines: list[tuple[Any, ...]] = [heading]
    for group in groups:
        facts = [scan.description for scan in group.scans]
        for name, values in (
            ("final minus minimum", [f["alarm"]["rise"] for f in facts]),
            ("start minus final", [fall(rows) for rows in group.rows]),
        ):
            spread = f"{stdev(values):.4f}" if len(values) > 1 else "–"
            each = ", ".join(f"{value:.4f}" for value in values)
            numbers = (f"{fmean(values):.4f}", spread, f"{min(values):.4f}")
            lines.append((group.label, name, *numbers, len(values), each))
        for name, steps in (
            ("step of the minimum", [f["alarm"]["step"] for f in facts]),
            ("alarm confirmed at step", [f["alarm"]["confirmed_step"] for f in facts]),
            (
                f"memorised share above {facts[0]['memorized']:g} at step",
                [f["memorization_step"] for f in facts],
            ),
        ):
            each = ", ".join("never" if step is None else str(step) for step in steps)
            lines.append((group.label, name, "", "", "", len(steps), each))
        before = [warned_before(f) for f in facts]
        told = ", ".join({True: "yes", False: "no", None: "nothing memorised"}[b] for b in before)
        lines.append((group.label, "minimum before memorisation", "", "", "", len(before), told))
    return table(lines)


def _windows(groups: Sequence[Group]) -> str:
    """Where over the noise levels ICR is lowest and the probe best."""
    lines: list[tuple[Any, ...]] = [
        ("model", "lowest ICR", "at sigma", "best probe accuracy", "at sigma", "components")
    ]
    for group in groups:
        xs, means, _ = group.icr()
        lowest = min(range(len(xs)), key=means.__getitem__)
        probed, accuracy, _ = group.curve(lambda row: row.probe_accuracy)
        best = max(range(len(probed)), key=accuracy.__getitem__) if probed else None
        probe = (None, None) if best is None else (f"{accuracy[best]:.3f}", probed[best])
        which = group.facts["components"] or "all features"
        lines.append((group.label, f"{means[lowest]:.4f}", xs[lowest], *probe, which))
    return table(lines)


# --- figures ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Panel:
    """One of several plots over a common abscissa. curves: name, (x, y, error). marks: where and of
    which curve."""

    label: str
    curves: Sequence[tuple[str, tuple[list, list, list]]]
    marks: Sequence[tuple[float, str]] = ()


def _steps(groups: Sequence[Group]) -> Figure:
    marks = [
        (scan.description["alarm"]["step"], group.label)
        for group in groups
        for scan in group.scans
        if scan.description["alarm"]["confirmed_step"] is not None
    ]
    panels = [_of_icr(groups, marks), *(_of(groups, name, BESIDE[name]) for name in BESIDE)]
    caption = (
        "ICR over training steps; below it, at the same checkpoints, the share of samples that "
        "are copies of training images, the held-out denoising error at the same noise level, "
        f"that over the training images' one, and FID. {_errors(groups)} A vertical line marks "
        "each confirmed alarm, at the minimum of ICR."
    )
    return _panels("icr-steps", caption, panels, STEP)


def _further(groups: Sequence[Group]) -> Figure:
    panels = [_of(groups, name, label) for name, label in FURTHER.items()]
    caption = (
        "What else is measured of the same features: alignment and uniformity (Wang and Isola), "
        "RankMe, the traces of signal and view noise (squared feature units), and ICR without "
        "the correction of its bias."
    )
    return _panels("icr-further", caption, panels, STEP)


def _sigmas(groups: Sequence[Group]) -> Figure:
    panels = [_of_icr(groups), _of(groups, "probe_accuracy", "probe accuracy,\nheld-out")]
    which = groups[0].facts["components"]
    on = f"the first {which} principal components" if which else "all features"
    caption = (
        f"ICR of {on} over noise levels at the last checkpoint, and the held-out accuracy of a "
        f"linear probe of the same layer at that level. {_errors(groups)}"
    )
    return _panels("icr-sigma", caption, panels, SIGMA)


def _of_icr(groups: Sequence[Group], marks: Sequence[tuple[float, str]] = ()) -> Panel:
    return Panel("ICR", [(g.label, g.icr()) for g in groups], marks)


def _of(groups: Sequence[Group], name: str, label: str) -> Panel:
    """A value of the rows, of the groups that have it."""
    curves = [(g.label, g.curve(attrgetter(name))) for g in groups]
    return Panel(label, [curve for curve in curves if curve[1][0]])


def _errors(groups: Sequence[Group]) -> str:
    if all(len(group.scans) > 1 for group in groups):
        return "Error bars: one standard error over training seeds."
    return "Error bars of ICR: one standard error over view seeds, pooled over the curve."


def _panels(name: str, caption: str, panels: Sequence[Panel], x: str) -> Figure:
    """Plots below each other over one logarithmic abscissa; those without a curve are left out."""
    panels = [panel for panel in panels if panel.curves]

    names = list(dict.fromkeys(name for panel in panels for name, _ in panel.curves))
    height = 0.9 + 1.25 * len(panels)
    look = dict(zip(names, looks(names), strict=True))

    def draw(ax: Any, panels: Sequence[Panel] = panels, is_small: bool = False) -> None:
        canvas = ax.figure
        ax.remove()
        axes = canvas.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for panel, each in zip(panels, axes, strict=True):
            for label, (xs, ys, errors) in panel.curves:
                style = {"color": look[label].color, "marker": look[label].marker, "label": label}
                bars = [error or 0.0 for error in errors]
                if any(bars):
                    each.errorbar(xs, ys, yerr=bars, capsize=3, elinewidth=1, **style)
                else:
                    each.plot(xs, ys, **style)
            for at, label in panel.marks:
                each.axvline(at, color=look[label].color, linestyle=":", linewidth=1)
            each.set_ylabel(panel.label, fontsize="small")
            if all(y >= 0 for _, (_, ys, _) in panel.curves for y in ys):
                low, high = each.get_ylim()
                each.set_ylim(bottom=max(-0.08 * high, low))  # no share is far below 0
        logarithmic(axes[-1].xaxis)
        axes[-1].set_xlabel(x)
        canvas.align_ylabels(list(axes))
        for each in axes if is_small else ():
            narrow(each)
        if len(panels[0].curves) > 1:
            size = SMALL if is_small else (WIDTH, height)
            legend_above(axes[0], *axes[0].get_legend_handles_labels(), size)

    def small() -> str:
        return svg(lambda ax: draw(ax, panels[:2], True), f"small-{name}", SMALL)

    rows: list[tuple[Any, ...]] = [("quantity", "curve", x, "value", "standard error")]
    for panel in panels:
        for label, points in panel.curves:
            rows += [
                (panel.label.replace("\n", " "), label, *point)
                for point in zip(*points, strict=True)
            ]
    return Figure(name, caption, svg(draw, name, (WIDTH, height)), rows, small)


def report(made: Made) -> Iterator[Section]:
    """The sections on what a run made."""
    yield from sections({"scans": made.of("scan")})
