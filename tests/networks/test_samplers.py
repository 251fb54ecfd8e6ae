"""Published samplers and losses on the stored networks: states, guidance, terms.

JiT's and REPA's Heun steps are Heun in (x, t), which in EDM coordinates is another method of the
same order, and JiT's last steps divide by 0.05 where 1 - t is below; these are not compared.
"""

from dataclasses import dataclass

import pytest
import torch

from stages.methods import edm, grids, jit, reg, repa
from stages.methods import path as paths
from stages.methods.losses import Batch
from stages.methods.solvers import sde, solve
from stages.nets.edm2 import EDM2
from stages.networks import load
from tests.nets.published import CLOSE, FIXTURES, apart, arguments, tensors

START = 1  # as the codes do


@dataclass
class Stored:
    """The draws that a code made: noises by step, of image and class token, and times."""

    noises: list
    tokens: list | None = None
    times: torch.Tensor | None = None
    step: int = 1

    def at(self, step):
        return Stored(self.noises, self.tokens, self.times, step)

    def noise(self, shape):
        drawn = self.noises[self.step - 1]
        if self.tokens is None or len(shape) > 1:
            return drawn
        return torch.cat([drawn.flatten(1), self.tokens[self.step - 1]], dim=1)

    def class_noise(self, width):
        return self.tokens[self.step - 1]

    def time(self, density=None):
        return self.times


def network_of(which):
    return load(FIXTURES / which / "last.pt", num_heads=3, encoder_depth=1)


def guided(network, y, case):
    interval = (case.get("guidance_low", 0.0), case.get("guidance_high", 1.0))
    return network.denoiser(y, case["cfg_scale"], interval, token_scale=case.get("cls"))


def euler(denoiser, x, times):
    """From x at the first of the times, which is noise, to data; Euler is the same method in both
    coordinates."""
    levels = grids.from_times(times, START)
    return solve(denoiser, levels[0].item() * x, levels, "euler")


@pytest.mark.parametrize("name", ["plain", "guided", "guided_both"])
def test_repas_samplers(name):
    io, case = tensors("sampler/repa.safetensors"), arguments("sampler/repa.json")["cases"][name]
    network = network_of("repa")
    denoiser, x = guided(network, io["y"], case), io["latents"].double()
    draws = Stored(list(io["eps"]))
    found = sde.sample(denoiser, x, draws, num_steps=10, t_start=START)
    assert apart(found, io[f"sde_{name}"]) < CLOSE
    found = euler(denoiser, x, io["times_ode"])
    assert apart(found, io[f"euler_{name}"]) < CLOSE


@pytest.mark.parametrize("name", ["plain", "guided", "guided_cls0"])
def test_regs_sampler(name):
    io, case = tensors("sampler/reg.safetensors"), arguments("sampler/reg.json")["cases"][name]
    network = network_of("reg")
    inner, asked = guided(network, io["y"], case), []

    def denoiser(y, s):
        asked.append(paths.from_edm(y, s)[0])
        return inner(y, s)

    x = network.packing.pack(io["latents"], io["class_latents"]).double()
    draws = Stored(list(io["eps"]), list(io["class_eps"]))
    found = sde.sample(denoiser, x, draws, num_steps=10, t_start=START)
    image, _ = network.packing.unpack(found)
    assert apart(image, io[f"sde_{name}"]) < CLOSE
    _, token = network.packing.unpack(asked[-1])
    assert apart(token, io[f"sde_{name}_class_before_last"]) < CLOSE


def test_the_class_tokens_own_scale_is_seen():
    io, case = tensors("sampler/reg.safetensors"), arguments("sampler/reg.json")["cases"]
    network = network_of("reg")
    y = network.packing.pack(io["latents"], io["class_latents"]).double()
    one, other = (guided(network, io["y"], case[n])(y, 1.0) for n in ("guided", "guided_cls0"))
    image = network.packing.image_coordinates
    assert torch.equal(one[:, :image], other[:, :image])
    plain = guided(network, io["y"], case["plain"])(y, 1.0)
    assert torch.equal(other[:, image:], plain[:, image:])
    assert apart(one[:, image:], plain[:, image:]) > 100 * CLOSE


