"""Latents: made, compared, drawn and decoded by an autoencoder in its true file format."""

import json
import shutil

import numpy as np
import pytest
import torch

from pipeline import config
from pipeline.errors import StageError, UsageError
from pipeline.graph import Graph
from stages.artifacts.samples import Samples
from stages.artifacts.storage import LatentScale
from stages.catalog import CATALOG, RECIPES
from stages.data import encode, prepare
from stages.data.encode import EncodeSettings
from stages.data.options import PrepareSettings
from stages.encoders import autoencoder
from stages.methods.draws import Draws
from stages.methods.pairing import misfit, strangers
from stages.sampling import decode
from stages.sampling.decode import DecodeSettings
from stages.settings.latents import autoencoder_files, geometry
from tests.stages.autoencoders import save_autoencoder
from tests.stages.context import context, digests, make

SIDE = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_autoencoder(tmp_path_factory.mktemp("vae"), seed=0)


@pytest.fixture(scope="module")
def images():
    """(24, 3, 16, 16) uint8, smooth and each different."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(24, 3, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, SIDE, mode="bicubic").clamp(0, 1)
    return (smooth * 255).byte().numpy()


def prepared(where, images, **more):
    labels, images = np.arange(len(images)) % 2, images.transpose(0, 2, 3, 1)
    np.savez(
        where.with_suffix(".npz"),
        x_train=images[:16],
        y_train=labels[:16],
        x_test=images[16:],
        y_test=labels[16:],
    )
    settings = PrepareSettings(dataset="npz", path=str(where.with_suffix(".npz")), **more)
    return make(where, prepare.STAGE, settings)


@pytest.fixture(scope="module")
def pixels(tmp_path_factory, images):
    return prepared(tmp_path_factory.mktemp("data") / "pixels", images)


def encoded(where, folder, pixels, **settings):
    inputs = {"latents": settings.pop("latents")} if "latents" in settings else {}
    settings = {"batch_size": 4, "shard_size": 8} | settings
    settings = EncodeSettings(autoencoder=str(folder), **settings)
    return make(where, encode.STAGE, settings, pixels=pixels, **inputs)


@pytest.fixture(scope="module")
def latents(tmp_path_factory, folder, pixels):
    return encoded(tmp_path_factory.mktemp("latents"), folder, pixels)


def diffusers_moments(folder, images):
    from diffusers import AutoencoderKL

    network = AutoencoderKL.from_pretrained(folder).eval()
    with torch.no_grad():
        posterior = network.encode(images).latent_dist
    return posterior.mean, posterior.std


def test_latents_are_those_of_diffusers(folder, pixels, latents):
    mean, std = diffusers_moments(folder, pixels.load().train[:])
    stored = latents.load().train
    raw = stored.raw(slice(None)).float()
    torch.testing.assert_close(raw[:, 0], mean, atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(raw[:, 1], std, atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(stored[:], (raw[:, 0] - 0.1) * 0.5)
    assert stored.shape == (4, SIDE // 2, SIDE // 2)
    assert torch.equal(stored.labels, pixels.load().train.labels)
    facts = latents.description
    assert facts["latents"]["autoencoder"]["sha256"] == autoencoder.known(folder).identity
    assert (facts["latents"]["scaling"], facts["latents"]["shift"]) == (0.5, 0.1)
    assert facts["mean"] == pytest.approx(stored[:].mean().item(), abs=1e-5)


def test_statistics_hold_the_posterior_s_variance(latents):
    train = latents.load().train
    raw = train.raw(slice(None)).double()
    means, stds = (raw[:, 0] - 0.1) * 0.5, raw[:, 1] * 0.5
    V = (means - means.mean(0)).square().sum() / len(means) + stds.square().sum() / len(means)
    assert pytest.approx(V.item(), rel=1e-6) == latents.load().V


def test_the_posterior_is_drawn_for_each_seed_step_and_sample(latents):
    train = latents.load().train
    raw = train.raw(slice(8))
    draws = Draws(3, torch.arange(8), step=5)
    drawn = train.finish(raw, draws)
    torch.testing.assert_close(drawn[2:4], train.finish(raw[2:4], draws[2:4]))
    assert not torch.equal(drawn, train.finish(raw, draws.at(6)))
    assert not torch.equal(drawn, train.finish(raw, Draws(4, torch.arange(8), step=5)))
    shape = (4, 50, 50)
    assert draws.posterior(shape).std().item() == pytest.approx(1, abs=0.02)
    together = torch.stack([draws.posterior(shape), draws.noise(shape)]).flatten(1)
    assert abs(together.corrcoef()[0, 1]) < 0.02


def test_mirrored_images_are_encoded_as_further_ones(tmp_path, folder, pixels):
    data = encoded(tmp_path, folder, pixels, flips=True)
    train, shown = data.load().train, pixels.load().train
    assert (len(train), data.description["num_test"]) == (32, 8)
    mean, _ = diffusers_moments(folder, shown[:].flip(-1))
    torch.testing.assert_close(train.raw(slice(16, 32))[:, 0].float(), mean, atol=2e-3, rtol=2e-3)
    assert torch.equal(train.labels, shown.labels.tile(2))
    # What a teacher looks at beside them.
    pictures = data.pictures(pixels).train
    assert torch.equal(pictures.labels, train.labels)
    mixed = torch.tensor([17, 1, 31, 0])
    expected = [shown[i] for i in (slice(1, 2), slice(1, 2), slice(15, 16), slice(0, 1))]
    expected[0], expected[2] = expected[0].flip(-1), expected[2].flip(-1)
    assert torch.equal(pictures[mixed], torch.cat(expected))
    assert torch.equal(pictures[15:18], pictures[torch.tensor([15, 16, 17])])


def test_an_interrupted_pass_goes_on_to_the_same_bytes(tmp_path, folder, pixels, latents):
    settings = EncodeSettings(autoencoder=str(folder), batch_size=4, shard_size=8)
    at = context(tmp_path, settings, pixels=pixels)
    first = encode.encode_shard(("train", 0, 8, False), pixels, at.work.path, settings)
    changed = first.path.stat().st_mtime_ns
    encode.run(at)
    assert first.path.stat().st_mtime_ns == changed
    assert digests(at.path) == digests(latents.path)


def test_mlflow_is_told_which_pixels_latents_are_of(pixels, latents):
    (told,) = latents.datasets()
    assert told["source"] == f"pixels {pixels.manifest.payload[:12]}"


def test_files_are_safe_as_soon_as_some_are_made(tmp_path, folder, pixels, monkeypatch):
    monkeypatch.setattr(encode, "WAVE", 1)
    settings = EncodeSettings(autoencoder=str(folder), batch_size=4, shard_size=8)
    at = context(tmp_path, settings, pixels=pixels)
    encode.run(at)
    assert at.work.pushes == 3


def test_another_autoencoder_in_the_same_folder_is_another(tmp_path, images):
    shown = torch.from_numpy(images).float() / 127.5 - 1
    first = autoencoder.load(save_autoencoder(tmp_path, seed=0)).moments(shown[:1])
    other = autoencoder.load(save_autoencoder(tmp_path, seed=1)).moments(shown[:1])
    assert not torch.equal(first, other)


def test_a_teacher_is_told_of_an_order_that_nobody_checked(tmp_path, folder, pixels, latents):
    from stages.settings import teachers
    from stages.training import teach

    settings = {"steps": 1, "width": 8, "heads": 1, "depth": 1, "min_probe": 0, "min_gain": -1}
    settings = teachers.TeachSettings(**settings, student_patch=2, patch=4, train_batch_size=4)
    told = []
    for name, data in (("known", latents), ("unknown", other_of(tmp_path, latents))):
        at = context(tmp_path / name, settings, data=data, pixels=pixels)
        teach.run(at)
        told.append([said for said, _ in at.noticed])
    assert told[0] == []
    assert "order of the latents is known by their labels alone" in told[1][0]


def other_of(tmp_path, latents):
    """The same latents as somebody else's, of whose pixels nothing is known."""
    shutil.copytree(latents.path, tmp_path / "other")
    facts = {k: v for k, v in latents.description.items() if k != "of_pixels"}
    (tmp_path / "other" / latents.facts).write_text(json.dumps(facts))
    return type(latents)(tmp_path / "other", latents.manifest)


