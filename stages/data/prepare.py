"""The stage `prepare`: a data set from its own format to arrays, split, sized and measured."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.errors import StageError, raised_as
from pipeline.stage import Context, Result, Stage, resolve
from stages.artifacts.data import Data
from stages.data.options import PrepareSettings, sources_of
from stages.methods import table

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from stages.data.readers.source import Part, Source


def run(context: Context) -> Result:
    """Read, cut, resize, measure and write the data set."""
    import numpy as np

    settings: PrepareSettings = context.settings
    with raised_as(StageError, ValueError, OSError):
        source = resolve(table.DATASETS[settings.dataset])(settings)
        train, test = source.train[: settings.limit], source.test[: settings.limit_held_out]
        source = replace(source, train=train, test=test)
        parts = {name: _pixels(part, settings.size, source.white) for name, part in _parts(source)}
        if 0 not in map(len, parts.values()):
            channels = max(part.shape[1] for part in parts.values())
            parts = {name: _coloured(part, channels) for name, part in parts.items()}
        _check(source, parts, settings.latent)
    for name, part in _parts(source):
        np.save(context.path / f"{name}.npy", parts[name])
        np.save(context.path / f"{name}_labels.npy", part.labels)
    mu, mean, std, V = _statistics(parts["train"], source.white)
    np.save(context.path / "mu.npy", mu)
    facts = {
        "name": settings.dataset if settings.size is None else f"{settings.dataset}{settings.size}",
        "shape": list(parts["train"].shape[1:]),
        "class_names": list(source.class_names),
        "num_train": len(source.train),
        "num_test": len(source.test),
        "white": source.white,
        "mean": mean,
        "std": std,
        "V": V,
    }
    Data.describe(context.path, facts)
    context.log(
        f"{facts['name']}: {len(source.train)} training and {len(source.test)} held-out images of "
        f"{facts['shape']}, mean {mean:.4f}, std {std:.4f}"
    )
    return Result(metrics={"num_train": len(source.train), "num_test": len(source.test)})


def _parts(source: Source) -> tuple[tuple[str, Part], ...]:
    return (("train", source.train), ("test", source.test))


def _pixels(part: Part, size: int | None, white: int) -> np.ndarray:
    """(n, C, H, W) of a part; files: one channel if every one is grey, else three."""
    import numpy as np

    from stages.data.fitted import decoded, resized
    from stages.data.readers.source import Pixels

    which = part.places(0, len(part))
    if isinstance(part.images, Pixels):
        images = np.ascontiguousarray(part.images.take(which))
        return images if size is None or not len(images) else resized(images, size, white)
    names = [part.images.name(i) for i in which]
    files = [decoded(part.images.read(i), name, size) for i, name in zip(which, names, strict=True)]
    first = files[0].shape[:2]
    for name, image in zip(names, files, strict=True):
        if image.shape[:2] != first:
            raise ValueError(
                f"images differ in size ({first[1]}x{first[0]} in {names[0]}, "
                f"{image.shape[1]}x{image.shape[0]} in {name}); set data.size"
            )
    if all(image.ndim == 2 for image in files):
        return np.stack(files)[:, None]
    files = [x if x.ndim == 3 else np.repeat(x[..., None], 3, axis=2) for x in files]
    return np.ascontiguousarray(np.stack(files).transpose(0, 3, 1, 2))


def _coloured(images: np.ndarray, channels: int) -> np.ndarray:
    """Grey files beside coloured ones have three channels too."""
    grey = images.shape[1] == 1 and channels == 3
    return images.repeat(3, axis=1) if grey else images


def _statistics(images: np.ndarray, white: int) -> tuple[np.ndarray, float, float, float]:
    """Mean image (C, H, W), mean and std over all pixels, V = E|x0 - mu|^2; in float64.

    Two passes over the images, in blocks that fit the memory.
    """
    import numpy as np

    from stages.data.fitted import to_float

    def blocks():
        for start in range(0, len(images), 4096):
            yield to_float(images[start : start + 4096], white).astype(np.float64)

    mu = sum(block.sum(0) for block in blocks()) / len(images)
    spread = sum(((block - mu) ** 2).sum(0) for block in blocks()) / len(images)
    mean = float(mu.mean())
    std = float(np.sqrt((spread + (mu - mean) ** 2).mean()))
    return mu, mean, std, float(spread.sum())


def _check(source: Source, parts: Mapping[str, np.ndarray], latent: bool) -> None:
    """Raise ValueError for counts, labels, types or values that do not fit.

    Latents may have any number of channels and any finite values.
    """
    num_classes = len(source.class_names)
    for kind, part in _parts(source):
        name, images = {"train": "training", "test": "held-out"}[kind], parts[kind]
        if len(part) == 0:
            raise ValueError(f"there are no {name} images; check data.path")
        low, high = int(part.labels.min()), int(part.labels.max())
        if low < 0 or high >= num_classes:
            raise ValueError(
                f"{name} labels run from {low} to {high}; with {num_classes} classes they must "
                f"lie in 0..{num_classes - 1}"
            )
        _check_values(images, name, source.white, latent)
    if parts["train"].shape[1:] != parts["test"].shape[1:]:
        raise ValueError(
            f"training images have shape {parts['train'].shape[1:]} and held-out images "
            f"{parts['test'].shape[1:]} (C, H, W); set data.size to bring them to one"
        )


def _check_values(images: np.ndarray, name: str, white: int, latent: bool) -> None:
    import numpy as np

    if images.ndim != 4 or not (latent or images.shape[1] in (1, 3)):
        raise ValueError(
            f"{name} images have shape {images.shape}; they must be (n, C, H, W) with 1 or 3 "
            "channels; set data.latent=true if they are latents"
        )
    if latent and images.dtype != np.float32:
        raise ValueError(f"{name} latents have type {images.dtype}; give floating-point numbers")
    if images.dtype == np.uint8:
        if images.max() > white:
            raise ValueError(f"{name} images reach {images.max()}, above their white of {white}")
    elif images.dtype == np.float32:
        if not np.isfinite(images).all():
            raise ValueError(f"{name} images hold NaN or infinity")
        if not latent and np.abs(images).max() > 1.0001:
            raise ValueError(
                f"{name} images reach {np.abs(images).max():.4g}; floating-point images must lie "
                "in [-1, 1], others be uint8"
            )
    else:
        raise ValueError(f"{name} images have type {images.dtype}; give uint8 or float32")


STAGE = Stage(
    name="prepare",
    settings=PrepareSettings,
    output=Data,
    run="stages.data.prepare:run",
    sources=lambda settings: [table.DATASETS[settings.dataset]],
    files=sources_of,
    metrics=lambda node: ("num_train", "num_test"),
)
