"""Nothing mixes devices, and a training step does not wait for a GPU: on one that is pretended."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.artifacts.data import Images
from stages.artifacts.network import TrainedModel
from stages.artifacts.storage import LatentScale
from stages.artifacts.teacher import OnlineTeacher
from stages.encoders import pretrained, suites
from stages.encoders.classifier import accuracy, train_classifier
from stages.encoders.embedded import embedded, extract
from stages.encoders.pretrained import _DINOv2
from stages.methods import (
    classified,
    csflow,
    density,
    edm,
    jit,
    maskalign,
    reg,
    repa,
    simclr,
    sit,
    solvers,
    stein,
    table,
)
from stages.methods.diagnostics import alignment_heatmap, stability_gap
from stages.methods.draws import Draws
from stages.methods.lipschitz import step_norms
from stages.methods.losses import Batch
from stages.methods.path import Guidance, VelocityDenoiser
from stages.methods.solvers import sde
from stages.methods.solvers.multistep import LookAhead
from stages.methods.solvers.stochastic import ancestral, churned
from stages.methods.solvers.whole import teacher
from stages.methods.torchvision_shim import prepare_torchvision
from stages.methods.training_views import Views
from stages.nets import edm2, unet
from stages.nets import sit as nets_sit
from stages.nets.blocks import placed, recompute
from stages.nets.edm.preconditioning import dhariwal, song
from stages.nets.encoders import EmbeddedCNN
from stages.nets.jit import JiTDenoiser
from stages.nets.vit import EmbeddedViT
from stages.papers.icr import measure
from stages.settings.scans import ScannedOptions
from stages.training.log import LossLog
from stages.training.loop import Batches, Optimization, TrainState, train
from tests import dinov2_like, inception_like
from tests.pretend_gpu import DEVICE, Gpu, running

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
    "simclr": (
        lambda: EmbeddedViT((SIDE, SIDE), 1, 4, width=16, depth=1, num_heads=2),
        simclr.Loss(views=Views(jitter=0.5)),
    ),
    "labels": (
        lambda: EmbeddedViT(
            (SIDE, SIDE), 1, 4, width=16, depth=1, num_heads=2, outputs=CLASSES, stem=1
        ),
        classified.Loss(),
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


def on_stand_in(device):
    """What is done on the CPU needs none."""
    return running() if torch.device(device) == DEVICE else nullcontext(Gpu())


def trained(network, loss, device, stored=None, again=False, teacher=None, **how):
    """The state after two steps, their losses, and what waited in the last; again: blocks are
    computed again for their gradients. teacher(images, device): another than `Features`."""
    torch.manual_seed(0)
    stored, where = images() if stored is None else stored, torch.device(device)
    with on_stand_in(where) as gpu:
        state = TrainState(placed(network(), where), Optimization(1e-3, **how))
        if again:
            recompute(state.network)
        log = LossLog(every=100)
        taught = Features() if teacher is None else teacher(stored, where)
        with Batches(stored, stored.labels, 6, 0, device, taught) as batches:
            for step in train(state, loss, batches, 2):
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
    assert losses == pytest.approx(there, rel=1e-5)
    assert tensors.keys() == expected.keys()


@pytest.mark.parametrize("name", ["maskalign", "edm, edm2"])
def test_blocks_are_computed_again_without_a_wait(name):
    network, loss = TRAININGS[name]
    _, losses, waited = trained(network, loss, DEVICE, again=True)
    assert not waited
    _, expected, _ = trained(network, loss, DEVICE)
    assert losses == expected


def test_a_teacher_looks_at_the_images_of_a_step_without_a_wait():
    def online(stored, where):
        torch.manual_seed(1)
        vit = EmbeddedViT((SIDE, SIDE), 1, 4, width=WIDTH, depth=1, num_heads=2)
        tokens = vit.eval().requires_grad_(False).to(where).tokens
        return OnlineTeacher(stored, tokens, where, (4, 4), (2, 2), True, "float32", 4)

    network, loss = TRAININGS["maskalign"]
    _, losses, waited = trained(network, loss, DEVICE, teacher=online)
    assert not waited
    _, there, _ = trained(network, loss, "cpu", teacher=online)
    assert losses == pytest.approx(there, rel=1e-5)


def test_latents_are_scaled_and_drawn_where_they_are():
    how = {"clip": None, "accumulate": 2, "ema_warm_up": False}
    network = TRAININGS["sit, uniform"][0]
    _, losses, waited = trained(network, sit.Loss(), DEVICE, images(latents=True), **how)
    assert not waited
    _, there, _ = trained(network, sit.Loss(), "cpu", images(latents=True), **how)
    assert losses == pytest.approx(there, rel=1e-5)


# --- sampling -----------------------------------------------------------------------------------

LEVELS = torch.tensor([20.0, 5.0, 1.0, 0.2, 0.0], dtype=torch.float64)
COUNT = 4
NOISE = torch.randn(COUNT, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(3)).double()
LABELS = torch.arange(COUNT) % CLASSES
MEAN = torch.zeros(1, SIDE, SIDE)


def awake(network):
    """With no weight at 0, frozen."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1, generator=generator)
    return network.eval().requires_grad_(False)


