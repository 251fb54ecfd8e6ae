"""Teachers online: stored ones' features, trainings as with these, nobody else's images."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from pipeline import config
from pipeline.errors import StageError
from pipeline.graph import Graph
from pipeline.stage import Result
from stages.artifacts import written
from stages.artifacts.data import Data, DataSet
from stages.artifacts.storage import LatentScale
from stages.artifacts.teacher import OnlineTeacher, TeacherFeatures
from stages.catalog import CATALOG, RECIPES
from stages.data import prepare
from stages.encoders.pretrained import dinov2_network
from stages.methods import table
from stages.methods.losses import Batch
from stages.methods.statistics import from_arrays
from stages.methods.torchvision_shim import prepare_torchvision
from stages.papers.maskalign import diagnose
from stages.papers.stein import calibrate
from stages.settings import teachers
from stages.training import loop, teach
from tests.stages import losses
from tests.stages.conftest import TEACH, TINY, trained_in
from tests.stages.context import context, digests, make, sealed
from tests.stages.test_training import METHODS, settings_of

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ONLINE = TEACH.revised(mode="online")


@pytest.fixture(scope="module")
def online(tmp_path_factory, few):
    return make(tmp_path_factory.mktemp("online"), teach.STAGE, ONLINE, data=few)


@pytest.fixture(scope="module")
def halves(tmp_path_factory, few):
    """Stored in float16."""
    settings = TEACH.revised(precision="float16")
    return make(tmp_path_factory.mktemp("halves"), teach.STAGE, settings, data=few)


def assert_rounded(halves, exact):
    """Of values up to 1 a float16 is within 2^-12, of larger ones within 2^-11 of their size."""
    for ours, theirs in zip(halves, exact, strict=True):
        assert ours.dtype == theirs.dtype == torch.float32
        bound = 2.0**-11 * theirs.abs() + 2.0**-14
        assert ((ours - theirs).abs() <= bound).all()
        assert not torch.equal(ours, theirs)


# --- features


def test_an_online_teacher_holds_its_network_and_no_features(few, teacher, online):
    assert {f.name for f in online.path.iterdir()} == {
        *("encoder.safetensors", "teacher.json", "manifest.json"),
    }
    assert online.description["mode"] == "online"
    assert online.metrics == teacher.metrics  # it is probed as the other
    assert isinstance(teacher.load(), TeacherFeatures)
    loaded = online.of(few)
    assert isinstance(loaded, OnlineTeacher)
    assert len(loaded) == 96
    with pytest.raises(ValueError, match="needs the images that it looks at"):
        online.load()


def test_its_features_are_the_stored_ones(few, teacher, halves, online):
    which = torch.tensor([5, 90, 0, 33, 7])
    ours = online.of(few).batch(which)
    for found, stored in zip(ours, teacher.load().batch(which), strict=True):
        torch.testing.assert_close(found, stored, rtol=1e-5, atol=1e-6)
    assert_rounded(halves.load().batch(which), ours)


def test_passes_of_any_size_give_the_same(few, online):
    whole = online.of(few)
    assert whole.batch_size == TEACH.batch_size
    for found, expected in zip(
        replace(whole, batch_size=3).batch(torch.arange(10)),
        whole.batch(torch.arange(10)),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def save_dinov2(folder, suffix):
    """A random DINOv2 in the file format of its authors or of timm."""
    prepare_torchvision()
    import timm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        network = timm.create_model("vit_small_patch14_dinov2", num_classes=0, img_size=224)
    state = {k: v.contiguous() for k, v in network.state_dict().items()}
    if suffix == "pth":
        torch.save(state, folder / "dinov2_vits14_pretrain.pth")
    else:
        save_file(state, folder / "vit_small_patch14_dinov2.safetensors")


def test_dinov2_teaches_as_repas_code_asks_it():
    """Pixels are normalised, then resized without antialiasing and without clamping."""
    taught, extracts = (dinov2_network("dinov2-small", None, teaches=t) for t in (True, False))
    images = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0)).round() * 2 - 1
    seen = []
    for network in (taught, extracts):
        network.network.forward_features = lambda x: seen.append(x) or torch.zeros(1, 257, 384)
        network(images)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD))
    pixels = (images + 1) / 2 * 255  # as they come from files
    expected = F.interpolate((pixels / 255 - mean) / std, 224, mode="bicubic")
    torch.testing.assert_close(seen[0], expected, atol=1e-5, rtol=1e-5)
    assert (seen[0] > (1 - mean) / std).any()  # beyond white
    assert (seen[0] - seen[1]).abs().mean() > 0.1


@pytest.mark.parametrize("suffix", ["pth", pytest.param("safetensors", marks=pytest.mark.slow)])
def test_dinov2_online_is_dinov2_stored(tmp_path, suffix):
    """Its weights go with the artifact: the file may be elsewhere when a network trains."""
    save_dinov2(tmp_path, suffix)
    settings = prepare.PrepareSettings(limit=40, limit_held_out=10)
    data = make(tmp_path / "data", prepare.STAGE, settings)
    dino = teachers.TeachSettings(
        kind="dinov2-small",
        weights=str(tmp_path),
        student_patch=4,
        interpolate=True,
        precision="float16",
        probe_images=10,
        min_probe=0,
        min_gain=-1,
    )
    stored, online = (
        make(tmp_path / mode, teach.STAGE, dino.revised(mode=mode), data=data)
        for mode in ("stored", "online")
    )
    for file in tmp_path.glob("*dino*"):
        file.unlink()
    assert {f.name for f in online.path.iterdir()} == {
        *(f"weights.{suffix}", "teacher.json", "manifest.json"),
    }
    assert stored.description["weights"] is None
    state = torch.get_rng_state()
    loaded = online.of(data)
    assert torch.equal(torch.get_rng_state(), state)
    which = torch.tensor([11, 3])
    assert_rounded(stored.load().batch(which), loaded.batch(which))
    assert loaded.batch(which)[0].shape == (2, 4, 384)


def test_bfloat16_computes_the_same_within_its_rounding(tmp_path, few):
    settings = ONLINE.revised(compute="bfloat16", min_gain=-1)
    low = make(tmp_path, teach.STAGE, settings, data=few).of(few)
    which = torch.arange(20)
    ours, exact = low.batch(which), replace(low, compute="float32").batch(which)
    for found, expected in zip(ours, exact, strict=True):
        assert found.dtype == torch.float32
        assert not torch.equal(found, expected)
        assert (found - expected).norm() < 0.03 * expected.norm()


# --- trainings


@pytest.mark.parametrize("method", METHODS)
def test_a_training_with_it_is_that_with_stored_features(
    tmp_path, few, teacher, halves, online, method
):
    trained = [
        trained_in(context(tmp_path / str(i), settings_of(method), data=few, teacher=of))
        for i, of in enumerate((teacher, online, halves))
    ]
    for step, tolerance in ((7, 1e-5), (18, 1e-4)):
        stored, ours, rounded = (
            torch.cat([p.flatten() for p in made.load().network(step).parameters()])
            for made in trained
        )
        off, rounding = (ours - stored).norm(), (rounded - stored).norm()
        print(method, step, (off / stored.norm()).item(), (rounding / stored.norm()).item())
        assert off < tolerance * stored.norm()
        assert off < rounding  # less than what float16 does to it


def test_its_training_goes_on_exactly(tmp_path, few, online, monkeypatch):
    settings = settings_of("maskalign", readers=2)
    whole = trained_in(context(tmp_path / "whole", settings, data=few, teacher=online))
    true = settings.maskalign.mathematics
    monkeypatch.setattr(losses, "Failing", losses.failing(true), raising=False)
    monkeypatch.setattr(losses, "FAILS_AT", {"interrupt": 12, "nan": None})
    at = context(tmp_path / "cut", settings, data=few, teacher=online)
    with monkeypatch.context() as patched:
        patched.setattr(type(settings.maskalign), "mathematics", "tests.stages.losses:Failing")
        with pytest.raises(losses.InterruptedTrainingError):
            trained_in(at)
    assert digests(trained_in(at).path) == digests(whole.path)
    in_place = settings.revised(readers=0)
    again = trained_in(context(tmp_path / "place", in_place, data=few, teacher=online))
    assert digests(again.path) == digests(whole.path)


def test_its_targets_may_be_kept_for_a_gradient(few, online):
    """Tensors of inference mode may not."""
    data = few.load()
    batches = loop.Batches(data.train, None, 6, 0, teacher=online.of(few, images=data.train))
    batch = batches(0)
    for part in (batch.patch_targets, batch.class_features):
        assert not part.is_inference()
        assert not part.requires_grad
    scale = torch.ones((), requires_grad=True)
    (scale * batch.patch_targets).sum().backward()
    assert scale.grad is not None


def test_every_process_computes_the_features_of_its_own_images(few, online, monkeypatch):
    data, looked = few.load(), []
    found = online.of(few, images=data.train)

    def counted(images):
        looked.append(len(images))
        return found.tokens(images)

    counting = replace(found, tokens=counted)
    batches = loop.Batches(data.train, data.train.labels, 20, 0, teacher=counting)
    whole = batches(3)
    assert looked == [20]
    looked.clear()
    for rank, share in enumerate((slice(0, 6), slice(6, 13), slice(13, 20))):
        monkeypatch.setattr(loop, "_rank_and_world", lambda rank=rank: (rank, 3))
        part = batches(3)
        for name in ("patch_targets", "class_features"):
            torch.testing.assert_close(getattr(part, name), getattr(whole, name)[share])
    assert looked == [6, 7, 7]


def test_images_that_are_trained_on_are_read_once(few, online, monkeypatch):
    data, read = few.load(), []
    shown = online.of(few, images=data.train)
    raw = type(data.train).raw
    monkeypatch.setattr(type(data.train), "raw", lambda self, i: read.append(i) or raw(self, i))
    loop.Batches(data.train, None, 6, 0, teacher=shown)(0)
    assert len(read) == 1
    loop.Batches(data.train, None, 6, 0, teacher=online.of(few))(0)  # another set of them
    assert len(read) == 3


# --- latents, and the pixels beside them


def latents_of(pixels: DataSet) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Moments (n, 2, 4, 4, 4) and labels by part. They stand for an autoencoder's: four channels of
    averages over 2x2 pixels, each of its own."""
    factors = torch.rand(4, generator=torch.Generator().manual_seed(1)) + 0.5
    parts = {}
    for part in ("train", "test"):
        images = getattr(pixels, part)
        pooled = torch.nn.functional.avg_pool2d(images[slice(None)], 2)
        means = (pooled * factors[:, None, None]).numpy()
        parts[part] = np.stack([means, np.full_like(means, 0.1)], 1), images.labels.numpy()
    return parts


