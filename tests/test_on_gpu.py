"""Nothing mixes devices, and a training step does not wait for a GPU: on one that is pretended."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stages.artifacts.data import Images
from stages.artifacts.storage import LatentScale
from stages.methods import csflow, density, edm, jit, maskalign, reg, repa, sit
from stages.nets import edm2, unet
from stages.nets import sit as nets_sit
from stages.nets.edm.preconditioning import dhariwal, song
from stages.nets.jit import JiTDenoiser
from stages.training.log import LossLog
from stages.training.loop import Batches, Optimization, TrainState, train
from tests.pretend_gpu import DEVICE, running

CLASSES, SIDE, WIDTH = 5, 8, 6
U_NET = {
    "img_resolution": SIDE,
    "label_dim": CLASSES,
    "model_channels": 8,
    "num_blocks": 1,
    "dropout": 0.0,
}
SIZE = {"image_size": SIDE, "channels": 1, "patch_size": 2, "width": 16, "depth": 2, "num_heads": 2}
TAUGHT = {"teacher_dim": WIDTH, "projector_width": 8, "alignment_depth": 1}
WITH_CLASS = TAUGHT | {"class_token_dim": WIDTH}
JIT = {"input_size": SIDE, "patch_size": 2, "in_channels": 1, "hidden_size": 16, "depth": 3}
JIT |= {"num_heads": 2, "num_classes": CLASSES, "bottleneck_dim": 8, "in_context_len": 2}
JIT |= {"in_context_start": 1}

SPECTRUM = torch.tensor([1.0, 0.3, 0.1, 0.02], dtype=torch.float64)
CSFLOW = csflow.from_spectrum(
    (torch.arange(4, dtype=torch.float64) + 0.5) / 4 * 0.7071, SPECTRUM, image_pixels=SIDE
)
DENSITIES = {
    "uniform": None,
    "logit_normal": density.LogitNormal(),
    "csflow": density.Mixture(CSFLOW, density.Uniform(), 0.4),
    "csflow over logit_normal": density.Mixture(CSFLOW, density.LogitNormal(), 0.4),
    "minsnr": density.Mixture(density.min_snr(), density.Uniform(), 0.4),
    "p2, shifted": density.Shifted(density.Mixture(density.p2(), density.Uniform(), 0.4), 2.0),
}


def transformer(**more):
    return nets_sit.SiT(num_classes=CLASSES, **SIZE, **more)


TRAININGS = {
    **{
        f"sit, {name}": (transformer, sit.Loss(time_density=one)) for name, one in DENSITIES.items()
    },
    "repa": (lambda: transformer(**TAUGHT), repa.Loss()),
    "reg": (lambda: transformer(**WITH_CLASS), reg.Loss()),
    "maskalign": (
        lambda: transformer(**WITH_CLASS, mix_layers=1, qk_norm=True),
        maskalign.Loss(time_density=DENSITIES["csflow"]),
    ),
    "edm": (lambda: unet.UNet(SIDE, 1, 8, num_classes=CLASSES), edm.Loss()),
    "edm, song": (lambda: song(1, attn_resolutions=(4,), channel_mult=(1, 2), **U_NET), edm.Loss()),
    "edm, dhariwal": (lambda: dhariwal(1, channel_mult=(1, 2), **U_NET), edm.Loss()),
    "edm, edm2": (
        lambda: edm2.EDM2(img_channels=1, channel_mult=(1, 2), **U_NET),
        edm.Loss(uncertainty=True),
    ),
    "jit": (lambda: JiTDenoiser(**JIT), jit.Loss(time_density=density.LogitNormal(0.8, 0.8))),
}


class Held:
    """Arrays of images, or of latents' means and deviations, in memory."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.shape = array, array.shape[1:]

    def take(self, which) -> np.ndarray:
        return self.array[which]


class Features:
    """A teacher whose features are stored."""

    images = None

    def raw(self, indices):
        some = torch.Generator().manual_seed(0)
        patches = torch.randn(len(indices), (SIDE // 2) ** 2, WIDTH, generator=some)
        return torch.nn.functional.normalize(patches, dim=-1), patches[:, 0].clone()

    def finish(self, raw):
        return tuple(raw)


def images(latents: bool = False) -> Images:
    random, labels = np.random.default_rng(0), torch.arange(30) % CLASSES
    if latents:
        array = random.random((30, 2, 1, SIDE, SIDE)).astype(np.float32)
        return Images(Held(array), labels, latents=LatentScale((0.5,), 0.1))
    return Images(Held(random.integers(0, 256, (30, 1, SIDE, SIDE)).astype(np.uint8)), labels)


def trained(network, loss, device, stored=None, **how):
    """The state after three steps, their losses, and what waited in the last."""
    torch.manual_seed(0)
    stored, where = images() if stored is None else stored, torch.device(device)
    with running() as gpu:
        state = TrainState(network().to(where), Optimization(1e-3, **how))
        log = LossLog(every=100)
        with Batches(stored, stored.labels, 6, 0, device, Features()) as batches:
            for step in train(state, loss, batches, 3):
                log.add(step)
                waited = dict(gpu.waits)
                gpu.waits.clear()
        tensors = {name: value.cpu() for name, value in state.tensors().items()}
        return tensors, {k: v.item() for k, v in step.losses.items()}, waited


@pytest.mark.parametrize(("network", "loss"), TRAININGS.values(), ids=TRAININGS)
def test_a_training_step_waits_for_nothing(network, loss):
    tensors, losses, waited = trained(network, loss, DEVICE)
    assert not waited
    expected, there, _ = trained(network, loss, "cpu")
    assert losses == pytest.approx(there, rel=1e-6)
    assert tensors.keys() == expected.keys()
    for name, value in tensors.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6)


def test_latents_are_scaled_and_drawn_where_they_are():
    how = {"clip": None, "accumulate": 2, "ema_warm_up": False}
    network = TRAININGS["sit, uniform"][0]
    _, losses, waited = trained(network, sit.Loss(), DEVICE, images(latents=True), **how)
    assert not waited
    _, there, _ = trained(network, sit.Loss(), "cpu", images(latents=True), **how)
    assert losses == pytest.approx(there, rel=1e-6)
