"""The stage `teach`: a teacher, validated, with its features of the training images or, where these
would be too large, to be asked for them while a network trains."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from pipeline.errors import StageError, UsageError, raised_as
from pipeline.stage import Context, Input, Result, Settings, Stage, resolve, unkeyed
from stages.artifacts.data import Data
from stages.artifacts.teacher import ONLINE, PATCHES, STORED, TOKENS, Teacher
from stages.data.options import PrepareSettings
from stages.encoders.weights import MissingWeightsError, weight_file
from stages.methods import table
from stages.training import probing

if TYPE_CHECKING:
    from stages.artifacts.data import DataSet, Images
    from stages.artifacts.teacher import TeacherNetwork

EMBEDDED, LABELS = "embedded", "labels"
DINO_GRID = (16, 16)  # patches of 14 pixels on images resized to 224
DINO_WIDTHS = {"dinov2-small": 384, "dinov2-base": 768, "dinov2-large": 1024}
STORED_BELOW = 20e9  # bytes of features, unless settings say otherwise
BYTES = {"float32": 4, "float16": 2}


class TeachOptions(Settings):
    """Which teacher, and how its features are computed."""

    kind: table.choice("teacher", table.TEACHERS) = Field(
        EMBEDDED,
        description="embedded (a small ViT trained on the training images, no download; see "
        "objective) or dinov2-small, -base, -large (weights placed by hand)",
    )
    mode: Literal["stored", "online"] | None = Field(
        None,
        description="stored (features of all training images are computed once and kept) or "
        "online (the teacher looks at the images of every batch while a network trains); unset is "
        "stored where features take less than 20 GB",
    )
    weights: str | None = unkeyed(
        None,
        description="weight file of a teacher that is not embedded, or the folder that holds it; "
        "unset is the folder weights; its contents, not its place, enter keys",
    )
    interpolate: bool = Field(
        False,
        description="resample the teacher's features to the trained network's patch grid where "
        "the two differ; unset refuses such a teacher",
    )
    patch: int | None = Field(
        None, ge=1, le=64, description="embedded: side of a patch in pixels; unset is train's"
    )
    width: int = Field(64, ge=8, le=8192, description="embedded: features of a token")
    depth: int = Field(3, ge=1, le=200, description="embedded: blocks")
    heads: int = Field(4, ge=1, le=128, description="embedded: attention heads")
    steps: int = Field(400, ge=1, le=10**7, description="embedded: optimizer steps")
    train_batch_size: int = Field(128, ge=2, le=65536, description="embedded: images a step")
    lr: float = Field(1.5e-3, gt=0, le=1, description="embedded: peak learning rate, then a cosine")
    seed: int | None = Field(
        None,
        ge=0,
        description="embedded: of its weights, order and views; unset is the run's seed. What is "
        "measured of networks that align with it moves with the teacher",
    )
    temperature: float = Field(0.2, gt=0, le=100, description="embedded: of SimCLR's loss")
    objective: Literal["simclr", "labels"] = Field(
        "simclr",
        description="embedded: what it learns from: views of the same image that find each other, "
        "or the classes",
    )
    stem: int = Field(
        0,
        ge=0,
        le=16,
        description="embedded: 3x3 convolutions before its patches; some make it learn in fewer "
        "steps",
    )
    padding: Literal["black", "border", "reflection"] = Field(
        "black", description="embedded: what comes into its views from outside an image"
    )
    jitter: float = Field(
        0.0,
        ge=0,
        le=1,
        description="embedded: how far its views differ in contrast, brightness and sign; above 0 "
        "where grey levels alone tell images apart",
    )
    batch_size: int = Field(128, ge=1, le=65536, description="images in one pass")
    precision: Literal["float32", "float16"] = Field(
        "float32", description="of stored features; float16 halves their size"
    )
    compute: Literal["float32", "bfloat16"] = Field(
        "float32", description="in which the teacher computes, and the embedded one is trained"
    )
    compile: bool = Field(
        False, description="embedded: compile the network by its blocks (worth it on a GPU)"
    )
    device: Literal["cpu", "cuda"] = Field(
        "cpu", description="where the teacher runs; online it then runs where the network trains"
    )
    readers: int | None = unkeyed(
        None,
        ge=0,
        le=256,
        description="threads that read the next images meanwhile; 0 reads between passes; unset is "
        "that on a CPU for small sets of plain arrays, else one for each core, at most 8",
    )
    probe_images: int = Field(
        5000, ge=10, description="training and held-out images of the linear probe, at most"
    )
    min_probe: float = Field(
        0.9, ge=0, le=1, description="held-out accuracy that a linear probe must reach"
    )
    min_gain: float = Field(
        0.1,
        ge=-1,
        le=1,
        description="by how much the probe must be above that of the same network untrained; where "
        "that leaves less, by half of what it leaves",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> TeachOptions:
        if self.kind != EMBEDDED and self.objective == LABELS:
            raise ValueError(
                f"objective={self.objective} and kind={self.kind} contradict each other: only the "
                "embedded teacher is trained; leave objective unset"
            )
        if self.kind == EMBEDDED and self.weights is not None:
            raise ValueError(
                f"weights={self.weights} and kind=embedded contradict each other: the embedded "
                "teacher is trained, not loaded; leave weights unset, or choose the kind that the "
                "file is of"
            )
        if self.kind != EMBEDDED and self.patch is not None:
            raise ValueError(
                f"patch={self.patch} and kind={self.kind} contradict each other: only the "
                "embedded teacher's patches can be chosen; leave patch unset"
            )
        if self.width % self.heads:
            raise ValueError(
                f"width={self.width} is not divisible by heads={self.heads}; set width to "
                f"{self.width // self.heads * self.heads or self.heads}, say"
            )
        return self


class TeacherOptions(TeachOptions):
    """The teacher, and what it sees."""

    pixels: PrepareSettings | None = Field(
        None,
        description="where data are latents: the same images as pixels, in the same order and "
        "with the same split, for the teacher",
    )


class TeachSettings(TeachOptions):
    """The stage's settings."""

    student_patch: int = Field(ge=1, le=64, description="side of the trained network's patches")
    seed: int = Field(0, ge=0, description="of the embedded one's weights, order and views")

    @property
    def features(self) -> int:
        """How many features a token has."""
        return DINO_WIDTHS.get(self.kind, self.width)

    @property
    def own_patch(self) -> int:
        """Side of the embedded teacher's patches, in pixels."""
        return self.patch or self.student_patch

    def keyed(self) -> dict[str, Any]:
        """As the base's; of a teacher that is not embedded, what trains the embedded one left
        out."""
        inherited = super().keyed()
        # The key from before there was the choice.
        before = {"compile": False, "padding": "black", "jitter": 0.0}
        before |= {"objective": "simclr", "stem": 0}
        inherited = {k: v for k, v in inherited.items() if k not in before or v != before[k]}
        if self.objective == LABELS:
            del inherited["temperature"]
        if self.kind == EMBEDDED:
            return inherited
        trained = {
            *before,
            "patch",
            "width",
            "depth",
            "heads",
            "steps",
            "train_batch_size",
            "lr",
            "seed",
        }
        return {k: v for k, v in inherited.items() if k not in trained | {"temperature"}}