def latent_data(folder, parts) -> Data:
    at = context(folder, prepare.PrepareSettings())
    scale, counts, sums = LatentScale(2.0, 0.1), {}, None
    for part, (moments, _) in parts.items():
        shard = written.write_latents(at.work.path, f"{part}.npy", [moments], scale)
        counts[part] = written.place([shard], at.path, part, ".npy")
        sums = sums or from_arrays(shard.arrays()).summary()
    facts = {
        "name": "latent digits",
        "shape": [4, 4, 4],
        "class_names": [str(digit) for digit in range(10)],
        "white": 255,
        "storage": "latents",
        "shards": counts,
        "latents": {"scaling": 2.0, "shift": 0.1, "dtype": "float16"},
    }
    Data.write(at.path, {part: labels for part, (_, labels) in parts.items()}, sums, facts)
    return sealed(at, prepare.STAGE, Result())


@pytest.fixture(scope="module")
def latents(tmp_path_factory, few):
    return latent_data(tmp_path_factory.mktemp("latents"), latents_of(few.load()))


LATENT = settings_of("reg", network=TINY.network.model_dump() | {"patch": 2})
OF_LATENTS = TEACH.revised(student_patch=2, patch=4)


@pytest.fixture(scope="module")
def beside(tmp_path_factory, latents, few):
    """Online, looking at the pixels of latents."""
    settings = OF_LATENTS.revised(mode="online")
    folder = tmp_path_factory.mktemp("beside")
    return make(folder, teach.STAGE, settings, data=latents, pixels=few)