def samples_of(where, latents):
    images, labels = latents.load().train[:].numpy(), np.zeros(16, np.int64)
    facts = {"num_samples": 16, "num_training_images": 16, "nfe": 3}
    at = context(where, DecodeSettings(autoencoder="x"))
    Samples.write(at.path, images, labels, facts)
    (at.path / "steps.json").write_text(json.dumps({"level": [1.0], "gamma": [1.0]}))
    from pipeline.stage import Result, Stage
    from tests.stages.context import sealed

    stage = Stage("sample", DecodeSettings, Samples, "x:y")
    return sealed(at, stage, Result(timings={"sampling_seconds": 1.5}))


@pytest.fixture(scope="module")
def samples(tmp_path_factory, latents):
    return samples_of(tmp_path_factory.mktemp("samples"), latents)


def decoded(where, folder, samples, latents, **settings):
    settings = {"batch_size": 3} | settings
    settings = DecodeSettings(autoencoder=str(folder), **settings)
    return make(where, decode.STAGE, settings, samples=samples, data=latents)


def test_pictures_are_those_of_diffusers(tmp_path, folder, samples, latents):
    from diffusers import AutoencoderKL

    found = decoded(tmp_path, folder, samples, latents)
    network = AutoencoderKL.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = network.decode(samples.images() / 0.5 + 0.1).sample.clamp(-1, 1)
    torch.testing.assert_close(found.images(), expected, atol=1 / 255 + 1e-4, rtol=0)
    assert found.description == samples.description | {"rounding": "nearest"}
    settings = DecodeSettings(autoencoder=str(folder), batch_size=3, rounding="down")
    down = make(tmp_path / "down", decode.STAGE, settings, samples=samples)  # its own scale
    expected = ((expected.double() + 1) * 127.5).clamp(0, 255).numpy()
    inner = np.abs(expected - np.rint(expected)) > 0.01
    assert (down.stored() == np.floor(expected))[inner].all()
    assert down.description["rounding"] == "down"
    assert found.steps == samples.steps
    assert found.manifest.timings["sampling_seconds"] == 1.5


