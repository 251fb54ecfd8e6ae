"""CSFlow in the report: what the eye sees of the data, the weights and grids, and their scores."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stages.pages import pairs
from stages.pages.curves import most_seeds, of_metric, over_nfe, plot_over_nfe
from stages.pages.figures import Axes, Curve, Figure, plot, svg
from stages.pages.looks import looks, score_name, shown
from stages.pages.page import Section, folded
from stages.papers.csflow import claims
from stages.settings.densities import DensityOptions, Display, time_density

if TYPE_CHECKING:
    from stages.artifacts.spectrum import PowerSpectrum
    from stages.methods.csflow import FigureData
    from stages.pages.curves import Curves
    from stages.pages.made import Made
    from stages.scoring.evaluate import Row

TICKS = 10  # steps of the grids drawn as ticks
METRICS = ("fid", "trajectory_rms")


def sections(inputs: Mapping[str, Any], scores: Mapping[str, Sequence[Row]]) -> list[Section]:
    """The sections of a run that made a spectrum; none for others.

    inputs: the report's. scores: its curves over NFE, by node.
    """
    if inputs.get("spectrum") is None:
        return []
    spectrum, display = inputs["spectrum"].load(), _display(inputs)
    parts = [_curves(spectrum, display)]
    curves = claims.on_grids(scores)
    if any(claims.is_own(which.grid) for which in curves):
        parts.append(_scores(curves))
    return parts


def _display(inputs: Mapping[str, Any]) -> Display:
    """The screen of the run's CSFlow grids, or of its trainings."""
    for artifact in inputs.get("samples", {}).values():
        if artifact.settings.get("grid") == "csflow":
            return Display(**artifact.settings["density"]["display"])
    for artifact in inputs.get("training", {}).values():
        if (artifact.settings.get("density") or {}).get("kind") == "csflow":
            return Display(**artifact.settings["density"]["display"])
    return Display()


# --- what is seen when ------------------------------------------------------------------------


def _curves(spectrum: PowerSpectrum, display: Display) -> Section:
    from stages.methods.csflow import figure_data

    geometry = {"image_pixels": spectrum.image_pixels, **display.model_dump()}
    data = figure_data(spectrum.frequency, spectrum.power, TICKS, **geometry)
    figures = [
        _spectrum(data, spectrum),
        _sensitivity(data),
        _map(data),
        _weights(data),
        _displays(spectrum, display),
        _ticks(spectrum, display),
    ]
    return Section("CSFlow: what is generated when", _words(data, spectrum, display), (), figures)


def _words(data: FigureData, spectrum: PowerSpectrum, display: Display) -> str:
    degrees = math.degrees(2 * math.atan(display.pixel_size / (2 * display.distance)))
    early, late = (data.weights[half].mean().item() for half in (data.t > 0.5, data.t < 0.5))
    peak = data.t[data.weights.argmax()].item()
    where = "towards data" if late > early else "towards noise"
    latent = (
        " <b>These are latents</b>: a frequency in a latent is no frequency in the picture, so "
        "that the weights have no ground in human vision."
        if spectrum.latent
        else ""
    )
    return (
        f"<p>{spectrum.num_images} training images of {spectrum.height} x {spectrum.width} pixels, "
        f"looked at with the longer side filling {display.display_pixels} display pixels of "
        f"{1000 * display.pixel_size:g} mm from {display.distance:g} m: "
        f"{display.display_pixels * degrees:.3g} degrees. The images' frequencies are then "
        f"{data.frequency_cpd[0]:.3g} to {data.frequency_cpd[-1]:.3g} cycles per degree; the eye "
        f"is most sensitive near 2.4. The weights lean <b>{where}</b>: their mean over the half "
        f"near noise is {early:.3g}, near data {late:.3g}, and they peak at t = {peak:.2f} (the "
        "paper's weights for ImageNet at 256 pixels peak at t = 0.83, towards noise). The display "
        f"is a choice, and the weights follow it, as the figure over displays shows.{latent}</p>"
    )