def test_latents_are_taught_by_their_pixels(tmp_path, latents, few, beside):
    stored = make(tmp_path / "stored", teach.STAGE, OF_LATENTS, data=latents, pixels=few)
    models = [
        trained_in(context(tmp_path / f"model-{i}", LATENT, data=latents, **inputs))
        for i, inputs in enumerate(
            ({"teacher": stored}, {"teacher": stored, "pixels": few})  # which it does not read
        )
    ]
    assert digests(models[0].path) == digests(models[1].path)
    at = context(tmp_path / "online", LATENT, data=latents, teacher=beside, pixels=few)
    made = trained_in(at)
    ours, theirs = (
        torch.cat([p.flatten() for p in of.load().network(7).parameters()])
        for of in (made, models[0])
    )
    assert (ours - theirs).norm() < 1e-5 * theirs.norm()


@pytest.mark.parametrize("case", ["none", "fewer", "reordered", "latents"])
def test_other_images_than_the_teacher_s_are_refused(tmp_path, latents, few, beside, case):
    inputs = {"data": latents, "teacher": beside, "pixels": few}
    if case == "none":
        del inputs["pixels"]
        words = "looks at other pixels than these data; connect the input 'pixels'"
    elif case == "fewer":
        settings = prepare.PrepareSettings(limit=90, limit_held_out=48)
        inputs["pixels"] = make(tmp_path / "fewer", prepare.STAGE, settings)
        words = "pixels digits are not those that the teacher looked at"
    else:
        # The same images and labels; two of a class have changed places.
        parts = latents_of(few.load())
        moments, labels = parts["train"]
        first, second = np.flatnonzero(labels == labels[0])[:2]
        if case == "reordered":
            moments[[first, second]] = moments[[second, first]]
        else:
            moments += 1
        inputs["data"] = latent_data(tmp_path / "other", parts)
        assert inputs["data"].description["num_train"] == latents.description["num_train"]
        words = "saw other .* than these data, or in another order"
    with pytest.raises(StageError, match=words) as refused:
        trained_in(context(tmp_path / "train", LATENT, **inputs))
    assert "\n" not in str(refused.value)


