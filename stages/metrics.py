"""The headline numbers that a node may report, by its settings and inputs: what sweeps can name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from stages.artifacts.extractor import EMBEDDED
from stages.methods import table

if TYPE_CHECKING:
    from pipeline.graph import Node

Names = tuple[str, ...]

SCORES = (
    *("fid", "fid_infinity", "kid", "sfid", "inception_score", "precision", "recall"),
    *("density", "coverage", "memorization_ratio"),
)
GRADIENT = ("gradient_max_min_ratio", "gradient_variation")
SCAN = ("icr", "icr_minimum", "denoising_mse", "probe_accuracy")
OVER_SIGMA = ("icr_minimum_sigma", "probe_accuracy_sigma")
OVER_STEPS = (
    *("icr_minimum_step", "icr_rise", "icr_fall", "alarm_step"),
    *("memorization_step", "memorization_ratio", "fid"),
)


def _always(*names: str) -> Callable[[Any], Names]:
    return lambda node: names


def _extractor(node: Node) -> Names:
    accuracies = ("accuracy", "train_accuracy") if node.settings.kind == EMBEDDED else ()
    return (*accuracies, "distance_monotone")


def _train(node: Node) -> Names:
    settings = node.settings
    watched = settings.live is not None and not settings.loss_options.uses_class_token
    terms = (f"loss/{term}" for term in settings.loss_options.terms)
    return (*terms, "gradient_norm", *(["icr"] if watched else []))


def _evaluate(node: Node) -> Names:
    return SCORES + (("trajectory_rms",) if node.slot("reference") else ())


def _calibrate(node: Node) -> Names:
    fitted = node.settings.solver in table.FITTED_SOLVERS
    return ("num_steps",) if fitted else ("gamma_min", "gamma_max")


def _risk(node: Node) -> Names:
    return tuple(f"denoising_mse_sigma_{sigma:g}" for sigma in node.settings.sigmas)


def _scan(node: Node) -> Names:
    return SCAN + (OVER_SIGMA if node.settings.sigmas else OVER_STEPS)


# Every stage has an entry, and `*` stands for any part of a name.
METRICS: Mapping[str, Callable[[Node], Names]] = {
    "prepare": _always("num_train", "num_test"),
    "extractor": _extractor,
    "features": _always(),
    "external": _always("num_samples"),
    "teach": _always("probe_accuracy_*"),
    "train": _train,
    "diagnose": _always(
        *("alignment_gap", "alignment_full", "alignment_masked", *GRADIENT),
        *(f"masked_{name}" for name in GRADIENT),
    ),
    "spectrum": _always("num_images"),
    "checkpoint": _always("step"),
    "sample": _always(),
    "calibrate": _calibrate,
    "lipschitz": _always("lipschitz_mean", "lipschitz_max"),
    "evaluate": _evaluate,
    "fit": _always("num_images", "features"),
    "risk": _risk,
    "draw": _always(),
    "scan": _scan,
    "report": _always("figures", "claims/*"),
}

# Steps of the curves that nodes tell while they run.
CURVE_STEPS: Mapping[str, Callable[[Node], int]] = {"train": lambda node: node.settings.steps}
