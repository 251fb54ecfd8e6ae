"""Sums over parts of a set against the whole in one piece, and against exact fractions."""

from fractions import Fraction

import numpy as np
import pytest

from stages.methods import statistics
from stages.methods.statistics import Moments, PixelSums


def pixels(count=50, shape=(3, 4, 5), white=255, seed=0):
    return np.random.RandomState(seed).randint(0, white + 1, (count, *shape)).astype(np.uint8)


def total(parts):
    first, *others = parts
    for other in others:
        first = first + other
    return first


def exact(images, white):
    """mu, mean, variance and V as fractions."""
    values = statistics.levels(white)[images].reshape(len(images), -1)
    columns = [[Fraction(float(x)) for x in column] for column in values.T]
    n = len(images)
    mu = [sum(column) / n for column in columns]
    V = sum(sum((x - m) ** 2 for x in c) / n for c, m in zip(columns, mu, strict=True))
    mean = sum(mu) / len(mu)
    variance = V / len(mu) + sum((m - mean) ** 2 for m in mu) / len(mu)
    return mu, mean, variance, V


@pytest.mark.parametrize("white", [1, 16, 255])
def test_sums_of_pixels_are_exact(white):
    images = pixels(20, white=white)
    summary = PixelSums.of(images, white).summary()
    mu, mean, variance, V = exact(images, white)
    assert summary.mu.reshape(-1).tolist() == [float(m) for m in mu]
    assert summary.mean == pytest.approx(float(mean), rel=1e-14, abs=1e-16)
    assert summary.std == float(variance) ** 0.5
    assert float(V) == summary.V


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 40, 40)])
def test_neither_order_nor_parts_change_a_bit_of_pixels(shape):
    images = pixels(30, shape)
    whole = PixelSums.of(images, 255).summary()
    order = np.random.RandomState(1).permutation(30)
    parts = total([PixelSums.of(images[order[i : i + 7]], 255) for i in range(0, 30, 7)])
    again = statistics.from_arrays(parts.arrays()).summary()
    assert (again.mean, again.std, again.V) == (whole.mean, whole.std, whole.V)
    np.testing.assert_array_equal(again.mu, whole.mu)


def test_grey_images_count_as_coloured_beside_coloured_ones():
    grey, coloured = pixels(6, (1, 4, 5)), pixels(5, seed=1)
    mixed = (PixelSums.of(grey, 255) + PixelSums.of(coloured, 255)).summary()
    whole = PixelSums.of(np.concatenate([grey.repeat(3, 1), coloured]), 255).summary()
    assert (mixed.std, mixed.V) == (whole.std, whole.V)
    np.testing.assert_array_equal(mixed.mu, whole.mu)
    alone = PixelSums.of(grey, 255).coloured().summary()
    assert pytest.approx(3 * PixelSums.of(grey, 255).summary().V, rel=1e-15) == alone.V
    assert alone.std == PixelSums.of(grey, 255).summary().std


@pytest.mark.parametrize("offset", [0, 1e4])
def test_merged_moments_are_those_of_the_whole(offset):
    """Far from zero too, where a sum of squares would cancel."""
    images = np.random.RandomState(0).randn(40, 2, 3, 4) + offset
    parts = [Moments.of(images[i : i + 9]) for i in range(0, 40, 9)]
    found = statistics.from_arrays(total(parts).arrays()).summary()
    np.testing.assert_allclose(found.mu, images.mean(0), rtol=1e-13)
    assert pytest.approx(images.var(0).sum(), rel=1e-11) == found.V
    assert found.std == pytest.approx(images.std(), rel=1e-11)
    assert found.mean == pytest.approx(images.mean(), rel=1e-12)


def test_the_spread_of_a_posterior_is_counted():
    mean = np.random.RandomState(0).randn(5, 2, 3, 3)
    std = np.full_like(mean, 0.5)
    gained = Moments.of(mean, std).summary().V - Moments.of(mean).summary().V
    assert gained == pytest.approx(0.25 * 18, rel=1e-12)