def test_a_stored_teacher_of_reordered_latents_is_refused_too(tmp_path, latents, few):
    stored = make(tmp_path / "stored", teach.STAGE, OF_LATENTS, data=latents, pixels=few)
    parts = latents_of(few.load())
    parts["train"] = tuple(array[::-1] for array in parts["train"])
    other = latent_data(tmp_path / "other", parts)
    with pytest.raises(StageError, match=r"saw other .* than these data, or in another order"):
        trained_in(context(tmp_path / "train", LATENT, data=other, teacher=stored))


def test_mirrored_latents_are_taught_by_mirrored_pixels(few, teacher, online):
    """As encode writes them: image n + i is image i mirrored."""
    loaded = online.load(few.load().train.mirrored())
    ours = loaded.batch(torch.tensor([100, 4]))[1]
    torch.testing.assert_close(ours[1], teacher.load().batch(torch.tensor([4]))[1][0])
    with torch.no_grad():
        mirrored = loaded.tokens(few.load().train[torch.tensor([4])].flip(-1))[0, 0]
    torch.testing.assert_close(ours[0], mirrored)
    assert not torch.allclose(ours[0], ours[1], atol=1e-3)


# --- what reads features besides


@pytest.mark.parametrize("latent", [False, True])
def test_diagnoses_and_calibrations_are_the_same(
    tmp_path, few, latents, teacher, online, beside, latent
):
    data, of = (latents, beside) if latent else (few, online)
    more = {"pixels": few} if latent else {}
    settings = LATENT if latent else settings_of("reg")
    stored = teacher
    if latent:
        stored = make(tmp_path / "stored", teach.STAGE, OF_LATENTS, data=data, **more)
    inputs = {"model": trained_in(context(tmp_path / "m", settings, data=data, teacher=stored))}
    inputs |= {"data": data} | more
    diagnosing = diagnose.DiagnoseSettings(num_images=60, batch_size=30)
    calibrating = calibrate.CalibrationSettings(solver="dpmpp2m", nfe=3, num_images=20)
    calibrating = calibrating.revised(block_size=8, shard_size=8)
    for stage, options in ((diagnose.STAGE, diagnosing), (calibrate.STAGE, calibrating)):
        ours, theirs = (
            make(tmp_path / f"{stage.name}-{i}", stage, options, teacher=one, **inputs)
            for i, one in enumerate((of, stored))
        )
        assert ours.metrics == pytest.approx(theirs.metrics, rel=1e-4, abs=1e-6)
    if latent:
        del inputs["pixels"]
        with pytest.raises(StageError, match="connect the input 'pixels'"):
            make(tmp_path / "no", diagnose.STAGE, diagnosing, teacher=of, **inputs)
        with pytest.raises(StageError, match="connect the input 'pixels'"):
            make(tmp_path / "nor", calibrate.STAGE, calibrating, teacher=of, **inputs)


