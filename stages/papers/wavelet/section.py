"""Wavelet scores in the report: risks beside baselines and networks, maps, curves, filters and
samples. One section a data set."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from stages.pages.figures import Axes, Curve, Figure, plot, svg
from stages.pages.page import Picture, Section, table, with_error
from stages.papers.wavelet import denoisers

if TYPE_CHECKING:
    from torch import Tensor

    from stages.artifacts.risks import Risk
    from stages.pages.made import Made

SIGMA = "sigma (standard deviations of the training pixels)"
MSE = "squared error (pixel variances)"
TOGETHER = 8  # curves in one figure, at most, of wavelet scores
MOST = 10  # rows of a picture of maps or filters


def sections(inputs: Mapping[str, Any]) -> list[Section]:
    """One section for each data set whose risks were measured; none for other runs."""
    risks = [artifact.load() for artifact in inputs.get("risks", {}).values()]
    return [
        _section(Compared(dataset, of), inputs.get("drawn", {}))
        for dataset, of in denoisers.by_dataset(risks).items()
    ]


@dataclass(frozen=True)
class Compared:
    """All denoisers of one data set, on the same noise levels."""

    dataset: str
    risks: Sequence[Risk]

    @property
    def sigmas(self) -> tuple[float, ...]:
        return self.risks[0].sigmas

    @property
    def middle(self) -> int:
        """The place of the noise level nearest to 1."""
        return min(range(len(self.sigmas)), key=lambda i: abs(self.sigmas[i] - 1))

    @cached_property
    def wavelets(self) -> list[Risk]:
        return self.of_kind("score")

    @cached_property
    def others(self) -> list[Risk]:
        return [risk for risk in self.risks if risk.kind != "score"]

    @cached_property
    def local(self) -> list[Risk]:
        """The wavelet scores of local families."""
        return [risk for risk in self.wavelets if risk.family not in denoisers.FAR]

    @cached_property
    def best(self) -> list[Risk]:
        """The local scores that are the lowest of theirs at some noise level, and the others."""
        if not self.local:
            return self.wavelets
        lowest = {self.lowest(self.local, i).name for i in range(len(self.sigmas))}
        return [r for r in self.wavelets if r.name in lowest or r not in self.local]

    @staticmethod
    def lowest(risks: Sequence[Risk], i: int) -> Risk:
        return min(risks, key=lambda risk: risk.mse[i])

    def of_kind(self, kind: str) -> list[Risk]:
        return [risk for risk in self.risks if risk.kind == kind]

    def figure(self, name: str) -> str:
        return f"wavelet-{self.dataset}-{name}"


def _section(of: Compared, drawn: Mapping[str, Any]) -> Section:
    differences = denoisers.differences(of.wavelets, of.others, of.sigmas)
    figures = [_absolute(of), *_relative(of), _scales(of), _maps(of), _filters(of), *_responses(of)]
    return Section(
        f"Wavelet score: {of.dataset}",
        _words(of),
        [table(rows) for rows in (_table(of), _lowest(of), differences) if rows],
        [figure for figure in figures if figure is not None],
        list(_pictures(of, drawn)),
    )


def _words(of: Compared) -> str:
    labelled = (
        " Networks are asked without a class, as the others are; <i>labelled</i> is told it."
        if of.of_kind("network")
        else ""
    )
    return (
        "<p>Mean squared error of denoised held-out images. Noise is in standard deviations of the "
        f"training pixels ({of.risks[0].std:.4g} of the images' own unit), errors in their "
        "variance. A wavelet score (family and degree) is fitted without a gradient step; its "
        "risk, and that of identity, mean and Wiener filter, is a closed form, exact for these "
        "images. The others are measured on one shared noise, ± one standard error over images, "
        "which are taken as independent. Differences are taken image by image on that noise; of a "
        "family the highest degree stands for it; within noise is within the 95 % interval."
        f"{labelled}</p><p>{html.escape(_seen(of))}</p>"
    )


def _seen(of: Compared) -> str:
    """What the numbers say, from differences image by image."""
    others = [risk for risk in of.risks if risk not in of.local]
    lowest = [of.lowest(of.local, i) for i in range(len(of.sigmas))] if of.local else []
    said = denoisers.seen(of.local, others, lowest, of.sigmas)
    said += denoisers.gap_in_words(of.wavelets, of.others, of.sigmas)
    if any(risk.family == "full" for risk in of.wavelets):
        said += " Family full of degree 1 is the Wiener filter but for its ridge."
    if any(risk.family == denoisers.PRINCIPAL for risk in of.wavelets):
        said += (
            " Family principal (ours, not the paper's) is the Wiener filter and polynomials of "
            "leading principal coordinates, in closed form too; with -folds its size and ridge are "
            "those of least risk on training folds."
        )
    if any(risk.family == "residual" for risk in of.wavelets):
        said += (
            " Family residual (ours) is the Wiener filter and additive local polynomials of what "
            "it leaves."
        )
    return said


def _table(of: Compared) -> list[tuple[Any, ...]]:
    """Every denoiser's risk at every noise level."""
    heading = ("denoiser", *(f"sigma {sigma:g}" for sigma in of.sigmas))
    rows = [
        (
            risk.name,
            *(
                f"{value:.6f}" if error is None else with_error(value, error)
                for value, error in zip(risk.mse, risk.standard_error, strict=True)
            ),
        )
        for risk in of.risks
    ]
    return [heading, *rows]


