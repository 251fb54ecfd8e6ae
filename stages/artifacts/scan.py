"""What a scan found, on disk: the ICR over checkpoints or noise levels, and what is beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pipeline.artifact import Artifact

FILE = "scan.json"


@dataclass(frozen=True)
class ScanRow:
    """One checkpoint at one noise level; None where something was not measured.

    step: training step. sigma: in standard deviations of the training pixels. icr: unbiased, in
    (0, 1], mean over view seeds, those in icr_seeds. naive: the paper's plug-in form. mean_snr:
    mean lambda. trace_*: total variances of signal, view noise, and between view means, in squared
    feature units. alignment, uniformity, rankme: means over view seeds. denoising_mse: held-out
    squared error at sigma, without classes, in units of the training pixels' variance, and that of
    the images trained on. probe_accuracy: held-out, of a linear probe of the layer at sigma;
    probe_right: image by image, 1 for one that it classifies rightly and 0 for others.
    memorization_ratio, fid: of samples of this checkpoint, and their errors. guards: which
    safeguards of the ICR acted.
    """

    step: int
    sigma: float
    icr: float
    icr_seeds: Sequence[float]
    naive: float
    mean_snr: float
    trace_signal: float
    trace_noise: float
    trace_between: float
    alignment: float
    uniformity: float
    rankme: float
    denoising_mse: float
    denoising_mse_error: float
    denoising_mse_train: float
    probe_accuracy: float | None = None
    probe_right: str = ""
    memorization_ratio: float | None = None
    memorization_error: float | None = None
    fid: float | None = None
    fid_error: float | None = None
    retained: float = 1.0
    guards: Sequence[str] = ()

    @property
    def denoising_ratio(self) -> float:
        """Held-out over training denoising error, about 1 for a network that remembers nothing."""
        return self.denoising_mse / self.denoising_mse_train


class Scan(Artifact):
    """Rows of one model, over its checkpoints or over noise levels."""

    @cached_property
    def description(self) -> dict[str, Any]:
        """Plain facts: abscissa, model (method, network, seed, num_images, ...), layer, pooling,
        strength, num_views, view_seeds, images (of which kind), num_images, components, std,
        icr_error (pooled standard error of a row), alarm (None over noise levels),
        memorization_step."""
        return {name: value for name, value in self._stored.items() if name != "rows"}

    def load(self) -> list[ScanRow]:
        """The rows, ascending in step, then in sigma."""
        return [ScanRow(**row) for row in self._stored["rows"]]

    @cached_property
    def _stored(self) -> Mapping[str, Any]:
        return json.loads((self.path / FILE).read_text(encoding="utf-8"))
