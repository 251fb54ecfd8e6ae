"""Scores of a set of samples against a reference file, as published protocols take them.

One pass of the network over a set: its features lie in the work area, a file a shard, and all that
follows reads a block of them at a time. A set's scores are kept there when they are known and its
features are not, so that an interrupted evaluation goes on and no disk holds those of every set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import StageError
from pipeline.stage import Context
from stages.artifacts.samples import ExternalSamples, Samples
from stages.scoring.judge import Scored

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from stages.data.readers.mapped import FileArray
    from stages.data.references import ReferenceFile
    from stages.methods.protocol import Protocol, Score
    from stages.methods.suite import Measured
    from stages.scoring.published import PublishedSettings

REFERENCE = "reference"  # what files with the features of its images are called


@dataclass(frozen=True)
class Job:
    """What sets are scored against, and where."""

    context: Context
    reference: ReferenceFile

    @property
    def settings(self) -> PublishedSettings:
        return self.context.settings


def scores(
    job: Job, name: str, samples: Samples, protocol: Protocol, caution: str = ""
) -> list[Score]:
    """The scores of the set of the least distance, each with what its samples contribute.

    name: the set's own, for its files. The error is that of its samples, the reference being fixed
    and the choice of the least set out of several left out.
    """
    import torch

    from stages.methods.protocol import Score
    from stages.methods.strata import standard_error

    count = job.settings.protocol_samples
    sets = [_measured(job, name, samples, i) for i in range(protocol.best_of)]
    distances = [float(arrays["fid-value"]) for arrays in sets]
    if len(distances) > 1:
        # No part of the protocol: two scores of it may be compared.
        words = ", ".join(f"{one:.6g}" for one in distances)
        job.context.log(f"distances of the sets: {words}")
    best = min(range(len(sets)), key=distances.__getitem__)
    arrays, scored = sets[best], Scored(samples, count, best * count)
    found = []
    for metric in job.settings.published.metrics:
        if f"{metric}-value" not in arrays:
            continue
        psi = torch.from_numpy(arrays[f"{metric}-psi"])
        found.append(
            Score(
                metric=metric,
                value=float(arrays[f"{metric}-value"]),
                protocol=replace(protocol, details=_details(metric, job.reference)),
                error=standard_error(psi.numpy(), scored.labels),
                error_kind="influence",
                influence=scored.influence(psi),
                caution=caution,
            )
        )
    return found


def _details(metric: str, reference: ReferenceFile) -> str:
    """What a metric's value depends on beside the protocol."""
    from stages.methods import suite

    if metric == "inception_score":
        return f"splits of {suite.SPLIT}, classifier without bias"
    if metric in ("precision", "recall"):
        return f"k={suite.NEIGHBOURS}, against {len(reference.images)} images"
    return ""


def _measured(job: Job, name: str, samples: Samples, i: int) -> dict[str, np.ndarray]:
    """Every score's value and psi, of the i-th set of samples."""
    import numpy as np

    from stages.artifacts.written import write_arrays

    work, count = Path(job.context.work.path), job.settings.protocol_samples
    own = f"{name}~{i}"

    def make() -> dict[str, np.ndarray]:
        files = features(job, own, samples, range(i * count, (i + 1) * count))
        of = "dinov2" if job.settings.protocol == "fd-dinov2" else "inception"
        measured = {"fid": _distance(files["features"], job, of)}
        if job.settings.protocol == "adm":
            measured |= _adm(files, job)
        for file in work.glob(f"{own}-*"):
            file.unlink(missing_ok=True)
        values = {f"{metric}-value": np.array(one.value) for metric, one in measured.items()}
        return values | {f"{metric}-psi": one.psi.numpy() for metric, one in measured.items()}

    kept = write_arrays(work, f"{own}-scores", make)
    return {key: np.load(file) for key, file in kept.items()}


def _adm(files: Mapping[str, Path], job: Job) -> dict[str, Measured]:
    """sFID and the Inception score, and precision and recall where the file holds images."""
    from stages.methods import suite

    found = {
        "sfid": _distance(files["spatial"], job, "spatial"),
        "inception_score": suite.inception_score(_mapped(files["logits"])),
    }
    if (images := job.reference.images) is not None:
        theirs = features(job, REFERENCE, images, range(len(images)))["features"]
        found["precision"], found["recall"] = suite.precision_recall(
            _mapped(files["features"]), _mapped(theirs), device=job.settings.device
        )
    return found


