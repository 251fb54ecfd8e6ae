"""Samples made elsewhere: folders and archives, and the numbers of clean-fid on the same files."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import config
from pipeline import plan as planning
from pipeline.errors import StageError, UsageError
from pipeline.fingerprint import fingerprint
from pipeline.graph import Graph
from pipeline.plan import Request
from pipeline.store import Store
from stages.catalog import CATALOG, RECIPES, Bench
from stages.data import prepare
from stages.data.readers import npz
from stages.data.readers.order import mixed_order
from stages.recipes.evaluate import external_nodes, name_of
from stages.scoring import evaluate, external, extractor, features
from tests.inline import run_all
from tests.stages.context import context, digests, make
from tests.test_extractors import inception_dir  # noqa: F401


def write_images(folder, pixels, suffix="png"):
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{i:03}.{suffix}")
    return folder


def read_npz(path) -> np.ndarray:
    images = npz.pool(path).images
    return images.take(np.arange(len(images)))


def read(folder, path, data, stage=external.STAGE):
    return make(folder, stage, external.ExternalSettings(path=str(path)), data=data)


def test_a_folder_and_an_archive_of_the_same_pixels_are_the_same(tmp_path, few, monkeypatch):
    pixels = np.random.RandomState(0).randint(0, 256, (60, 8, 8)).astype(np.uint8)
    write_images(tmp_path / "set", pixels)
    np.savez(tmp_path / "set.npz", images=pixels[..., None], labels=np.zeros(60, int))
    monkeypatch.setattr(external, "SHARD_FILES", 25)
    folder, archive = (
        read(tmp_path / "1", tmp_path / "set", few),
        read(tmp_path / "2", tmp_path / "set.npz", few),
    )
    expected = torch.from_numpy(pixels[:, None]).float() / 127.5 - 1
    order = mixed_order(60)
    assert torch.equal(folder.images(), expected[order])
    assert torch.equal(folder.load().images[:7], folder.images(slice(7)))
    one, two = digests(folder.path), digests(archive.path)
    assert {name for name in one if one[name] != two[name]} == {"names.json"}
    at = order.tolist().index(3)
    assert (folder.name_of(at), archive.name_of(at)) == ("003.png", "image 3")
    assert folder.description == archive.description


def test_the_first_of_a_folder_of_class_folders_are_of_every_class(tmp_path, few):
    for label in range(4):
        pixels = [np.full((8, 8), 60 * label + i, np.uint8) for i in range(15)]
        write_images(tmp_path / "set" / str(label), pixels)
    samples = read(tmp_path / "o", tmp_path / "set", few)
    first = ((samples.images(slice(20)) + 1) * 127.5).round().long()[:, 0, 0, 0]
    assert set((first // 60).tolist()) == {0, 1, 2, 3}
    for index, value in enumerate(first.tolist()):
        assert samples.name_of(index) == f"{value // 60}/{value % 60:03}.png"


def test_floats_in_minus_one_to_one_are_kept(tmp_path, few):
    images = np.random.RandomState(0).uniform(-1, 1, (50, 1, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "x.npz", images)
    found = read(tmp_path / "o", tmp_path / "x.npz", few).images()
    assert torch.equal(found, torch.tensor(images[mixed_order(50)]))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": np.zeros((0, 8, 8, 1), np.uint8)}, "not empty"),
        ({"x": np.zeros((4, 8, 8, 2), np.uint8)}, "1 or 3 channels"),
        ({"x": np.zeros((4, 8)), "y": np.zeros(3)}, r"holds 0 arrays of images \(x \(4, 8\)"),
        ({"x": np.zeros((4, 8, 8)), "y": np.zeros((4, 8, 8))}, "holds 2 arrays of images"),
        ({"x": np.full((4, 8, 8), 0.5)}, r"lies in \[0.5, 0.5\]; floating-point images must"),
        ({"x": np.full((4, 8, 8), np.nan)}, "NaN or infinite pixels in image 0"),
        ({"x": np.zeros((4, 8, 8), np.int64)}, "type int64"),
        ({"x": np.arange(4 * 64 * 3).reshape(4, 8, 8, 3).astype(np.uint8)}, "in colour and the"),
    ],
)
def test_bad_archives_are_refused_in_words(tmp_path, few, arrays, words):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(StageError, match=words):
        read(tmp_path / "o", tmp_path / "x.npz", few)


def test_files_that_are_no_archives_are_refused_in_words(tmp_path):
    path = tmp_path / "x.npz"
    for content in (b"", b"text", b"\x80pickle"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.npz is not a readable .* numpy\.savez") as found:
            read_npz(path)
        assert "pickle" not in str(found.value)
    with path.open("wb") as stream:
        np.save(stream, np.zeros((4, 8, 8), np.uint8))
    with pytest.raises(ValueError, match=r"x\.npz is not a readable"):
        read_npz(path)
    np.savez(path, np.array([object()]))
    with pytest.raises(ValueError, match=r"x\.npz holds Python objects.* plain arrays") as found:
        read_npz(path)
    assert "allow_pickle" not in str(found.value)


def test_an_archive_with_any_byte_changed_is_read_or_refused_in_words(tmp_path):
    pixels = np.random.RandomState(0).randint(0, 256, (4, 8, 8)).astype(np.uint8)
    path = tmp_path / "x.npz"
    np.savez_compressed(path, pixels)
    whole, refused = path.read_bytes(), 0
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 0xFF
        path.write_bytes(changed)
        try:
            # A change to what nobody reads, such as a date, does no harm.
            np.testing.assert_array_equal(read_npz(path)[:, 0], pixels)
        except ValueError as error:
            refused += 1
            assert "x.npz" in str(error)  # noqa: PT017
    assert refused > len(whole) // 2


def test_bad_folders_are_refused_in_words(tmp_path, few, monkeypatch):
    (tmp_path / "empty").mkdir()
    with pytest.raises(StageError, match="holds no images"):
        read(tmp_path / "1", tmp_path / "empty", few)
    mixed = write_images(tmp_path / "mixed", [np.zeros((8, 8), np.uint8)] * 3)
    Image.fromarray(np.zeros((8, 9), np.uint8)).save(mixed / "003.png")
    for size in (external.SHARD_FILES, 3):
        monkeypatch.setattr(external, "SHARD_FILES", size)
        with pytest.raises(StageError, match=r"000\.png is 8x8 and 003\.png is 9x8"):
            read(tmp_path / str(size), mixed, few)
    (mixed / "notes.txt").write_text("x")  # passed over, and said
    (mixed / "a.heic").write_text("x")
    with pytest.raises(StageError, match=r"not images that can be read, the first a\.heic"):
        read(tmp_path / "3", mixed, few)
    (tmp_path / "bad.npz").write_text("x")
    with pytest.raises(StageError, match=r"not a readable \.npz"):
        read(tmp_path / "4", tmp_path / "bad.npz", few)


def graph(**evaluation):
    """That of the recipe evaluate."""
    evaluation = {"num_samples": 40, **evaluation}
    return Graph(RECIPES["evaluate"](Bench(evaluate=evaluation)), CATALOG.exclude_sources)


def test_the_recipe_refuses_missing_paths_before_any_work(tmp_path):

    with pytest.raises(UsageError, match=r"set evaluate\.path to a folder"):
        graph()
    with pytest.raises(UsageError, match=r"evaluate\.path=.*nowhere does not exist"):
        _ = graph(path=str(tmp_path / "nowhere")).keys
    (tmp_path / "x.png").write_text("x")
    with pytest.raises(UsageError, match="neither a folder nor"):
        _ = graph(path=str(tmp_path / "x.png")).keys
    (tmp_path / "a").mkdir()
    with pytest.raises(UsageError, match=r"evaluate\.path=.*a holds no images; set it to a folder"):
        _ = graph(path=str(tmp_path / "a")).keys
    for number in range(40):
        (tmp_path / "a" / f"{number}.png").touch()
    nodes = graph(path=str(tmp_path / "a"))
    assert {"external", "features/external", "evaluate/external", "report"} <= set(nodes.nodes)
    before = nodes.keys["external"]
    (tmp_path / "b").mkdir()
    (tmp_path / "a").rename(tmp_path / "b" / "a")
    assert graph(path=str(tmp_path / "b" / "a")).keys["external"] == before


@pytest.mark.parametrize("kind", ["folder", "npz", "npy", "zip"])
def test_too_few_samples_are_refused_before_any_work(tmp_path, kind):
    place, pixels = tmp_path / f"few.{kind}", np.zeros((45, 8, 8), np.uint8)
    if kind == "npz":
        np.savez(place, pixels)
    elif kind == "npy":
        np.save(place, pixels)
    else:
        write_images(tmp_path / "few.folder", pixels)
    if kind == "zip":
        shutil.make_archive(str(tmp_path / "few"), "zip", tmp_path / "few.folder")
    graph(path=str(place), num_samples=45)
    words = (
        r"evaluate\.path=.*few\..* holds 45 samples, fewer than evaluate\.num_samples=46; lower it"
    )
    with pytest.raises(UsageError, match=words):
        graph(path=str(place), num_samples=46)


def test_where_lowering_does_not_help_it_is_not_said(tmp_path):
    place = write_images(tmp_path / "few", np.zeros((9, 8, 8), np.uint8))
    with pytest.raises(UsageError, match=r"holds 9 samples.*give more: scores need at least 40"):
        graph(path=str(place))


def test_archives_that_cannot_be_listed_are_refused_before_any_work(tmp_path):
    np.savez(tmp_path / "two.npz", np.zeros((40, 8, 8)), np.zeros((40, 8, 8)))
    (tmp_path / "cut.zip").write_bytes(b"PK")
    with pytest.raises(UsageError, match=r"two\.npz holds 2 arrays of images"):
        graph(path=str(tmp_path / "two.npz"))
    with pytest.raises(UsageError, match=r"cut\.zip is not a readable \.zip"):
        graph(path=str(tmp_path / "cut.zip"))


@pytest.mark.parametrize("kind", ["folder", "archive"])
def test_samples_of_another_name_run_nothing_and_are_called_by_it(tmp_path, kind):
    """Names with dots too; what is cached holds no name that could be a former one's."""

    def planned(path):
        fingerprint.cache_clear()
        nodes = graph(path=str(path))
        return nodes.keys, nodes["evaluate/external"].tags["method"]

    pixels = np.random.RandomState(0).randint(0, 256, (40, 8, 8)).astype(np.uint8)
    end = "" if kind == "folder" else ".npz"
    first, second = (tmp_path / f"{name}{end}" for name in ("lr-0.001", "lr-0.002"))
    if kind == "folder":
        write_images(first, pixels)
    else:
        np.savez(first, pixels)
    keys, name = planned(first)
    first.rename(second)
    again, other = planned(second)
    assert again == keys
    assert (name, other) == ("lr-0.001", "lr-0.002")


