"""Data sets in their true file formats, the digits' split, statistics, and bad input in words."""

import gzip
import pickle
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.errors import StageError, UsageError
from pipeline.fingerprint import fingerprint
from pipeline.graph import Graph, Node
from stages.artifacts import data as artifacts_data
from stages.data import prepare
from stages.recipes.nodes import weights_of
from stages.scoring import external
from stages.settings.extractors import ExtractorOptions
from stages.settings.teachers import TeachOptions
from stages.training.checkpoint import CheckpointSettings
from tests.stages.context import context, digests, make


def prepared(folder, **settings) -> artifacts_data.DataSet:
    return make(folder, prepare.STAGE, prepare.PrepareSettings(**settings)).load()


def test_digits_split_and_scale(data):
    from sklearn.datasets import load_digits

    bunch = load_digits()
    order = np.random.RandomState(0).permutation(1797)
    loaded = data.load()
    assert (len(loaded.train), len(loaded.test), loaded.shape) == (1500, 297, (1, 8, 8))
    expected = torch.from_numpy(bunch.images[order] / 8 - 1).float()[:, None]
    assert torch.equal(loaded.train[:], expected[:1500])
    assert torch.equal(loaded.test[:], expected[1500:])
    assert loaded.test.labels.tolist() == bunch.target[order][1500:].tolist()
    assert torch.equal(loaded.train[torch.tensor([7, 2])], expected[[7, 2]])


def test_statistics_are_those_of_the_training_pixels(data):
    loaded = data.load()
    images = loaded.train[:].double()
    assert loaded.mean == pytest.approx(images.mean().item(), rel=1e-12)
    assert loaded.std == pytest.approx(images.std(correction=0).item(), rel=1e-12)
    torch.testing.assert_close(loaded.mu, images.mean(0), rtol=0, atol=1e-12)
    V = (images - images.mean(0)).square().flatten(1).sum(1).mean().item()
    assert pytest.approx(V, rel=1e-12) == loaded.V


def test_twice_is_the_same_bytes_and_limits_take_the_first(tmp_path, data, few):
    again = make(tmp_path, prepare.STAGE, prepare.PrepareSettings())
    assert digests(again.path) == digests(data.path)
    small, whole = few.load(), data.load()
    assert (len(small.train), len(small.test)) == (96, 48)
    assert torch.equal(small.train[:], whole.train[:96])


def test_size_is_bicubic(tmp_path, few):
    loaded = prepared(tmp_path, size=16, limit=96, limit_held_out=48)
    assert loaded.shape == (1, 16, 16)
    pixels = few.load().train[:10].numpy()[:, 0]
    for image, small in zip(loaded.train[:10].numpy()[:, 0], pixels, strict=True):
        other = Image.fromarray(small).resize((16, 16), Image.Resampling.BICUBIC)
        assert np.abs(image - np.clip(np.asarray(other), -1, 1)).max() < 1e-5


def idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


def write_mnist(folder, zipped: bool, num_train=12, num_test=5):
    rng = np.random.default_rng(0)
    arrays = {}
    for stem, n in (("train", num_train), ("t10k", num_test)):
        arrays[f"{stem}-images-idx3-ubyte"] = rng.integers(0, 256, (n, 28, 28), np.uint8)
        arrays[f"{stem}-labels-idx1-ubyte"] = rng.integers(0, 10, n, np.uint8)
    for name, array in arrays.items():
        if zipped:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
        else:
            (folder / name).write_bytes(idx(array))
    return arrays


@pytest.mark.parametrize("zipped", [False, True])
def test_mnist(tmp_path, zipped):
    arrays = write_mnist(tmp_path, zipped)
    loaded = prepared(tmp_path / "out", dataset="mnist", path=str(tmp_path))
    stored = arrays["train-images-idx3-ubyte"]
    expected = torch.from_numpy(stored).float() / 127.5 - 1
    torch.testing.assert_close(loaded.train[:][:, 0], expected, rtol=0, atol=1e-6)
    assert loaded.test.labels.tolist() == arrays["t10k-labels-idx1-ubyte"].tolist()
    assert loaded.train[:].abs().max() <= 1


