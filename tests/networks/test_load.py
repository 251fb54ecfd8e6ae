"""Checkpoints of the field's formats: the official codes' numbers, and what is refused."""

import argparse
import json
import pickle
import shutil

import pytest
import torch
from safetensors.torch import save_file

from stages.methods import path as paths
from stages.methods.solvers import solve
from stages.nets.edm.preconditioning import song
from stages.nets.unet import UNet
from stages.networks import karras, load
from tests.nets.published import CLOSE, FIXTURES, apart, arguments, tensors
from tests.networks.stand_ins import Malicious, edm_pickle

SIT = [("sigma_true/SiT-tiny.pt", "sit"), ("sigma_false/SiT-tiny.pt", "sit")]
SIT += [("sigma_true/0000010.pt", None)]  # the arguments of a training file tell SiT from DiT


@pytest.mark.parametrize(("file", "format"), SIT)
def test_sit(file, format):
    network = load(FIXTURES / "sit" / file, format, num_heads=3)
    io = tensors(f"sit/{file.partition('/')[0]}/io.safetensors")
    assert (network.format, network.shape, network.num_classes) == ("sit", (4, 8, 8), 5)
    velocity = network.module(io["x"], io["t_data0"], io["y"])
    assert apart(velocity, io["v_data0"]) < CLOSE
    t = io["t_data0"].double()
    y, s = paths.to_edm(io["x"].double(), t)
    expected = io["x"] - t.reshape(-1, 1, 1, 1) * io["v_data0"]
    labelled = io["y"] < 5
    given = network.denoiser(io["y"][labelled])(y[labelled], s[labelled])
    assert apart(given, expected[labelled]) < CLOSE
    null = network.denoiser()(y[~labelled], s[~labelled])
    assert apart(null, expected[~labelled]) < CLOSE


def guided_velocity(network, io, t, channels=None):
    """dx/dt in the network's own time at t (0 noise), from the guided denoiser."""
    half = len(io["cfg_x"]) // 2
    x, ours = io["cfg_x"][:half].double(), 1 - t
    out = []
    for image, label, time in zip(x, io["cfg_y"][:half], ours[:half], strict=True):
        y, s = paths.to_edm(image[None], time.item())
        scale = io["cfg_scale"].item()
        clean = network.denoiser(label[None], guidance=scale, channels=channels)(y, s)
        out.append(-(image[None] - clean) / time.item())
    return torch.cat(out)


def test_guidance_of_sit_leaves_further_channels_alone():
    network = load(FIXTURES / "sit/sigma_true/SiT-tiny.pt", "sit", num_heads=3)
    io = tensors("sit/sigma_true/io.safetensors")
    given = guided_velocity(network, io, io["cfg_t"].double())
    assert apart(given, io["cfg_out"][: len(given)]) < CLOSE
    assert apart(guided_velocity(network, io, io["cfg_t"].double(), 4), given) > 100 * CLOSE


@pytest.mark.parametrize("format", ["repa", "reg"])
@pytest.mark.parametrize("file", ["last.pt", "0000010.pt"])
def test_repa_and_reg(format, file):
    more = {"encoder_depth": 1} if file == "last.pt" else {}
    network = load(FIXTURES / format / file, num_heads=3, **more)
    io = tensors(f"{format}/io.safetensors")
    token = (io["class_token"],) if format == "reg" else ()
    output = network.module(io["x"], io["t"], io["y"], *token, align=True)
    assert network.format == format
    assert apart(output.velocity, io["velocity"]) < CLOSE
    assert apart(output.projection, io["projection"]) < CLOSE
    if format == "reg":
        assert apart(output.class_velocity, io["class_velocity"]) < CLOSE
        state = network.packing.pack(io["x"], io["class_token"]).double()
        y, s = paths.to_edm(state, io["t"].double())
        known = io["y"] < 5
        clean = network.denoiser(io["y"][known])(y[known], s[known])
        pair = network.packing.pack(io["velocity"], io["class_velocity"])
        expected = state - io["t"][:, None] * pair
        assert apart(clean, expected[known]) < CLOSE