@pytest.mark.parametrize("name", ["euler_guided", "euler_interval"])
def test_jits_euler_steps(name):
    io = tensors("jit/sampler.safetensors")
    case = arguments("jit/sampler.json")["cases"][name]
    network = load(FIXTURES / "jit/JiT-tiny.pt", in_context_start=1)
    # Its time runs the other way.
    interval = (1 - case["interval_max"], 1 - case["interval_min"])
    denoiser = network.denoiser(io["y"], case["cfg_scale"], interval)
    found = euler(denoiser, io["noise"].double(), 1 - io["times"].double())
    assert apart(found, io[name][-1]) < CLOSE


def test_jits_interval_leaves_out_its_ends():
    network = load(FIXTURES / "jit/JiT-tiny.pt", in_context_start=1)
    y, labels = torch.randn(1, 3, 16, 16).double(), torch.tensor([2])
    plain = network.denoiser(labels)
    for interval, t, acts in (
        *(((0.3, 0.9), 0.9, False), ((0.3, 0.9), 0.3, False), ((0.3, 0.9), 0.6, True)),
        *(((0.0, 1.0), 0.999, True), ((0.0, 0.9), 0.9, False)),
    ):
        s = paths.level_from_time(t)
        guided = network.denoiser(labels, 3.0, interval)(y, s)
        assert torch.equal(guided, plain(y, s)) != acts


@pytest.mark.parametrize("which", ["repa", "reg"])
def test_loss_terms(which):
    io, network = tensors(f"{which}/loss.safetensors"), network_of(which)
    teacher = io["teacher"]
    tokens = which == "reg"
    draws = Stored([io["noise"]], [io["class_noise"]] if tokens else None, io["t"])
    batch = Batch(
        io["images"],
        io["y"],
        draws,
        torch.nn.functional.normalize(teacher[:, tokens:], dim=-1),
        io["class_data"] if tokens else None,
    )
    loss = (reg if tokens else repa).Loss(label_dropout=0.0)
    total, terms = loss(network.module, batch).total, loss(network.module, batch).terms
    expected = {"velocity": io["denoising_loss"].mean(), "alignment": io["projection_loss"]}
    if tokens:
        expected["class"] = io["denoising_loss_class"].mean()
    assert apart(total, io["total"]) < CLOSE
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        assert apart(terms[name], value) < CLOSE


def test_jits_loss():
    io = tensors("jit/io.safetensors")
    network = load(FIXTURES / "jit/JiT-tiny.pt", in_context_start=1)
    draws = Stored([io["loss_noise"]], times=1 - io["loss_t"])
    batch = Batch(io["loss_images"], io["y"], draws)
    terms = jit.Loss(label_dropout=0.0)(network.module, batch)
    assert apart(terms.total, io["loss"]) < CLOSE
    assert terms.terms.keys() == {"velocity"}
    # Below 1 - t = t_eps errors are divided by t_eps.
    near = torch.full((4,), 0.99)
    given = jit.Loss(t_eps=0.1).velocity(network.module, io["loss_images"], near, io["loss_noise"])
    noise = (0.01 / 0.99) * io["loss_noise"]
    clean = network.module(io["loss_images"] + noise, 0.01 / 0.99)
    expected = ((clean - io["loss_images"]) / 0.1).square().flatten(1).mean(1)
    assert apart(given, expected) < CLOSE


def test_edm2s_loss_is_weighed_by_its_uncertainty(tmp_path):
    """error exp(-u) + u, with u the published log variance at the draws' levels."""
    network = EDM2(**arguments("edm2/init_kwargs.json")["label3"]["init_kwargs"]).eval()
    network.load_state_dict(tensors("edm2/weights.safetensors"))
    io = tensors("edm2/io.safetensors")
    images, labels = io["x"][0], io["labels"].argmax(1)
    loss = edm.Loss(label_dropout=0.0, uncertainty=True)
    draws = Stored([torch.randn_like(images)], times=torch.tensor([0.3, 0.9]))
    found = loss(network, Batch(images, labels, draws))
    sigma = loss.sigma(draws.time(None))
    error = loss.denoising(network, images, sigma, draws.noises[0], labels=labels)
    u = network.log_variance(sigma).flatten()
    assert apart(found.total, (error / u.exp() + u).mean()) < CLOSE
    assert apart(found.terms["denoising"], error.mean()) < CLOSE
    found.total.backward()
    assert network.logvar_linear.weight.grad.abs().max() > 0
