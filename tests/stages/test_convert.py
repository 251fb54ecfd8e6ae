"""Sets converted shard by shard: what is packed shows what is mapped, and a killed conversion goes
on to the same bytes."""

import io
import os

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.errors import StageError
from pipeline.stage import resolve
from stages.artifacts.storage import Latents, Packed
from stages.data import convert, prepare, spectrum
from stages.scoring import features
from tests.stages.context import context, digests, make, sealed


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    """Several shards of few images."""
    monkeypatch.setattr(convert, "SMALL_SHARD_BYTES", 4000)
    monkeypatch.setattr(convert, "FEWEST_SHARDS", 4)


def write_files(root, count=24, sides=((12, 12),), suffix="jpg", grey=(), **options):
    """Pictures in two class folders, `grey` ones of them without colour."""
    random = np.random.RandomState(0)
    for index in range(count):
        width, height = sides[index % len(sides)]
        pixels = random.randint(0, 256, (height, width, 3), np.uint8)
        image = Image.fromarray(pixels)
        image = image.convert("L") if index in grey else image
        folder = root / ("even" if index % 2 == 0 else "odd")
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{index:03d}.{suffix}", **options)
    return str(root)


def settings(path, **more):
    return prepare.PrepareSettings(path=path, held_out=6, **{"mapped_gib": 0} | more)


def prepared(folder, path, **more):
    return make(folder, prepare.STAGE, settings(path, **more))


def test_files_that_are_what_they_should_be_are_kept_as_they_are(tmp_path):
    path = write_files(tmp_path / "in")
    data = prepared(tmp_path / "p", path)
    assert isinstance(data.load().train.stored, Packed)
    assert len(data.description["shards"]["train"]) > 1
    packed = b"".join(p.read_bytes() for p in sorted(data.path.glob("train-*.bin")))
    found = [p.read_bytes() in packed for p in sorted((tmp_path / "in").rglob("*.jpg"))]
    assert sum(found) == 18


@pytest.mark.parametrize("more", [{}, {"size": 8}, {"size": 8, "crop": "adm"}])
def test_what_is_packed_shows_what_is_mapped(tmp_path, more):
    sides = ((12, 12),) if not more else ((12, 17), (30, 20))
    path = write_files(tmp_path / "in", sides=sides, grey=(3, 7))
    packed, mapped = (prepared(tmp_path / str(gib), path, mapped_gib=gib, **more) for gib in (0, 1))
    ours, theirs = packed.load(), mapped.load()
    for part in ("train", "test"):
        assert torch.equal(
            getattr(ours, part).raw(slice(None)), getattr(theirs, part).raw(slice(None))
        )
        assert torch.equal(getattr(ours, part).labels, getattr(theirs, part).labels)
    facts = {k: v for k, v in packed.description.items() if k not in ("storage", "shards")}
    assert facts == mapped.description
    assert (packed.path / "mu.npy").read_bytes() == (mapped.path / "mu.npy").read_bytes()
    x = ours.train[:].double()
    assert ours.std == pytest.approx(x.std(correction=0).item(), rel=1e-12)
    assert pytest.approx(x.var(0, correction=0).sum().item(), rel=1e-12) == ours.V


@pytest.mark.parametrize("mapped_gib", [0, 1])
def test_channels_are_settled_by_all_images_of_both_parts(tmp_path, mapped_gib):
    every = range(24)
    grey = write_files(tmp_path / "grey", grey=every)
    assert prepared(tmp_path / "g", grey, mapped_gib=mapped_gib).load().shape == (1, 12, 12)
    for odd in (0, 23):
        path = write_files(tmp_path / f"in{odd}", grey=set(every) - {odd})
        loaded = prepared(tmp_path / f"o{odd}", path, mapped_gib=mapped_gib).load()
        assert loaded.shape == loaded.train[:1].shape[1:] == (3, 12, 12)
        both = torch.cat([loaded.train[:], loaded.test[:]])
        assert (both == both[:, :1]).flatten(1).all(1).sum() == 23