def _lowest(of: Compared) -> list[tuple[Any, ...]]:
    """The lowest of each kind at every noise level."""
    kinds = {
        "wavelet scores": of.wavelets,
        "baselines": [risk for risk in of.others if risk.kind != "network"],
        "networks": of.of_kind("network"),
    }
    rows: list[tuple[Any, ...]] = [("lowest of", *(f"sigma {sigma:g}" for sigma in of.sigmas))]
    for kind, risks in kinds.items():
        if risks:
            lowest = [of.lowest(risks, i) for i in range(len(of.sigmas))]
            cells = [f"{risk.name}: {risk.mse[i]:.5f}" for i, risk in enumerate(lowest)]
            rows.append((kind, *cells))
    return rows


# --- curves over sigma --------------------------------------------------------------------------


def _absolute(of: Compared) -> Figure:
    shown = [*of.others, *of.best]
    curves = [Curve(r.name, of.sigmas, r.mse, r.standard_error) for r in shown]
    caption = (
        f"{of.dataset}: held-out error over noise, of baselines, networks, families full and "
        "principal, and every other wavelet score that is the lowest of its kind somewhere."
    )
    axes = Axes(SIGMA, MSE, log_x=True, log_y=True, ticks=of.sigmas)
    return plot(of.figure("risk"), caption, curves, axes)


def _relative(of: Compared) -> Iterator[Figure]:
    """Wavelet scores over the Wiener filter, one figure a degree where there are many."""
    if not of.of_kind("wiener") or not of.wavelets:
        return
    (wiener, *_) = of.of_kind("wiener")
    if len(of.wavelets) <= TOGETHER:
        yield _relative_figure(of, wiener, of.wavelets, "relative")
        return
    for degree in sorted({risk.degree for risk in of.wavelets}):
        chosen = [risk for risk in of.wavelets if risk.degree == degree]
        yield _relative_figure(of, wiener, chosen, f"relative-d{degree}")


def _relative_figure(of: Compared, wiener: Risk, chosen: Sequence[Risk], name: str) -> Figure:
    curves = [
        Curve(risk.name, of.sigmas, [a / b for a, b in zip(risk.mse, wiener.mse, strict=True)])
        for risk in chosen
    ]
    caption = (
        f"{of.dataset}: held-out error of wavelet scores over that of the full Wiener filter, the "
        "best affine denoiser for the training images' mean and covariance."
    )
    axes = Axes(SIGMA, "error over the Wiener filter's", log_x=True, ticks=of.sigmas)
    return plot(of.figure(name), caption, curves, axes)