def _distance(file: Path, job: Job, part: str) -> Measured:
    """part: "inception", "spatial" or "dinov2", of the reference."""
    from stages.methods import suite

    place = Path(job.settings.reference).expanduser()
    reference = _gaussian(place, place.stat().st_mtime_ns, part)
    return suite.distance(_mapped(file), reference, job.settings.device)


@lru_cache(maxsize=2)
def _gaussian(file: Path, changed: int, part: str) -> Any:
    """A reference's mean and factored covariance, kept in this process for the next set or node."""
    import torch

    from stages.data import references
    from stages.methods.frechet import reference_gaussian

    of = getattr(references.read(file), part)
    return reference_gaussian(torch.tensor(of.mean), torch.tensor(of.cov))


def _mapped(file: Path) -> Tensor:
    """An array of a file as a tensor; what is read of it is read when it is needed."""
    import numpy as np
    import torch

    return torch.from_numpy(np.load(file, mmap_mode="c"))


# ------------------------------------------------------------------ the pass


def features(job: Job, name: str, of: Samples | FileArray, which: range) -> dict[str, Path]:
    """Files with the features of the images `which`, of Inception also "spatial" (rows in the order
    of the reference's) and "logits"; computed in shards of whole batches."""
    from stages.artifacts.written import join_arrays
    from stages.shards import shards

    settings, work = job.settings, Path(job.context.work.path)
    spans = [
        which[first:last]
        for first, last in shards(len(which), settings.batch_size, settings.shard_size)
    ]
    parts = job.context.map(features_shard, spans, of, settings, str(work), name)
    joined = {}
    for key in parts[0]:
        joined[key] = work / f"{name}-{key}.npy"
        join_arrays([Path(part[key]) for part in parts], joined[key])
    return joined


def features_shard(
    span: range,
    of: Samples | FileArray,
    settings: PublishedSettings,
    folder: str,
    name: str,
) -> dict[str, str]:
    """The files with features of images span.start to span.stop - 1, in the work area `folder`."""
    from stages.artifacts.written import write_arrays

    files = write_arrays(
        Path(folder), f"{name}-{span.start}-{span.stop}", lambda: _arrays(span, of, settings)
    )
    return {key: str(file) for key, file in files.items()}


def _arrays(
    span: range, of: Samples | FileArray, settings: PublishedSettings
) -> dict[str, np.ndarray]:
    import torch

    from pipeline.gpus import feeders
    from stages.artifacts.reading import in_order
    from stages.encoders import suites
    from stages.encoders.feeding import fed, pinned
    from stages.methods import suite
    from stages.shards import blocks

    network = suites.load(settings.published.extractor, settings.weights, settings.device)
    parts = [span[first:last] for first, last in blocks(len(span), settings.batch_size)]
    rounding = settings.stated("rounding")

    def read(part: range) -> list[Tensor]:
        return [pinned(torch.from_numpy(pixels_of(of, part, rounding)), network.device)]

    batches = in_order(read, parts, feeders(settings.readers, settings.device))
    found = suites.on_the_cpu([network.seen(pixels) for pixels in fed(batches, network.device)])
    bad = (~found.features.isfinite().all(1)).nonzero().flatten().tolist()
    if bad:
        batch = parts[bad[0] // settings.batch_size]
        raise StageError(
            f"features of images {batch[0]} to {batch[-1]} are NaN or infinite; look at what made "
            "them"
        )
    arrays = {"features": found.features}
    # Of the reference's images, and of all but ADM's scores, features alone are read.
    if settings.protocol == "adm" and isinstance(of, Samples):
        arrays |= {"spatial": suite.flattened(found.spatial), "logits": found.logits}
    return {key: array.contiguous().numpy() for key, array in arrays.items()}


def pixels_of(of: Samples | FileArray, which: Sequence[int], rounding: str) -> np.ndarray:
    """uint8 (n, C, H, W) of images, those of an archive or folder in the order of its files."""
    import numpy as np
    import torch

    from stages.data.readers.order import mixed_order
    from stages.methods import suite

    if not isinstance(of, Samples):
        return np.ascontiguousarray(of.array[which[0] : which[-1] + 1].transpose(0, 3, 1, 2))
    stored = of.stored()
    at = np.asarray(which)
    if isinstance(of, ExternalSamples):
        at = np.argsort(mixed_order(len(stored)))[at]
    taken = np.array(stored[at])
    if taken.dtype == np.uint8:
        return taken
    return suite.rounded(torch.from_numpy(taken), rounding).numpy()
