"""Views: fixed by (seed, image, view), and the right moves of the right size."""

import math
from itertools import pairwise

import pytest
import torch

from stages.methods.views import STRENGTHS, Strength, Views, augment, draw, strength


def smooth_images(num_images=3, height=33, width=33, channels=1):
    """A blob off the centre, on the black background."""
    rows = torch.linspace(-1, 1, height)[:, None]
    columns = torch.linspace(-1, 1, width)
    blob = 2 * torch.exp(-((columns - 0.4) ** 2 + rows**2) / 0.02) - 1
    return blob.expand(num_images, channels, height, width).clone()


def centre_of_mass(image):
    """(right, down) in pixels from the centre."""
    mass = (image + 1).sum(0)
    height, width = mass.shape
    rows = torch.arange(height) - (height - 1) / 2
    columns = torch.arange(width) - (width - 1) / 2
    total = mass.sum()
    return ((mass * columns).sum() / total).item(), ((mass * rows[:, None]).sum() / total).item()


def moves(**fractions):
    names = ("rotation", "right", "down", "scale", "contrast")
    return torch.tensor([[fractions.get(name, 0.0) for name in names]])


def test_views_depend_on_seed_image_and_view_alone():
    images = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    views = Views("strong", num_views=4, seed=3)
    whole = views(images, range(10, 16), sigma=0.2)
    assert whole.shape == (6, 4, 1, 8, 8)
    chosen = torch.tensor([4, 1])
    torch.testing.assert_close(
        views(images[chosen], chosen + 10, 0.2), whole[chosen], rtol=0, atol=0
    )
    fewer = Views("strong", num_views=2, seed=3)(images, range(10, 16), 0.2)
    torch.testing.assert_close(fewer, whole[:, :2], rtol=0, atol=0)
    other = Views("strong", num_views=4, seed=4)(images, range(10, 16), 0.2)
    assert (other - whole).abs().flatten(2).amax(2).min() > 0.1


def test_noise_is_one_standard_normal_scaled_by_sigma():
    images = torch.zeros(500, 1, 8, 8)
    views = Views("none", num_views=4)
    low, high = views(images, range(500), 0.1), views(images, range(500), 0.5)
    torch.testing.assert_close(high, 5 * low)
    assert high.mean().item() == pytest.approx(0, abs=0.005)
    assert high.std().item() == pytest.approx(0.5, abs=0.005)
    rows = high.flatten(1).double().corrcoef()
    assert rows.fill_diagonal_(0).abs().max() < 0.4
    between_views = high.flatten(2).transpose(0, 1).flatten(1).double().corrcoef()
    assert between_views.fill_diagonal_(0).abs().max() < 0.03


def test_moves_are_uniform_and_independent():
    found, _ = draw(0, range(4000), 3, (1,))
    assert found.shape == (4000, 3, 5)
    flat = found.flatten(1).double()
    assert flat.abs().max() <= 1
    torch.testing.assert_close(
        flat.std(0), torch.full((15,), 1 / math.sqrt(3)).double(), atol=0.02, rtol=0
    )
    assert flat.T.corrcoef().fill_diagonal_(0).abs().max() < 0.07


def test_strength_none_returns_the_images():
    images = torch.rand(5, 3, 7, 9) * 2 - 1
    augmented = augment(images, torch.rand(5, 5) * 2 - 1, strength("none"))
    torch.testing.assert_close(augmented, images, rtol=0, atol=0)


def test_no_move_returns_the_images():
    images = torch.rand(5, 3, 8, 12) * 2 - 1
    for padding in ("black", "border", "reflection"):
        augmented = augment(images, torch.zeros(5, 5), strength("extreme"), padding)
        torch.testing.assert_close(augmented, images, atol=1e-5, rtol=0)


def test_shift_moves_by_a_fraction_of_the_side():
    image = smooth_images(1, 33, 65)
    before = centre_of_mass(image[0])
    augmented = augment(image, moves(right=0.5, down=-1), Strength(shift=0.125))
    right, down = centre_of_mass(augmented[0])
    assert right - before[0] == pytest.approx(0.0625 * 65, abs=0.1)
    assert down - before[1] == pytest.approx(-0.125 * 33, abs=0.1)


@pytest.mark.parametrize(("height", "width"), [(33, 33), (33, 65), (65, 33)])
def test_rotation_turns_by_degrees_also_in_oblong_images(height, width):
    # A round blob in pixels, 10 pixels right of the centre.
    rows = torch.arange(height)[:, None] - (height - 1) / 2
    columns = torch.arange(width) - (width - 1) / 2
    image = (2 * torch.exp(-((columns - 10) ** 2 + rows**2) / 8) - 1)[None, None]
    right, down = centre_of_mass(augment(image, moves(rotation=0.5), Strength(rotation=60))[0])
    assert right == pytest.approx(10 * math.cos(math.radians(30)), abs=0.1)
    assert abs(down) == pytest.approx(10 * math.sin(math.radians(30)), abs=0.1)


def test_scale_enlarges_about_the_centre():
    image = smooth_images(1)
    before = centre_of_mass(image[0])[0]
    augmented = augment(image, moves(scale=1), Strength(scale=0.2))
    assert centre_of_mass(augmented[0])[0] == pytest.approx(1.2 * before, abs=0.1)
    assert (augmented + 1).sum().item() == pytest.approx(1.44 * (image + 1).sum().item(), rel=0.02)


def test_contrast_scales_about_the_mean_and_stays_in_range():
    image = 0.5 * torch.rand(1, 1, 8, 8) - 0.25
    stronger = augment(image, moves(contrast=1), Strength(contrast=0.2))
    assert stronger.mean().item() == pytest.approx(image.mean().item(), abs=1e-6)
    assert stronger.std().item() == pytest.approx(1.2 * image.std().item(), rel=1e-5)
    clipped = augment(4 * image, moves(contrast=1), Strength(contrast=0.2))
    assert clipped.abs().max() <= 1


def test_padding_is_black_or_continues_the_image():
    image = torch.full((1, 1, 8, 8), 0.5)
    push = Strength(shift=0.5)
    assert augment(image, moves(right=1), push)[0, 0, :, 0].eq(-1).all()
    for padding in ("border", "reflection"):
        assert augment(image, moves(right=1), push, padding).sub(0.5).abs().max() < 1e-6


def test_strengths_grow():
    names = ("none", "weak", "medium", "strong", "extreme")
    assert tuple(STRENGTHS) == names
    image = smooth_images(1)
    changes = [
        (augment(image, torch.ones(1, 5), strength(name)) - image).square().mean() for name in names
    ]
    assert changes[0] == 0
    assert all(stronger > weaker for weaker, stronger in pairwise(changes))
    assert strength("strong") == Strength(rotation=20, shift=1 / 8, scale=0.2, contrast=0.2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Views("storng"), "'storng'; choose among none, weak, medium, strong, extreme"),
        (lambda: Views(num_views=1), "at least two views"),
        (lambda: Views(padding="white"), "choose among black, border, reflection"),
        (lambda: Strength(rotation=-1), "rotation of a view is -1"),
        (lambda: Strength(scale=1), "scale of a view is 1"),
        (lambda: Views()(torch.zeros(3, 1, 8, 8), range(2), 0.1), "for 2 indices"),
        (lambda: Views()(torch.zeros(3, 1, 8, 8), range(3), -0.1), "sigma is -0.1"),
        (lambda: augment(torch.zeros(3, 1, 8, 8), torch.zeros(3, 4), Strength()), r"need \(3, 5\)"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