def test_mnist_damaged(tmp_path):
    def refused(words):
        with pytest.raises(StageError, match=words):
            prepared(tmp_path / "out", dataset="mnist", path=str(tmp_path))

    refused(r"train-images-idx3-ubyte \(or train-images-idx3-ubyte.gz\) is not in")
    write_mnist(tmp_path, zipped=False)
    images = tmp_path / "train-images-idx3-ubyte"
    whole = images.read_bytes()
    images.write_bytes(whole[:-1])
    refused("truncated or damaged")
    images.write_bytes(whole[:2] + bytes([13]) + whole[3:])
    refused("holds type 0x0d")
    images.write_bytes(whole)
    labels = tmp_path / "train-labels-idx1-ubyte"
    labels.write_bytes(idx(np.zeros(11, np.uint8)))
    refused("12 images have 11 labels")
    labels.write_bytes(idx(np.full(12, 10, np.uint8)))
    refused(r"training labels run from 10 to 10; with 10 classes they must lie in 0..9")
    labels.unlink()
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(b"not gzip")
    refused("cannot be read")


class Python2Pickler(pickle._Pickler):
    """Writes byte strings and names as the published files have them: Python 2, protocol 2."""

    def save_bytes(self, obj):
        self.write(pickle.BINSTRING + struct.pack("<i", len(obj)) + obj)

    def save_global(self, obj, name=None):
        module = "numpy.core.multiarray" if obj.__name__ == "_reconstruct" else "numpy"
        self.write(pickle.GLOBAL + f"{module}\n{obj.__name__}\n".encode())

    dispatch = pickle._Pickler.dispatch | {
        bytes: save_bytes,
        type: save_global,
        type(np.ndarray.__reduce__): save_global,
    }


def write_cifar(folder, n=4):
    folder.mkdir()
    rng = np.random.default_rng(1)
    written = []
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        images = rng.integers(0, 256, (n, 3, 32, 32), np.uint8)
        labels = rng.integers(0, 10, n).tolist()
        batch = {
            b"batch_label": name.encode(),
            b"labels": labels,
            b"data": images.reshape(n, -1),
            b"filenames": [f"{i}.png".encode() for i in range(n)],
        }
        with (folder / name).open("wb") as stream:
            Python2Pickler(stream, protocol=2).dump(batch)
        written.append((images, labels))
    names = [f"class{i}".encode() for i in range(10)]
    with (folder / "batches.meta").open("wb") as stream:
        Python2Pickler(stream, protocol=2).dump({b"label_names": names, b"num_vis": 3072})
    return written


def test_cifar10(tmp_path):
    written = write_cifar(tmp_path / "cifar-10-batches-py")
    assert b"cnumpy.core.multiarray" in (tmp_path / "cifar-10-batches-py/test_batch").read_bytes()
    loaded = prepared(tmp_path / "out", dataset="cifar10", path=str(tmp_path))
    assert (len(loaded.train), len(loaded.test), loaded.shape) == (20, 4, (3, 32, 32))
    expected = np.concatenate([images for images, _ in written[:5]])
    found = (loaded.train[:] + 1) * 127.5
    assert np.abs(found.numpy() - expected).max() < 1e-4
    assert loaded.test.labels.tolist() == written[5][1]
    assert loaded.class_names[3] == "class3"


class Evil:
    def __reduce__(self):
        return (exec, ("print('ran')",))  # Ray puts its own function in the place of print


def test_cifar10_runs_no_code(tmp_path, capsys):
    folder = tmp_path / "cifar-10-batches-py"
    write_cifar(folder)
    (folder / "data_batch_1").write_bytes(pickle.dumps({b"data": Evil()}))
    with pytest.raises(StageError, match=r"it asks for builtins[.]exec"):
        prepared(tmp_path / "out", dataset="cifar10", path=str(folder))
    assert capsys.readouterr().out == ""
    (folder / "data_batch_1").write_bytes(b"\x80\x02}")
    with pytest.raises(StageError, match="is not a CIFAR-10 batch"):
        prepared(tmp_path / "out", dataset="cifar10", path=str(folder))


