"""Checkpoints of other sizes than published: read from the files alone, as far as they tell."""

import argparse
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from stages.methods import path as paths
from stages.nets.edm.preconditioning import dhariwal, song
from stages.nets.edm2 import EDM2
from stages.nets.jit import JiTDenoiser
from stages.nets.sit import SiT
from stages.networks import karras, load
from tests.nets.published import CLOSE, FIXTURES, apart
from tests.networks.stand_ins import edm_pickle
from tests.networks.written import randomised, sit_file

LABELS = torch.tensor([1, 0])

# Arguments of our class, whether the file has a variance, and what it is saved as.
SITS = {
    "one channel": ({"image_size": 8, "channels": 1, "width": 16, "depth": 1}, False, ".pt"),
    "large patches": ({"image_size": 16, "channels": 3, "width": 32, "patch_size": 8}, True, ".pt"),
    "patch of one": ({"image_size": 4, "channels": 4, "width": 24, "patch_size": 1}, True, ".pt"),
    "deep": ({"image_size": 4, "width": 8, "depth": 11}, False, ".safetensors"),
    "no classes": ({"image_size": 8, "width": 16, "num_classes": 0}, False, ".pt"),
    "many classes": ({"image_size": 8, "width": 16, "num_classes": 300}, False, ".pt"),
    "wide mlp": ({"image_size": 8, "width": 16, "mlp_ratio": 2.5}, False, ".pt"),
    "normed queries": ({"image_size": 8, "width": 24, "qk_norm": True}, False, ".pt"),
    "half precision": ({"image_size": 8, "width": 16}, True, ".safetensors"),
}
OWN = {"depth": 2, "num_heads": 2, "num_classes": 3}
ADDED = {"sit": {}, "dit": {}, "repa": {"teacher_dim": 6, "projector_width": 10}}
ADDED["reg"] = ADDED["repa"] | {"class_token_dim": 6}


def saved(stored, path, half=False):
    stored = {k: (v.half() if half else v).contiguous() for k, v in stored.items()}
    save_file(stored, path) if path.suffix == ".safetensors" else torch.save(stored, path)
    return path


@pytest.mark.parametrize("format", ADDED)
@pytest.mark.parametrize("size", SITS)
def test_transformers_of_other_sizes(tmp_path, size, format):
    given, with_variance, ending = SITS[size]
    arguments = OWN | {"alignment_depth": 1} | given | ADDED[format]
    half = size == "half precision"
    ours = randomised(SiT(**arguments))
    stored = sit_file(ours, with_variance and format in ("sit", "dit"))
    if half:
        ours.load_state_dict({k: v.half().float() for k, v in ours.state_dict().items()})
    path = saved(stored, tmp_path / f"file{ending}", half)
    heads = {} if "qk_norm" in given else {"num_heads": 2}
    network = load(path, format if format in ("sit", "dit") else None, **heads)
    shape = (ours.channels, *ours.image_size)
    assert (network.format, network.shape) == (format, shape)
    assert network.num_classes == arguments["num_classes"]
    x, t, classes = torch.randn(2, *shape), torch.tensor([0.3, 0.8]), arguments["num_classes"]
    labels = LABELS if classes else None
    if format == "dit":
        inner, times = network.module.call, torch.tensor([17.0, 800.0])
        assert apart(inner(x, times, labels), ours(x, times, labels)) < CLOSE
    elif format == "sit":  # the file's own time and velocity run the other way
        assert apart(network.module(x, t, labels), -ours(x, 1 - t, labels)) < 3 * CLOSE
    else:
        token = (torch.randn(2, 6),) if format == "reg" else ()
        expected = ours(x, t, labels, *token)
        found = network.module(x, t, labels, *token)
        pairs = zip(found, expected, strict=True) if token else [(found, expected)]
        assert max(apart(*pair) for pair in pairs) < CLOSE


@pytest.mark.parametrize(("path_type", "alpha"), [("GVP", "cosine"), ("VP", "vp")])
def test_other_paths_from_a_training_files_arguments(tmp_path, path_type, alpha):
    ours = randomised(SiT(image_size=4, channels=1, width=16, **OWN))
    args = argparse.Namespace(path_type=path_type, prediction="noise", num_classes=3)
    torch.save({"ema": sit_file(ours), "args": args}, tmp_path / "0001.pt")
    network = load(tmp_path / "0001.pt", num_heads=2)
    assert network.conventions["path"] == alpha
    assert network.conventions["prediction"] == "noise"
    assert network.denoiser(LABELS)(torch.randn(2, 1, 4, 4).double(), 0.7).isfinite().all()


