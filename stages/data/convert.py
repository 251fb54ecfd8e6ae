"""A reader's images brought into the form in which a data set is kept, shard by shard.

How the images are cut into shards depends on the set alone, and a shard is written once, so that
neither tasks nor memory nor an interruption change a byte.
"""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from stages.artifacts import written
from stages.artifacts.storage import LatentScale, shard_file
from stages.artifacts.written import BLOCK_BYTES, Written
from stages.data.fitted import DamagedError, decode, resized
from stages.data.readers.source import Part, Pixels, Source
from stages.methods.statistics import Moments, PixelSums
from stages.shards import blocks

SHARD_BYTES = 2**30  # of a shard, at most
SMALL_SHARD_BYTES = 2**24  # a shard is not cut into smaller ones
FEWEST_SHARDS = 32  # of a set of many small shards: what is lost when a conversion is killed
PROBED = 64  # files whose sizes say how large the others are
PNG_LEVEL = 1
KEPT_FORMATS = frozenset({"JPEG", "PNG", "WEBP"})
MOST_NAMED = 3  # damaged files that a message names
MOST_TRIED = 100  # files of which one must be readable


@dataclass(frozen=True)
class Form:
    """What every image of a set becomes.

    shape: (C, H, W) of `first`, the name of the first image; of files C is 3 here, and settled when
    all are decoded. dtype: uint8 or float32. storage: see `stages.artifacts.storage`. white: the
    uint8 value that is 1. size, crop: what is made of a picture of another size; None keeps it.
    latent: the values are no pixels; scale: of latents that are kept with their standard
    deviations.
    """

    shape: tuple[int, int, int]
    first: str
    dtype: str
    storage: Literal["mapped", "packed", "latents"]
    white: int
    size: int | None
    crop: str
    latent: bool
    scale: LatentScale | None = None

    @property
    def packed(self) -> bool:
        return self.storage == "packed"

    @property
    def image_bytes(self) -> int:
        """Of an image as an array."""
        of = 2 if self.storage == "latents" else 1
        return of * math.prod(self.shape) * np.dtype(self.dtype).itemsize


def form_of(source: Source, settings: Any) -> Form:
    """The form of a set, from its first image and its size."""
    train, white, latents = source.train, source.white, source.latents
    places, dtype, name = train.places(0, 1), np.dtype(np.uint8), "the first"
    if isinstance(train.images, Pixels):
        shape, dtype = train.images.shape, np.dtype(train.images.dtype)
        if settings.size is not None and shape[1:] != (settings.size, settings.size):
            probe = resized(train.images.take(places), settings.size, white, settings.cropping)
            shape, dtype = probe.shape[1:], probe.dtype
    elif settings.size is not None:
        shape = (3, settings.size, settings.size)
    else:
        name, pixels = _first_readable(train)
        shape = (3, *pixels.shape[:2])
    storage, scale = "mapped", None
    if latents is not None:
        storage, scale = "latents", LatentScale(latents.scaling, latents.shift)
    elif dtype == np.uint8 and shape[0] in (1, 3):
        large = len(train) * math.prod(shape) > settings.mapped_gib * 2**30
        storage = "packed" if large else "mapped"
    return Form(
        tuple(map(int, shape)),
        name,
        dtype.name,
        storage,
        white,
        settings.size,
        settings.cropping,
        settings.latent or latents is not None,
        scale,
    )


def _first_readable(part: Part) -> tuple[str, np.ndarray]:
    for tried, index in enumerate(part.places(0, len(part)), 1):
        name = part.images.name(index)
        try:
            return name, decode(part.images.read(index), name).pixels
        except DamagedError:
            if tried in (MOST_TRIED, len(part)):
                raise
    raise ValueError("there is no file")