def write_folder(root, sizes=((8, 8),), per_class=6, mode="RGB"):
    rng = np.random.default_rng(2)
    for label, name in enumerate(("cat", "dog")):
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            width, height = sizes[i % len(sizes)]
            shape = (height, width) if mode == "L" else (height, width, 3)
            pixels = rng.integers(0, 100, shape, np.uint8) + np.uint8(100 * label)
            Image.fromarray(pixels).save(root / name / f"{i}.png")


def test_folder(tmp_path):
    write_folder(tmp_path / "in")
    loaded = prepared(tmp_path / "out", dataset="folder", path=str(tmp_path / "in"))
    assert (len(loaded.train), len(loaded.test), loaded.shape) == (10, 2, (3, 8, 8))
    assert loaded.class_names == ("cat", "dog")
    bright = loaded.train[:].mean((1, 2, 3)) > -0.2
    assert torch.equal(bright.long(), loaded.train.labels)


def test_folder_with_a_split_grey_images_and_many_sizes(tmp_path):
    sizes = ((9, 12), (20, 8))
    write_folder(tmp_path / "in/train", sizes, mode="L")
    write_folder(tmp_path / "in/val", sizes, per_class=2, mode="L")
    with pytest.raises(
        StageError, match=r"differ in size \(\d+x\d+ in .*\d.png, \d+x\d+ in .*\d.png\); set data"
    ):
        prepared(tmp_path / "out", dataset="folder", path=str(tmp_path / "in"))
    loaded = prepared(tmp_path / "out", dataset="folder", path=str(tmp_path / "in"), size=8)
    assert (len(loaded.train), len(loaded.test), loaded.shape) == (12, 4, (1, 8, 8))
    # 20x8 needs no scaling: its centre is cut out.
    with Image.open(tmp_path / "in/train/cat/1.png") as image:
        centre = np.asarray(image)[:, 6:14]
    place = np.random.RandomState(0).permutation(12).tolist().index(1)
    found = ((loaded.train[:][place, 0] + 1) * 127.5).round().numpy()
    assert np.array_equal(found, centre)


