"""Densities as settings: what of their grids is refused before any work."""

import pytest
import torch

from stages.methods import path
from stages.settings import densities, solvers
from stages.settings.densities import DensityOptions
from stages.settings.solvers import SolverOptions


def test_the_start_of_a_flow_model_is_the_paths():
    assert (solvers.T_START, solvers.AT_NOISE) == (path.T_START, path.AT_NOISE)


@pytest.mark.parametrize(
    ("kind", "options", "exact"),
    [
        ("logit_normal", {"mean": 1.0, "std": 2.0}, True),
        ("logit_normal", {"mix": 0.3, "shift": 7.0}, True),
        ("minsnr", {"shift": 20.0}, False),
        ("p2", {"mix": 1.0, "shift": 20.0}, False),
    ],
)
def test_the_share_above_a_time_is_that_of_the_density_or_less(kind, options, exact):
    settings = DensityOptions(**options)
    density = densities.time_density(settings, kind)
    for t in (0.1, 0.9, 0.999):
        share = densities.least_share_above(settings, kind, t)
        truth = 1 - float(density.cdf(torch.tensor(t, dtype=torch.float64)))
        assert share == pytest.approx(truth, abs=1e-12) if exact else share <= truth + 1e-12


@pytest.mark.parametrize("solver", ["euler", "heun", "fitted"])
@pytest.mark.parametrize(
    "density", [{"mix": 0.4, "shift": 100.0}, {"mean": 3.0, "std": 2.0}, {"shift": 300.0}]
)
def test_grids_are_refused_as_settings_where_they_cannot_be_made(solver, density):
    """The settings refuse a grid of the logit-normal exactly where the mathematics does."""
    refused = 0
    for nfe in range(1, 80, 2):
        options = {"solver": solver, "nfe": nfe, "grid": "logit_normal", "density": density}
        num_levels = (nfe + 1) // 2 if solver == "heun" else nfe
        times = densities.time_density(DensityOptions(**density), "logit_normal").grid(num_levels)
        if (count := int((times >= solvers.T_START).sum())) == 1:
            assert len(solvers.levels_of(SolverOptions(**options))) == num_levels + 1
            continue
        refused += 1
        words = rf"nfe={nfe} puts {count} of its times .*; lower nfe, or density\.shift"
        with pytest.raises(ValueError, match=words):
            SolverOptions(**options)
    assert 0 < refused < 40


@pytest.mark.parametrize("grid", ["uniform_t", "logit_normal"])
def test_networks_are_asked_at_noise_itself_where_settings_say_so(grid):
    """As the papers' samplers do; in float32 the first time is 1."""
    levels = solvers.levels_of(SolverOptions(nfe=4, grid=grid, t_start=1))
    assert path.time_from_level(levels[0].item()) == path.AT_NOISE
    assert path.time_from_level(levels).float()[0] == 1
    later = solvers.levels_of(SolverOptions(nfe=4, grid=grid))
    assert later[0].item() == pytest.approx(999)
    if grid == "uniform_t":
        times = path.time_from_level(levels)
        assert torch.allclose(times, torch.linspace(1, 0, 5, dtype=torch.float64), atol=1e-7)


def test_heun_does_not_start_at_noise_itself():
    with pytest.raises(ValueError, match=r"t_start=1 and solver=heun on grid=uniform_t contradict"):
        SolverOptions(solver="heun", nfe=5, t_start=1)
    assert SolverOptions(solver="heun", nfe=5, t_start=1, grid="edm").t_start == 1


def test_a_base_alone_can_decide_it():
    with pytest.raises(ValueError, match=r"grid=csflow with density\.shift=1000 and nfe=20 puts 7"):
        SolverOptions(grid="csflow", density={"shift": 1000.0})
    assert SolverOptions(grid="csflow", density={"shift": 1000.0}, nfe=3).nfe == 3
