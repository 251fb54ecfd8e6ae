"""The alarm on curves whose minimum and noise are known."""

import math

import pytest
import torch

from stages.methods.alarm import alarm


def curve(means, num_seeds=4, spread=0.0, shared=0.0, seed=0):
    """Values (K, S) around means: `spread` per entry, `shared` per view seed."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(means), num_seeds, generator=generator, dtype=torch.float64)
    common = torch.randn(1, num_seeds, generator=generator, dtype=torch.float64)
    return torch.tensor(means, dtype=torch.float64)[:, None] + spread * noise + shared * common


def test_a_fall_and_a_rise_is_confirmed_at_the_first_sufficient_checkpoint():
    values = torch.tensor([[0.80, 0.80], [0.70, 0.70], [0.71, 0.69], [0.73, 0.74], [0.78, 0.79]])
    values = values.double()
    found = alarm([10, 20, 30, 40, 50], values)
    # Halves of the seeds' differences 0, 0, -.02, .01, .01 are what is left: variance 7.5e-5, and
    # an error of .00866. Step 40 rose by 4 of them.
    assert (found.step, found.confirmed_step, found.confirmed) == (20, 40, True)
    assert found.minimum == pytest.approx(0.70)
    assert found.rise == pytest.approx(0.085, rel=1e-5)
    assert found.standard_error == pytest.approx(7.5e-5**0.5, rel=1e-5)
    assert alarm([10, 20, 30, 40, 50], values, num_standard_errors=8).confirmed_step == 50


def test_differences_are_paired_over_view_seeds():
    values = curve([0.8, 0.7, 0.72], spread=1e-4, shared=0.1)
    assert alarm([1, 2, 3], values).confirmed_step == 3


def test_two_checkpoints_have_the_paired_error():
    values = curve([0.7, 0.71], num_seeds=6, spread=0.01, shared=0.1)
    paired = (values[1] - values[0]).std() / 6**0.5
    assert alarm([1, 2], values).standard_error == pytest.approx(paired.item())


def test_one_checkpoint_is_no_alarm():
    found = alarm([5], curve([0.7]))
    assert (found.step, found.confirmed) == (5, False)
    assert math.isnan(found.standard_error)


def test_a_live_run_seldom_alarms_on_a_curve_that_stays_flat():
    """Every checkpoint is a look; errors from 4 differences alone would alarm in a third."""
    means, steps = [-0.002 * min(k, 6) for k in range(13)], range(13)
    alarms = 0
    for seed in range(50):
        values = curve(means, 4, spread=0.005, seed=seed)
        alarms += any(alarm(steps[:k], values[:k]).confirmed for k in range(2, 14))
    assert alarms <= 8


def test_equal_values_are_no_rise():
    assert not alarm([1, 2, 3], torch.full((3, 4), 0.7)).confirmed


def test_a_falling_curve_is_not_confirmed():
    found = alarm([1, 2, 3], curve([0.8, 0.75, 0.7], spread=1e-3))
    assert (found.step, found.confirmed) == (3, False)
    assert found.rise == 0


def test_a_rise_within_the_noise_is_not_confirmed():
    means = [0.8, 0.7, 0.705]
    confirmed = [alarm([1, 2, 3], curve(means, 8, 0.02, seed=seed)).confirmed for seed in range(40)]
    assert sum(confirmed) <= 4
    clear = [alarm([1, 2, 3], curve(means, 8, 5e-4, seed=seed)).confirmed for seed in range(40)]
    assert all(clear)


def test_a_lower_minimum_takes_the_alarm_back():
    values = curve([0.8, 0.7, 0.75, 0.6], spread=1e-4)
    assert alarm([1, 2, 3], values[:3]).confirmed
    assert not alarm([1, 2, 3, 4], values).confirmed


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