def test_repas_first_files_number_blocks_behind_the_aligned_one_anew(tmp_path):
    stored = torch.load(FIXTURES / "repa/last.pt", weights_only=True)
    moved = {k.replace("blocks.1.", "decoder_blocks.0."): v for k, v in stored.items()}
    torch.save(moved, tmp_path / "old.pt")
    old = load(tmp_path / "old.pt", num_heads=3, encoder_depth=1)
    new = load(FIXTURES / "repa/last.pt", num_heads=3, encoder_depth=1)
    for ours, theirs in zip(old.module.parameters(), new.module.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_dit():
    network, io = (
        load(FIXTURES / "dit/DiT-tiny.pt", "dit", num_heads=3),
        tensors("dit/io.safetensors"),
    )
    levels = network.module.logs.exp()
    for image, time, label, out in zip(io["x"], io["t"], io["y"], io["out_full"], strict=True):
        s = levels[time].item()
        y = image[None].double() * (1 + s**2) ** 0.5
        expected = y - s * out[None, :4]
        denoiser = network.denoiser(None if label == 5 else label[None])
        assert apart(denoiser(y, s), expected) < CLOSE


def test_jit():
    network, io = (
        load(FIXTURES / "jit/JiT-tiny.pt", in_context_start=1),
        tensors("jit/io.safetensors"),
    )
    assert (network.format, network.shape, network.num_classes) == ("jit", (3, 16, 16), 5)
    for z, t, label, expected in zip(
        io["x"][1:], io["t"][1:], io["y"][1:], io["x0"][1:], strict=True
    ):
        s = (1 - t.double()) / t.double()
        denoiser = network.denoiser(None if label == 5 else label[None])
        assert apart(denoiser(z[None].double() / t.double(), s), expected[None]) < CLOSE


def test_a_training_file_of_jit_is_its_first_average(tmp_path):
    bare = torch.load(FIXTURES / "jit/JiT-tiny.pt", weights_only=True)
    other = {name: torch.zeros_like(value) for name, value in bare.items()}
    averaged = {name: torch.nn.Parameter(value) for name, value in bare.items()}
    args = argparse.Namespace(noise_scale=2.0)
    torch.save(
        {"model": other, "epoch": 3, "args": args, "model_ema1": averaged, "model_ema2": other},
        tmp_path / "checkpoint-last.pth",
    )
    network = load(tmp_path / "checkpoint-last.pth", in_context_start=1)
    assert network.module.noise_scale == 2
    assert torch.equal(
        network.module.net.final_layer.linear.weight, bare["net.final_layer.linear.weight"]
    )


@pytest.mark.parametrize("folder", ["ddpm_epsilon", "ddpm_v", "dit"])
def test_diffusers(folder):
    """The network at its own times, and the whole DDIM sample: Euler in EDM coordinates."""
    network, io = (
        load(FIXTURES / "diffusers" / folder),
        tensors(f"diffusers/{folder}/io.safetensors"),
    )
    labels = io.get("labels", io.get("y"))
    assert apart(network.module.call(io["x"], io["t"].float(), labels), io["out"]) < CLOSE
    levels = ((1 - io["alphas_cumprod"].double()) / io["alphas_cumprod"].double()).sqrt()
    at = torch.cat([levels[io["ddim_timesteps"]], torch.zeros(1).double()])
    y = io["ddim_noise"].double() * (1 + at[0] ** 2).sqrt()
    known = io.get("ddim_labels")
    sample = solve(network.denoiser(known), y, at, solver="euler")
    assert apart(sample, io["ddim_sample"]) < 1e-4


def test_clipping_of_diffusers_is_off_until_asked_for():
    io = tensors("diffusers/ddpm_epsilon/io.safetensors")
    folder = FIXTURES / "diffusers/ddpm_epsilon"
    clipped, plain = load(folder, clip_sample=True), load(folder)
    level = ((1 - io["alphas_cumprod"].double()) / io["alphas_cumprod"].double()).sqrt()[io["t"]]
    y = io["x"].double() * (1 + level.reshape(-1, 1, 1, 1) ** 2).sqrt()
    assert apart(clipped.denoiser()(y, level), io["scheduler_x0"]) < 2e-5
    assert plain.denoiser()(y, level).abs().max() > 1


@pytest.fixture
def published(tmp_path):
    """A pickle in EDM's form, its network, and the inputs of the fixture."""
    facts = arguments("edm/ddpmpp/init_kwargs.json")["EDMPrecond_label3"]
    kwargs = {k: v for k, v in facts["init_kwargs"].items() if k != "model_type"}
    network = song(**kwargs)
    stored = tensors("edm/ddpmpp/weights.safetensors")
    network.load_state_dict({k: v.float() for k, v in stored.items()})
    edm_pickle(tmp_path / "edm.pkl", network, "EDMPrecond", facts["init_kwargs"])
    return tmp_path / "edm.pkl", tensors("edm/ddpmpp/io.safetensors")


def test_edms_pickles_are_read_and_nothing_of_them_is_run(published):
    path, io = published
    with pytest.raises(ModuleNotFoundError):
        pickle.loads(path.read_bytes())
    network = load(path)
    assert (network.format, network.shape, network.num_classes) == ("edm", (3, 8, 8), 3)
    labels = io["labels"].argmax(1)
    for x, sigma, expected in zip(io["x"], io["sigma"], io["EDM_label3"], strict=True):
        assert apart(network.denoiser(labels)(x.double(), sigma), expected) < CLOSE


def test_a_converted_pickle_is_the_same_network(published, tmp_path):
    path, io = published
    karras.convert(path, tmp_path / "converted")
    one, other = load(path), load(tmp_path / "converted")
    assert torch.equal(one.denoiser()(io["x"][1], 0.1), other.denoiser()(io["x"][1], 0.1))
    assert one.conventions == other.conventions
    assert one.digest != other.digest


@pytest.mark.parametrize("where", ["extra", "state"])
def test_a_pickle_that_asks_for_anything_else_is_refused_by_its_name(published, tmp_path, where):
    facts = arguments("edm/ddpmpp/init_kwargs.json")["EDMPrecond_label3"]
    bad = Malicious(tmp_path / "written")
    kwargs = facts["init_kwargs"] | ({"dropout": bad} if where == "state" else {})
    network = song(**{k: v for k, v in facts["init_kwargs"].items() if k != "model_type"})
    extra = {"loss_fn": bad} if where == "extra" else {}
    edm_pickle(tmp_path / "bad.pkl", network, "EDMPrecond", kwargs, extra)
    with pytest.raises(
        ValueError, match=r"bad.pkl is refused: it asks for (io|_io).open, which is"
    ):
        load(tmp_path / "bad.pkl")
    assert not (tmp_path / "written").exists()


def test_tensors_inside_a_pickle_run_nothing_either(tmp_path):
    inner = pickle.dumps(Malicious(tmp_path / "written"))

    class Loaded:
        def __reduce__(self):
            return torch.storage._load_from_bytes, (inner,)

    (tmp_path / "bad.pkl").write_bytes(pickle.dumps({"ema": Loaded()}))
    with pytest.raises(ValueError, match=r"bad.pkl is refused|no readable pickle"):
        load(tmp_path / "bad.pkl")
    assert not (tmp_path / "written").exists()


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n", b"some words", b""])
def test_a_file_of_another_kind_is_no_checkpoint(tmp_path, content):
    (tmp_path / "picture.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"picture.pt is no (readable )?checkpoint"):
        load(tmp_path / "picture.pt", "sit")


def test_training_files_may_hold_arguments_and_nothing_else(tmp_path):
    bare = torch.load(FIXTURES / "sit/sigma_false/SiT-tiny.pt", weights_only=True)
    torch.save({"ema": bare, "args": Malicious(tmp_path / "written")}, tmp_path / "bad.pt")
    with pytest.raises(ValueError, match=r"asks for more than tensors.*open"):
        load(tmp_path / "bad.pt", "sit")
    assert not (tmp_path / "written").exists()


def test_constants_that_no_published_network_has_are_refused(published, tmp_path):
    path, _ = published
    karras.convert(path, tmp_path / "c")
    facts = json.loads((tmp_path / "c/network.json").read_text())
    for name, value in (("beta_d", 10), ("M", 500)):
        facts["init_kwargs"] = facts["init_kwargs"] | {name: value}
        (tmp_path / "c/network.json").write_text(json.dumps(facts))
        with pytest.raises(ValueError, match=rf"built with {name}={value}; the published networks"):
            load(tmp_path / "c")
        del facts["init_kwargs"][name]
    facts["init_kwargs"]["beta_d"] = 19.9
    (tmp_path / "c/network.json").write_text(json.dumps(facts))
    assert load(tmp_path / "c").format == "edm"


def test_steps_of_a_folder_of_ours(tmp_path):
    """Step 0 is a step, and one that was not kept is none."""
    network = UNet(image_size=4, width=8)
    (tmp_path / "checkpoints").mkdir()
    for step in (0, 5):
        with torch.no_grad():
            network.inner.head.bias.fill_(step)
        save_file(network.state_dict(), tmp_path / f"checkpoints/step-{step:06d}.safetensors")
    facts = {"network": "unet", "config": {"image_size": 4, "width": 8}, "method": "edm"}
    facts |= {"steps": [0, 5], "shape": [1, 4, 4], "num_classes": 0}
    (tmp_path / "model.json").write_text(json.dumps(facts))
    assert load(tmp_path, step=0).module.inner.head.bias.tolist() == [0]
    assert load(tmp_path).module.inner.head.bias.tolist() == [5]
    with pytest.raises(
        ValueError, match=r"step is 3, of which .* keeps no weights \(it has 0, 5\)"
    ):
        load(tmp_path, step=3)
    del facts["method"]
    (tmp_path / "model.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match=r"model.json lacks 'method'"):
        load(tmp_path)


@pytest.mark.parametrize("which", ["label0", "label3"])
def test_edm2_from_a_converted_folder(tmp_path, which):
    facts = arguments("edm2/init_kwargs.json")[which]
    stored = tensors("edm2/weights.safetensors")
    kept = {k: v for k, v in stored.items() if which == "label3" or "emb_label" not in k}
    save_file(kept, tmp_path / "weights.safetensors")
    (tmp_path / "network.json").write_text(json.dumps(facts))
    network, io = load(tmp_path), tensors("edm2/io.safetensors")
    assert (network.format, network.shape) == ("edm2", (4, 8, 8))
    labels = io["labels"].argmax(1) if which == "label3" else None
    for x, sigma, expected in zip(io["x"], io["sigma"], io[f"D_{which}"], strict=True):
        assert apart(network.denoiser(labels)(x.double(), sigma), expected) < CLOSE


def test_guidance_by_another_network(tmp_path):
    """EDM2 guides away from a network of its own: D_u + w (D_c - D_u)."""
    stored, io = tensors("edm2/weights.safetensors"), tensors("edm2/io.safetensors")
    for which in ("label0", "label3"):
        folder = tmp_path / which
        folder.mkdir()
        kept = {k: v for k, v in stored.items() if which == "label3" or "emb_label" not in k}
        save_file(kept, folder / "weights.safetensors")
        (folder / "network.json").write_text(json.dumps(arguments("edm2/init_kwargs.json")[which]))
    network, labels = load(tmp_path / "label3", guide=tmp_path / "label0"), io["labels"].argmax(1)
    given = network.denoiser(labels, guidance=1.7)(io["x"][2].double(), 1.0)
    low, high = io["D_label0"][2], io["D_label3"][2]
    assert apart(given, low + 1.7 * (high - low)) < CLOSE
    with pytest.raises(ValueError, match="guidance=2 needs labels, or a guide"):
        load(tmp_path / "label0").denoiser(guidance=2.0)


def test_a_function_of_the_users(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "def half():\n"
        "    def denoiser(y, sigma, labels=None):\n"
        "        scale = 0.5 if labels is None else 0.25\n"
        "        return scale * y / (1 + sigma.reshape(-1, 1, 1, 1))\n"
        "    denoiser.shape, denoiser.num_classes = (3, 4, 4), 2\n"
        "    return denoiser\n"
        "def wrong():\n"
        "    return lambda y, sigma, labels=None: y[:, :1]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    network, y = load("mine:half"), torch.ones(2, 3, 4, 4).double()
    assert (network.format, network.shape, network.num_classes) == ("python", (3, 4, 4), 2)
    assert network.denoiser()(y, 1.0).unique().tolist() == [0.25]
    assert network.denoiser(torch.tensor([0, 1]))(y, 1.0).unique().tolist() == [0.125]
    assert network.denoiser(0)(y, 1.0).unique().tolist() == [0.125]
    with pytest.raises(ValueError, match=r"mine:wrong does not say what it takes"):
        load("mine:wrong")
    wrong = load("mine:wrong", shape=(3, 4, 4))
    with pytest.raises(ValueError, match=r"gave \(2, 1, 4, 4\) for y \(2, 3, 4, 4\)"):
        wrong.denoiser()(y, 1.0)
    with pytest.raises(ValueError, match="mine has no function absent"):
        load("mine:absent")
    with pytest.raises(ValueError, match="cannot be imported"):
        load("nowhere:half")
    with pytest.raises(ValueError, match=r"math:sqrt failed \(TypeError"):
        load("math:sqrt")


def test_files_that_cannot_tell_are_asked_about():
    with pytest.raises(ValueError, match=r"may be of SiT or of DiT.*say format=sit or format=dit"):
        load(FIXTURES / "dit/DiT-tiny.pt", num_heads=3)
    with pytest.raises(ValueError, match=r"heads is in no tensor; say num_heads=N"):
        load(FIXTURES / "repa/last.pt")
    with pytest.raises(ValueError, match=r"say in_context_start=N"):
        load(FIXTURES / "jit/JiT-tiny.pt")


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"format=jit, but .* is of format repa"):
        load(FIXTURES / "repa/last.pt", "jit")
    with pytest.raises(ValueError, match="format is 'odd'"):
        load(FIXTURES / "repa/last.pt", "odd")
    with pytest.raises(ValueError, match="has no convention clip_sample"):
        load(FIXTURES / "repa/last.pt", num_heads=3, clip_sample=True)
    with pytest.raises(ValueError, match="there is no network at"):
        load(tmp_path / "absent.pt")
    with pytest.raises(ValueError, match="is a folder of no known format"):
        load(tmp_path)
    (tmp_path / "text.pt").write_text("not a checkpoint")
    with pytest.raises(ValueError, match=r"text.pt"):
        load(tmp_path / "text.pt")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="holds tensors of no known network"):
        load(tmp_path / "other.pt")
    stored = torch.load(FIXTURES / "repa/last.pt", weights_only=True)
    del stored["blocks.1.mlp.fc1.bias"]
    torch.save(stored, tmp_path / "less.pt")
    with pytest.raises(ValueError, match=r"lacks blocks.1.mlp_in.bias"):
        load(tmp_path / "less.pt", num_heads=3, encoder_depth=1)
    network = load(FIXTURES / "repa/last.pt", num_heads=3, encoder_depth=1)
    with pytest.raises(ValueError, match="labels run from 0 to 5; this network knows 5 classes"):
        network.denoiser(torch.tensor([0, 5]))


def test_weights_of_diffusers_must_be_safetensors(tmp_path):
    shutil.copytree(FIXTURES / "diffusers/ddpm_v", tmp_path / "v")
    (tmp_path / "v/unet/diffusion_pytorch_model.safetensors").rename(tmp_path / "v/unet/model.bin")
    with pytest.raises(ValueError, match="is not there; save the network with save_pretrained"):
        load(tmp_path / "v")


def test_networks_from_elsewhere_compile_as_one_graph():
    how = {"num_heads": 3}
    cosine = load(FIXTURES / "sit/sigma_true/SiT-tiny.pt", "sit", path="cosine", **how)
    for network in (cosine, load(FIXTURES / "dit/DiT-tiny.pt", "dit", **how)):
        y, denoiser = torch.randn(2, 4, 8, 8), network.denoiser(torch.tensor([1, 2]))
        expected = denoiser(y, 1.5)
        network.module.compile(backend="eager", fullgraph=True)
        torch.testing.assert_close(denoiser(y, 1.5), expected)