@pytest.mark.parametrize("size", [3, 6, 7, 100])
def test_pictures_do_not_depend_on_shards(tmp_path, folder, samples, latents, size):
    whole = decoded(tmp_path / "whole", folder, samples, latents)
    parts = decoded(tmp_path / "parts", folder, samples, latents, shard_size=size)
    assert digests(whole.path) == digests(parts.path)


def test_an_interrupted_decode_goes_on_to_the_same_bytes(
    tmp_path, folder, samples, latents, monkeypatch
):
    whole = decoded(tmp_path / "whole", folder, samples, latents)
    settings = DecodeSettings(autoencoder=str(folder), batch_size=3, shard_size=6)
    at = context(tmp_path / "cut", settings, samples=samples, data=latents)
    calls, real = [], decode._pictures

    def pictures(shard, *more):
        calls.append(shard)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(shard, *more)

    monkeypatch.setattr(decode, "_pictures", pictures)
    with pytest.raises(KeyboardInterrupt):
        decode.run(at)
    decode.run(at)
    assert calls == [(0, 6), (6, 12), (6, 12), (12, 16)]
    assert digests(at.path) == digests(whole.path)


def test_a_picture_does_not_depend_on_how_many_follow(folder, samples):
    settings = DecodeSettings(autoencoder=str(folder), batch_size=4)
    scale = LatentScale(0.5, 0.1)
    whole = decode._pictures((0, 16), samples, scale, settings)
    np.testing.assert_array_equal(whole[8:10], decode._pictures((8, 10), samples, scale, settings))


def test_latents_of_another_autoencoder_are_refused(tmp_path, folder, samples, pixels, latents):
    other = save_autoencoder(tmp_path / "other", seed=1)
    with pytest.raises(StageError, match=r"were made by the autoencoder \w{12}, and this one"):
        decoded(tmp_path / "a", other, samples, latents)
    with pytest.raises(StageError, match=r"are not those of the pixels at their places"):
        encoded(tmp_path / "b", other, pixels, latents=latents)
    wide = save_autoencoder(tmp_path / "wide", latent_channels=8)
    with pytest.raises(StageError, match=r"the samples have 4 channels, and .* have 8"):
        decoded(tmp_path / "c", wide, samples, latents)
    with pytest.raises(StageError, match=r"latents have shape \(4, 8, 8\)"):
        encoded(tmp_path / "d", wide, pixels, latents=latents)


def test_images_that_the_autoencoder_does_not_read_are_refused(tmp_path, folder, images):
    grey = prepared(tmp_path / "grey", images[:, :1])
    with pytest.raises(StageError, match=r"reads images of 3 channels, and these have 1"):
        encoded(tmp_path / "a", folder, grey)
    odd = prepared(tmp_path / "odd", images[:, :, :15, :15])
    with pytest.raises(StageError, match=r"divides sides by 2, which does not divide 15 x 15"):
        encoded(tmp_path / "b", folder, odd)


