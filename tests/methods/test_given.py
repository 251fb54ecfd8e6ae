"""Scores of what is few, all alike, huge, or no array: a finite number, or one sentence."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from stages.methods import csflow, frechet, given, icr, memorization, quality, representation
from tests import oracle

REFERENCE = oracle.noise((30, 6), 0).float()


def noise(*shape):
    return oracle.noise(shape, 1).float()


SCORES = {
    "distance": lambda x: frechet.distance_from_features(x, REFERENCE),
    "distance of itself": lambda x: frechet.distance_from_features(x, x),
    "distance, error": lambda x: frechet.from_features(x, REFERENCE),
    "floor": lambda x: frechet.real_floor(x, 10, 10),
    "kernel": lambda x: quality.kernel_distance(x, REFERENCE),
    "kernel of itself": lambda x: quality.kernel_distance(x, x),
    "manifolds": lambda x: quality.precision_recall(x, REFERENCE, neighbours=3),
    "manifolds of itself": lambda x: quality.precision_recall(x, x, neighbours=1),
    "inception": lambda x: quality.inception_score(x),
    "memorised": lambda x: memorization.ratio(x, REFERENCE),
    "memorised of it": lambda x: memorization.ratio(REFERENCE, x),
    "rankme": lambda x: representation.rankme(x),
    "probe": lambda x: representation.probe_accuracy(
        x, np.arange(len(x)) % 2, REFERENCE, np.arange(30) % 2
    ),
}
FEATURES = {
    **{f"{n} images": noise(n, 6) for n in (1, 2, 3, 4, 5)},
    "identical": torch.ones(30, 6),
    "two identical": torch.ones(2, 6),
    "two kinds": noise(2, 6).repeat(15, 1),
    "zeros": torch.zeros(30, 6),
    "huge": noise(30, 6).double() * 1e160,
    "huge in single precision": noise(30, 6) * 1e30,
    "tiny": noise(30, 6).double() * 1e-200,
    "one dimension": noise(30, 1),
    "no dimension": noise(30, 0),
    "none": noise(0, 6),
    "whole": torch.randint(0, 9, (30, 6)),
    "half": noise(30, 6).half(),
    "array": noise(30, 6).numpy(),
    "list": noise(5, 6).tolist(),
    "flat": noise(30),
    "words": "abc",
    "complex": torch.complex(noise(30, 6), noise(30, 6)),
    "a pair": (noise(30, 6), noise(30, 6, 1)),
}


def numbers(found):
    if isinstance(found, torch.Tensor):
        return found.double().flatten().tolist()
    if dataclasses.is_dataclass(found):
        return [
            n for field in dataclasses.fields(found) for n in numbers(getattr(found, field.name))
        ]
    if isinstance(found, tuple | list):
        return [n for part in found for n in numbers(part)]
    return [found] if isinstance(found, int | float) else []


def finite_or_one_sentence(score, value):
    try:
        found = score(value)
    except ValueError as error:
        found = str(error)
    if isinstance(found, str):
        assert len(found) > 20
        assert "\n" not in found
    else:
        assert numbers(found)
        assert all(map(math.isfinite, numbers(found))), found


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("score", SCORES)
def test_a_score_is_finite_or_refused_in_one_sentence(score, features):
    finite_or_one_sentence(SCORES[score], FEATURES[features])


VIEWS = {
    "one image": noise(1, 3, 6),
    "two images": noise(2, 20, 6),
    "one view": noise(30, 1, 6),
    "identical": torch.ones(30, 3, 6),
    "one image thirty times": noise(1, 3, 6).repeat(30, 1, 1),
    "one view three times": noise(30, 1, 6).repeat(1, 3, 1),
    "huge": noise(30, 3, 6).double() * 1e160,
    "tiny": noise(30, 3, 6).double() * 1e-170,
    "list": noise(9, 4, 2).tolist(),
    "none": None,
    "a pair": (noise(30, 3, 6), None),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("views", VIEWS)
@pytest.mark.parametrize("score", [icr.icr, representation.alignment, representation.uniformity])
def test_a_score_of_views_is_finite_or_refused_in_one_sentence(score, views):
    finite_or_one_sentence(score, VIEWS[views])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "images",
    [
        torch.ones(9, 1, 8, 8),
        torch.zeros(1, 3, 8, 8),
        noise(1, 1, 1, 1),
        noise(9, 1, 8, 8).double() * 1e160,
        noise(3, 1, 4, 4).numpy(),
        noise(9, 8, 8, 1),
        (noise(9, 1, 8, 8), None),
    ],
)
def test_a_time_grid_of_any_images_is_finite_or_refused(images):
    def grid(images):
        frequency, power = csflow.radial_power(images)
        return csflow.time_grid(csflow.interval_weights(frequency, power), 5)

    finite_or_one_sentence(grid, images)


def test_features_too_large_to_square_are_named():
    with pytest.raises(ValueError, match=r"^x1 holds values of up to .*, too large to square"):
        frechet.distance_from_features(FEATURES["huge"], REFERENCE)
    with pytest.raises(ValueError, match=r"cov2 holds values of up to 1e\+300"):
        frechet.frechet_distance(np.zeros(2), np.eye(2), np.zeros(2), np.eye(2) * 1e300)


def test_what_is_no_array_of_numbers_is_named_and_lists_keep_their_digits():
    for values in (None, "abc", [[1.0], [1.0, 2.0]], np.array([None, 1])):
        with pytest.raises(ValueError, match=r"^x is (NoneType|str|list|ndarray) and no array"):
            given.tensor(values, "x")
    assert given.tensor([0.1], "x", torch.float64).item() == 0.1
    with pytest.raises(ValueError, match="x holds complex numbers"):
        given.tensor([1j], "x")