def test_files_in_other_modes_are_decoded_once_by_the_readers_rule(tmp_path):
    path = write_files(tmp_path / "in", suffix="png")
    first = tmp_path / "in" / "even" / "000.png"
    Image.open(first).convert("RGBA").save(first)
    turned = tmp_path / "in" / "odd" / "001.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(turned).save(turned, exif=exif)
    packed, mapped = (prepared(tmp_path / str(gib), path, mapped_gib=gib).load() for gib in (0, 1))
    for part in ("train", "test"):
        assert torch.equal(getattr(packed, part)[:], getattr(mapped, part)[:])


@pytest.mark.parametrize("mapped_gib", [0, 1])
def test_images_of_two_sizes_are_refused_by_name(tmp_path, mapped_gib):
    path = write_files(tmp_path / "in", sides=((12, 12), (12, 13)))
    with pytest.raises(StageError, match=r"differ in size \(\d+x\d+ in .*jpg, .*jpg\); set"):
        prepared(tmp_path / "p", path, mapped_gib=mapped_gib)


@pytest.mark.parametrize("mapped_gib", [0, 1])
def test_damaged_files_are_named_counted_and_passed_over(tmp_path, mapped_gib):
    path = write_files(tmp_path / "in")
    for name in ("even/004.jpg", "odd/011.jpg"):
        file = tmp_path / "in" / name
        file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(StageError, match=r"(?s)2 of 24 files .*004.jpg.*data.skip_damaged=2"):
        prepared(tmp_path / "p", path, mapped_gib=mapped_gib)
    whole = prepared(tmp_path / "w", path, mapped_gib=mapped_gib, skip_damaged=2).load()
    assert len(whole.train) + len(whole.test) == 22
    for part in (whole.train, whole.test):
        assert len(part.raw(slice(None))) == len(part.labels)
        for image, label in zip(part.raw(slice(None)), part.labels, strict=True):
            shown = image.permute(1, 2, 0).numpy()
            folder = tmp_path / "in" / ("even", "odd")[label]
            assert any((np.asarray(Image.open(f)) == shown).all() for f in _readable(folder))


def _readable(folder):
    return [f for f in sorted(folder.glob("*.jpg")) if f.name not in ("004.jpg", "011.jpg")]


class Killed(BaseException):
    """What no stage catches."""


@pytest.mark.parametrize("mapped_gib", [0, 1])
def test_a_killed_conversion_goes_on_to_the_same_bytes(tmp_path, monkeypatch, mapped_gib):
    path = write_files(tmp_path / "in", grey=(2,))
    expected = digests(prepared(tmp_path / "whole", path, mapped_gib=mapped_gib).path)
    decode, decoded = convert.decode, []

    def dying(data, name, *more):
        if len(decoded) == 12:
            raise Killed
        decoded.append(name)
        return decode(data, name, *more)

    monkeypatch.setattr(convert, "decode", dying)
    with pytest.raises(Killed):
        prepared(tmp_path / "killed", path, mapped_gib=mapped_gib)
    finished = {f: f.stat().st_mtime_ns for f in (tmp_path / "killed/work").glob("*.bin")}
    assert finished
    monkeypatch.setattr(
        convert, "decode", lambda *given: decoded.append(given[1]) or decode(*given)
    )
    again = prepared(tmp_path / "killed", path, mapped_gib=mapped_gib)
    assert digests(again.path) == expected
    assert all(file.stat().st_mtime_ns == time for file, time in finished.items())
    assert len(decoded) < 12 + 24


@pytest.mark.parametrize("mapped_gib", [0, 1])
def test_memory_and_tasks_change_no_byte(tmp_path, mapped_gib):
    path = write_files(tmp_path / "in")
    waves = []

    def made(folder, memory_gib):
        at = context(folder, settings(path, mapped_gib=mapped_gib, memory_gib=memory_gib))
        plain = at.map
        at.map = lambda function, items, *common: (
            waves.append(len(items)) or plain(function, list(items)[::-1], *common)[::-1]
        )
        return digests(sealed(at, prepare.STAGE, resolve(prepare.STAGE.run)(at)).path)

    assert made(tmp_path / "much", 4) == made(tmp_path / "little", 1 / 16)
    assert waves[0] > 1
    assert set(waves[1:]) == {1}