def denoiser_on(device, guided: bool = True):
    """A transformer's, guided."""
    network = awake(transformer()).to(device)
    of_class, null = (
        VelocityDenoiser(network, {"labels": x.to(device)}, dtype=torch.float32)
        for x in (LABELS, torch.full_like(LABELS, CLASSES))
    )
    return Guidance(of_class, null, 2.0, (0.1, 0.95)) if guided else of_class


def ends(sample):
    """Where `sample(denoiser, states)` ends on the stand-in, with what waited; and on the CPU."""
    with running() as gpu:
        there = denoiser_on(DEVICE), (LEVELS[0] * NOISE).to(DEVICE)
        gpu.waits.clear()
        found = sample(*there)
        waits = gpu.waits.copy()
        found = found.cpu()
    return found, sample(denoiser_on("cpu"), LEVELS[0] * NOISE), waits


def stochastic(name):
    return {
        "sde": lambda denoiser, y: sde.sample(denoiser, y / y.std(), draws_on(y), 4),
        "ancestral": lambda denoiser, y: ancestral(denoiser, y, LEVELS, draws_on(y)),
        "churn": lambda denoiser, y: churned(denoiser, y, LEVELS, draws_on(y)),
    }[name]


def draws_on(y):
    return Draws(0, torch.arange(COUNT, device=y.device))


def fitted(name):
    """As it is fitted to the network on the CPU."""
    denoiser, noise = denoiser_on("cpu"), LEVELS[0] * NOISE
    if name == "fitted":
        return solvers.fit(denoiser, noise, LEVELS, substeps=2)
    if name == "fitted-heun":
        return solvers.fit_heun(denoiser, noise, LEVELS, substeps=2)
    return solvers.fit_whole(denoiser, NOISE, 4, LEVELS[0].item(), LEVELS)


@pytest.mark.parametrize("name", table.SOLVERS)
def test_a_trajectory_waits_once(name):
    """To hear whether all was finite."""
    if table.SOLVERS[name].stochastic:
        found, expected, waits = ends(stochastic(name))
    else:
        solver = name if name in table.PLAIN_SOLVERS else fitted(name)
        found, expected, waits = ends(
            lambda denoiser, y: solvers.solve(denoiser, y, LEVELS, solver)
        )
    assert sum(waits.values()) <= 1, waits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_what_was_not_finite_is_named_at_the_end():
    def broken(y, s):
        return y * (float("nan") if s < 2 else 0.5)

    with running(), pytest.raises(FloatingPointError, match=r"step 3 of 4, level s=1"):
        solvers.solve(broken, NOISE.to(DEVICE), LEVELS, "dpmpp2m")
    with running(), pytest.raises(ValueError, match="holds NaN or infinity"):
        solvers.solve(broken, (NOISE / 0).to(DEVICE), LEVELS, "euler")