def test_given_latents_are_passed_on_as_they_are(tmp_path, folder, pixels, latents):
    found = encoded(tmp_path, folder, pixels, latents=latents)
    assert (
        digests(found.path).items()
        >= {k: v for k, v in digests(latents.path).items() if k != "data.json"}.items()
    )
    assert found.load().train.finish(found.load().train.raw(slice(2))).shape == (2, 4, 8, 8)


def scaled_latents(where, folder, images, scaling=0.5, shift=0.1):
    shown = torch.from_numpy(images).float() / 127.5 - 1
    mean, _ = diffusers_moments(folder, shown)
    return prepared(where, ((mean - shift) * scaling).numpy(), latent=True)


def test_latents_in_another_order_or_scale_are_refused(tmp_path, folder, images, pixels):
    good = scaled_latents(tmp_path / "good", folder, images)
    found = encoded(tmp_path / "a", folder, pixels, latents=good)
    assert found.latents is None
    assert found.description["latent"]
    swapped = images.copy()
    swapped[[0, 2]] = images[[2, 0]]  # of one class
    wrong = scaled_latents(tmp_path / "swapped", folder, swapped)
    with pytest.raises(StageError, match=r"2 of 16 training latents are not those of the pixels"):
        encoded(tmp_path / "b", folder, pixels, latents=wrong)
    raw = scaled_latents(tmp_path / "raw", folder, images, 5.0, 0.0)
    with pytest.raises(StageError, match=r"in the order of the pixels, but off by"):
        encoded(tmp_path / "c", folder, pixels, latents=raw)


def test_pairs_are_told_by_likeness_not_by_scale():
    ours = torch.randn(30, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    assert not strangers(ours, 7 * ours + 3).any()
    theirs = ours.clone()
    theirs[[4, 9]] = ours[[9, 4]]
    assert strangers(ours, theirs).nonzero().flatten().tolist() == [4, 9]
    theirs = ours.clone()
    ours[5] = theirs[5] = ours[6]  # two that are the same
    assert not strangers(ours, theirs).any()
    assert misfit(ours, ours) == 0
    assert misfit(2 * ours, ours) == pytest.approx(1, abs=0.05)


def test_a_missing_autoencoder_is_one_sentence(tmp_path, folder):
    with pytest.raises(UsageError, match=r"safetensors is not in .*nothing is downloaded; place"):
        autoencoder_files(str(tmp_path))
    shutil.copytree(folder, tmp_path / "vae")
    (tmp_path / "vae" / "config.json").unlink()
    with pytest.raises(UsageError, match=r"config.json is not in"):
        autoencoder_files(str(tmp_path / "vae"))
    (tmp_path / "vae" / "config.json").write_text('{"_class_name": "VQModel"}')
    with pytest.raises(UsageError, match=r"does not describe an AutoencoderKL"):
        geometry(str(tmp_path / "vae"))


def test_weights_that_do_not_fit_are_refused(tmp_path, folder):
    from safetensors.torch import load_file, save_file

    name = "diffusion_pytorch_model.safetensors"
    for case, change in (("less", dict.popitem), ("more", lambda x: x.update(y=torch.ones(1)))):
        shutil.copytree(folder, tmp_path / case)
        state = load_file(folder / name)
        change(state)
        save_file(state, tmp_path / case / name)
        with pytest.raises(ValueError, match=r"cannot be read as the weights of the Autoencoder"):
            autoencoder.load(tmp_path / case)
    (tmp_path / "less" / name).write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"cannot be read as the weights of the AutoencoderKL"):
        autoencoder.load(tmp_path / "less")


def test_pickled_weights_are_read_without_unpickling(tmp_path, folder):
    from safetensors.torch import load_file

    shutil.copytree(folder, tmp_path / "bin")
    name = "diffusion_pytorch_model"
    torch.save(load_file(folder / f"{name}.safetensors"), tmp_path / "bin" / f"{name}.bin")
    (tmp_path / "bin" / f"{name}.safetensors").unlink()
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    ours, theirs = (autoencoder.load(x).moments(images) for x in (tmp_path / "bin", folder))
    torch.testing.assert_close(ours, theirs)
    torch.save({"x": Draws(0, torch.arange(2))}, tmp_path / "bin" / f"{name}.bin")
    with pytest.raises(ValueError, match=r"cannot be read as the weights"):
        autoencoder.load(tmp_path / "bin", precision="bfloat16")


