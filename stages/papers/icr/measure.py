"""How one network is scanned at one noise level: the ICR of a layer, and what stands beside it.

Everything is measured on held-out images, or, as in the paper, on those trained on (`scan.images`),
under views fixed by (view seed, image, view), so that all checkpoints see the same ones. Noise
levels are in the units of the images here, [-1, 1].
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from stages.artifacts.network import as_denoiser
from stages.methods import drawn_at, representation, views
from stages.methods.draws import Draws
from stages.methods.icr import Contamination, icr
from stages.nets.taps import find_layer, view_features

if TYPE_CHECKING:
    from torch import Tensor, nn

    from stages.artifacts.data import DataSet, Images
    from stages.artifacts.network import TrainedModel
    from stages.settings.scans import ScannedOptions, ViewOptions

NUMBER = re.compile(r"-?\d+(\.\d+)?(e[+-]?\d+)?")
BLOCK = re.compile(r"(?:\w+\.)*(?:transformer_)?blocks\.\d+")
BOTTOM = re.compile(r"(?:^|\.)(?:mid|mid_block|\d+x\d+_in0)$")
KEPT_BYTES = 2**28  # views that are kept for the next checkpoint, at most


@dataclass(frozen=True)
class Subject:
    """A network to scan: the layer whose output is taken, and denoiser(y, s), without classes.

    asks_classes: it knows no input without one, and is told the images' own: denoiser(y, s,
    labels).
    """

    network: nn.Module
    denoiser: Callable[..., Tensor]
    layer: str
    pooling: str
    asks_classes: bool = False

    def told(self, labels: Tensor | None) -> Tensor | None:
        """What it is told of images with these labels."""
        return labels if self.asks_classes else None


def subject_of(model: TrainedModel, network: nn.Module, options: ViewOptions) -> Subject:
    """The network with the layer that settings name, or its middle one.

    Raises ValueError for a layer that does not exist (listing those that do), and for a network
    that carries a class token: beside held-out images alone it has no denoiser.
    """
    if model.config.get("class_token_dim"):
        raise ValueError(
            f"a network of method {model.method} sees image and class token together, and held-out "
            "images come without one; scan another network"
        )
    layer = options.layer or middle_layer(model.kind, network)
    find_layer(network, layer)
    if not model.known_classes or model.null_class:
        return Subject(network, as_denoiser(model, network), layer, options.pooling)

    def denoiser(y: Tensor, s: float, labels: Tensor | None = None) -> Tensor:
        return as_denoiser(model, network, labels)(y, s)

    return Subject(network, denoiser, layer, options.pooling, asks_classes=True)


def check(
    scans: Sequence[ScannedOptions], model: TrainedModel, network: nn.Module, data: DataSet
) -> None:
    """Raise ValueError, naming the setting, for a scan of this network that cannot be made: before
    it is trained, or its samples are drawn. One image goes through the network."""
    first = next(network.parameters(), None)
    device = "cpu" if first is None else first.device
    for options in scans:
        count = len(images_of(data, options))
        try:
            subject = subject_of(model, network, options)
            one, sigma = data.test[:1][:, None].to(device), options.sigma * data.std
            how = (subject.layer, options.pooling)
            told = subject.told(data.test.labels[:1])
            seen = view_features(network, subject.denoiser, one, sigma, *how, labels=told)
        except ValueError as error:
            raise ValueError(f"scan.layer={options.layer or 'unset'}: {error}") from error
        _check_degrees(options, seen.shape[-1], subject.layer, count)


def images_of(data: DataSet, options: ViewOptions, seen: int | None = None) -> Tensor:
    """(n, C, H, W): the first held-out images, or of those that were trained on, the first `seen`
    (None: all). Raises ValueError where there are too few held-out ones."""
    part, first = _viewed(data, options, seen)
    return part[first]


def labels_of(data: DataSet, options: ViewOptions, seen: int | None = None) -> Tensor:
    """Classes (n,) of `images_of`."""
    part, first = _viewed(data, options, seen)
    return part.labels[first]


def _viewed(data: DataSet, options: ViewOptions, seen: int | None) -> tuple[Images, slice]:
    count = options.num_images
    if options.images == "training":
        return data.train, slice(min(count, seen or len(data.train)))
    if count > len(data.test):
        raise ValueError(
            f"scan.num_images={count} is above the {len(data.test)} held-out images; lower it"
        )
    return data.test, slice(count)


def _check_degrees(options: ScannedOptions, width: int, layer: str, count: int) -> None:
    """Raise ValueError where the ICR of `width` features has no mean."""
    if options.components is not None and options.components > width:
        raise ValueError(
            f"icr.components={options.components} is above the {width} features of layer {layer}; "
            "lower it"
        )
    degrees = count * (options.num_views - 1)
    if degrees <= (dimension := options.components or width) + 1:
        raise ValueError(
            f"scan.num_images={count} and scan.num_views={options.num_views} give "
            f"f = n (V - 1) = {degrees} degrees of freedom for d = {dimension} features of layer "
            f"{layer}; ICR needs more than d + 1: raise one of them"
        )


def middle_layer(kind: str, network: nn.Module) -> str:
    """The layer measured by default: the bottom of a U-Net, the last block of a transformer's first
    half. Raises ValueError where neither is known."""
    names = [name for name, _ in network.named_modules()]
    # Blocks of SiT and JiT stand in lists of this name, whatever is around them.
    blocks = [name for name in names if BLOCK.fullmatch(name)]
    if blocks:
        return blocks[max(0, len(blocks) // 2 - 1)]
    bottoms = [name for name in names if BOTTOM.search(name)]
    if not bottoms:
        raise ValueError(f"the middle layer of a network {kind} is not known; set scan.layer")
    return bottoms[0]


class Viewer:
    """Views of images (n, C, H, W), made once for each view seed and noise level where they fit.
    labels (n,): the images' classes, for networks that are told them."""

    def __init__(self, images: Tensor, options: ViewOptions, labels: Tensor | None = None) -> None:
        self.images, self.options, self.labels = images, options, labels
        self._kept: dict[tuple[int, float], list[Tensor]] = {}
        size = images.numel() * images.element_size() * options.num_views
        self._keeps = size * len(options.view_seeds) <= KEPT_BYTES

    def __call__(self, seed: int, sigma: float) -> Iterator[Tensor]:
        """Views (k, V, C, H, W) of the images in turn, a batch's worth at a time."""
        if not self._keeps:
            yield from self._made(seed, sigma)
            return
        if (seed, sigma) not in self._kept:
            if len(self._kept) >= len(self.options.view_seeds):
                self._kept.clear()  # another noise level
            self._kept[seed, sigma] = list(self._made(seed, sigma))
        yield from self._kept[seed, sigma]

    def _made(self, seed: int, sigma: float) -> Iterator[Tensor]:
        how = self.options
        make = views.Views(how.strength, how.num_views, seed, how.padding)
        size = max(1, how.batch_size // how.num_views)
        for first in range(0, len(self.images), size):
            part = self.images[first : first + size]
            yield make(part, range(first, first + len(part)), sigma)


def features(subject: Subject, viewer: Viewer, seed: int, sigma: float) -> Tensor:
    """Features (n, V, d) of one view seed, on the CPU."""
    how = (subject.layer, subject.pooling, viewer.options.batch_size)
    network, denoiser = subject.network, subject.denoiser
    found, first = [], 0
    for part in viewer(seed, sigma):
        labels = None if viewer.labels is None else viewer.labels[first : first + len(part)]
        told = subject.told(labels)
        found.append(view_features(network, denoiser, part, sigma, *how, labels=told))
        first += len(part)
    return torch.cat(found)


def contamination(found: Tensor, tau: float | None, components: int | None) -> Contamination:
    """The ICR of features (n, V, d); its warnings are among its guards."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return icr(found, tau, components)


def measure(
    subject: Subject, viewer: Viewer, sigma: float, components: int | None = None
) -> dict[str, Any]:
    """The parts of a `ScanRow` that come from views: ICR, traces, alignment, uniformity, RankMe.

    Raises ValueError for what no ICR can be made of (constant features, too few images).
    """
    seeds, options = viewer.options.view_seeds, viewer.options
    contaminations: list[Contamination] = []
    beside: list[tuple[float, float, float]] = []
    for seed in seeds:
        of_seed = features(subject, viewer, seed, sigma)
        contaminations.append(contamination(of_seed, options.tau, components))
        beside.append(
            (
                representation.alignment(of_seed),
                representation.uniformity(of_seed),
                representation.rankme(of_seed),
            )
        )
    values = [one.value for one in contaminations]
    alignment, uniformity, rankme = (_mean(column) for column in zip(*beside, strict=True))
    return {
        "icr": _mean(values),
        "icr_seeds": values,
        "naive": _mean([one.naive_value for one in contaminations]),
        "mean_snr": _mean([one.mean_snr for one in contaminations]),
        "trace_signal": _mean([one.traces.signal for one in contaminations]),
        "trace_noise": _mean([one.traces.noise for one in contaminations]),
        "trace_between": _mean([one.traces.between for one in contaminations]),
        "alignment": alignment,
        "uniformity": uniformity,
        "rankme": rankme,
        "retained": _mean([one.retained for one in contaminations]),
        "guards": _once([guard for one in contaminations for guard in one.guards]),
    }


def _once(guards: Sequence[str]) -> list[str]:
    """One guard of each kind, the first; seeds differ in the numbers that it names alone."""
    kinds: dict[str, list[str]] = {}
    for guard in guards:
        kinds.setdefault(NUMBER.sub("", guard), []).append(guard)
    return [
        same[0] if len(set(same)) == 1 else f"{same[0]} (and alike for {len(same) - 1} more seeds)"
        for same in kinds.values()
    ]


def icr_of_seeds(subject: Subject, viewer: Viewer, sigma: float) -> list[float]:
    """The ICR alone, for each view seed."""
    how = viewer.options
    return [
        contamination(features(subject, viewer, seed, sigma), how.tau, None).value
        for seed in how.view_seeds
    ]


@torch.no_grad()
def denoising_error(
    denoiser: Callable[..., Tensor],
    images: Tensor,
    sigma: float,
    num_draws: int,
    batch_size: int,
    labels: Tensor | None = None,
) -> tuple[float, float]:
    """Mean squared error per pixel of denoised images (n, C, H, W), and its standard error over
    images. labels (n,): the images' classes, for a denoiser that asks for them. The noise of an
    image depends on its index alone."""
    draws, errors, shape = Draws(0, torch.arange(len(images))), [], tuple(images.shape[1:])
    for index in torch.arange(len(images)).split(batch_size):
        clean, total = images[index.to(images.device)], 0.0
        for draw in range(num_draws):
            noise = draws[index].at(drawn_at.EVALUATION + draw).noise(shape).to(images)
            told = () if labels is None else (labels[index].to(images.device),)
            difference = denoiser(clean + sigma * noise, sigma, *told) - clean
            total = total + difference.double().square().flatten(1).mean(1).cpu()
        errors.append(total / num_draws)
    each = torch.cat(errors)
    return each.mean().item(), (each.std() / math.sqrt(len(each))).item()


def probe_right(
    subject: Subject,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    sigma: float,
    batch_size: int,
) -> Tensor:
    """Which held-out images, (n,) bool, a linear probe of the layer classifies rightly; train and
    test: images and labels.

    Images are noisy at sigma and not augmented.
    """

    def seen(images: Tensor, first: int) -> Tensor:
        indices = torch.arange(first, first + len(images))
        noise = Draws(0, indices, drawn_at.PROBE).noise(tuple(images.shape[1:])).to(images)
        noisy = (images + sigma * noise)[:, None]
        how = (sigma, subject.layer, subject.pooling, batch_size)
        return view_features(subject.network, subject.denoiser, noisy, *how)[:, 0]

    vectors = seen(train[0], 0), seen(test[0], len(train[0]))
    return representation.probe_right(vectors[0], train[1], vectors[1], test[1])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