GAMMAS = torch.tensor([1.1, 0.9, 1.05, 1.0], dtype=torch.float64)
CORRECTIONS = {  # each with how often a step waits beside the end: gammas are numbers of the host
    "none": ("dpmpp2m", None, 0),
    "lookahead": (LookAhead(solvers.named("dpmpp2m"), "ahead"), None, 0),
    "calibrated": ("dpmpp2m", stein.calibrated(GAMMAS, LEVELS, "dpmpp2m"), 0),
    "online": ("dpmpp2m", stein.online(MEAN, 3.0), 12),
    "literal": ("dpmpp2m", stein.literal(), 12),
}


def test_every_correction_is_here():
    assert CORRECTIONS.keys() == table.CORRECTIONS.keys()


@pytest.mark.parametrize("name", CORRECTIONS)
def test_corrections_stay_where_the_states_are(name):
    solver, correction, waits_a_step = CORRECTIONS[name]

    def sample(denoiser, y):
        return solvers.solve(denoiser, y, LEVELS, solver, correction)

    found, expected, waits = ends(sample)
    assert sum(waits.values()) <= 1 + waits_a_step * (len(LEVELS) - 1), waits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def whole_fit(denoiser, noise):
    of = teacher(denoiser, noise, 20.0, 4)
    return solvers.fit_whole(denoiser, noise, 2, 20.0, tries=8, of=of)


def clean_of(y):
    return (y / LEVELS[0]).clamp(-1, 1)


MEASURED = {
    "calibrate": lambda d, y: stein.calibrate(d, clean_of(y), LEVELS),
    "fit_gammas": lambda d, y: stein.fit_gammas(d, y, LEVELS, substeps=2),
    "fit": lambda d, y: solvers.fit(d, y, LEVELS, substeps=2).coefficients,
    "fit_heun": lambda d, y: solvers.fit_heun(d, y, LEVELS, substeps=2).coefficients,
    "fit_whole": lambda d, y: whole_fit(d, y / 20).levels,
    "step_norms": lambda d, y: step_norms(d, y, LEVELS, iterations=2).mean.cpu(),
}


@pytest.mark.parametrize("measure", MEASURED.values(), ids=MEASURED)
def test_what_is_measured_on_trajectories_mixes_no_devices(measure):
    found, expected, _ = ends(measure)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


# --- what looks at networks ---------------------------------------------------------------------


def on(device, call):
    """What `call(device)` gives, on the CPU."""
    with on_stand_in(device):
        found = call(device)
        return [x.cpu() if isinstance(x, torch.Tensor) else x for x in found]