@pytest.mark.slow
def test_nothing_runs_again_for_a_renamed_touched_folder_and_all_does_for_other_pixels(tmp_path):
    def planned(path):
        fingerprint.cache_clear()
        request = Request("evaluate", "smoke", (f"evaluate.path={path}",))
        return request, planning.make(CATALOG, store, request)

    store = Store(str(tmp_path / "store"))
    pixels = np.random.RandomState(0).randint(0, 256, (60, 8, 8)).astype(np.uint8)
    first = write_images(tmp_path / "firstname", pixels, "bmp")
    made = run_all(CATALOG, store, planned(first)[0])
    written = [path for one in made.values() for path in one.path.rglob("*.*")]
    texts = [path.read_bytes() for path in written if path.name != "manifest.json"]
    assert not any(b"firstname" in text for text in texts)
    second = tmp_path / "secondname"
    first.rename(second)
    (second / ".DS_Store").write_bytes(b"x")
    (second / "Thumbs.db").write_bytes(b"x")
    for file in second.glob("*.bmp"):
        os.utime(file, (1, 1))
    assert planned(second)[1].todo == []
    file = second / "007.bmp"
    Image.fromarray(pixels[7] ^ 255).save(file)
    os.utime(file, (1, 1))
    again = {"external", "features/external", "evaluate/external", "report"}
    assert set(planned(second)[1].todo) == again