def test_data_sorted_by_class_with_a_split_of_their_own_are_mixed(tmp_path):
    """The same images as folder and as archive, latents and their pixels, say, stay in step."""
    labels = {"train": np.repeat(np.arange(4), 15), "test": np.repeat(np.arange(4), 6)}
    arrays = {}
    for part, of in labels.items():
        places = np.arange(len(of)) % (len(of) // 4)
        pixels = np.broadcast_to(
            (50 * of + places).astype(np.uint8)[:, None, None], (len(of), 8, 8)
        )
        for pixel, label, place in zip(pixels, of, places, strict=True):
            folder = tmp_path / "in" / part / f"class{label}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.ascontiguousarray(pixel)).save(folder / f"{place:02}.png")
        arrays |= {f"x_{part}": pixels, f"y_{part}": of}
    np.savez(tmp_path / "in.npz", **arrays)
    folder = prepared(tmp_path / "f", dataset="folder", path=str(tmp_path / "in"))
    archive = prepared(tmp_path / "a", dataset="npz", path=str(tmp_path / "in.npz"))
    for part, of in labels.items():
        one, two = getattr(folder, part), getattr(archive, part)
        assert torch.equal(one[:], two[:])
        assert torch.equal(one.labels, two.labels)
        assert set(two.labels[: len(of) // 3].tolist()) == {0, 1, 2, 3}
        found = ((two[:] + 1) * 127.5).round().long()[:, 0, 0, 0]
        assert torch.equal(found // 50, two.labels)
        assert sorted(found.tolist()) == arrays[f"x_{part}"][:, 0, 0].tolist()
    few = prepared(tmp_path / "l", dataset="npz", path=str(tmp_path / "in.npz"), limit=20)
    assert set(few.train.labels.tolist()) == {0, 1, 2, 3}


def test_folder_bad_input(tmp_path):
    def refused(words, **settings):
        with pytest.raises(StageError, match=words):
            prepared(tmp_path / "out", dataset="folder", path=str(tmp_path / "in"), **settings)

    refused("does not exist; it must be the folder of class folders")
    (tmp_path / "in").mkdir()
    refused("has 0 class folders")
    write_folder(tmp_path / "in")
    refused("held_out is 12, but there are 12 images", held_out=12)
    (tmp_path / "in/cat/bad.jpg").write_bytes(b"no image")
    refused("bad.jpg is not a readable image")
    (tmp_path / "in/cat/bad.jpg").unlink()
    (tmp_path / "in/empty").mkdir()
    refused("empty holds no image files")


def test_npz(tmp_path):
    images = np.random.default_rng(3).integers(0, 256, (12, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "a.npz", x_train=images, y_train=np.arange(12) % 3)
    loaded = prepared(tmp_path / "out", dataset="npz", path=str(tmp_path / "a.npz"), held_out=3)
    assert (len(loaded.train), len(loaded.test), loaded.num_classes) == (9, 3, 3)
    order = np.random.RandomState(0).permutation(12)
    found = ((loaded.train[:] + 1) * 127.5).round().numpy().astype(np.uint8)
    assert np.array_equal(found, images[order[:9]].transpose(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"features": np.zeros((3, 8, 8))}, "has no array x_train .it has features"),
        ({"x_train": np.zeros((9, 8)), "y_train": np.zeros(9, int)}, "give .n, H, W. or"),
        ({"x_train": np.full((9, 8, 8), 2.0), "y_train": np.zeros(9, int)}, r"must lie in \[-1, 1"),
        ({"x_train": np.full((9, 8, 8), np.nan), "y_train": np.zeros(9, int)}, "NaN"),
        ({"x_train": np.zeros((9, 8, 8), int), "y_train": np.zeros(9, int)}, "type int64"),
        ({"x_train": np.zeros((9, 8, 8)), "y_train": np.full(9, 0.5)}, "one integer each"),
        ({"x_train": np.zeros((9, 8, 8)), "y_train": -np.ones(9, int)}, "count from 0"),
        (
            {"x_train": np.zeros((9, 8, 8)), "y_train": np.zeros(12, int)},
            "x_train holds 9 images and y_train 12 labels; give one label an image",
        ),
        ({"x_train": np.zeros((9, 8, 8)), "y_train": np.zeros(6, int)}, "and y_train 6 labels"),
        ({"x_train": np.zeros((9, 8, 8)), "y_train": np.array([{}] * 9)}, "holds Python objects"),
        (
            {"x_train": np.zeros((9, 8, 8)), "y_train": np.arange(9) % 3 * 100},
            "y_train holds label 100 but none of 1; number the classes",
        ),
        (
            {
                "x_train": np.zeros((9, 8, 8)),
                "y_train": np.arange(9) % 3,
                "x_test": np.zeros((2, 8, 8)),
                "y_test": np.array([0, 3]),
            },
            "y_test holds label 3, which no image of x_train has",
        ),
    ],
)
def test_npz_bad_input(tmp_path, arrays, words):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(StageError, match=words):
        prepared(tmp_path / "out", dataset="npz", path=str(tmp_path / "a.npz"))


def test_places_do_not_depend_on_where_a_worker_runs(tmp_path, monkeypatch):
    """Those of data, samples, networks and weights: absolute as soon as they are given."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for kind in (prepare.PrepareSettings, external.ExternalSettings, CheckpointSettings):
        more = {"dataset": "npz"} if kind is prepare.PrepareSettings else {}
        assert kind(path="a/x.npz", **more).path == str(tmp_path / "a/x.npz")
        assert kind(path="~/x.npz", **more).path == str(tmp_path / "home/x.npz")
    for options in (TeachOptions(kind="dinov2-base"), ExtractorOptions(kind="inception")):
        assert weights_of(options) == str(tmp_path / "weights")
        assert weights_of(options.revised(weights="w")) == str(tmp_path / "w")


def test_a_damaged_npz_is_one_sentence(tmp_path):
    for content in (b"", b"PK\x03\x04 cut short", b"text"):
        (tmp_path / "a.npz").write_bytes(content)
        with pytest.raises(StageError, match=r"a\.npz is not a readable \.npz file"):
            prepared(tmp_path / "out", dataset="npz", path=str(tmp_path / "a.npz"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"dataset": "mnist"}, "needs path: set data.path"),
        ({"dataset": "digits", "path": "x"}, r"path=/\S+/x and dataset=digits contradict"),
        ({"dataset": "cifar10", "path": "x", "held_out": 5}, "held_out=5 and dataset=cifar10"),
        ({"dataset": "cifar"}, "unknown data set 'cifar'; did you mean 'cifar10'"),
    ],
)
def test_contradictions_are_refused_in_words(settings, words):
    with pytest.raises(ValueError, match=words):
        prepare.PrepareSettings(**settings)


def test_what_mlflow_is_told(data):
    (facts,) = data.datasets()
    assert facts["name"] == "digits"
    assert facts["profile"]["num_train"] == 1500
    assert facts["source"] == "scikit-learn"


def test_missing_path_is_one_sentence(tmp_path):
    settings = prepare.PrepareSettings(dataset="npz", path=str(tmp_path / "no.npz"))
    with pytest.raises(StageError, match=r"no.npz does not exist; it must be the .npz or .npy f"):
        prepare.run(context(tmp_path, settings))


def key(path) -> str:
    fingerprint.cache_clear()
    settings = prepare.PrepareSettings(dataset="npz", path=str(path))
    return Graph([Node("prepare", prepare.STAGE, settings)]).keys["prepare"]


def test_the_contents_of_the_data_enter_the_key_and_their_place_does_not(tmp_path, monkeypatch):
    for name, value in (("a", 1), ("b", 2)):
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "x.npz", x_train=np.full((4, 8, 8), value, np.uint8))
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "x.npz").write_bytes((tmp_path / "a" / "x.npz").read_bytes())
    first = key(tmp_path / "a" / "x.npz")
    assert key(tmp_path / "copy" / "x.npz") == first
    monkeypatch.chdir(tmp_path / "a")
    assert key("x.npz") == first
    monkeypatch.chdir(tmp_path / "b")
    assert key("x.npz") != first
    (tmp_path / "a" / "x.npz").write_bytes((tmp_path / "b" / "x.npz").read_bytes())
    assert key(tmp_path / "a" / "x.npz") != first


def test_absent_data_are_told_before_any_work(tmp_path):
    with pytest.raises(UsageError, match=r"no\.npz do not exist; set data\.path"):
        key(tmp_path / "no.npz")
    with pytest.raises(UsageError, match="are a folder, and dataset=npz is read from a file; set"):
        key(tmp_path)
    (tmp_path / "x.png").touch()
    for kind in ("folder", "mnist", "imagenet"):
        settings = prepare.PrepareSettings(dataset=kind, path=str(tmp_path / "x.png"))
        with pytest.raises(UsageError, match=f"are a file, and dataset={kind} is read from a fold"):
            prepare.sources_of(settings)


def test_a_folder_without_images_is_told_before_any_work(tmp_path):
    (tmp_path / "a/.hidden").mkdir(parents=True)
    for name in ("README", "a/notes.txt", "a/.DS_Store", "a/.hidden/0.png"):
        (tmp_path / name).touch()
    settings = prepare.PrepareSettings(path=str(tmp_path))
    with pytest.raises(UsageError, match=r"holds no images; set data\.path"):
        prepare.STAGE.files(settings)
    (tmp_path / "a/0.PNG").touch()
    assert prepare.STAGE.files(settings) == [tmp_path]


def test_what_may_not_be_read_is_one_sentence(tmp_path, monkeypatch):
    def denied(settings):
        raise PermissionError(13, "Permission denied", "images")

    monkeypatch.setattr("stages.data.readers.digits.read", denied)
    with pytest.raises(StageError, match="Permission denied: 'images'"):
        prepared(tmp_path, dataset="digits")
