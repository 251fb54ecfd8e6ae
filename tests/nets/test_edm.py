"""EDM's U-Nets and preconditionings against the outputs of the official code."""

import math

import pytest
import torch

from stages.methods.path import EDMDenoiser
from stages.nets.edm import preconditioning
from stages.nets.edm.dhariwal import DhariwalUNet
from stages.nets.edm.layers import Block
from stages.nets.edm.preconditioning import Preconditioned
from stages.nets.edm.song import SongUNet
from tests.nets.published import CLOSE, apart, arguments, tensors

UNETS = {"SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet}
NETWORKS = ("ddpmpp", "ncsnpp", "adm")
CASES = [
    (folder, name) for folder in NETWORKS for name in arguments(f"edm/{folder}/init_kwargs.json")
]


def published(folder, name):
    """A preconditioned network with the stored weights."""
    facts = arguments(f"edm/{folder}/init_kwargs.json")[name]
    inner = UNETS[facts["model_class_name"]](**facts["model_init_kwargs"])
    labelled = facts["model_init_kwargs"]["label_dim"]
    stored = tensors(f"edm/{folder}/weights.safetensors")
    inner.load_state_dict(
        {
            key.removeprefix("model."): value.float()
            for key, value in stored.items()
            if labelled or "map_label" not in key
        }
    )
    kind = facts["class_name"].removesuffix("Precond").lower()
    return Preconditioned(inner, kind).eval().requires_grad_(False)


@pytest.mark.parametrize(("folder", "name"), CASES)
def test_denoisers_are_those_of_the_official_code(folder, name):
    network, io = published(folder, name), tensors(f"edm/{folder}/io.safetensors")
    key, seen = name.replace("Precond", ""), 0
    labelled = name.endswith("3")
    cases = {key: io["labels"] if labelled else None} | ({f"{key}_none": None} if labelled else {})
    for case, labels in cases.items():
        for x, sigma, expected in zip(io["x"], io["sigma"], io[case], strict=True):
            assert apart(network(x, sigma, labels), expected) < CLOSE
            seen += 1
    assert seen == 5 * len(cases)


@pytest.mark.parametrize("folder", NETWORKS)
def test_classes_by_index_are_rows_and_the_last_is_none(folder):
    network, io = published(folder, "EDMPrecond_label3"), tensors(f"edm/{folder}/io.safetensors")
    x, rows = io["x"][2], io["labels"]
    by_row, by_index = network(x, 1.0, rows), network(x, 1.0, rows.argmax(1))
    assert torch.equal(by_row, by_index)
    assert torch.equal(network(x, 1.0, torch.full((2,), 3)), network(x, 1.0))
    assert not torch.allclose(by_row, network(x, 1.0), rtol=1e-3)
    with pytest.raises(ValueError, match=r"give indices \(B,\) or rows \(2, 3\)"):
        network(x, 1.0, torch.zeros(2, 4))


@pytest.mark.parametrize("folder", ["ddpmpp", "ncsnpp"])
def test_augmentation_labels(folder):
    network, io = published(folder, "EDMPrecond_label0"), tensors(f"edm/{folder}/io.safetensors")
    for x, sigma, expected in zip(io["x"], io["sigma"], io["EDM_label0_augmented"], strict=True):
        given = network(x, sigma, augment_labels=io["augment_labels"])
        assert apart(given, expected) < CLOSE
        # At the smallest level the answer is nearly x.
        assert sigma < 0.01 or apart(network(x, sigma), expected) > 100 * CLOSE


@pytest.mark.parametrize("kind", ["adm", "song"])
def test_blocks_of_two_heads(kind):
    facts, stored = arguments(f"edm/block_{kind}.json"), tensors(f"edm/block_{kind}.safetensors")
    block = Block(
        facts["in_channels"],
        facts["out_channels"],
        facts["emb_channels"],
        facts["num_heads"],
        "down" if facts.get("down") else None,
        taps=facts.get("resample_filter", (1, 1)),
        adaptive=facts.get("adaptive_scale", True),
        balance=facts.get("skip_scale", 1.0),
        eps=facts.get("eps", 1e-5),
        project=facts.get("resample_proj", False),
    )
    weights = {k.removeprefix("weights."): v for k, v in stored.items() if "weights." in k}
    block.load_state_dict(weights)
    with torch.no_grad():
        assert apart(block.eval()(stored["x"], stored["emb"]), stored["out"]) < CLOSE


def test_edm_preconditioning_is_the_adapters():
    network = published("ddpmpp", "EDMPrecond_label0")
    x = tensors("edm/ddpmpp/io.safetensors")["x"][3]
    assert apart(EDMDenoiser(network.model)(x, 5.0), network(x, 5.0)) < CLOSE


@pytest.mark.parametrize("kind", ["vp", "ve", "iddpm", "edm"])
def test_a_network_that_knows_a_point_denoises_to_it(kind):
    """Data of one point p have D = p under all coefficients: then F = (p - c_skip y) / c_out."""
    point = torch.full((2, 3, 4, 4), 0.3)

    class Exact(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.one = torch.nn.Parameter(torch.ones(1))

        def forward(self, x, c_noise, labels=None):
            c_skip, c_out, c_in, _ = preconditioning.PRECONDITIONINGS[kind](torch.tensor(2.0), 0.5)
            more = torch.ones_like(x)  # a learned variance, which is left out
            return torch.cat([(point - c_skip * x / c_in) / c_out, more], dim=1)

    y = point + 2.0 * torch.randn(point.shape, generator=torch.Generator().manual_seed(0))
    given = Preconditioned(Exact(), kind)(y, 2.0)
    torch.testing.assert_close(given, point, rtol=0, atol=1e-5)


def test_vp_time_is_that_of_the_level():
    """beta_d t^2 / 2 + beta_min t = ln(1 + sigma^2), the level of the VP process at time t."""
    sigma = torch.tensor([0.01, 1.0, 80.0], dtype=torch.float64)
    t = preconditioning.vp(sigma, 0.5)[3] / 999
    torch.testing.assert_close(19.9 / 2 * t**2 + 0.1 * t, (1 + sigma**2).log())


def test_iddpm_takes_the_nearest_of_its_levels():
    levels = preconditioning.iddpm_levels()
    assert len(levels) == 1001
    assert levels[-1] == 0
    assert list(levels) == sorted(levels, reverse=True)
    # alpha-bar of Nichol and Dhariwal's cosine at the middle: sin^2(pi / 4 / 1.008).
    kept = math.sin(math.pi / 4 / 1.008) ** 2
    first = math.sin(math.pi / 2 / 1.008) ** 2
    assert levels[500] == pytest.approx(math.sqrt(first / kept - 1), rel=1e-9)
    at = torch.tensor([levels[500] * 1.0001, levels[10]], dtype=torch.float64)
    assert preconditioning.iddpm(at, 0.5)[3].tolist() == [499, 989]


@pytest.mark.parametrize("kind", ["skip", "residual", "standard"])
def test_every_kind_of_encoder_and_decoder_trains(kind):
    decoder = "skip" if kind == "skip" else "standard"
    network = SongUNet(
        *(8, 3, 3),
        model_channels=16,
        channel_mult=(1, 2),
        num_blocks=1,
        attn_resolutions=(4,),
        encoder_type=kind,
        decoder_type=decoder,
        embedding_type="fourier",
        label_dim=3,
    )
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    network(x, torch.zeros(2), torch.tensor([0, 2])).square().mean().backward()
    without = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="encoder_type is 'odd'"):
        SongUNet(8, 3, 3, encoder_type="odd")
    with pytest.raises(ValueError, match="a side of 12 is not divisible by 8"):
        DhariwalUNet(12, 3, 3)
    with pytest.raises(ValueError, match="preconditioning 'odd' is unknown"):
        Preconditioned(torch.nn.Identity(), "odd")
