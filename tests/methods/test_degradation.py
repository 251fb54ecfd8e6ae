"""Degradations do what they say, and the validation finds distances that do not rise."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from stages.methods import degradation


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_blur_is_scipys():
    images = normal(3, 2, 12, 17).double()
    found = degradation.blurred(images, 0.1)
    expected = gaussian_filter(
        images.numpy(), (0, 0, 1.2, 1.2), mode="nearest", radius=(0, 0, 4, 4)
    )
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)
    assert torch.equal(degradation.blurred(images, 0), images)


def test_noise_is_scaled_and_clipped():
    images, noise = torch.zeros(1, 1, 2, 2), torch.tensor([[[[1.0, -1.0], [20.0, 0.0]]]])
    found = degradation.noisy(images, 0.1, noise)
    torch.testing.assert_close(found, torch.tensor([[[[0.1, -0.1], [1.0, 0.0]]]]))


def classes(n, seed):
    """Images whose classes stand apart: class c is a bar in column c."""
    labels = torch.arange(n) % 5
    images = 0.2 * normal(n, 1, 5, 5, seed=seed) - 0.5
    images[torch.arange(n), 0, :, labels] += 1
    return images.clamp(-1, 1), labels


@pytest.fixture(scope="module")
def curves():
    return {
        name: degradation.validate(
            features,
            features(classes(400, 1)[0]),
            *classes(200, 2),
            torch.Generator().manual_seed(0),
        )
        for name, features in (("pixels", lambda x: x.flatten(1)), ("blind", _blind))
    }


def _blind(images):
    """Features that do not see which class is there, nor noise that sums to nothing."""
    return torch.stack([images.mean((1, 2, 3)), images.amax((1, 2, 3))], 1)


def test_pixels_are_monotone_and_a_blind_extractor_is_found_out(curves):
    assert set(curves["pixels"]) == set(degradation.STRENGTHS)
    for kind, curve in curves["pixels"].items():
        assert tuple(s for s, _ in curve) == degradation.STRENGTHS[kind]
        assert degradation.is_monotone(curve), (kind, curve)
    assert not degradation.is_monotone(curves["blind"]["dropped classes"])


def test_dropped_classes_are_compared_at_one_size(curves):
    # Nothing dropped: a fifth of the images, as many as remain with four classes of five gone.
    images, _ = classes(200, 2)
    first = curves["pixels"]["dropped classes"][0][1]
    reference = classes(400, 1)[0].flatten(1)
    whole = degradation.distance_from_features(images.flatten(1), reference)
    chance = [
        degradation.distance_from_features(
            images[torch.randperm(200, generator=torch.Generator().manual_seed(s))[:40]].flatten(1),
            reference,
        )
        for s in range(20)
    ]
    assert first == pytest.approx(np.mean(chance), abs=3 * np.std(chance) / 8**0.5)
    assert first > 1.5 * whole


def test_data_without_classes_are_validated_by_noise_and_blur():
    images, _ = classes(100, 0)
    found = degradation.validate(
        lambda x: x.flatten(1),
        images.flatten(1),
        images[:50],
        torch.zeros(50, dtype=torch.long),
        torch.Generator().manual_seed(0),
    )
    assert set(found) == {"noise", "blur"}


def test_equal_distances_are_no_rise():
    assert degradation.is_monotone(((0, 1.0), (1, 2.0)))
    assert not degradation.is_monotone(((0, 1.0), (1, 1.0)))