def _scales(of: Compared) -> Figure | None:
    """Risk by scale, of one denoiser of each kind."""
    curves = []
    for risk in _representatives(of):
        for scale, values in risk.scales().items():
            left = [value / sigma**2 for value, sigma in zip(values, of.sigmas, strict=True)]
            name = f"approximation {scale}" if scale[0] == "A" else f"details {scale}"
            curves.append(Curve(f"{risk.name}, {name}", of.sigmas, left))
    caption = (
        f"{of.dataset}: share of the noise left in each scale, 1 the finest; per coefficient, the "
        "three orientations together."
    )
    axes = Axes(SIGMA, "error over sigma squared", log_x=True, log_y=True, ticks=of.sigmas)
    return plot(of.figure("scales"), caption, curves, axes) if curves else None


def _representatives(of: Compared) -> list[Risk]:
    """The best local score, the Wiener filter and the first network, those there are."""
    local = [of.lowest(of.local, of.middle)] if of.local else []
    return local + of.of_kind("wiener") + of.of_kind("network")[:1]


# --- pictures of arrays -------------------------------------------------------------------------


def _maps(of: Compared) -> Figure | None:
    """Risk of every wavelet coefficient."""
    from matplotlib.colors import LogNorm

    plain = ("identity", "mean")
    shown = [*of.best, *(risk for risk in of.others if risk.kind not in plain)][:MOST]
    tiles = {
        risk.name: [risk.maps[i].mean(0) / of.sigmas[i] ** 2 for i in range(len(of.sigmas))]
        for risk in shown
    }
    rows: list[Sequence[Any]] = [("denoiser", "band", *(f"sigma {s:g}" for s in of.sigmas))]
    rows += [(risk.name, band, *values) for risk in shown for band, values in risk.bands.items()]
    caption = (
        f"{of.dataset}: share of the noise left in each wavelet coefficient (error over sigma "
        "squared, 1 and above alike): the approximation top left, horizontal details below it, "
        "vertical ones right of it, diagonal ones across. The table has each band's error."
    )
    look = {"cmap": "viridis", "norm": LogNorm(0.01, 1)}
    return _tiles(of, "maps", caption, tiles, look, "error / sigma²", rows)


def _filters(of: Compared) -> Figure | None:
    """How the centre pixel answers to every pixel."""
    shown = [risk for risk in [*of.best, *of.others] if risk.filters is not None][:MOST]
    tiles = {
        risk.name: [one.mean(0) / one.mean(0).abs().max().clamp(min=1e-12) for one in risk.filters]
        for risk in shown
    }
    caption = (
        f"{of.dataset}: the filter of the denoised centre pixel, its derivative by every noisy "
        "pixel, averaged over noisy held-out images and colours, each in units of its largest "
        "value. A linear denoiser's is its matrix row."
    )
    look = {"cmap": "RdBu_r", "vmin": -1.0, "vmax": 1.0}
    return _tiles(of, "filters", caption, tiles, look, "relative weight")