def test_an_autoencoder_may_be_of_pixels_from_0_to_1(folder):
    signed, unit = (autoencoder.load(folder, unit=of) for of in (False, True))
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    torch.testing.assert_close(unit.moments(images), signed.moments((images + 1) / 2))
    z = unit.moments(images)[:, 0]
    torch.testing.assert_close((unit.decode(z) + 1) / 2, signed.decode(z))


def test_statistics_of_each_channel_are_a_scale(tmp_path):
    more = {"latents_mean": [0.0, 1, 2, 3], "latents_std": [1.0, 2, 4, 8]}
    place = save_autoencoder(tmp_path, scaling_factor=2.0, **more)
    known = autoencoder.known(place)
    assert known.scaling == (2.0, 1.0, 0.5, 0.25)
    assert known.shift == (0.0, 1.0, 2.0, 3.0)


def graph(folder, *overrides, recipe="full"):
    given = [f"latents.autoencoder={folder}", "data.dataset=npz", "data.path=x.npz", "data.size=16"]
    given += ["csflow.in_full=false", "wavelet.in_full=false"]
    settings = config.resolve(CATALOG, "digits", [*given, *overrides]).settings
    return Graph(RECIPES[recipe](settings), CATALOG.exclude_sources)


@pytest.mark.parametrize("recipe", ["full", "train", "stein", "icr"])
def test_every_recipe_trains_on_latents_and_scores_pictures(folder, recipe):
    nodes = graph(folder, recipe=recipe)
    scored = [node for node in nodes if node.stage.name == "evaluate"]
    assert scored
    for node in scored:
        for name in (*node.slot("samples"), *node.slot("reference")):
            assert nodes[name].stage.name == "decode"
            assert nodes[nodes[name].inputs["samples"]].stage.name == "sample"
    for node in nodes:
        if node.stage.name in ("train", "scan", "teach", "diagnose"):
            assert node.inputs["data"] == "encode"
        if node.stage.name in ("extractor", "features", "report"):
            assert node.inputs["data"] == "prepare"
    assert set(nodes["report"].slot("samples")) <= {
        n.name for n in nodes if n.name[:7] == "decode/"
    }


def test_samples_made_elsewhere_need_no_latents(folder, tmp_path):
    np.savez(tmp_path / "made.npz", np.zeros((1500, 16, 16, 1), np.uint8))
    nodes = graph(folder, f"evaluate.path={tmp_path / 'made.npz'}", recipe="evaluate")
    assert not [name for name in nodes.nodes if name.startswith(("encode", "decode"))]


def test_given_latents_are_compared_before_anything_reads_them(folder):
    given = ["data.size=null", "data.latent=true"]
    pixels = ["teach.pixels.dataset=npz", "teach.pixels.path=y.npz"]
    pixels += ["teach.pixels.size=16"]
    with pytest.raises(UsageError, match=r"set teach\.pixels to the same images as pixels"):
        graph(folder, *given)
    nodes = graph(folder, *given, *pixels)
    assert nodes["encode"].inputs == {"pixels": "prepare/pixels", "latents": "prepare"}
    assert nodes["train/sit"].inputs["data"] == "encode"
    assert nodes["features/train"].inputs["data"] == "prepare/pixels"
    assert nodes["teach"].inputs == {"data": "encode", "pixels": "prepare/pixels"}
    assert nodes["teach"].settings.own_patch == 2 * nodes["teach"].settings.student_patch
    with pytest.raises(UsageError, match=r"latents\.flips=true and data\.latent=true"):
        graph(folder, *given, *pixels, "latents.flips=true")


def test_what_does_not_fit_the_autoencoder_is_refused_before_any_work(folder):
    with pytest.raises(UsageError, match=r"reads images of 3 channels, and these have 1"):
        graph(folder, "data.dataset=mnist")
    with pytest.raises(UsageError, match=r"divides sides by 2, which does not divide 17 x 17"):
        graph(folder, "data.size=17", "train.network.patch=1")
    with pytest.raises(UsageError, match=r"latents\.autoencoder and CSFlow contradict"):
        graph(folder, "csflow.in_full=true")
    with pytest.raises(UsageError, match=r"teach\.pixels and latents\.autoencoder contradict"):
        graph(folder, "teach.pixels.dataset=digits")
