"""`python -m pipeline export RUN NODE`: samples as files that other codes read."""

from __future__ import annotations

import zipfile
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import UsageError
from pipeline.results import Run
from stages.artifacts.samples import ExternalSamples, Samples, write_grid

if TYPE_CHECKING:
    import numpy as np

FORMS = ("adm", "png", "grid")
BLOCK = 500  # images in memory at once


def command(run: Run, options: Namespace) -> None:
    """Write the samples of a run's node as the command line asks, and say where they are."""
    sets = {name: run[name] for name in run if run[name].data["stage"] in STAGES}
    if options.node not in sets:
        known = ", ".join(sets) or "none"
        raise UsageError(
            f"{options.node} holds no samples in run {run.id} (those that do: {known})"
        )
    samples = sets[options.node].artifact
    if (channels := samples.shape[0]) not in (1, 3):
        raise UsageError(
            f"{options.node} holds latents of {channels} channels; export the pictures that were "
            f"decoded from them, decode/{options.node.partition('/')[2]}"
        )
    stem = options.node.replace("/", "-")
    ends = {"adm": f"{stem}.npz", "png": stem, "grid": f"{stem}.png"}
    to = Path(options.to or ends[options.form]).expanduser()
    if to.exists():
        raise UsageError(f"--to {to} is there already; choose another name, or remove it")
    if options.form == "adm" and to.suffix != ".npz":
        raise UsageError(f"--to {to}: the form adm is an .npz file; end its name so")
    count = WRITERS[options.form](samples, to, options.rounding)
    # Decoded pictures and those of others are of 8 bits already.
    rounding = options.rounding
    if samples.is_rounded:
        rounding = samples.description.get("rounding", "by whoever made them")
    print(f"{to}: {count} samples of {options.node}, rounded {rounding} to 8 bits")


STAGES = ("sample", "decode", "external", "draw")


def pixels(samples: Samples, rounding: str = "nearest") -> Iterator[np.ndarray]:
    """Blocks of uint8 (b, H, W, C), those of an archive or folder in the order of its files."""
    import numpy as np
    import torch

    from stages.data.readers.order import mixed_order
    from stages.methods import suite
    from stages.shards import blocks

    stored = samples.stored()
    order = np.arange(len(stored))
    if isinstance(samples, ExternalSamples):
        order = np.argsort(mixed_order(len(stored)))
    for first, last in blocks(len(stored), BLOCK):
        block = np.array(stored[order[first:last]])
        if block.dtype != np.uint8:
            block = suite.rounded(torch.from_numpy(block), rounding).numpy()
        yield np.ascontiguousarray(block.transpose(0, 2, 3, 1))


def write_adm(samples: Samples, to: Path, rounding: str = "nearest") -> int:
    """An .npz with arr_0, uint8 (n, H, W, 3), and arr_1, int64 labels where they are known."""
    import numpy as np

    count, height, width = (samples.stored().shape[i] for i in (0, 2, 3))
    labels = np.load(samples.path / "labels.npy").astype(np.int64)
    partial = to.with_name(f".{to.name}.partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as stream:
            header = {"descr": "|u1", "fortran_order": False, "shape": (count, height, width, 3)}
            np.lib.format.write_array_header_1_0(stream, header)
            for block in pixels(samples, rounding):
                grey = block.shape[3] == 1
                stream.write((block.repeat(3, axis=3) if grey else block).tobytes())
        if (labels >= 0).all():
            with archive.open("arr_1.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, labels)
    partial.replace(to)
    return count


def write_png(samples: Samples, to: Path, rounding: str = "nearest") -> int:
    """A folder of 000000.png, 000001.png, ..."""
    from PIL import Image

    to.mkdir(parents=True)
    count = 0
    for block in pixels(samples, rounding):
        for image in block:
            picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
            picture.save(to / f"{count:06}.png")
            count += 1
    return count


def write_picture(samples: Samples, to: Path, rounding: str = "nearest") -> int:
    """One PNG of the first 100, as the report shows them."""
    import numpy as np

    block = next(pixels(samples, rounding))[:100]
    write_grid(to, block.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1)
    return len(block)


WRITERS = {"adm": write_adm, "png": write_png, "grid": write_picture}