def _tiles(
    of: Compared,
    name: str,
    caption: str,
    tiles: Mapping[str, Sequence[Tensor]],
    look: Mapping[str, Any],
    label: str,
    rows: Sequence[Sequence[Any]] = (),
) -> Figure | None:
    """A table of pictures: a row a denoiser, a column a noise level."""
    import numpy as np

    if not tiles:
        return None
    height, width = next(iter(tiles.values()))[0].shape
    gap = max(1, height // 8)
    step = (height + gap, width + gap)
    sheet = np.full((len(tiles) * step[0] - gap, len(of.sigmas) * step[1] - gap), np.nan)
    for row, pictures in enumerate(tiles.values()):
        for column, picture in enumerate(pictures):
            top, left = row * step[0], column * step[1]
            sheet[top : top + height, left : left + width] = picture

    def draw(ax: Any) -> None:
        image = ax.imshow(sheet, interpolation="nearest", aspect="auto", **look)
        centres = [[i * s + (s - gap) / 2 - 0.5 for i in range(n)] for s, n in counts]
        ax.set_xticks(centres[1], [f"{sigma:g}" for sigma in of.sigmas])
        ax.set_yticks(centres[0], list(tiles))
        ax.set_xlabel(SIGMA)
        ax.set_ylabel("denoiser")
        ax.grid(False)
        ax.spines[:].set_visible(False)
        ax.figure.colorbar(image, label=label, aspect=30, pad=0.02)

    counts = ((step[0], len(tiles)), (step[1], len(of.sigmas)))
    size = (6.4, 0.6 + 4.0 * sheet.shape[0] / sheet.shape[1])  # which makes pixels square
    figure = of.figure(name)
    return Figure(figure, caption, svg(draw, figure, size), rows)


# --- response curves ----------------------------------------------------------------------------


def _responses(of: Compared) -> Iterator[Figure]:
    """Scores against coefficients: bands of one family, then families in one band."""
    curved = [risk for risk in of.wavelets if risk.responses]
    if not curved:
        return
    one = max(curved, key=lambda risk: (risk.degree, risk.family == "independent"))
    bands = list(one.responses)
    bands = [bands[0], *(band for band in bands[1:] if band[0] == "H")]
    by_band = [(f"{one.name} {band}", one, band) for band in bands]
    yield _response_figure(of, "responses", by_band, of.middle)
    finest = bands[-1]
    by_degree = sorted(curved, key=lambda risk: risk.degree, reverse=True)[:6]
    families = [(risk.name, risk, finest) for risk in by_degree]
    yield _response_figure(of, "families", families, _most_bent(one, finest))


def _most_bent(risk: Risk, band: str) -> int:
    """The noise level at which a band's score departs the most from its straight line."""
    bent = [(r.score - r.linear).abs().max() / r.linear.abs().max() for r in risk.responses[band]]
    return max(range(len(bent)), key=lambda i: bent[i])


def _response_figure(
    of: Compared, name: str, shown: Sequence[tuple[str, Risk, str]], level: int
) -> Figure:
    curves, linear = [], {}
    for label, risk, band in shown:
        response = risk.responses[band][level]
        w, line = response.w.tolist(), response.linear.tolist()
        curves.append(Curve(label, w, response.score.tolist()))
        linear.setdefault(band, Curve(f"linear {band}", w, line, like=len(curves) - 1))
    bands = ", ".join(linear)
    caption = (
        f"{of.dataset}: score of the middle coefficient of {bands} against its noisy value at "
        f"sigma {of.sigmas[level]:g}, every other coefficient at its mean, beside the straight "
        "line (dashed) of the diagonal Wiener filter, -(w - mean) / (variance + sigma²)."
    )
    axes = Axes(
        "noisy coefficient (standard deviations of the training pixels)",
        "score (one over that)",
    )
    return plot(of.figure(name), caption, [*curves, *linear.values()], axes)


# --- samples ------------------------------------------------------------------------------------


def _pictures(of: Compared, drawn: Mapping[str, Any]) -> Iterator[Picture]:
    for name, artifact in drawn.items():
        facts = artifact.description
        if facts["dataset"] == of.dataset:
            caption = (
                f"{name.removeprefix('draw/')}: {facts['solver']}, {facts['nfe']} evaluations, "
                f"grid {facts['grid']}, seed {facts['seed']}; samples of the closed-form score, "
                "nothing selected"
            )
            yield Picture(caption, (artifact.path / "grid.png").read_bytes())


def report(made: Made) -> Iterator[Section]:
    """The sections on what a run made."""
    yield from sections({"risks": made.of("risk"), "drawn": made.of("draw")})