def _spectrum(data: FigureData, spectrum: PowerSpectrum) -> Figure:
    x, y = data.frequency_cpd.tolist(), data.power.tolist()
    curves = [Curve("images", x, y), Curve("white noise", x, [1.0] * len(x))]
    caption = (
        f"Power spectrum of the training images in grey, averaged over {len(x)} rings of the "
        "frequency plane; white noise of unit variance has 1."
    )
    axes = Axes("frequency (cycles per degree)", "power", log_x=True, log_y=True)
    return plot("csflow-spectrum", caption, curves, axes)


def _sensitivity(data: FigureData) -> Figure:
    from stages.methods.csflow import contrast_sensitivity

    step = 4
    curves = [
        Curve(
            "the eye",
            data.sensitivity_frequency_cpd[::step].tolist(),
            data.sensitivity[::step].tolist(),
        )
    ]
    inside = data.frequency_cpd[data.frequency_cpd <= 60]
    if len(inside) <= 40:
        at = contrast_sensitivity(inside).tolist()
        curves.append(Curve("at the images' frequencies", inside.tolist(), at, joined=False))
    caption = "Contrast sensitivity of the human eye (Barten 1999): one over the least contrast."
    label = "frequency (cycles per degree)"
    return plot("csflow-sensitivity", caption, curves, Axes(label, "contrast sensitivity", True))


def _map(data: FigureData) -> Figure:
    half = (data.frequency_cpd[1] - data.frequency_cpd[0]).item() / 2
    extent = (data.frequency_cpd[0].item() - half, data.frequency_cpd[-1].item() + half, 0.0, 1.0)

    def draw(ax: Any) -> None:
        values = data.generated.numpy()
        image = ax.imshow(values, "viridis", extent=extent, aspect="auto", interpolation="nearest")
        ax.set_xlabel("frequency (cycles per degree)")
        ax.set_ylabel("t, 1 noise to 0 data")
        ax.grid(False)
        ax.figure.colorbar(image, label="gain of signal per unit of t")

    caption = (
        "What is generated when: the growth of the share of signal at each frequency, whose "
        "integral over t is 1. Frequencies of high power appear near noise, those of low power "
        "near data."
    )
    return Figure("csflow-map", caption, svg(draw, "csflow-map"))