def test_arrays_are_packed_as_png(tmp_path):
    images = np.random.RandomState(0).randint(0, 256, (24, 9, 7, 3), np.uint8)
    np.savez(tmp_path / "x.npz", x_train=images, y_train=np.arange(24) % 2)
    packed, mapped = (
        prepared(tmp_path / str(gib), str(tmp_path / "x.npz"), mapped_gib=gib) for gib in (0, 1)
    )
    assert torch.equal(packed.load().train[:], mapped.load().train[:])
    assert packed.load().train.stored.shape == (3, 9, 7)
    with Image.open(io.BytesIO((packed.path / "train-00000.bin").read_bytes())) as image:
        assert image.format == "PNG"
    expected = np.load(mapped.path / "train.npy")
    np.save(tmp_path / "again.npy", expected)
    assert (tmp_path / "again.npy").read_bytes() == (mapped.path / "train.npy").read_bytes()


def write_latents(root, count=24, spread=0.3):
    """A folder of EDM2's: one file a latent, with labels."""
    random, labels = np.random.RandomState(0), []
    for index in range(count):
        name = f"00000/img-mean-std-{index:08d}.npy"
        (root / "00000").mkdir(parents=True, exist_ok=True)
        mean = random.randn(4, 6, 6) * 5
        np.save(root / name, np.concatenate([mean, np.full_like(mean, spread)]).astype(np.float32))
        labels.append([name, index % 2])
    (root / "dataset.json").write_text(str({"labels": labels}).replace("'", '"'))
    return str(root)


@pytest.mark.parametrize(("spread", "dtype"), [(0.3, "float16"), (0.01, "float32")])
def test_latents_with_their_spread_are_kept_in_shards(tmp_path, spread, dtype):
    path = write_latents(tmp_path / "in", spread=spread)
    data = prepared(tmp_path / "p", path, latents="repa")
    loaded, facts = data.load(), data.description
    assert isinstance(loaded.train.stored, Latents)
    assert (facts["storage"], facts["latents"]["dtype"]) == ("latents", dtype)
    assert len(facts["shards"]["train"]) > 1
    first = np.load(tmp_path / "in/00000/img-mean-std-00000000.npy").astype(dtype)
    both = torch.cat([loaded.train.raw(slice(None)), loaded.test.raw(slice(None))])
    assert (both == torch.from_numpy(first.reshape(2, 4, 6, 6))).flatten(1).all(1).sum() == 1
    mean = loaded.train.raw(slice(None))[:, 0].double() * 0.18215
    torch.testing.assert_close(loaded.train[:].double(), mean, rtol=1e-6, atol=1e-6)
    std = loaded.train.raw(slice(None))[:, 1].double() * 0.18215
    V = (mean.var(0, correction=0) + std.square().mean(0)).sum().item()
    assert pytest.approx(V, rel=1e-6) == loaded.V


def test_consumers_see_the_same_in_every_storage(tmp_path, extractor):
    """Spectrum, features and neighbours of packed and of mapped images, byte by byte."""
    images = np.random.RandomState(0).randint(0, 256, (60, 8, 8), np.uint8)
    np.savez(tmp_path / "x.npz", x_train=images, y_train=np.arange(60) % 2)
    found = []
    for gib in (0, 1):
        data = prepared(tmp_path / str(gib), str(tmp_path / "x.npz"), mapped_gib=gib)
        at = tmp_path / f"of{gib}"
        made = [make(at / "s", spectrum.STAGE, spectrum.SpectrumSettings(shard_size=40), data=data)]
        for part in ("train", "test"):
            options = features.FeatureSettings(part=part, shard_size=20)
            inputs = {"data": data, "extractor": extractor}
            made.append(make(at / part, features.STAGE, options, **inputs))
        assert (made[2].path / "neighbours.npy").is_file()
        assert len(made[1].description["data_digest"]) == 12
        found.append([_but_digest(digests(artifact.path)) for artifact in made])
    assert found[0] == found[1]


def _but_digest(files):
    return {name: digest for name, digest in files.items() if name != "features.json"}


def test_the_payload_is_linked_not_copied(tmp_path):
    data = prepared(tmp_path / "p", write_files(tmp_path / "in"))
    shards = sorted(data.path.glob("train-*.bin"))
    assert all(os.stat(shard).st_nlink == 2 for shard in shards)