def same_on_both(call):
    for found, expected in zip(on(DEVICE, call), on("cpu", call), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def taught_batch(device):
    targets, tokens = Features().finish(Features().raw(LABELS))
    draws = Draws(0, torch.arange(COUNT, device=device))
    return Batch(
        *(x.to(device) for x in (NOISE.float(), LABELS)),
        draws,
        *(x.to(device) for x in (targets, tokens)),
    )


def test_alignment_is_diagnosed_there():
    def diagnosed(device):
        network, batch = awake(transformer(**WITH_CLASS)).to(device), taught_batch(device)
        keep = maskalign.Loss(0.5).keep(batch)
        maps = [alignment_heatmap(network, batch, which, 0.2) for which in (keep, None)]
        gap = stability_gap(network, batch, keep, DENSITIES["csflow"])
        summary = [maps[1].max_min_ratio, maps[1].coefficient_of_variation]
        return [*(m.hits for m in maps), *(m.seen for m in maps), *gap, *summary]

    same_on_both(diagnosed)


SCANNED = {"sit": transformer, "unet": lambda: unet.UNet(SIDE, 1, 8, num_classes=CLASSES)}


@pytest.mark.parametrize("kind", SCANNED)
def test_networks_are_scanned_there(kind):
    def scanned(device):
        network, config = awake(SCANNED[kind]()).to(device), {"num_classes": CLASSES}
        model = TrainedModel(Path(), kind, config, "sit", (1,), (1, SIDE, SIDE), CLASSES)
        options = ScannedOptions(num_images=24, num_views=3, view_seeds=(0, 1), batch_size=18)
        subject = measure.subject_of(model, network, options)
        seen = torch.rand(24, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(4)) * 2 - 1
        viewer = measure.Viewer(seen.to(device), options)
        found = measure.measure(subject, viewer, 0.2, components=3)
        numbers = [v for v in found.values() if isinstance(v, float)]
        labels = torch.arange(24) % CLASSES
        error = measure.denoising_error(subject.denoiser, seen.to(device), 0.5, 2, 10)
        half = seen[:12].to(device), labels[:12]
        right = measure.probe_right(subject, half, (seen[12:].to(device), labels[12:]), 0.2, 8)
        return [*numbers, *error, right.double()]

    same_on_both(scanned)


def test_extractors_and_teachers_look_there():
    some = torch.rand(COUNT, 1, 32, 32, generator=torch.Generator().manual_seed(5)) * 2 - 1

    def looked(device):
        prepare_torchvision()
        from timm.models.vision_transformer import VisionTransformer

        torch.manual_seed(0)
        small = embedded(EmbeddedCNN(1, 3, (8, 8, 8)).state_dict(), device)
        vit = VisionTransformer(224, 56, num_classes=0, embed_dim=8, depth=1, num_heads=2)
        vit.pretrained_cfg = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
        tokens = _DINOv2(vit, teaches=True).to(device)(some.to(device))
        found = extract(small, some, batch_size=3)
        return [found.features, found.spatial, found.logits, tokens]

    same_on_both(looked)


def eager(path, map_location="cpu"):
    """A file of `inception_like` as torch.jit.load gives it, but run by Python: compiled code is
    not for a stand-in."""
    network = inception_like.Inception()
    network.load_state_dict(torch_script(path).state_dict())
    return network.requires_grad_(False).to(map_location)


torch_script = torch.jit.load
PIXELS = torch.randint(
    0, 256, (COUNT, 3, 20, 24), generator=torch.Generator().manual_seed(7)
).byte()


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Files of small random networks in the forms of the published ones."""
    folder = tmp_path_factory.mktemp("published")
    inception_like.write(folder / "inception-2015-12-05.pt")
    dinov2_like.write(folder / "dinov2_vitl14_pretrain.pth")
    return folder


def clean_fid(folder, device):
    network = pretrained.load("inception", folder, device)
    return [extract(network, PIXELS / 127.5 - 1, batch_size=3).features]


def of_suite(kind, folder, device):
    suite = suites.load.__wrapped__(kind, str(folder), device)
    found = vars(suite(PIXELS))
    return [x for x in found.values() if x is not None]


PUBLISHED = {
    "clean-fid's Inception": clean_fid,
    "ADM's Inception": partial(of_suite, "inception"),
    "DINOv2": partial(of_suite, "dinov2-large"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_look_there(name, published, monkeypatch):
    monkeypatch.setattr(torch.jit, "load", eager)
    monkeypatch.setattr(suites, "DINO_DEPTH", dinov2_like.DEPTH)
    same_on_both(partial(PUBLISHED[name], published))


def test_the_embedded_extractor_is_trained_there():
    pixels = torch.rand(20, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(6)) * 2 - 1
    labels = torch.arange(20) % CLASSES

    def classified(device):
        how = {"epochs": 1, "batch_size": 10, "shift_pixels": 1, "device": device}
        network = train_classifier(pixels, labels, CLASSES, **how)
        return [network.classifier.weight, accuracy(network, pixels.to(device), labels)]

    same_on_both(classified)


@pytest.mark.parametrize("shift", [0, 2])
def test_training_the_embedded_extractor_waits_once_an_epoch(shift):
    """Or not even then, where nobody is told."""
    pixels, labels = torch.rand(40, 1, SIDE, SIDE), torch.arange(40) % CLASSES

    def waits(told, batch_size):
        with running() as gpu:
            more = {"shift_pixels": shift, "device": DEVICE, "progress": told}
            train_classifier(pixels, labels, CLASSES, 3, batch_size=batch_size, **more)
            return sum(gpu.waits.values())

    assert waits(None, 10) == waits(None, 4)
    assert waits(lambda at: None, 4) == waits(None, 4) + 3
