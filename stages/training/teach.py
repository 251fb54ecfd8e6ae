"""The stage `teach`: a teacher, validated, with its features of the training images or, where these
would be too large, to be asked for them while a network trains."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from pipeline.errors import StageError, raised_as
from pipeline.stage import Context, Input, Result, Stage, resolve
from stages.artifacts.data import Data
from stages.artifacts.teacher import ONLINE, PATCHES, STORED, TOKENS, Teacher
from stages.data.options import PrepareSettings
from stages.methods import table
from stages.settings.teachers import (
    DINO_GRID,
    EMBEDDED,
    TeachOptions,
    TeachSettings,
    feature_bytes,
    mismatch,
    mode_of,
    weight_files,
)
from stages.training import probing
from stages.training.repeated import repeating

if TYPE_CHECKING:
    from stages.artifacts.data import DataSet, Images
    from stages.artifacts.teacher import TeacherNetwork


class TeacherOptions(TeachOptions):
    """The teacher, and what it sees."""

    pixels: PrepareSettings | None = Field(
        None,
        description="where data are latents: the same images as pixels, in the same order and "
        "with the same split, for the teacher",
    )


def run(context: Context) -> Result:
    """Make the teacher, probe it, and store its features unless it is to be online."""
    with repeating("teach", context.settings.repeats_on_gpu):
        return _run(context)


def _run(context: Context) -> Result:
    settings: TeachSettings = context.settings
    data, pixels = (context.inputs.get(name) for name in ("data", "pixels"))
    loaded = data.load()
    shown = loaded if pixels is None else data.pictures(pixels)
    grid = tuple(side // settings.student_patch for side in loaded.shape[1:])
    with raised_as(StageError, ValueError, OSError):
        _check(loaded, shown)
        if pixels is not None and not data.is_of(pixels):
            context.notice(
                "that the pixels are in the order of the latents is known by their labels alone; "
                "set latents.autoencoder, and some pairs are compared"
            )
        teachers = DINO_GRID
        if settings.kind == EMBEDDED:
            teachers = tuple(side // settings.own_patch for side in shown.shape[1:])
        if teachers != grid and not settings.interpolate:
            raise ValueError(mismatch(teachers, grid))
        mode = _chosen(context, len(loaded.train), grid)
        teacher = resolve(table.TEACHERS[settings.kind])(context, shown)
        probes = probing.probes(teacher, shown, settings)
        weights = _weights(teacher, context.path, mode)
        if mode == STORED:
            _store(context, teacher, shown.train, grid)
    facts = {
        "name": teacher.name,
        "mode": mode,
        "weights_hash": teacher.weights_hash,
        "weights": weights,
        "config": teacher.config,
        "resize": teacher.resize,
        "grid": list(grid),
        "teacher_grid": list(teacher.grid),
        "interpolate": settings.interpolate,
        "compute": settings.compute,
        "batch_size": settings.batch_size,
        "width": teacher.width,
        "data": loaded.name,
        "data_digest": data.manifest.payload,
        "pixels_digest": None if pixels is None else pixels.manifest.payload,
        "num_images": len(loaded.train),
        "probes": probes,
    }
    Teacher.describe(context.path, facts)
    return Result(metrics={name.replace("/", "_"): value for name, value in probes.items()})


def _chosen(context: Context, num_images: int, grid: tuple[int, int]) -> str:
    """The mode, which the person is told with the size of the features, before any work."""
    settings: TeachSettings = context.settings
    size = feature_bytes(settings, num_images, grid)
    mode = mode_of(settings, size)
    said = (
        f"features of {num_images} images, {grid[0]}x{grid[1]} patches and a class token of "
        f"{settings.features} {settings.precision} each, take {size / 1e9:.3g} GB"
    )
    if mode == ONLINE and settings.mode is None:
        context.notice(
            f"{said}: none are stored, the teacher looks at the images of every batch while a "
            "network trains; teach.mode=stored stores them"
        )
    else:
        context.log(f"{said}; teach.mode is {mode}")
    free = shutil.disk_usage(context.work.path).free
    if mode == STORED and size > free:
        raise StageError(
            f"{said}, and there is room for {free / 1e9:.3g} GB; set teach.mode=online, or make "
            "room"
        )
    return mode


def _weights(teacher: TeacherNetwork, folder: Path, mode: str) -> str | None:
    """The file of the payload that holds the weights, brought there where the teacher is online;
    None where there is none."""
    file = teacher.weights
    if file is None or file.parent == folder:
        return file and file.name
    if mode == STORED:
        return None
    name = f"weights{file.suffix}"
    shutil.copyfile(file, folder / name)
    return name


def _check(data: DataSet, shown: DataSet) -> None:
    """Raise ValueError unless the pixels show the images of the data, in their order."""
    import torch

    if data is shown:
        return
    for name in ("train", "test"):
        ours, theirs = getattr(data, name).labels, getattr(shown, name).labels
        if len(ours) != len(theirs) or not torch.equal(ours, theirs):
            raise ValueError(
                f"the {name} labels of teach.pixels are not those of data; teach.pixels must hold "
                "the same images in the same order, with the same split"
            )


def _store(
    context: Context, teacher: TeacherNetwork, images: Images, grid: tuple[int, int]
) -> None:
    """Write features of all images, in the work area until they are whole; goes on where an
    interrupted pass ended, if all that it left is there."""
    import numpy as np
    import torch
    from numpy.lib.format import open_memmap

    from stages.artifacts.written import link
    from stages.methods.losses import patch_targets
    from stages.training.resume import write_atomically

    settings: TeachSettings = context.settings
    count, done = len(images), context.work.path / "features-done"
    shapes = {PATCHES: (count, grid[0] * grid[1], teacher.width), TOKENS: (count, teacher.width)}
    first, digests = _left(context.work.path, done, shapes, settings)
    arrays = {
        name: open_memmap(
            context.work.path / name, "r+" if first else "w+", np.dtype(settings.precision), shape
        )
        for name, shape in shapes.items()
    }
    for start, tokens in probing.passes(
        teacher.tokens, images, torch.arange(first, count), settings
    ):
        at = slice(first + start, first + start + len(tokens))
        targets = patch_targets(tokens[:, 1:], grid, teacher.grid, settings.interpolate)
        arrays[PATCHES][at], arrays[TOKENS][at] = targets.numpy(), tokens[:, 0].numpy()
        for name, digest in digests.items():
            digest.update(np.ascontiguousarray(arrays[name][at]))
        if (start // settings.batch_size) % 20 == 19 or at.stop == count:
            for array in arrays.values():
                array.flush()
            told = {name: digest.hexdigest() for name, digest in digests.items()}
            text = json.dumps({"images": at.stop, "sha256": told})
            write_atomically(done, lambda path, text=text: path.write_text(text, encoding="utf-8"))
        context.progress(at.stop, count, "images")
    for name in shapes:
        # The payload may be lost before it is committed, and the pass was long.
        link(context.work.path / name, context.path / name)


def _left(
    folder: Path, done: Path, shapes: Mapping[str, tuple[int, ...]], settings: TeachSettings
) -> tuple[int, dict[str, Any]]:
    """How many images an interrupted pass left features of, and the SHA-256 of these, to go on
    with; none where they are not what was written."""
    import numpy as np

    fresh = {name: hashlib.sha256() for name in shapes}
    try:
        told = json.loads(done.read_text(encoding="utf-8"))
        for name, shape in shapes.items():
            array = np.load(folder / name, mmap_mode="r")
            if (array.shape, array.dtype) != (shape, np.dtype(settings.precision)):
                raise ValueError("of another pass")
            for start in range(0, told["images"], settings.batch_size):
                rows = array[start : min(start + settings.batch_size, told["images"])]
                fresh[name].update(np.ascontiguousarray(rows))
            if fresh[name].hexdigest() != told["sha256"][name]:
                raise ValueError("damaged")
        return told["images"], fresh
    except (OSError, ValueError, KeyError, TypeError):
        done.unlink(missing_ok=True)
        return 0, {name: hashlib.sha256() for name in shapes}


STAGE = Stage(
    name="teach",
    settings=TeachSettings,
    output=Teacher,
    run="stages.training.teach:run",
    inputs={"data": Input(Data), "pixels": Input(Data, optional=True)},
    sources=lambda settings: [table.TEACHERS[settings.kind]],
    files=weight_files,
    estimate="stages.training.expected:teach",
    metrics=lambda node: ("probe_accuracy_*",),
)