def test_training_files_tell_sit_from_dit_by_their_models_name(tmp_path):
    stored = sit_file(randomised(SiT(image_size=4, channels=1, width=16, **OWN)))
    for named, format in (("DiT-XL/2", "dit"), ("SiT-B/4", "sit")):
        torch.save({"ema": stored, "args": argparse.Namespace(model=named)}, tmp_path / "file.pt")
        assert load(tmp_path / "file.pt", num_heads=2).format == format


def test_files_without_a_null_class(tmp_path):
    """Trained without label dropout: a file that says how many classes it has tells."""
    ours = randomised(
        SiT(image_size=4, channels=1, width=16, **OWN, teacher_dim=4, alignment_depth=2)
    )
    stored = sit_file(ours, null=False)
    args = argparse.Namespace(num_classes=3, encoder_depth=2)
    torch.save({"ema": stored, "args": args}, tmp_path / "file.pt")
    torch.save(stored, tmp_path / "bare.pt")
    for given in (
        load(tmp_path / "file.pt", num_heads=2),
        load(tmp_path / "bare.pt", num_heads=2, num_classes=3),
    ):
        assert (given.num_classes, given.model.null_class) == (3, False)
        x, t = torch.randn(2, 1, 4, 4), torch.tensor([0.3, 0.8])
        assert apart(given.module(x, t, LABELS), ours(x, t, LABELS)) < CLOSE
        with pytest.raises(ValueError, match="knows no input without a class"):
            given.denoiser(LABELS, guidance=2.0)
    with pytest.raises(ValueError, match=r"num_classes is 7, and its table of classes has 3 rows"):
        load(tmp_path / "bare.pt", num_heads=2, num_classes=7)


def test_damaged_and_contradictory_transformers_are_refused(tmp_path):
    stored = sit_file(randomised(SiT(image_size=4, channels=1, width=16, **OWN)))

    def refused(words, format="sit", num_heads=2, **changed):
        path = saved(
            {k: v for k, v in (stored | changed).items() if v is not None}, tmp_path / "f.pt"
        )
        with pytest.raises(ValueError, match=words):
            load(path, format, num_heads=num_heads)

    refused("num_heads=3 and a width of 16 contradict", num_heads=3)
    refused("no square of patches", pos_embed=torch.zeros(1, 5, 16))
    refused("gives 3 values a pixel", **{"final_layer.linear.weight": torch.zeros(12, 16)})
    refused("holds no y_embedder", **{"y_embedder.embedding_table.weight": None})
    refused("which no network of this format has", **{"blocks.0.odd.weight": torch.zeros(2)})
    refused("blocks.1.mlp_in.bias is .* in the file", **{"blocks.1.mlp.fc1.bias": torch.zeros(2)})
    refused("format=repa, but", format="repa")


JITS = {
    "two heads": {"hidden_size": 16, "depth": 2, "num_heads": 2},
    "no context": {"hidden_size": 24, "depth": 1, "num_heads": 3, "in_context_len": 0},
    "wide": {"hidden_size": 40, "depth": 3, "num_heads": 2, "mlp_ratio": 3.0, "patch_size": 2},
    "one channel": {"hidden_size": 16, "depth": 2, "num_heads": 1, "in_channels": 1},
}


@pytest.mark.parametrize("size", JITS)
@pytest.mark.parametrize("training", [False, True])
def test_jits_of_other_sizes(tmp_path, size, training):
    more = {"input_size": 8, "patch_size": 4, "num_classes": 3, "bottleneck_dim": 6}
    more |= {"in_context_len": 2, "in_context_start": 1} | JITS[size]
    scale = 2.0 if training else 1.0
    ours = randomised(JiTDenoiser(scale, **more))
    stored = {k: v for k, v in ours.state_dict().items() if not k.endswith("angles")}
    content = {"model": {}, "model_ema1": stored, "args": argparse.Namespace(noise_scale=2.0)}
    torch.save(content if training else stored, tmp_path / "jit.pth")
    start = {"in_context_start": 1} if more["in_context_len"] else {}
    network = load(tmp_path / "jit.pth", **start)
    shape = (more.get("in_channels", 3), 8, 8)
    assert (network.format, network.shape, network.num_classes) == ("jit", shape, 3)
    y = torch.randn(2, *shape)
    assert apart(network.denoiser(LABELS)(y, 0.7), ours(y, 0.7, LABELS)) < CLOSE
    assert apart(network.denoiser()(y, 0.7), ours(y, 0.7)) < CLOSE