def test_scores_are_clean_fids_on_the_same_files(tmp_path, inception_dir):  # noqa: F811
    """Folders through the whole recipe against clean-fid on the folders themselves."""
    from stages.methods.torchvision_shim import prepare_torchvision

    prepare_torchvision()
    from cleanfid.fid import fid_from_feats, get_folder_features, kernel_distance
    from cleanfid.inception_torchscript import InceptionV3W

    random = np.random.RandomState(0)
    real, fake = (random.randint(0, top, (40, 9, 12, 3)).astype(np.uint8) for top in (256, 200))
    for name, rows in (("a", slice(0, 20)), ("b", slice(20, 40))):
        write_images(tmp_path / "data" / "train" / name, real[rows])
        write_images(tmp_path / "data" / "test" / name, real[rows][:3])
    generated = write_images(tmp_path / "generated", fake)
    settings = prepare.PrepareSettings(dataset="folder", path=str(tmp_path / "data"))
    data = make(tmp_path / "prepare", prepare.STAGE, settings)
    chosen = {"kind": "inception", "weights": str(inception_dir)}
    network = make(
        tmp_path / "extractor", extractor.STAGE, extractor.ExtractorSettings(**chosen), data=data
    )
    samples = read(tmp_path / "external", generated, data)

    def taken(part, **more):
        folder = tmp_path / part
        options = features.FeatureSettings(**chosen, part=part, batch_size=16)
        return make(folder, features.STAGE, options, data=data, extractor=network, **more)

    inputs = {"train": taken("train"), "held_out": taken("test")}
    inputs |= {"features": {"features/external": taken("samples", samples=samples)}}
    at = context(
        tmp_path / "scores",
        evaluate.EvaluateSettings(num_samples=40),
        samples={"external": samples},
        **inputs,
    )
    found = evaluate.run(at).metrics
    model = InceptionV3W(str(inception_dir), download=False)
    theirs = [
        get_folder_features(
            str(folder), model, num_workers=0, device="cpu", mode="clean", verbose=False
        )
        for folder in (generated, tmp_path / "data" / "train")
    ]
    assert theirs[0].shape == (40, 2048)
    # Features of few images span few dimensions: clean-fid's square root there is only as good as
    # its offset to the diagonal, so the distance is compared in the space the images span.
    basis = np.linalg.qr(np.concatenate(theirs).T.astype(np.float64))[0]
    expected = fid_from_feats(*(x.astype(np.float64) @ basis for x in theirs))
    assert found["fid"] == pytest.approx(expected, rel=1e-3)
    x, y = (f.astype(np.float64) for f in theirs)
    whole = kernel_distance(y, x, num_subsets=1, max_subset_size=40)
    assert found["kid"] == pytest.approx(whole, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("lr-0.001", "lr-0.001"),
        ("lr-0.002/", "lr-0.002"),
        ("a.npz", "a"),
        ("a.b.NPZ", "a.b"),
        ("folder.npz/", "folder.npz"),
        ("x/..", "sets"),
        (".", "sets"),
    ],
)
def test_samples_are_called_by_the_whole_name_of_their_folder(path, name, tmp_path, monkeypatch):
    (tmp_path / "sets" / "folder.npz").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "sets")
    assert name_of(Path(path)) == name
    assert name_of(tmp_path / "sets" / path) == name


def test_folders_that_differ_behind_a_dot_are_two_methods(tmp_path):
    names = ("lr-0.001", "lr-0.002")
    for name in names:
        (tmp_path / name).mkdir()
    made = [
        config.resolve(CATALOG, "smoke", [f"evaluate.path={tmp_path / name}"]).settings
        for name in names
    ]
    assert [external_nodes(bench)[1].tags["method"] for bench in made] == list(names)
