"""Draws depend on (seed, step, sample index) alone, and have the distributions they claim."""

import pytest
import scipy.stats
import torch

from stages.methods import drawn_at
from stages.methods import draws as module
from stages.methods.draws import Draws

USES = {
    "time": lambda draws: draws.time(),
    "noise": lambda draws: draws.noise((3, 5, 7)),
    "class_noise": lambda draws: draws.class_noise(9),
    "drop": lambda draws: draws.drop(0.5),
    "keep": lambda draws: draws.keep(16, 12),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_samples_draws_do_not_depend_on_its_batch(use):
    indices = torch.randperm(1000, generator=torch.Generator().manual_seed(0))[:41]
    whole = use(Draws(5, indices, step=3))
    for size in (1, 2, 7, 40):
        parts = [use(Draws(5, part, step=3)) for part in indices.split(size)]
        assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(use(Draws(5, indices.flip(0), step=3)).flip(0), whole)
    assert torch.equal(use(Draws(5, indices).at(3)[2:9]), whole[2:9])


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_draws_do_not_depend_on_other_draws_or_global_state(use):
    draws = Draws(5, torch.arange(8), step=3)
    first = use(draws)
    torch.manual_seed(1)
    for other in USES.values():
        other(draws)
    assert torch.equal(use(draws), first)


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_seed_step_and_index_each_matter(use):
    base = Draws(5, torch.arange(64), step=3)
    others = [
        Draws(6, torch.arange(64), step=3),
        base.at(4),
        Draws(5, torch.arange(64) + 64, step=3),
        Draws(3, torch.arange(64), step=5),
    ]
    assert not any(torch.equal(use(base), use(other)) for other in others)


def test_the_hash_is_splitmix64():
    """The first outputs of the published generator for seed 1234567."""
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    states = [(1234567 + k * 0x9E3779B97F4A7C15) % 2**64 for k in range(1, 6)]
    assert [module._mix_int(state) for state in states] == published
    signed = torch.tensor([module._signed(state) for state in states])
    assert [bits % 2**64 for bits in module._mix(signed).tolist()] == published


def test_noise_is_standard_normal_and_uncorrelated():
    draws = Draws(0, torch.arange(1000), step=1)
    noise = draws.noise((501,))
    assert scipy.stats.kstest(noise.flatten().numpy(), "norm").pvalue > 0.01
    assert (
        scipy.stats.kstest((noise[:, 0] ** 2 + noise[:, 251] ** 2).numpy() / 2, "expon")[1] > 0.01
    )
    for rows in (noise[:100], noise[:, ::5].T):
        correlations = torch.corrcoef(rows).fill_diagonal_(0).abs().max()
        assert correlations < 5.5 / rows.shape[1] ** 0.5
    steps = torch.stack([draws.at(step).noise((4,)).flatten() for step in range(50)])
    assert torch.corrcoef(steps).fill_diagonal_(0).abs().max() < 5.5 / 4000**0.5
    both = torch.stack([draws.noise((9,)).flatten(), draws.class_noise(9).flatten()])
    assert abs(torch.corrcoef(both)[0, 1]) < 4.5 / 9000**0.5


def test_time_is_uniform_and_never_leaves_the_interval():
    t = Draws(0, torch.arange(20_000)).time()
    assert scipy.stats.kstest(t.numpy(), "uniform").pvalue > 0.01
    assert 0 < t.min() <= t.max() <= 1


def test_extreme_bits_give_finite_noise():
    extreme = torch.tensor([0, -1, 2**63 - 1, -(2**63), 2**31, -(2**31)])
    u = module._uniform(extreme)
    assert (u > 0).all()
    assert (u <= 1).all()
    assert u.log().isfinite().all()


def test_a_time_density_takes_the_uniform_numbers_through_its_inverse_cdf():
    class Square:
        def inverse_cdf(self, u):
            return u.double() ** 0.5

    draws = Draws(0, torch.arange(5000))
    t = draws.time(Square())
    assert t.dtype == torch.float32
    torch.testing.assert_close(t, draws.time() ** 0.5)
    assert scipy.stats.kstest(t.numpy(), lambda x: x**2).pvalue > 0.01


def test_keep_masks_are_uniform_subsets_in_order():
    keep = Draws(0, torch.arange(20_000)).keep(6, 4)
    assert keep.shape == (20_000, 4)
    assert (keep.diff(dim=1) > 0).all()
    assert keep.min() >= 0
    assert keep.max() < 6
    subsets = torch.bincount((2**keep).sum(1), minlength=64)
    counts = subsets[subsets > 0]
    assert len(counts) == 15
    assert scipy.stats.chisquare(counts.numpy()).pvalue > 0.01


@pytest.mark.parametrize("probability", [0.0, 0.1, 1.0])
def test_dropout_has_its_probability(probability):
    share = Draws(0, torch.arange(20_000)).drop(probability).float().mean()
    assert abs(share - probability) <= 4 * (probability * (1 - probability) / 20_000) ** 0.5


def test_steps_kept_for_other_uses_stay_where_results_were_drawn():
    kept = {
        "INITIAL_NOISE": -1,
        "FITTING_NOISE": -2,
        "EVALUATION": 2**20,
        "PROBE": 2**21,
        "DIAGNOSIS": 10**12,
    }
    assert {name: value for name, value in vars(drawn_at).items() if name.isupper()} == kept
    assert [drawn_at.of_epoch(epoch) for epoch in (0, 1)] == [-1, -2]


def test_the_order_of_an_epoch_and_the_noise_at_its_step_are_other_numbers():
    draws = Draws(3, torch.arange(200), drawn_at.INITIAL_NOISE)
    order, noise = draws.at(drawn_at.of_epoch(0)).time(), draws.noise((1,))[:, 0]
    assert abs(torch.corrcoef(torch.stack([order, noise]))[0, 1]) < 0.25
