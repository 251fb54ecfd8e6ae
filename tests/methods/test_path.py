import pytest
import torch

from stages.methods import path
from stages.methods.grids import uniform_t
from stages.methods.solvers import solve
from stages.nets.sit import SiT
from tests import oracle

T = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)


def gaussian(dimension: int = 4) -> oracle.Gaussian:
    factor = oracle.noise((dimension, dimension), 1)
    covariance = factor @ factor.T / dimension + 0.1 * torch.eye(dimension)
    return oracle.Gaussian(oracle.noise((dimension,), 2), covariance)


def exact_velocity(data: oracle.Gaussian):
    """v(x, t) = E[eps - x0 | x_t], from the regression of eps - x0 on x_t itself."""

    def network(x: torch.Tensor, t: torch.Tensor, shift: float = 0.0) -> torch.Tensor:
        alpha, sigma = 1 - t[0], t[0]
        identity = torch.eye(x.shape[1], dtype=x.dtype)
        variance = alpha**2 * data.covariance + sigma**2 * identity
        gain = torch.linalg.solve(variance, sigma * identity - alpha * data.covariance)
        return -data.mean + (x - alpha * data.mean) @ gain + shift

    return network


def test_conversions_recover_data_and_velocity():
    x0, eps = oracle.noise((3, 2, 4), 0), oracle.noise((3, 2, 4), 1)
    x, v = path.interpolate(x0, eps, T), path.velocity(x0, eps)
    assert torch.allclose(path.clean_from_velocity(x, v, T), x0, atol=1e-12)
    assert torch.allclose(path.velocity_from_clean(x, x0, T), v, atol=1e-12)


def test_the_path_ends_at_data_and_at_noise():
    x0, eps = oracle.noise((3, 4), 0), oracle.noise((3, 4), 1)
    assert torch.equal(path.interpolate(x0, eps, 0.0), x0)
    assert torch.equal(path.interpolate(x0, eps, 1.0), eps)


def test_edm_coordinates_hold_data_plus_level_times_noise():
    x0, eps = oracle.noise((3, 4), 0), oracle.noise((3, 4), 1)
    y, s = path.to_edm(path.interpolate(x0, eps, T), T)
    assert torch.allclose(y, x0 + s[:, None] * eps, atol=1e-12)
    x, t = path.from_edm(y, s)
    assert torch.allclose(t, T)
    assert torch.allclose(x, path.interpolate(x0, eps, T), atol=1e-12)
    assert path.level_from_time(path.T_START) == pytest.approx(999)


@pytest.mark.parametrize("s", [0.05, 1.0, 999.0, torch.tensor([0.2, 1.0, 30.0])])
def test_velocity_denoiser_is_the_posterior_mean(s):
    data = gaussian()
    y = oracle.noise((3, 4), 5) * 2
    if isinstance(s, float):
        denoiser = path.VelocityDenoiser(exact_velocity(data))
        assert torch.allclose(denoiser(y, s), data.denoiser(y, s), atol=1e-9)
        assert torch.allclose(denoiser(y, torch.tensor(s)), data.denoiser(y, s), atol=1e-4)
    else:  # one level per sample
        denoiser = path.VelocityDenoiser(exact_velocity(data))
        network = denoiser.network
        single = path.VelocityDenoiser(
            lambda x, t: torch.cat([network(x[i : i + 1], t[i : i + 1]) for i in range(len(x))])
        )
        expected = [data.denoiser(y[i : i + 1], float(s[i])) for i in range(3)]
        assert torch.allclose(single(y, s), torch.cat(expected), atol=1e-5)


def test_velocity_denoiser_passes_conditions_and_the_networks_type():
    seen = {}

    def network(x, t, labels):
        seen.update(x=x, t=t, labels=labels)
        return torch.zeros_like(x)

    labels = torch.arange(3)
    denoiser = path.VelocityDenoiser(network, {"labels": labels}, dtype=torch.float32)
    clean = denoiser(oracle.noise((3, 4), 0), 1.0)
    assert seen["x"].dtype == seen["t"].dtype == torch.float32
    assert torch.equal(seen["t"], torch.full((3,), 0.5))
    assert seen["labels"] is labels
    assert clean.dtype == torch.float64


def test_packed_class_token_follows_the_images_path():
    image, token = oracle.noise((2, 1, 2, 2), 0), oracle.noise((2, 3), 1)
    packing = path.Packing((1, 2, 2))
    state = packing.pack(image, token)
    assert packing.image_coordinates == 4
    assert torch.equal(state[:, :4], image.flatten(1))
    back = packing.unpack(state)
    assert torch.equal(back[0], image)
    assert torch.equal(back[1], token)
    denoiser = path.VelocityDenoiser(
        lambda x, t, class_token: (2 * x, 3 * class_token), packing=packing
    )
    s, t = 3.0, 0.75
    clean, clean_token = packing.unpack(denoiser(state, s))
    assert torch.allclose(clean, image / (1 + s) * (1 - 2 * t))
    assert torch.allclose(clean_token, token / (1 + s) * (1 - 3 * t))


