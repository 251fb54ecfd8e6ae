"""The alarm on curves whose minimum and noise are known."""

import math

import pytest
import torch

from stages.methods.alarm import alarm, false_alarm_rate, first_alarms, jitter


def curve(means, num_seeds=4, spread=0.0, shared=0.0, seed=0):
    """Values (K, S) around means: `spread` per entry, `shared` per view seed."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(means), num_seeds, generator=generator, dtype=torch.float64)
    common = torch.randn(1, num_seeds, generator=generator, dtype=torch.float64)
    return torch.tensor(means, dtype=torch.float64)[:, None] + spread * noise + shared * common


FALL_AND_RISE = [0.80, 0.77, 0.74, 0.71, 0.70, 0.71, 0.735, 0.76]


def test_a_fall_and_a_rise_is_confirmed_at_the_first_sufficient_checkpoint():
    found = alarm(range(10, 90, 10), curve(FALL_AND_RISE, spread=1e-4))
    # Half of the fall of .10 is first reached at 80, whatever the errors.
    assert (found.step, found.confirmed_step, found.confirmed) == (50, 80, True)
    assert found.minimum == pytest.approx(0.70, abs=1e-3)
    assert found.fall == pytest.approx(0.10, abs=1e-3)
    assert found.rise == pytest.approx(0.06, abs=1e-3)
    assert "confirmed at step 80: memorisation may follow (false alarms" in found.words
    assert not alarm(range(10, 80, 10), curve(FALL_AND_RISE[:7], spread=1e-4)).confirmed


def test_the_error_is_the_larger_of_views_and_jitter():
    means = [0.8 - 0.01 * k for k in range(12)]
    views = alarm(range(12), curve(means, num_seeds=2, spread=0.02))
    assert views.standard_error == max(views.view_error, views.jitter)
    # What wiggles alike for all views is the training's.
    wiggling = torch.tensor(means, dtype=torch.float64)
    wiggling = wiggling + 0.004 * torch.randn(
        12, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    found = alarm(range(12), wiggling[:, None] + torch.tensor([[0.0, 0.01, 0.02]]))
    assert found.view_error == pytest.approx(0, abs=1e-9)
    assert found.standard_error == found.jitter > 0


def test_jitter_is_that_of_a_difference_and_not_of_bends():
    generator = torch.Generator().manual_seed(0)
    noise = 0.01 * torch.randn(400, 60, generator=generator, dtype=torch.float64)
    bent = (torch.linspace(-1, 1, 60, dtype=torch.float64)) ** 2
    assert jitter(noise + bent).square().mean().sqrt() == pytest.approx(2**0.5 * 0.01, rel=0.05)
    assert jitter(torch.linspace(1, 0, 30)) == pytest.approx(0, abs=1e-6)
    assert math.isnan(jitter(bent[:2]))


def test_views_errors_are_paired_and_pooled():
    values = curve([0.7, 0.71], num_seeds=6, spread=0.01, shared=0.1)
    paired = (values[1] - values[0]).std() / 6**0.5
    assert alarm([1, 2], values).view_error == pytest.approx(paired.item())


def test_one_checkpoint_is_no_alarm():
    found = alarm([5], curve([0.7]))
    assert (found.step, found.confirmed) == (5, False)
    assert math.isnan(found.standard_error)
    assert math.isnan(found.false_alarms)


@pytest.mark.parametrize(("jitter_of_training", "power"), [(0.0015, 0.95), (0.005, 0.9)])
def test_runs_seldom_alarm_on_curves_that_only_fall_and_find_those_that_rise(
    jitter_of_training, power
):
    """13 looks; by the views' error alone the first alarmed in up to 85 % of runs."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(500, 13, generator=generator, dtype=torch.float64)
    at = torch.arange(13, dtype=torch.float64)
    level = 0.777 - 0.047 * (1 - (-at / 3).exp())
    rise = torch.tensor([0, 0, 0, 0, 0, 0, 0, 0.005, 0.012, 0.02, 0.025, 0.028, 0.03])
    alarmed = [
        (first_alarms(curve + jitter_of_training * noise, 0.0015) > 0).double().mean().item()
        for curve in (level, level + rise)
    ]
    assert alarmed[0] <= 0.01
    assert alarmed[1] >= power


def test_a_rate_of_false_alarms_is_that_of_looks_at_its_fall():
    falling = torch.linspace(0.8, 0.7, 13, dtype=torch.float64)
    assert false_alarm_rate(falling, 0.002) <= 0.01
    wiggles = torch.randn(13, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    flat = 0.7 + 0.003 * wiggles
    assert 0.02 < false_alarm_rate(flat, 0.0) < 0.3  # nothing has fallen: it says so
    assert math.isnan(false_alarm_rate(falling[:4], 0.002))


def test_equal_values_are_no_rise():
    assert not alarm(range(6), torch.full((6, 4), 0.7)).confirmed


def test_too_few_checkpoints_confirm_nothing():
    assert not alarm(range(4), curve([0.9, 0.7, 0.8, 0.9], spread=1e-4)).confirmed


def test_a_falling_curve_is_not_confirmed():
    found = alarm(range(6), curve([0.8 - 0.02 * k for k in range(6)], spread=1e-3))
    assert (found.step, found.confirmed, found.rise) == (5, False, 0)


def test_a_lower_minimum_takes_the_alarm_back():
    values = curve([0.84, 0.80, 0.77, 0.75, 0.76, 0.78, 0.81, 0.6], spread=1e-5)
    assert alarm(range(7), values[:7]).confirmed
    assert not alarm(range(8), values).confirmed


@pytest.mark.parametrize(
    ("steps", "values", "message"),
    [
        ([1, 2], torch.zeros(3, 4), "for 2 steps"),
        ([], torch.zeros(0, 4), "at least one checkpoint"),
        ([1, 2], torch.zeros(2, 1), "at least two"),
        ([2, 1], torch.zeros(2, 2), "do not ascend"),
        ([1, 2], torch.full((2, 2), torch.nan), "not finite"),
    ],
)
def test_bad_input_is_named(steps, values, message):
    with pytest.raises(ValueError, match=message):
        alarm(steps, values)


def test_refuses_a_threshold_of_zero():
    with pytest.raises(ValueError, match="num_standard_errors is 0"):
        alarm([1, 2], torch.zeros(2, 2), 0)
