"""The stage `external`: samples made elsewhere, from whatever files data sets come as."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import StageError, UsageError, raised_as
from pipeline.stage import Context, Input, Place, Result, Settings, Stage, unkeyed
from stages.artifacts.data import Data
from stages.artifacts.samples import ExternalSamples
from stages.data.readers.tree import may_be_images
from stages.methods import table

if TYPE_CHECKING:
    import numpy as np

    from stages.data.image_files import Look
    from stages.data.readers.source import Listing

FILES = (".npz", ".npy", ".zip", ".tar", ".parquet")
SHARD_FILES = 2000
SHARD_BYTES = 2**25
SHARDS_AT_ONCE = 4  # whose images are in memory together


class ExternalSettings(Settings):
    """The stage's settings."""

    path: Place = unkeyed(
        description="folder of image files, or .npz, .npy, .zip, .tar or .parquet file; its "
        "contents, not its place, enter keys"
    )


def sources_of(settings: ExternalSettings) -> list[Path]:
    """The folder or file; UsageError where it is absent, which is before any work."""
    path = Path(settings.path)
    if not path.exists():
        raise UsageError(
            f"evaluate.path={settings.path} does not exist; set it to a folder of images or to an "
            ".npz file"
        )
    if path.is_file() and path.suffix.lower() not in FILES:
        raise UsageError(
            f"evaluate.path={settings.path} is neither a folder nor one of {', '.join(FILES)}; put "
            "images into a folder"
        )
    return [path]


def readers_of(settings: ExternalSettings) -> list[str]:
    """The place of the reader in the code; UsageError for a folder without images."""
    from stages.data.image_files import kind_of

    (path,) = sources_of(settings)
    kind = kind_of(path)
    if kind == "folder" and not may_be_images(path, most=1):
        raise UsageError(
            f"evaluate.path={settings.path} holds no images; set it to a folder that does"
        )
    return [table.SAMPLES[kind]]


def run(context: Context) -> Result:
    """Read all images, bring them to the data's number of channels, write them in mixed order.

    Files lie sorted by name, often in class folders, and an evaluation scores the first ones.
    """
    import numpy as np

    from stages.data.image_files import listed
    from stages.data.readers.order import mixed_order

    (path,) = sources_of(context.settings)
    data: Data | None = context.inputs.get("data")
    # Published protocols take colour, and know no data set.
    shape = (3, 0, 0) if data is None else tuple(data.description["shape"])
    with raised_as(StageError, ValueError, OSError, UsageError), listed(path, shape) as listing:
        order = mixed_order(len(listing.images))
        notes, found = _write(context, listing, order, shape[0])
        names, said = [listing.names[i] for i in order], listing.said
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
        "num_samples": len(names),
    }
    ExternalSamples.complete(context.path, np.full(len(names), -1, np.int64), facts)
    words = [said, *(f"{count} {note}" for note, count in sorted(notes.items()))]
    context.log(
        "; ".join(
            [f"{len(names)} images of {found} (channels, height, width)", *filter(None, words)]
        )
    )
    return Result(metrics={"num_samples": len(names)})


def _write(
    context: Context, listing: Listing, order: np.ndarray, channels: int
) -> tuple[Counter[str], tuple[int, int, int]]:
    """samples.npy, some shards in memory at a time; what was made of modes, and (C, H, W)."""
    import numpy as np

    from stages.data.fitted import check_bright
    from stages.data.image_files import look
    from stages.data.readers.source import Encoded
    from stages.shards import blocks

    first = look(listing, channels)
    image_bytes = int(np.prod(first.shape)) * first.dtype.itemsize
    size = min(SHARD_FILES, max(1, SHARD_BYTES // image_bytes))
    spans = list(blocks(len(order), size))
    notes: Counter[str] = Counter()
    brightest = 0
    out = np.lib.format.open_memmap(
        context.path / "samples.npy", "w+", first.dtype, (len(order), *first.shape)
    )
    for start in range(0, len(spans), SHARDS_AT_ONCE):
        some = spans[start : start + SHARDS_AT_ONCE]
        items = [order[first:last] for first, last in some]
        for (begin, end), (images, found) in zip(
            some, context.map(read_shard, items, listing, channels, first), strict=True
        ):
            out[begin:end] = images
            notes += found
            brightest = max(brightest, int(images.max()))
    if isinstance(listing.images, Encoded):
        check_bright(brightest)
    out.flush()
    return notes, first.shape


def read_shard(
    which: np.ndarray, listing: Listing, channels: int, like: Look
) -> tuple[np.ndarray, Counter[str]]:
    """The images `which` of a listing, see `taken`."""
    from stages.data.image_files import taken

    return taken(listing, which, channels, like)


STAGE = Stage(
    name="external",
    settings=ExternalSettings,
    output=ExternalSamples,
    run="stages.scoring.external:run",
    inputs={"data": Input(Data, optional=True)},
    sources=readers_of,
    files=sources_of,
    metrics=lambda node: ("num_samples",),
)
