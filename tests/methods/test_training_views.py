"""Views that teachers are trained on: by seed, step and sample, of other grey levels."""

import pytest
import torch

from stages.methods.draws import Draws
from stages.methods.training_views import Views
from stages.methods.views import STRENGTHS


def test_views_depend_on_seed_step_and_sample_alone():
    images = torch.rand(5, 1, 8, 8) * 2 - 1
    views, draws = Views(), Draws(3, torch.arange(5), step=7)
    first, second = (views(images, draws, number) for number in (0, 1))
    assert not torch.allclose(first, second)
    some = views(images[2:4], draws[2:4], 0)
    torch.testing.assert_close(some, first[2:4])
    assert not torch.allclose(views(images, draws.at(8), 0), first)
    # Views of one step are none of the next one's.
    assert not torch.allclose(views(images, draws.at(8), 0), second)


def test_jitter_changes_grey_levels_and_nothing_else():
    """A view is an affine map of the image's levels, its sign changed in half of the views."""
    images = torch.rand(400, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    view = Views(strength=STRENGTHS["none"], noise=0.0, jitter=1.0)
    views = view(images, Draws(0, torch.arange(400)), 0).flatten(1).double()
    levels = images.flatten(1).double()
    centred = levels - levels.mean(1, keepdim=True)
    factor = (centred * views).sum(1) / centred.square().sum(1)
    rest = views - levels.mean(1, keepdim=True) - factor[:, None] * centred
    torch.testing.assert_close(rest, rest.mean(1, keepdim=True).expand_as(rest), atol=1e-5, rtol=0)
    assert rest.mean(1).std().item() == pytest.approx(0.5, abs=0.06)
    assert factor.abs().log().std().item() == pytest.approx(0.7, abs=0.08)
    assert (factor < 0).double().mean().item() == pytest.approx(0.5, abs=0.08)
    less = Views(strength=STRENGTHS["none"], noise=0.0, jitter=0.1)
    near = less(images, Draws(0, torch.arange(400)), 0).flatten(1).double()
    factor = (centred * near).sum(1) / centred.square().sum(1)
    assert 0.01 < (factor < 0).double().mean().item() < 0.12
    assert factor.abs().log().std().item() == pytest.approx(0.07, abs=0.01)
    with pytest.raises(ValueError, match="jitter"):
        Views(jitter=1.5)


@pytest.mark.parametrize("wrong", [{"noise": -1.0}, {"jitter": 2.0}, {"padding": "white"}])
def test_what_is_outside_its_range_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Views(**wrong)