SONG = {"model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4]}
NCSN = {"embedding_type": "fourier", "encoder_type": "residual", "resample_filter": [1, 3, 3, 1]}
NCSN |= {"channel_mult_noise": 2}
EDMS = {
    "augmented": ("EDMPrecond", "SongUNet", {"augment_dim": 9, "label_dim": 3}),
    "grey": ("EDMPrecond", "SongUNet", {"img_channels": 1, "dropout": 0.2}),
    "three levels": ("VPPrecond", "SongUNet", {"channel_mult": [1, 2, 1], "num_blocks": 2}),
    "ncsn": ("VEPrecond", "SongUNet", NCSN | {"label_dim": 3}),
    "skips": ("EDMPrecond", "SongUNet", {"encoder_type": "skip", "decoder_type": "skip"}),
    "adm": ("EDMPrecond", "DhariwalUNet", {"label_dim": 3, "channel_mult": [1, 8]}),
    "iddpm": ("iDDPMPrecond", "DhariwalUNet", {"M": 1000, "C_1": 0.001, "C_2": 0.008}),
    "dropped": ("EDMPrecond", "DhariwalUNet", {"label_dim": 3, "label_dropout": 0.1}),
}
CONSTANTS = {"M", "C_1", "C_2", "label_dropout"}
PUBLISHED = {"SongUNet": song, "DhariwalUNet": dhariwal}


@pytest.mark.parametrize("size", EDMS)
def test_edms_networks_of_other_sizes(tmp_path, size):
    class_name, model_type, more = EDMS[size]
    arguments = {"img_resolution": 8, "img_channels": 3, "label_dim": 0} | SONG | more
    inner = {k: v for k, v in arguments.items() if k not in CONSTANTS}
    kind = karras.PRECONDITIONINGS[class_name]
    ours = randomised(PUBLISHED[model_type](preconditioning=kind, **inner), 0.05)
    init = arguments | {"model_type": model_type, "use_fp16": True}
    edm_pickle(tmp_path / "net.pkl", ours, class_name, init)
    karras.convert(tmp_path / "net.pkl", tmp_path / "net")
    y, labels = torch.randn(2, arguments["img_channels"], 8, 8), LABELS
    for path in ("net.pkl", "net", "net/weights.safetensors"):
        network = load(tmp_path / path)
        assert (network.format, network.num_classes) == ("edm", arguments["label_dim"])
        assert network.model.null_class == (not arguments["label_dim"] or size == "dropped")
        labels = LABELS if arguments["label_dim"] else None
        for sigma in (0.03, 2.0):
            assert apart(network.denoiser(labels)(y, sigma), ours(y, sigma, labels)) < CLOSE


EDM2S = {
    "labelled": {"label_dim": 3, "logvar_channels": 16},
    "plain": {"channel_mult": [1, 3], "num_blocks": 2, "sigma_data": 0.7},
    "filter": {"resample_filter": [1, 3, 3, 1], "channel_mult_emb": 3, "channel_mult_noise": 2},
    "heads": {"channels_per_head": 4, "attn_resolutions": [8], "clip_act": 8, "dropout": 0.1},
    "balances": {"label_dim": 3, "label_balance": 0.3, "concat_balance": 0.4, "res_balance": 0.2},
}


@pytest.mark.parametrize("size", EDM2S)
@pytest.mark.parametrize("half", [False, True])
def test_edm2s_networks_of_other_sizes(tmp_path, size, half):
    more = {"img_resolution": 8, "img_channels": 4, "model_channels": 8, "channel_mult": [1, 2]}
    more |= {"num_blocks": 1, "attn_resolutions": [4], "label_dim": 0} | EDM2S[size]
    ours = randomised(EDM2(**more), 1.0)
    edm_pickle(
        tmp_path / "net.pkl", ours.half() if half else ours, "Precond", more | {"use_fp16": True}
    )
    network, ours = load(tmp_path / "net.pkl"), ours.float()
    assert (network.format, network.shape) == ("edm2", (4, 8, 8))
    y, labels = torch.randn(2, 4, 8, 8), LABELS if more["label_dim"] else None
    assert apart(network.denoiser(labels)(y, 1.5), ours(y, 1.5, labels)) < CLOSE
    assert network.model.null_class == (not more["label_dim"])


def moved(tmp_path, name, flat=False, binary=False, **config):
    """A folder of the fixtures laid out as older ones are."""
    folder = tmp_path / name
    shutil.copytree(FIXTURES / "diffusers" / name, folder)
    part = next(p for p in (folder / "unet", folder / "transformer") if p.is_dir())
    facts = json.loads((part / "config.json").read_text()) | config
    (part / "config.json").write_text(json.dumps(facts))
    if binary:
        weights = part / "diffusion_pytorch_model.safetensors"
        torch.save(load_file(weights), part / "diffusion_pytorch_model.bin")
        weights.unlink()
    if flat:
        for file in (*part.iterdir(), folder / "scheduler/scheduler_config.json"):
            shutil.move(file, folder / file.name)
        part.rmdir()
        (folder / "scheduler").rmdir()
    return folder


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("ddpm_epsilon", {"flat": True, "binary": True}),
        ("ddpm_v", {"binary": True}),
        ("dit", {"binary": True, "_class_name": "Transformer2DModel"}),
    ],
)
def test_diffusers_as_published(tmp_path, name, how):
    """One folder for all of a pipeline, weights as .bin, a class's former name."""
    y = torch.randn(2, *load(FIXTURES / "diffusers" / name).shape)
    labels = LABELS if name != "ddpm_epsilon" else None
    one, other = load(FIXTURES / "diffusers" / name), load(moved(tmp_path, name, **how))
    assert torch.equal(one.denoiser(labels)(y, 2.0), other.denoiser(labels)(y, 2.0))
    alone = load(FIXTURES / "diffusers" / name / ("transformer" if name == "dit" else "unet"))
    assert torch.equal(one.denoiser(labels)(y, 2.0), alone.denoiser(labels)(y, 2.0))