def _thin(name: str, t: Any, values: Any) -> Any:
    """A curve of about a hundred points."""
    step = max(1, len(t) // 100)
    return Curve(name, t[::step].tolist(), values[::step].tolist())


def _weights(data: FigureData) -> Figure:
    curves = [_thin("csflow", data.t, data.weights)]
    for kind in ("minsnr", "p2"):
        curves.append(_thin(kind, data.t, time_density(DensityOptions(mix=1), kind).pdf(data.t)))
    caption = (
        "Densities over time before they are mixed with a base; 1 is uniform. MinSNR and P2 are "
        "those of their loss weights on the velocity."
    )
    return plot("csflow-weights", caption, curves, Axes("t, 0 data to 1 noise", "density"))


def _displays(spectrum: PowerSpectrum, display: Display) -> Figure:
    """The weights on other screens: how much the result owes to that choice."""
    import torch

    t = (torch.arange(500, dtype=torch.float64) + 0.5) / 500
    sizes = sorted({spectrum.image_pixels, 64, display.display_pixels, 1024})
    curves = []
    for size in sizes:
        screen = display.revised(display_pixels=size)
        try:
            density = time_density(
                DensityOptions(mix=1, display=screen), "csflow", spectrum=spectrum
            )
        except ValueError:
            continue  # on so small a display the eye sees none of the frequencies
        name = f"{size} display pixels"
        curves.append(_thin(name, t, density.pdf(t)))
    caption = (
        "CSFlow's density if the images filled other numbers of display pixels; "
        f"{display.display_pixels} is this run's, {spectrum.image_pixels} is pixel by pixel."
    )
    return plot("csflow-displays", caption, curves, Axes("t, 0 data to 1 noise", "density"))


def _ticks(spectrum: PowerSpectrum, display: Display) -> Figure:

    def grid(kind: str, mix: float) -> list[float]:
        screen = {"display": display} if kind == "csflow" else {}
        density = time_density(DensityOptions(mix=mix, **screen), kind, spectrum=spectrum)
        return density.grid(TICKS).tolist()

    members = [("csflow", 1.0), ("csflow", 0.4), ("minsnr", 0.4), ("p2", 0.4)]
    grids = {f"{kind} a={mix:g}": grid(kind, mix) for kind, mix in members}
    grids = {"uniform_t": [1 - i / TICKS for i in range(TICKS + 1)], **grids}

    def draw(ax: Any) -> None:
        rows = range(len(grids))
        colors = [look.color for look in looks(list(grids))]
        ax.eventplot(list(grids.values()), lineoffsets=list(rows), linelengths=0.7, colors=colors)
        ax.set_yticks(list(rows), list(map(shown, grids)))
        ax.invert_yaxis()
        ax.set_xlabel("t, 0 data to 1 noise")
        ax.set_ylabel("grid")

    rows = [("grid", *(f"point {i}" for i in range(TICKS + 1)))]
    rows += [(name, *points) for name, points in grids.items()]
    caption = f"Grids of {TICKS} steps: points at equal quantiles of each density."
    return Figure("csflow-grids", caption, svg(draw, "csflow-grids"), rows)


# --- how it scores ----------------------------------------------------------------------------


def _scores(curves: Curves) -> Section:
    tables, items = [], []
    for claim, ours, theirs in claims.claimed(curves):
        lines = pairs.lines(curves[ours], curves[theirs], METRICS)
        if lines:
            tables.append(pairs.claim_table(claim, lines))
            said = "; ".join(pairs.in_words(lines))
            items.append(f"<li>{html.escape(f'{claim}: {said}')}</li>")
    if tables:
        tables = [folded("Every claim in numbers", "".join(tables))]
    seeds = most_seeds(curves)
    error = (
        f"Errors are one standard error over {seeds} seeds of training and sampling; differences "
        "are taken seed by seed, where both sides share the first training and the noise."
        if seeds > 1
        else "One seed: the errors of FID are those of the samples, which does not hold "
        "the spread over training seeds; trajectory_rms has none."
    )
    text = (
        f"<p>Grids at equal evaluations; lower is better. {error} A claim holds, or does not, "
        "where the logarithm of the ratio is beyond its 95 % interval, and is inconclusive within; "
        "the numbers are evaluations.</p>"
    )
    listed = f"<ul>{''.join(items)}</ul>" if items else ""
    figures = [figure for metric in METRICS for figure in _plots(curves, metric)]
    return Section("CSFlow: scores", text + listed, tables, figures)


def _plots(curves: Curves, metric: str) -> Iterator[Figure]:
    """One figure a model: the grids over NFE."""
    of = {which: {metric: by_nfe} for which, by_nfe in of_metric(curves, metric).items()}
    seeds = most_seeds(of) if of else 1
    bars = f"over {seeds} seeds" if seeds > 1 else "of the samples, one seed"
    models = dict.fromkeys(claims.trained(which) for which in of)
    for index, model in enumerate(models):
        grids = [
            over_nfe(which.grid, metrics[metric])
            for which, metrics in of.items()
            if claims.trained(which) == model
        ]
        has_error = any(error is not None for grid in grids for error in grid.error)
        end = f"; bars: one standard error ({bars})." if has_error else "."
        stem = f"csflow-{metric.replace('_', '-')}-{index}"
        caption = f"{score_name(metric)} over evaluations by grid, {model}{end}"
        yield plot_over_nfe(stem, metric, grids, caption)


def report(made: Made) -> Iterator[Section]:
    """The sections on what a run made."""
    yield from sections(made.inputs, made.over_nfe)
