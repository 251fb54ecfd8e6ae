"""The stage `external`: samples made elsewhere, from a folder of images or an .npz file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import StageError, UsageError, raised_as
from pipeline.stage import Context, Input, Place, Result, Settings, Stage, unkeyed
from stages.artifacts.data import Data
from stages.artifacts.samples import ExternalSamples

if TYPE_CHECKING:
    import numpy as np

SHARD_FILES = 2000


class ExternalSettings(Settings):
    """The stage's settings."""

    path: Place = unkeyed(
        description="folder of image files, or .npz file; its contents, not its place, enter keys"
    )


def sources_of(settings: ExternalSettings) -> list[Path]:
    """The folder or file; UsageError where it is absent, which is before any work."""
    path = Path(settings.path)
    if not path.exists():
        raise UsageError(
            f"evaluate.path={settings.path} does not exist; set it to a folder of images or to an "
            ".npz file"
        )
    if path.is_file() and path.suffix.lower() != ".npz":
        raise UsageError(
            f"evaluate.path={settings.path} is neither a folder nor an .npz file; put images into "
            "a folder"
        )
    return [path]


def run(context: Context) -> Result:
    """Read all images, bring them to the data's number of channels, write them in mixed order.

    Files lie sorted by name, often in class folders, and an evaluation scores the first ones.
    """
    import numpy as np

    from stages.data.readers.order import mixed_order

    (path,) = sources_of(context.settings)
    data: Data = context.inputs["data"]
    with raised_as(StageError, ValueError, OSError):
        images, names = _folder(context, path) if path.is_dir() else _npz(path)
        images = _with_channels(images, data.description["shape"][0])
    order = mixed_order(len(images))
    images, names = images[order], [names[i] for i in order]
    (context.path / "names.json").write_text(json.dumps(names), encoding="utf-8")
    facts = {
        "training_step": 0,
        "method": STAGE.name,  # a name would be that of the first place these contents had
        "solver": "unknown",
        "correction": "none",
        "nfe": 0,
        "grid": "unknown",
        "time_density": "unknown",
        "guidance": 1.0,
        "seed": 0,
        "num_samples": len(images),
    }
    labels = np.full(len(images), -1, np.int64)
    ExternalSamples.write(context.path, images, labels, facts)
    context.log(f"{len(images)} images of {images.shape[1:]} (channels, height, width)")
    return Result(metrics={"num_samples": len(images)})


def _folder(context: Context, path: Path) -> tuple[np.ndarray, list[str]]:
    import numpy as np

    from stages.data.image_files import list_images

    files = list_images(path)
    items = [files[i : i + SHARD_FILES] for i in range(0, len(files), SHARD_FILES)]
    parts = context.map(read_shard, items, path)
    for part, shard in zip(parts, items, strict=True):
        if part.shape[1:] != parts[0].shape[1:]:
            sizes = [f"{x.shape[2]}x{x.shape[1]}" for x in (parts[0], part)]
            raise ValueError(
                f"images in {path} have more than one size: {files[0].name} is {sizes[0]} and "
                f"{shard[0].name} is {sizes[1]}; resize them to one size first"
            )
    images = np.concatenate(parts).transpose(0, 3, 1, 2)
    return images, [str(file.relative_to(path)) for file in files]


def read_shard(files: list[Path], folder: Path) -> np.ndarray:
    """(n, H, W, 3) uint8 of some of a folder's files."""
    from stages.data.image_files import read_pixels

    return read_pixels(folder, files)


def _npz(path: Path) -> tuple[np.ndarray, list[str]]:
    from stages.data.image_files import read_npz

    images = read_npz(path)
    return images, [f"image {index}" for index in range(len(images))]


def _with_channels(images: np.ndarray, channels: int) -> np.ndarray:
    """Grey images for grey data, coloured for coloured; ValueError where colour would be lost."""
    import numpy as np

    if images.shape[1] < channels:
        images = images.repeat(channels, axis=1)
    elif images.shape[1] > channels:
        if (images != images[:, :1]).any():
            raise ValueError(
                "the samples are in colour and the data set is grey; convert them to grey, or "
                "choose the data set that they are samples of"
            )
        images = images[:, :1]
    return np.ascontiguousarray(images)


STAGE = Stage(
    name="external",
    settings=ExternalSettings,
    output=ExternalSamples,
    run="stages.scoring.external:run",
    inputs={"data": Input(Data)},
    files=sources_of,
    metrics=lambda node: ("num_samples",),
)