def test_a_sit_with_a_class_token_is_solved_packed():
    network = SiT(4, 1, patch_size=2, width=16, depth=1, num_heads=2, class_token_dim=3)
    source = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=source)
    packing, s = path.Packing((1, 4, 4)), 3.0
    denoiser = path.VelocityDenoiser(network, packing=packing)
    state = torch.randn(2, 19, generator=source)
    with torch.no_grad():
        image, token = packing.unpack(state / (1 + s))
        v, v_token = network(image, torch.full((2,), 0.75), class_token=token)
        clean, clean_token = packing.unpack(denoiser(state, s))
    assert torch.allclose(clean, image - 0.75 * v, atol=1e-6)
    assert torch.allclose(clean_token, token - 0.75 * v_token, atol=1e-6)
    end = solve(denoiser, 999 * state, uniform_t(3), "unipc")
    assert end.shape == state.shape


def test_edm_denoiser_with_a_silent_network_is_exact_for_data_of_its_own_variance():
    data = oracle.Gaussian(
        torch.zeros(4, dtype=torch.float64), 0.25 * torch.eye(4, dtype=torch.float64)
    )
    y = oracle.noise((3, 4), 0)
    denoiser = path.EDMDenoiser(lambda x, c: torch.zeros_like(x), sigma_data=0.5)
    for s in (0.01, 1.0, 80.0):
        assert torch.allclose(denoiser(y, s), data.denoiser(y, s), atol=1e-12)


def test_edm_denoiser_shows_its_network_unit_variance_and_unit_variance_targets():
    """The conditions that Karras et al. 2022, appendix B.6, derive the preconditioning from."""
    x0 = 0.5 * oracle.noise((20_000, 1), 0)
    for s in (0.1, 0.5, 3.0):
        y = x0 + s * oracle.noise((20_000, 1), 1)
        seen = {}

        def network(x, c, seen=seen):
            seen.update(x=x, c=c)
            return torch.zeros_like(x)

        skipped = path.EDMDenoiser(network)(y, s)
        one = path.EDMDenoiser(lambda x, c: torch.ones_like(x))(y, s) - skipped
        assert float(seen["x"].var()) == pytest.approx(1, rel=0.05)
        assert float(((x0 - skipped) / one).var()) == pytest.approx(1, rel=0.05)
        assert torch.allclose(seen["c"], torch.tensor(s, dtype=torch.float64).log() / 4)
        assert seen["c"].shape == (20_000,)


def test_guidance_extrapolates_inside_its_interval_only():
    calls = []

    def unconditional(y, s):
        calls.append(s)
        return y

    guided = path.Guidance(lambda y, s: 3 * y, unconditional, scale=2.0, interval=(0.4, 0.6))
    y = oracle.noise((2, 3), 0)
    assert torch.allclose(guided(y, 1.0), 5 * y)  # t = 0.5
    assert torch.allclose(guided(y, 9.0), 3 * y)  # t = 0.9
    assert torch.allclose(guided(y, 0.1), 3 * y)
    assert calls == [1.0]
    assert torch.allclose(path.Guidance(lambda y, s: 3 * y, unconditional, 1.0)(y, 1.0), 3 * y)
    assert calls == [1.0]


def test_guidance_acts_at_both_ends_of_its_interval():
    """Times come back from t -> s -> t with a rounding, which must not open the interval."""
    y = torch.ones(1, 2, dtype=torch.float64)
    for t in torch.linspace(0.01, 0.99, 99, dtype=torch.float64).tolist():
        guided = path.Guidance(lambda y, s: 3 * y, lambda y, s: y, 2.0, interval=(t, t))
        assert torch.equal(guided(y, path.level_from_time(t)), 5 * y)
        assert torch.equal(guided(y, path.level_from_time(t - 1e-6)), 3 * y)


def test_a_pair_gives_both_where_guidance_acts_and_only_there():
    asked = []

    def pair(y, s):
        asked.append(s)
        return 3 * y, y

    def refuse(y, s):
        raise AssertionError("the pair has it")

    y = oracle.noise((2, 3), 0)
    guided = path.Guidance(refuse, refuse, 2.0, interval=(0.4, 0.6), pair=pair)
    assert torch.allclose(guided(y, 1.0), 5 * y)
    alone = path.Guidance(lambda y, s: 3 * y, refuse, 2.0, interval=(0.4, 0.6), pair=pair)
    assert torch.equal(alone(y, 9.0), 3 * y)
    assert asked == [1.0]


def test_guiding_denoisers_is_guiding_velocities():
    data = gaussian()
    network = exact_velocity(data)
    y = oracle.noise((3, 4), 3)
    guided = path.Guidance(
        path.VelocityDenoiser(network, {"shift": 0.7}), path.VelocityDenoiser(network), 4.0
    )
    mixed = path.VelocityDenoiser(
        lambda x, t: network(x, t) + 4.0 * (network(x, t, 0.7) - network(x, t))
    )
    assert torch.allclose(guided(y, 2.0), mixed(y, 2.0), atol=1e-12)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="batch of 3"):
        path.clean_from_velocity(torch.zeros(3, 2), torch.zeros(3, 2), torch.zeros(2))
    with pytest.raises(ValueError, match="interval"):
        path.Guidance(lambda y, s: y, lambda y, s: y, 2.0, (0.6, 0.4))