def check_grids(
    options: TeachOptions, image_size: int | None, patch: int, shown_size: int | None = None
) -> None:
    """Raise ValueError where the teacher's grid is known not to be the network's, and is not to be
    resampled. image_size: side of the images, None while unknown. patch: the network's. shown_size:
    side of what the teacher sees, where it is another."""
    if options.interpolate or image_size is None:
        return
    own = (shown_size or image_size) // (options.patch or patch)
    teachers = (own, own) if options.kind == EMBEDDED else DINO_GRID
    ours = (image_size // patch, image_size // patch)
    if teachers != ours:
        raise ValueError(_mismatch(teachers, ours))


def _mismatch(teachers: tuple[int, int], ours: tuple[int, int]) -> str:
    return (
        f"the teacher's grid of {teachers[0]}x{teachers[1]} patches is not the network's of "
        f"{ours[0]}x{ours[1]}; set teach.interpolate=true to resample it, or change teach.patch or "
        "train.network.patch"
    )


def weight_files(settings: TeachOptions) -> list[Path]:
    """The files outside the store that settings name.

    Raises UsageError where they are missing, which is before any work.
    """
    if settings.kind == EMBEDDED:
        return []
    with raised_as(UsageError, MissingWeightsError):
        return [weight_file(settings.kind, settings.weights, "teach.weights")]


def feature_bytes(settings: TeachSettings, num_images: int, grid: tuple[int, int]) -> int:
    """What the features of so many images take when they are stored."""
    return num_images * (1 + grid[0] * grid[1]) * settings.features * BYTES[settings.precision]


def mode_of(settings: TeachSettings, num_bytes: int) -> str:
    """The mode that settings name, or that goes with features of so many bytes."""
    return settings.mode or (STORED if num_bytes < STORED_BELOW else ONLINE)


def run(context: Context) -> Result:
    """Make the teacher, probe it, and store its features unless it is to be online."""
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
            raise ValueError(_mismatch(teachers, grid))
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