def shards_of(part: Part, form: Form) -> list[tuple[int, int]]:
    """(first, last) of the shards of a part."""
    count, image_bytes = len(part), form.image_bytes
    if form.packed and not isinstance(part.images, Pixels):
        probed = np.linspace(0, count - 1, min(PROBED, count)).astype(int)
        sizes = [_file_size(part, i) for i in probed]
        image_bytes = min(image_bytes, max(1, sum(sizes) // len(sizes)))
    wanted = -(-count * image_bytes // FEWEST_SHARDS)
    wanted = min(max(wanted, SMALL_SHARD_BYTES), SHARD_BYTES)
    return list(blocks(count, max(1, wanted // image_bytes)))


def _file_size(part: Part, place: int) -> int:
    """Bytes of a file; 0 of one that cannot be had, which is counted when it is converted."""
    try:
        return len(part.images.read(part.places(place, place + 1)[0]))
    except DamagedError:
        return 0


def convert_shard(
    item: tuple[str, int, int, int], parts: dict[str, Part], form: Form, folder: Path
) -> Written:
    """Shard `index` of a part, its images first..last-1, in the work area `folder`.

    item: (part, index, first, last). facts: `coloured` (whether an image has three channels),
    `damaged` (names of files passed over), `notes` (how many were in which mode) and `brightest`
    (the highest value of files, 0 of arrays). arrays: of the training images those of the
    statistics; `channels` (n,) of every image; `kept`, places from `first` on, where some were
    passed over.

    Raises ValueError for values or sizes that do not fit.
    """
    name, index, first, last = item
    part = parts[name]
    if form.storage == "latents":
        file, moments = shard_file(name, index, ".npy"), _moments(part, form, first, last)
        none = {"coloured": True, "damaged": [], "notes": {}, "brightest": 0}
        return written.write_latents(Path(folder), file, moments, form.scale, lambda: (none, {}))
    maker = _Maker(part, form, name, measured=name == "train")
    images = maker.images(first, last)
    file = shard_file(name, index, ".bin")
    if form.packed:
        encoded = (maker.encoded(*image) for image in images)
        return written.write_packed(Path(folder), file, encoded, maker.beside)

    def write(stream: IO[bytes]) -> int:
        for pixels, _ in images:
            stream.write(np.ascontiguousarray(pixels))
        return len(maker.channels)

    return written.write_shard(Path(folder), file, write, maker.beside)


def _moments(part: Part, form: Form, first: int, last: int) -> Iterator[np.ndarray]:
    for start, stop in blocks(last - first, max(1, BLOCK_BYTES // form.image_bytes)):
        yield part.images.take(part.places(first + start, first + stop))


class _Maker:
    """The images of a shard, one block in memory at a time, and what is found in them."""

    def __init__(self, part: Part, form: Form, name: str, measured: bool) -> None:
        self.part, self.form, self.measured = part, form, measured
        self.words = {"train": "training", "test": "held-out"}[name]
        self.totals: dict[int, PixelSums | Moments] = {}
        self.channels: list[int] = []
        self.kept: list[int] = []
        self.damaged: list[str] = []
        self.notes: Counter[str] = Counter()
        self.brightest = 0  # of what was decoded

    def images(self, first: int, last: int) -> Iterator[tuple[np.ndarray, bytes | None]]:
        """Blocks (k, C, H, W) of arrays, or single images and their bytes where these serve as
        they are."""
        if isinstance(self.part.images, Pixels):
            return self._of_arrays(first, last)
        return self._of_files(first, last)

    def _of_arrays(self, first: int, last: int) -> Iterator[tuple[np.ndarray, None]]:
        form, images = self.form, self.part.images
        size = max(math.prod(images.shape), math.prod(form.shape)) * 4
        for start, stop in blocks(last - first, max(1, BLOCK_BYTES // size)):
            block = images.take(self.part.places(first + start, first + stop))
            if form.size is not None:
                block = resized(block, form.size, form.white, form.crop)
            block = np.ascontiguousarray(block, form.dtype)
            check_values(block, self.words, form)
            self._measure(block)
            self.kept += range(start, stop)
            for image in (block[i : i + 1] for i in range(len(block))) if form.packed else (block,):
                yield image, None

    def _of_files(self, first: int, last: int) -> Iterator[tuple[np.ndarray, bytes | None]]:
        form, files = self.form, self.part.images
        for place, index in enumerate(self.part.places(first, last)):
            name = files.name(index)
            try:
                data = files.read(index)
                picture = decode(data, name, form.size, form.crop)
            except DamagedError as error:
                self.damaged.append(str(error))
                continue
            self.notes.update(picture.notes)
            pixels = picture.pixels
            if pixels.shape[:2] != form.shape[1:]:
                raise ValueError(
                    f"images differ in size ({form.shape[2]}x{form.shape[1]} in {form.first}, "
                    f"{pixels.shape[1]}x{pixels.shape[0]} in {name}); set data.size"
                )
            pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
            self._measure(pixels[None])
            self.brightest = max(self.brightest, int(pixels.max()))
            self.kept.append(place)
            yield pixels[None], data if form.packed and self._serves(data, picture) else None

    def _serves(self, data: bytes, picture: Any) -> bool:
        """Whether a file shows what it was decoded to, so that its bytes can be kept."""
        from PIL import Image

        if picture.notes:
            return False
        with Image.open(io.BytesIO(data)) as image:
            return image.format in KEPT_FORMATS and image.size == self.form.shape[:0:-1]

    def encoded(self, images: np.ndarray, data: bytes | None) -> bytes:
        """The bytes to keep of one image (1, C, H, W)."""
        from PIL import Image

        if data is not None:
            return data
        buffer = io.BytesIO()
        pixels = images[0, 0] if images.shape[1] == 1 else images[0].transpose(1, 2, 0)
        picture = Image.fromarray(np.ascontiguousarray(pixels))
        picture.save(buffer, "PNG", compress_level=PNG_LEVEL)
        return buffer.getvalue()

    def _measure(self, block: np.ndarray) -> None:
        channels = block.shape[1]
        self.channels += [channels] * len(block)
        if not self.measured:
            return
        whole = block.dtype == np.uint8
        part = PixelSums.of(block, self.form.white) if whole else Moments.of(block)
        so_far = self.totals.get(channels)
        self.totals[channels] = part if so_far is None else so_far + part

    def beside(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Facts and arrays of the shard."""
        arrays = {"channels": np.array(self.channels, np.uint8)}
        if self.damaged:
            arrays["kept"] = np.array(self.kept, np.int64)
        if self.totals:
            arrays |= written.sum_of(list(self.totals.values())).arrays()
        coloured = not self.channels or max(self.channels) > 1
        facts = {"coloured": coloured, "damaged": self.damaged, "notes": dict(self.notes)}
        facts["brightest"] = self.brightest
        return facts, arrays


def check_damaged(damaged: Sequence[str], allowed: int, total: int) -> None:
    """Raise ValueError for more damaged files than are allowed."""
    if len(damaged) > allowed:
        more = f"; and {len(damaged) - MOST_NAMED} more" if len(damaged) > MOST_NAMED else ""
        raise ValueError(
            f"{len(damaged)} of {total} files are damaged: {'; '.join(damaged[:MOST_NAMED])}{more}"
            f"; repair or remove them, or set data.skip_damaged={len(damaged)} to leave them out"
        )


def check_values(images: np.ndarray, name: str, form: Form) -> None:
    """Raise ValueError for values of a block that do not fit its type."""
    if images.dtype == np.uint8:
        if images.max() > form.white:
            raise ValueError(
                f"{name} images reach {images.max()}, above their white of {form.white}"
            )
        return
    if not np.isfinite(images).all():
        raise ValueError(f"{name} images hold NaN or infinity")
    if not form.latent and np.abs(images).max() > 1.0001:
        raise ValueError(
            f"{name} images reach {np.abs(images).max():.4g}; floating-point images must lie in "
            "[-1, 1], others be uint8"
        )


def write_array(shards: Sequence[Written], file: Path, form: Form, channels: int) -> None:
    """Shards of arrays as one .npy file (n, channels, H, W), a block in memory at a time; the bytes
    are those of np.save."""
    shape = (sum(shard.count for shard in shards), channels, *form.shape[1:])
    pixels, dtype = math.prod(form.shape[1:]), np.dtype(form.dtype)
    with file.open("wb") as stream:
        written.write_header(stream, shape, dtype)
        for shard in shards:
            with shard.path.open("rb") as source:
                for own, count in _runs(shard.arrays()["channels"]):
                    rows = max(1, BLOCK_BYTES // (own * pixels * dtype.itemsize))
                    for start, stop in blocks(count, rows):
                        number = (stop - start) * own * pixels
                        block = np.frombuffer(source.read(number * dtype.itemsize), dtype)
                        block = block.reshape(stop - start, own, *form.shape[1:])
                        if own != channels:
                            block = block.repeat(channels, axis=1)
                        stream.write(np.ascontiguousarray(block))


def _runs(values: np.ndarray) -> Iterator[tuple[int, int]]:
    """(value, how often it follows itself) along an array."""
    ends = np.flatnonzero(np.diff(values.astype(int), append=-1)) + 1
    for first, last in zip([0, *ends[:-1]], ends, strict=True):
        yield int(values[first]), int(last - first)