def scheduled(tmp_path, **facts):
    folder = moved(tmp_path, "ddpm_epsilon")
    file = folder / "scheduler/scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | facts))
    return folder


def test_flows_of_diffusers(tmp_path):
    """x = y / (1 + s), t = s / (1 + s), D = x - t net(x, 1000 t)."""
    file = scheduled(tmp_path) / "scheduler/scheduler_config.json"
    file.write_text(json.dumps({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}))
    network, y = load(file.parents[1]), torch.randn(2, 3, 8, 8)
    assert network.conventions["prediction"] == "flow"
    x, t = paths.from_edm(y, 0.5)
    raw = network.module.call(x, torch.full((2,), 1000 * t), None)
    assert apart(network.denoiser()(y, 0.5), x - t * raw) < CLOSE
    with pytest.raises(ValueError, match=r"prediction=epsilon and a FlowMatch.* contradict"):
        load(file.parents[1], prediction="epsilon")
    with pytest.raises(ValueError, match="clip_sample and a flow contradict"):
        load(file.parents[1], clip_sample=True)


def test_predictions_and_levels_of_diffusers(tmp_path):
    folder, y = scheduled(tmp_path, beta_schedule="squaredcos_cap_v2", prediction_type="sample"), 0
    network, y = load(folder), torch.randn(2, 3, 8, 8)
    s = network.module.logs.exp()[300].item()
    assert s != load(FIXTURES / "diffusers/ddpm_epsilon").module.logs.exp()[300].item()
    x = (y / (1 + s**2) ** 0.5).float()
    raw = network.module.call(x, torch.full((2,), 300.0), None)
    assert apart(network.denoiser()(y, s), raw) < CLOSE
    said = load(folder, prediction="epsilon")
    assert apart(said.denoiser()(y, s), y - s * raw) < CLOSE


def test_what_diffusers_folders_hold_that_is_not_read(tmp_path):
    def refused(words, folder, **said):
        with pytest.raises(ValueError, match=words):
            load(folder, **said)
        shutil.rmtree(folder)

    refused("prediction_type=odd", scheduled(tmp_path, prediction_type="odd"))
    other = {"_class_name": "ScoreSdeVeScheduler", "beta_schedule": None}
    folder = scheduled(tmp_path)
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(other | {}))
    facts = json.loads((folder / "scheduler/scheduler_config.json").read_text())
    del facts["beta_schedule"]
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(facts))
    refused("ScoreSdeVeScheduler, which has no betas", folder)
    refused(
        "time_embedding_type=fourier",
        moved(tmp_path, "ddpm_epsilon", time_embedding_type="fourier"),
    )
    refused("does not say sample_size", moved(tmp_path, "ddpm_epsilon", sample_size=None))
    folder = moved(tmp_path, "ddpm_epsilon", sample_size=None)
    assert load(folder, shape=(3, 8, 8)).shape == (3, 8, 8)