# --- which mode


def test_what_features_take():
    imagenet = {"kind": "dinov2-base", "student_patch": 2, "precision": "float16"}
    settings = teachers.TeachSettings(**imagenet)
    size = teachers.feature_bytes(settings, 1_281_167, (16, 16))
    assert size == 1_281_167 * 257 * 768 * 2  # 506 GB
    assert teachers.mode_of(settings, size) == "online"
    assert (
        teachers.mode_of(settings, teachers.feature_bytes(settings, 50_000, (16, 16))) == "stored"
    )
    for mode in ("stored", "online"):
        for num_bytes in (1, 10**12):
            assert teachers.mode_of(settings.revised(mode=mode), num_bytes) == mode


def test_a_small_set_is_stored_and_a_large_one_is_not(tmp_path, few, monkeypatch):
    """The stage decides by the data, so the key says what settings say, and no more."""
    size = 96 * 5 * 16 * 4
    monkeypatch.setattr(teachers, "STORED_BELOW", size + 1)
    at = context(tmp_path / "small", TEACH, data=few)
    teach.run(at)
    assert (at.path / "patches.npy").exists()
    assert any("96 images, 2x2 patches and a class token of 16 float32" in s for s in at.logged)
    assert any("teach.mode is stored" in line for line in at.logged)
    monkeypatch.setattr(teachers, "STORED_BELOW", size)
    at = context(tmp_path / "large", TEACH, data=few)
    teach.run(at)
    assert not (at.path / "patches.npy").exists()
    ((said, _),) = at.noticed
    assert f"take {size / 1e9:.3g} GB: none are stored" in said
    assert "teach.mode=stored stores them" in said
    at = context(tmp_path / "asked", TEACH.revised(mode="stored"), data=few)
    teach.run(at)
    assert (at.path / "patches.npy").exists()
    assert not at.noticed
    assert TEACH.keyed()["mode"] is None


def test_features_that_do_not_fit_on_the_disk_are_refused_at_once(tmp_path, few, monkeypatch):
    full = teach.shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(teach.shutil, "disk_usage", lambda path: full)
    monkeypatch.setitem(table.TEACHERS, "embedded", "tests.stages.test_online:nobody")
    with pytest.raises(StageError, match=r"room for 1e-07 GB; set teach\.mode=online"):
        make(tmp_path, teach.STAGE, TEACH, data=few)


def nobody(context, data):
    raise AssertionError("no teacher is made before the room was looked at")


def test_recipes_give_the_pixels_to_all_that_read_a_teacher(tmp_path):
    """In either mode, since the stage may choose."""
    np.savez(tmp_path / "x.npz", x_train=np.zeros((2, 4, 8, 8), np.float32))
    np.savez(tmp_path / "p.npz", x_train=np.zeros((2, 64, 64, 3), np.uint8))
    latent = [
        *("data.dataset=npz", f"data.path={tmp_path}/x.npz", "data.latent=true"),
        *("csflow.in_full=false", "wavelet.in_full=false", "train.method=reg"),
        *("teach.pixels.dataset=npz", f"teach.pixels.path={tmp_path}/p.npz"),
    ]
    for recipe, overrides in (("full", ["train.method=reg"]), ("train", latent), ("stein", latent)):
        bench = config.resolve(CATALOG, "smoke", overrides).settings
        nodes = Graph(RECIPES[recipe](bench), CATALOG.exclude_sources)
        taught = [node for node in nodes if "teacher" in node.inputs and node.name != "report"]
        assert {node.stage.name for node in taught} >= {"train"}
        for node in taught:
            given = node.inputs.get("pixels")
            assert given == ("prepare/pixels" if overrides is latent else None), node.name


def test_a_batch_without_a_teacher_has_no_targets(few):
    data = few.load()
    batch = loop.Batches(data.train, None, 6, 0)(0)
    assert isinstance(batch, Batch)
    assert batch.patch_targets is batch.class_features is None
