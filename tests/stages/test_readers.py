"""Readers of data sets: true files of every format, and what is certain, asked about or refused."""

import io
import json
import os
import pickle
import platform
import subprocess
import tarfile
import tempfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import StageError
from stages.data import fitted, image_files, prepare
from stages.data.options import PrepareSettings, readers_of
from stages.data.readers import folder, mapped
from stages.data.readers.arrays import latents_of, pixels_of
from stages.data.readers.labels import class_numbers
from stages.data.readers.layout import layout_of
from stages.data.readers.names import Names
from stages.data.readers.source import InMemory, Part, number_held_out, split
from stages.data.readers.tree import side_of
from stages.data.recognised import recognised
from tests.bench import formats
from tests.stages.context import context, make, sealed

ADM = Path(__file__).parents[1] / "fixtures" / "adm_crop"
PIXELS = np.random.RandomState(1).randint(0, 256, (12, 8, 8, 3)).astype(np.uint8)


@pytest.mark.parametrize("name", formats.CASES)
def test_every_format_is_recognised_and_read_as_it_was_written(tmp_path, name):
    found = formats.read(name, tmp_path)
    assert not found.problem, found.said


@pytest.mark.parametrize("name", sorted(ADM.glob("*.npy")), ids=lambda p: p.stem)
def test_the_crop_of_guided_diffusion(name):
    picture, _, size = name.stem.partition("_")
    data = (ADM / f"{picture}.png").read_bytes()
    found = fitted.decoded(data, picture, int(size), "adm")
    # Another Pillow may round otherwise.
    assert np.abs(found.astype(int) - np.load(name)).max() <= 1
    array = fitted.decoded(data, picture).transpose(2, 0, 1)[None]
    assert np.array_equal(fitted.resized(array, int(size), 255, "adm")[0].transpose(1, 2, 0), found)


def test_crops_differ_where_much_is_reduced_and_are_part_of_the_name(tmp_path):
    data = (ADM / "300x211.png").read_bytes()
    crops = {crop: fitted.decoded(data, "x", 16, crop).astype(int) for crop in fitted.CROPS}
    assert np.abs(crops["adm"] - crops["resize"]).mean() > 0.3
    with Image.open(ADM / "300x211.png") as image:
        square = image.crop((44, 0, 255, 211)).resize((16, 16), Image.Resampling.LANCZOS)
    assert np.array_equal(crops["lanczos"], np.asarray(square))
    for crop, name in (("adm", "folder16-adm"), ("resize", "folder16"), (None, "folder16")):
        assert PrepareSettings(dataset="folder", path="x", size=16, crop=crop).title == name
    assert PrepareSettings(dataset="imagenet", path="x", size=16).title == "imagenet16-adm"
    keys = {
        PrepareSettings(dataset="folder", path="x", size=16, crop=c).keyed()["crop"]
        for c in fitted.CROPS
    }
    assert len(keys) == 3
    with pytest.raises(ValueError, match="crop=adm needs size"):
        PrepareSettings(dataset="folder", path="x", crop="adm")
    with pytest.raises(ValueError, match=r"data\.crop=resize"):
        fitted.resized(np.zeros((1, 1, 8, 8), np.float32), 4, 255, "adm")


# Files


def write(path, pixels=PIXELS[0], **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **more)


def tree(root, *folders, count=6, flat=False):
    for i, name in enumerate(folders):
        for j in range(count):
            write(root / name / f"{j}.png", PIXELS[(6 * i + j) % 12])
    return root


def prepared(folder, path, **settings):
    """The data set, and what the log says of it."""
    at = context(folder, PrepareSettings(path=str(path), **settings))
    made = sealed(at, prepare.STAGE, prepare.run(at))
    return made.load(), at.logged[-1], at


def refused(tmp_path, path, words, **settings):
    with pytest.raises((StageError, ValueError), match=words):
        prepared(tmp_path / "refused", path, **settings)


@pytest.mark.parametrize(
    ("name", "side"),
    [
        *((n, "train") for n in ("train", "Train", "TRAINING", "train_set", "train2017")),
        *((n, "train") for n in ("seg_train", "trainset", "train-images", "train.data")),
        *((n, "val") for n in ("val", "valid", "Validation", "dev", "val2017", "validation_set")),
        *((n, "test") for n in ("test", "Testing", "testset", "held-out", "hold_out", "eval")),
        *(
            (n, None)
            for n in ("training_wheels", "cat", "trainer", "contest", "devil", "train_test")
        ),
        ("", None),
    ],
)
def test_sides_of_a_split_by_name(name, side):
    assert side_of(name) == side


@pytest.mark.parametrize(
    ("train", "test"),
    [
        *(("train", "valid"), ("Training", "Validation"), ("train", "dev"), ("TRAIN", "holdout")),
        *(("trainA", "testA"), ("cifar10_train", "cifar10_test"), ("train.v1", "val.v1")),
        *(("imagesTr", "imagesTs"), ("tr", "te"), ("train/images", "valid/images")),
    ],
)
def test_folders_of_a_split_are_not_classes(tmp_path, train, test):
    tree(tmp_path / train, "a", "b")
    tree(tmp_path / test, "a", "b", count=2)
    data, _, _ = prepared(tmp_path / "out", tmp_path, dataset="folder")
    assert data.class_names == ("a", "b")
    assert (len(data.train), len(data.test)) == (12, 4)


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        (("test/a", "test/b"), r"has test/ and no train/; expected is CLASS/IMAGE, or train/"),
        (("train/a", "train/b", "other/a"), r"has train/ beside other/, .* rename the held-out"),
        (("train/a", "train/b", "test"), r"/test has no class folders and train/ has; .* sort the"),
        (("train", "test/a", "test/b"), "/test has class folders and train/ has none"),
        (
            ("train/a", "train/b", "test/a", "test/c"),
            "class 'b' is in only one of train/ and test/",
        ),
        (("train/a", "train/b", "Train2/a", "test/a"), "both stand for 'train'"),
        (
            ("a/train", "a/test", "b/train", "b/test"),
            "a stands among class folders and holds those of a split",
        ),
        (("set/train", "set/val", "other/a"), "set stands among class folders and holds those"),
        (("train/a", "train/b", "train/train/a"), "train/train stands among class folders"),
        (("trainA", "trainB", "testA", "testB"), "testB/ and trainB/ of .* could be sides"),
        (("my_train/a", "my_train/b", "my_test/a", "more/a"), "could be sides of a split"),
        (("train/a", "train/b", "val/a"), "class 'b' is in only one of train/ and val/"),
        ((".", "a", "b"), r"6 images, such as 0\.png, lie beside the class folders"),
    ],
)
def test_layouts_that_are_not_certain_are_refused_with_the_expected_one(tmp_path, folders, words):
    tree(tmp_path / "in", *folders)
    refused(tmp_path, tmp_path / "in", words, dataset="folder")


def test_layouts_that_are_certain(tmp_path):
    tree(tmp_path / "alone" / "train", "a", "b")
    data, said, _ = prepared(tmp_path / "1", tmp_path / "alone")
    assert (data.class_names, len(data.train), len(data.test)) == (("a", "b"), 10, 2)
    assert "train/ alone" in said
    tree(tmp_path / "wrapped" / "set" / "images", "a", "b")
    assert prepared(tmp_path / "2", tmp_path / "wrapped")[0].class_names == ("a", "b")
    tree(tmp_path / "vehicles", "car", "ship", "train")  # a train is a vehicle here
    assert prepared(tmp_path / "3", tmp_path / "vehicles")[0].class_names == (
        "car",
        "ship",
        "train",
    )
    tree(tmp_path / "both" / "train", "a", "b")
    tree(tmp_path / "both" / "val", "a", "b", count=2)
    tree(tmp_path / "both" / "test", "a", "b", count=3)
    data, said, _ = prepared(tmp_path / "4", tmp_path / "both")
    assert len(data.test) == 6
    assert "4 images of val passed over" in said
    tree(tmp_path / "flat", "train", "test")
    data, said, _ = prepared(tmp_path / "5", tmp_path / "flat")
    assert (data.num_classes, len(data.train), len(data.test)) == (0, 6, 6)
    assert "no labels" in said


def test_edms_numbered_folders_are_no_classes():
    paths = [f"{i // 1000:05}/img{i:08}.png" for i in range(0, 3000, 100)]
    with pytest.raises(
        ValueError, match=r"number images and are no classes; place the dataset\.json"
    ):
        layout_of(paths, "set")


def test_hidden_and_foreign_files_are_passed_over_and_counted(tmp_path):
    tree(tmp_path / "in", "a", "b")
    write(tmp_path / "in/a/.ipynb_checkpoints/0-checkpoint.png")
    write(tmp_path / "in/.hidden/x.png")
    own = ("__pycache__/x.pyc", "lost+found/1", "$RECYCLE.BIN/x", "System Volume Information/x")
    for name in (
        *("a/._0.png", ".DS_Store", "b/Thumbs.db", "b/desktop.ini", "__MACOSX/a/._0.png"),
        *own,
    ):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"\0\5\x16\7")
    (tmp_path / "in/a/notes.txt").write_text("x")
    data, said, _ = prepared(tmp_path / "out", tmp_path / "in")
    assert len(data.train) + len(data.test) == 12
    assert "1 .txt files" in said
    assert "4 hidden or foreign files" in said
    assert "7 hidden or foreign folders" in said


@pytest.mark.parametrize("name", ["x.heic", "x.svg", "x.jxl", "x.mp4", "x"])
def test_what_cannot_be_read_is_not_left_out_in_silence(tmp_path, name):
    tree(tmp_path / "in", "a", "b")
    (tmp_path / "in/a" / name).write_bytes(b"x")
    refused(tmp_path, tmp_path / "in", rf"1 of 13 files .* not images .* the first a/{name}")
    with pytest.raises(ValueError, match="are not images that can be read"):
        image_files.read_images(tmp_path / "in")


@pytest.mark.parametrize("suffix", ["JPG", "Jpeg", "jpe", "jfif", "gif", "avif", "TIF", "webp"])
def test_suffixes_of_images_in_any_case(tmp_path, suffix):
    kind = {"jpe": "JPEG", "jfif": "JPEG"}.get(suffix.lower())
    tree(tmp_path / "in", "a", "b")
    write(
        tmp_path / f"in/a/w.{suffix}",
        format=kind or Image.registered_extensions()[f".{suffix.lower()}"],
    )
    data, _, _ = prepared(tmp_path / "out", tmp_path / "in")
    assert len(data.train) + len(data.test) == 13


def test_links_are_followed_loops_end_and_dead_ones_are_named(tmp_path):
    tree(tmp_path / "in", "a", "b")
    tree(tmp_path, "far")
    (tmp_path / "in/a/more").symlink_to(tmp_path / "far")
    (tmp_path / "in/a/loop").symlink_to(tmp_path / "in/a")
    data, said, _ = prepared(tmp_path / "out", tmp_path / "in")
    assert len(data.train) + len(data.test) == 18
    assert "1 links that close a loop" in said
    assert len(image_files.read_images(tmp_path / "in")[1]) == 18
    refused(
        tmp_path, tmp_path / "in", r"link out of the folder.*data\.follow_links", follow_links=False
    )
    (tmp_path / "in/a/more").unlink()
    prepared(tmp_path / "inside", tmp_path / "in", follow_links=False)
    (tmp_path / "in/b/dead.png").symlink_to(tmp_path / "nowhere.png")
    refused(tmp_path, tmp_path / "in", r"dead\.png is a link to nothing")


def test_damaged_files_are_counted_named_and_allowed_by_number(tmp_path):
    tree(tmp_path / "in", "a", "b")
    whole = (tmp_path / "in/a/0.png").read_bytes()
    (tmp_path / "in/a/0.png").write_bytes(whole[:60])
    (tmp_path / "in/b/1.png").write_bytes(b"")
    (tmp_path / "in/b/2.png").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0")
    words = r"3 of 12 files are damaged: .*data\.skip_damaged=3"
    refused(tmp_path, tmp_path / "in", words)
    refused(tmp_path, tmp_path / "in", "git lfs pull", skip_damaged=2)
    data, _, at = prepared(tmp_path / "out", tmp_path / "in", skip_damaged=3)
    assert len(data.train) + len(data.test) == 9
    assert "3 damaged files were passed over" in at.noticed[0][0]
    shown = np.rint((np.concatenate([data.train[:], data.test[:]]) + 1) * 127.5)
    kept = [PIXELS[i] for i in range(12) if i not in (0, 7, 8)]
    assert sorted(map(np.sum, shown.astype(int))) == sorted(int(x.astype(int).sum()) for x in kept)


@pytest.mark.parametrize("mapped_gib", [0, 1])
def test_a_member_of_an_archive_that_does_not_unpack_is_a_damaged_file(tmp_path, mapped_gib):
    path, images = tmp_path / "x.zip", [formats.png(pixels) for pixels in PIXELS]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for i, data in enumerate(images):
            archive.writestr(f"{i % 2}/{i:02d}.png", data + bytes(200))
        member = archive.infolist()[5]
    whole = bytearray(path.read_bytes())
    start = member.header_offset + 30 + len(member.filename)
    whole[start : start + member.compress_size] = b"\xff" * member.compress_size
    path.write_bytes(whole)
    words = r"1 of 12 files are damaged: .*1/05\.png does not unpack"
    refused(tmp_path, path, words, mapped_gib=mapped_gib)
    data, _, _ = prepared(tmp_path / "out", path, skip_damaged=1, mapped_gib=mapped_gib)
    assert len(data.train) + len(data.test) == 11


def test_the_person_is_told_what_was_read_and_what_limits_leave_out(tmp_path):
    tree(tmp_path / "in/train", "a", "b")
    tree(tmp_path / "in/dev", "a", "b", count=3)
    _, _, at = prepared(tmp_path / "out", tmp_path / "in", limit=8, limit_held_out=6)
    (said,) = (message for message, _ in at.noticed)
    assert said.startswith("read as folder: 2 classes")
    assert said.endswith("the first 8 of 12 training images, by data.limit")


def test_a_class_that_is_alone_on_its_side_is_not_taken_for_none(tmp_path):
    tree(tmp_path / "in/train", "a", "b")
    tree(tmp_path / "in/val", "a")
    refused(tmp_path, tmp_path / "in", r"class 'b' is in only one of train/ and val/")


def test_too_many_pixels_are_refused_in_one_sentence(tmp_path, monkeypatch):
    tree(tmp_path / "in", "a", "b")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    refused(tmp_path, tmp_path / "in", r"\.png has more pixels than are safe to decode")


@pytest.mark.parametrize(("mode", "words"), [("I", "32-bit integers"), ("F", "floats")])
def test_modes_without_an_eight_bit_meaning_are_refused_by_name(tmp_path, mode, words):
    tree(tmp_path / "in", "a", "b")
    Image.new(mode, (8, 8)).save(tmp_path / "in/a/0.tif")
    refused(tmp_path, tmp_path / "in", rf"0\.tif holds {words}, which have no 8-bit meaning")
    with pytest.raises(ValueError, match=words):
        image_files.read_images(tmp_path / "in")


def test_an_empty_folder_beside_classes_is_named(tmp_path):
    tree(tmp_path / "in/train", "a", "b")
    tree(tmp_path / "in/test", "a", "b")
    (tmp_path / "in/train/c").mkdir()
    refused(tmp_path, tmp_path / "in", "train/c holds no image files")


def test_an_empty_held_out_folder_is_not_passed_over(tmp_path):
    tree(tmp_path / "in/train", "a", "b")
    (tmp_path / "in/val/a").mkdir(parents=True)
    refused(tmp_path, tmp_path / "in", "val holds no image files; fill it, or remove it")


def test_class_names_in_two_forms_of_one_letter_are_one_class(tmp_path):
    tree(tmp_path, "train/caf\u00e9", "train/b", "test/cafe\u0301", "test/b")
    data, _, _ = prepared(tmp_path / "out", tmp_path, dataset="folder")
    assert data.class_names == ("b", "caf\u00e9")


def test_few_images_have_one_held_out_and_a_lost_class_is_named(tmp_path):
    tree(tmp_path / "few", ".", count=3)
    data, _, _ = prepared(tmp_path / "out", tmp_path / "few")
    assert (len(data.train), len(data.test)) == (2, 1)
    labels = np.zeros(60, np.int64)
    labels[np.random.RandomState(0).permutation(60)[-1]] = 1
    with pytest.raises(ValueError, match="class 'dog' has 1 images and all are"):
        split(Part(InMemory(PIXELS.repeat(5, 0)), labels), 10, ("cat", "dog"))


@pytest.mark.parametrize("white", [1, 15])
def test_files_that_are_nearly_black_are_refused_as_arrays_are(tmp_path, white):
    """Values of 0 to 1 saved as bytes, numbers of classes, 12 of 16 bits."""
    dim = (PIXELS % (white + 1)).astype(np.uint8)
    for number in range(12):
        pixels = dim[number] if white == 1 else dim[number, ..., 0].astype(np.uint16) << 8
        write(tmp_path / "in" / "ab"[number % 2] / f"{number}.png", pixels)
    refused(tmp_path, tmp_path / "in", f"no pixel .* reaches more than {white} of 255")
    write(tmp_path / "in/a/white.png", np.full_like(PIXELS[0], 255))
    assert len(prepared(tmp_path / "out", tmp_path / "in")[0].train) == 11


def test_a_class_without_a_training_image_is_refused():
    labels = np.zeros(60, np.int64)
    labels[np.random.RandomState(0).permutation(60)[-1]] = 1
    part = folder.Part(formats_images(60), labels)
    with pytest.raises(
        ValueError, match="class number 1 has 1 images and all are among the held-out"
    ):
        split(part, 10)


def formats_images(count):
    return folder.files_of(Path("x"), [f"{i}.png" for i in range(count)])


def test_a_limit_that_leaves_a_class_out_is_refused_and_a_class_never_trained_is_told(tmp_path):
    labels = np.arange(60) % 2 + (np.arange(60) == 7) * 2
    images = np.repeat(PIXELS, 5, axis=0)
    arrays = {
        "x_train": images,
        "y_train": np.minimum(labels, 2),
        "x_test": images,
        "y_test": labels * 0,
    }
    np.savez(tmp_path / "a.npz", **arrays)
    refused(
        tmp_path, tmp_path / "a.npz", r"data\.limit=2 leaves no training image of class", limit=2
    )


def test_a_million_paths_are_pickled_small_and_fast():
    names = Names.of(f"n{i % 1000:08}/n{i % 1000:08}_{i}.JPEG" for i in range(100_000))
    assert names[0] == "n00000000/n00000000_0.JPEG"
    assert names[99_999] == "n00000999/n00000999_99999.JPEG"
    assert len(pickle.dumps(names)) < 100_000 * 40


# How much is held out


def asked(**more):
    return SimpleNamespace(**{"held_out": None, "path": "set", **more})


def test_of_large_sets_none_is_held_out_unasked():
    assert number_held_out(asked(), 600) == 100
    assert number_held_out(asked(), 600_000) == 10_000
    with pytest.raises(ValueError, match=r"1,281,167 images .* set data\.held_out"):
        number_held_out(asked(), 1_281_167)
    assert number_held_out(asked(held_out=50_000), 1_281_167) == 50_000


def test_imagenet_without_val_asks_and_without_labels_of_val_says_where_they_go(tmp_path):
    base = tmp_path / "in/ILSVRC/Data/CLS-LOC"
    tree(base / "train", "n01440764", "n01443537")
    refused(tmp_path, tmp_path / "in", r"no val/, and none is held out of them unasked")
    data, said, _ = prepared(tmp_path / "out", tmp_path / "in", held_out=2)
    assert (len(data.train), len(data.test)) == (10, 2)
    assert "2 of ImageNet's 1000 classes" in said
    write(base / "val/ILSVRC2012_val_00000001.JPEG")
    refused(tmp_path, tmp_path / "in", r"place LOC_val_solution\.csv")
    refused(tmp_path, tmp_path / "in", "leave data.held_out unset", held_out=2)
    solution = "ImageId,PredictionString\nx,n01440764 1 2 3 4\n"
    (base / "LOC_val_solution.csv").write_text(solution, encoding="utf-16")
    refused(tmp_path, tmp_path / "in", "LOC_val_solution.csv is not UTF-8 text")
    (base / "LOC_val_solution.csv").write_text(solution, encoding="utf-8-sig")
    refused(tmp_path, tmp_path / "in", "has no label of ILSVRC2012_val_00000001")


# Arrays


def axes(shape, **more):
    return pixels_of(np.full(shape, 200, np.uint8), "x", **more).axes


def test_axes_of_pixels():
    assert axes((60, 8, 8)) == "nhw"
    assert axes((60, 8, 8, 3)) == "nhwc"
    assert axes((60, 3, 8, 8)) == "nchw"
    assert axes((60, 1, 28, 28)) == "nchw"
    assert axes((60, 3, 3, 3), axes="nchw") == "nchw"
    assert axes((60, 3, 8, 3), like=(3, 8, 3)) == "nchw"
    with pytest.raises(ValueError, match=r"set data\.axes=nchw or data\.axes=nhwc"):
        axes((60, 3, 3, 3))
    for shape in ((60,), (60, 192), (60, 4, 8, 8), (0, 8, 8, 3), (60, 8, 8, 8, 3), ()):
        with pytest.raises(ValueError, match=r"x (images )?ha(s|ve) shape"):
            axes(shape)


def test_axes_of_latents():
    values = np.random.RandomState(0).randn(6, 4, 32, 32).astype(np.float32)
    one = latents_of(values, "x").take(np.arange(6))
    two = latents_of(values.transpose(0, 2, 3, 1), "x").take(np.arange(6))
    assert np.array_equal(one, values)
    assert np.array_equal(two, values)
    for shape in ((6, 4, 4, 4), (6, 16, 32, 4)):
        with pytest.raises(
            ValueError, match=r"could be \(n, C, H, W\) or \(n, H, W, C\); set data"
        ):
            latents_of(np.zeros(shape, np.float32), "x")
    assert latents_of(np.zeros((6, 16, 32, 4), np.float32), "x", "nhwc").shape == (4, 16, 32)
    with pytest.raises(ValueError, match="latents have type uint8"):
        latents_of(np.zeros((6, 4, 8, 8), np.uint8), "x")


RAMP = np.linspace(0, 1, 6 * 64).reshape(6, 8, 8)


@pytest.mark.parametrize(
    ("array", "values", "expected"),
    [
        (RAMP * 2 - 1, None, RAMP * 2 - 1),
        (np.rint(RAMP * 255), None, np.rint(RAMP * 255) / 127.5 - 1),
        (np.rint(RAMP * 255).astype(np.int64), None, np.rint(RAMP * 255) / 127.5 - 1),
        ((RAMP * 65535).astype(np.uint16), None, ((RAMP * 65535).astype(int) >> 8) / 127.5 - 1),
        (RAMP > 0.5, None, (RAMP > 0.5) * 2.0 - 1),
        (RAMP, "unit", RAMP * 2 - 1),
        (RAMP * 255, "bytes", RAMP * 2 - 1),
        (RAMP * 0.4 - 0.2, "signed", RAMP * 0.4 - 0.2),
    ],
)
def test_values_that_are_certain_are_taken(array, values, expected):
    found = pixels_of(array, "x", values=values).take(np.arange(6))[:, 0]
    found = fitted.to_float(found, 255)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (RAMP, r"lies in \[0, 1\]; .*rescale them, or give uint8, .* data\.range="),
        (RAMP * 255, r"lies in \[0, 255\]; .*data\.range="),
        (RAMP - 0.5, r"lies in \[-0\.5, 0\.5\]"),
        (RAMP * 2 - 3, "must lie in"),
        (RAMP.astype(np.uint8), "reaches only 1 of 255, which is nearly black"),
        ((RAMP * 16).astype(np.uint8), "reaches only 16 of 255"),
        ((RAMP * 4095).astype(np.uint16), "type uint16 and lies in"),
        ((RAMP * 255 - 128).astype(np.int16), "type int16 and lies in"),
        (RAMP.astype(complex), "has type complex128"),
        (RAMP.astype("U4"), "has type <U4"),
    ],
)
def test_values_that_are_not_certain_are_refused_with_the_remedy(array, words):
    with pytest.raises(ValueError, match=words):
        pixels_of(array, "x")


def test_a_range_that_the_values_do_not_keep_to_is_refused():
    with pytest.raises(ValueError, match=r"data\.range=unit, but x lies in \[0, 255\]"):
        pixels_of(RAMP * 255, "x", values="unit")


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x_train": PIXELS, "y_train": [0, 1] * 6, "x_test": PIXELS}, "y_test is missing"),
        ({"x_train": PIXELS, "x_test": PIXELS, "y_test": [0] * 12}, "y_train is missing"),
        ({"x_train": PIXELS, "y_train": [0, 1] * 6, "y_test": [0]}, "y_test without images x_test"),
        ({"x_train": np.array(5), "y_train": np.arange(3)}, r"x_train has shape \(\); give"),
        ({"x_train": PIXELS, "train_images": PIXELS}, "both stand for the images of train"),
        ({"train_images": PIXELS, "train_labels": np.eye(14)[:12] + 1}, "several classes an image"),
    ],
)
def test_archives_that_lack_or_repeat_a_side_are_refused(tmp_path, arrays, words):
    np.savez(tmp_path / "a.npz", **arrays)
    refused(tmp_path, tmp_path / "a.npz", words)


SIGNED = PIXELS / 127.5 - 1


@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        (
            SIGNED,
            PIXELS / 255,
            r"x_test in .* lies in \[0, 1\] and the training images in \[-1, 1\]",
        ),
        (PIXELS, PIXELS // 128, "x_test in .* reaches only 1 of 255"),
        (PIXELS > 127, PIXELS // 128, "x_test in .* reaches only 1 of 255"),
        (PIXELS.astype(np.uint16) * 257, PIXELS.astype(np.uint16), "use 16 bits"),
        (SIGNED, SIGNED * 3, r"lies in \[-3, 3\]"),
    ],
)
def test_held_out_values_of_another_range_are_refused(tmp_path, train, test, words):
    labels = [0, 1] * 6
    np.savez(tmp_path / "a.npz", x_train=train, y_train=labels, x_test=test, y_test=labels)
    refused(tmp_path, tmp_path / "a.npz", words)


@pytest.mark.parametrize(
    ("train", "test"),
    [
        (PIXELS.astype(float), PIXELS.astype(np.float32)),
        (PIXELS, PIXELS.astype(float)),
        (PIXELS.astype(np.uint16) * 257, PIXELS.astype(np.uint16) * 100),
        ((PIXELS.astype(np.uint16) * 257).astype(">u2"), PIXELS),
        (SIGNED, np.minimum(SIGNED * 0.5, 0.4)),
        (SIGNED.transpose(0, 3, 1, 2), SIGNED),
    ],
)
def test_held_out_values_may_come_in_another_type_of_the_same_range(tmp_path, train, test):
    labels = [0, 1] * 6
    np.savez(tmp_path / "a.npz", x_train=train, y_train=labels, x_test=test, y_test=labels)
    data, _, _ = prepared(tmp_path / "out", tmp_path / "a.npz")
    assert data.train.shape == data.test.shape == (3, 8, 8)
    order = np.random.RandomState(0).permutation(12)
    for part, given in ((data.train, train), (data.test, test)):
        scale = 1 if given.dtype.kind == "f" and given.min() < 0 else 127.5
        scale = scale * 257 if given.dtype.itemsize == 2 else scale
        expected = given.astype(float) / scale - (scale != 1)
        expected = expected if given.shape[1] == 3 else expected.transpose(0, 3, 1, 2)
        np.testing.assert_allclose(part[:].numpy(), expected[order], atol=0.01)


@pytest.mark.parametrize(
    "names",
    [
        *(("xtrain", "ytrain", "xtest", "ytest"), ("trainX", "trainY", "testX", "testY")),
        *(("x_tr", "y_tr", "x_te", "y_te"), ("X_train", "Y_train", "X_test", "Y_test")),
        ("train_imgs", "train_lbls", "test_imgs", "test_lbls"),
    ],
)
def test_names_of_arrays_in_any_spelling(tmp_path, names):
    values = (PIXELS, [0, 1] * 6, PIXELS[:4], [1, 0, 1, 0])
    np.savez(tmp_path / "a.npz", **dict(zip(names, values, strict=True)))
    data, _, _ = prepared(tmp_path / "out", tmp_path / "a.npz")
    assert (data.num_classes, len(data.train), len(data.test)) == (2, 12, 4)


def test_an_array_that_may_hold_the_labels_is_not_passed_over(tmp_path):
    np.savez(tmp_path / "a.npz", x_train=PIXELS, species=np.arange(12) % 2)
    refused(tmp_path, tmp_path / "a.npz", "species, 12 whole numbers, may be them; call it y_train")


def test_one_image_is_no_stack_of_grey_ones():
    for shape in ((8, 8, 3), (8, 8, 4), (8, 6, 1)):
        with pytest.raises(ValueError, match=r"as one image \(H, W, C\) has"):
            axes(shape)


def test_held_out_labels_by_name_go_by_the_training_names(tmp_path):
    names = np.array(["ant", "bee", "cat"])
    train, test = names[np.arange(12) % 3], names[[2, 1, 2, 1]]
    np.savez(tmp_path / "a.npz", x_train=PIXELS, y_train=train, x_test=PIXELS[:4], y_test=test)
    data, _, _ = prepared(tmp_path / "out", tmp_path / "a.npz")
    order = np.random.RandomState(0).permutation(4)
    assert data.test.labels.tolist() == np.array([2, 1, 2, 1])[order].tolist()
    test[0] = "owl"
    np.savez(tmp_path / "b.npz", x_train=PIXELS, y_train=train, x_test=PIXELS[:4], y_test=test)
    refused(tmp_path, tmp_path / "b.npz", "y_test holds class 'owl', which no image of x_train has")


def test_labels_of_every_certain_form_are_numbers():
    expected = np.array([2, 0, 1])
    assert class_numbers(expected > 0, "y")[0].tolist() == [1, 0, 1]
    with pytest.raises(ValueError, match=r"y holds 9223372036854775809; number the classes"):
        class_numbers(np.array([2**63 + 1], np.uint64), "y")
    forms = (expected, expected[:, None], np.eye(3)[expected], expected.astype(np.uint8))
    for labels in (*forms, expected.astype(float), expected.astype(">i4")):
        assert class_numbers(labels, "y")[0].tolist() == [2, 0, 1]
    numbers, names = class_numbers(np.array(["dog", "ant", "cat"]), "y")
    assert (numbers.tolist(), names) == ([2, 0, 1], ("ant", "cat", "dog"))
    for labels in (expected + 0.5, -expected, np.ones((3, 4))):
        with pytest.raises(ValueError, match=r"y (holds -2|has shape)"):
            class_numbers(labels, "y")


def test_moments_in_an_array_are_not_taken_for_latents_of_twice_the_channels():
    values = np.random.RandomState(0).randn(6, 8, 4, 4).astype(np.float32)
    assert latents_of(values, "x", "nchw").shape == (8, 4, 4)
    values[:, 4:] = np.abs(values[:, 4:])
    for array, axes in ((values, "nchw"), (values.transpose(0, 2, 3, 1), "nhwc")):
        with pytest.raises(ValueError, match="the last 4 are never negative"):
            latents_of(array, "x", axes)


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_archives_are_mapped_and_not_pickled(tmp_path, write, order):
    values = np.asarray(
        np.random.RandomState(0).randn(50, 4, 16, 16).astype(np.float32), order=order
    )
    write(tmp_path / "a.npz", other=np.arange(3), x=values)
    arrays = mapped.open_npz(tmp_path / "a.npz")
    assert isinstance(arrays["x"].array, np.memmap)
    assert np.array_equal(arrays["x"].array, values)
    assert arrays["other"].array.tolist() == [0, 1, 2]
    assert len(pickle.dumps(latents_of(arrays["x"], "x"))) < 1000
    again = pickle.loads(pickle.dumps(arrays["x"]))
    assert np.array_equal(again.array[7], values[7])


# What lies there


def test_auto_is_the_default_where_a_path_is_given(tmp_path):
    assert PrepareSettings().dataset == "digits"
    tree(tmp_path / "in", "a", "b")
    settings = PrepareSettings(path=str(tmp_path / "in"))
    assert settings.dataset == "folder"
    assert settings.keyed() == PrepareSettings(dataset="folder", path="elsewhere").keyed()
    assert readers_of(settings) == ["stages.data.readers.folder:read"]
    # What is not there yet is no error of the settings, but one before any work.
    with pytest.raises(Exception, match=r"do not exist; set data\.path"):
        readers_of(PrepareSettings(path=str(tmp_path / "nowhere")))


def test_what_could_be_two_things_is_asked_about(tmp_path):
    tree(tmp_path / "in", ".")
    (tmp_path / "in/x.parquet").write_bytes(b"PAR1")
    words = r"could be parquet or folder; set data\.dataset=parquet or data\.dataset=folder"
    with pytest.raises(ValueError, match=words):
        PrepareSettings(path=str(tmp_path / "in"))
    np.savez(tmp_path / "only.npz", x_train=PIXELS)
    (tmp_path / "holder").mkdir()
    (tmp_path / "only.npz").rename(tmp_path / "holder/only.npz")
    with pytest.raises(ValueError, match=r"set data\.path=.*only\.npz"):
        PrepareSettings(path=str(tmp_path / "holder"))
    (tmp_path / "x.h5").write_bytes(b"x")
    with pytest.raises(ValueError, match="is of no kind that is known; it can be a folder"):
        PrepareSettings(path=str(tmp_path / "x.h5"))
    for name in ("images", "vae-sd/00000"):
        (tmp_path / "repa" / name).mkdir(parents=True)
    formats.latents(tmp_path / "repa2/vae-sd", 0.5, 5.4)
    (tmp_path / "repa2/images").mkdir()
    with pytest.raises(ValueError, match=r"set data\.path=.*vae-sd for the latents"):
        PrepareSettings(path=str(tmp_path / "repa2"))
    assert recognised(tmp_path / "repa2/vae-sd") == "latents"


def test_git_lfs_pointers_are_refused(tmp_path):
    (tmp_path / "x.parquet").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0")
    refused(tmp_path, tmp_path / "x.parquet", "is a git-lfs pointer.*git lfs pull")


@pytest.mark.parametrize(
    ("mean", "std", "pixel_range"), [(5.81, 4.17, "[0, 1]"), (0.5, 5.4, "[-1, 1]")]
)
def test_moments_of_latents(tmp_path, mean, std, pixel_range):
    written = formats.latents(tmp_path / "in", mean, std)
    made = make(tmp_path / "out", prepare.STAGE, PrepareSettings(path=str(tmp_path / "in")))
    facts, data = made.description["latents"], made.load()
    assert facts["pixel_range"] == pixel_range
    raw = np.concatenate([data.train.raw(slice(None)), data.test.raw(slice(None))])
    order = np.random.RandomState(0).permutation(len(written))
    np.testing.assert_allclose(raw, written[order], rtol=1e-2, atol=1e-2)
    shift, scaling = (np.reshape(facts[k], (-1, 1, 1)) for k in ("shift", "scaling"))
    expected = (raw[:20, 0].astype(np.float32) - shift) * scaling
    np.testing.assert_allclose(data.train[:20], expected, rtol=1e-5, atol=1e-5)


def test_latents_of_an_unknown_encoder_are_asked_about(tmp_path):
    formats.latents(tmp_path / "in", 3.5, 1.0)
    refused(tmp_path, tmp_path / "in", r"set data\.latents=edm2 or data\.latents=repa")
    prepared(tmp_path / "out", tmp_path / "in", latents="repa")


def test_a_missing_latent_does_not_shift_the_labels(tmp_path):
    formats.latents(tmp_path / "in", 0.5, 5.4)
    (tmp_path / "in/00000/img-mean-std-00000003.npy").unlink()
    refused(tmp_path, tmp_path / "in", "lists 24 images and 23 are there")


# Tables and archives


def parquet(file, rows, features=None):
    import pyarrow as arrow
    from pyarrow import parquet as writer

    table = arrow.table(rows)
    if features is not None:
        info = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": info})
    file.parent.mkdir(parents=True, exist_ok=True)
    writer.write_table(table, file)


IMAGE_ROWS = [{"bytes": formats.png(pixels), "path": None} for pixels in PIXELS]
KINDS = {"_type": "ClassLabel", "names": ["a", "b"]}


def test_tables_that_are_not_certain_are_asked_about(tmp_path):
    two = {"img": IMAGE_ROWS, "fine": [0, 1] * 6, "coarse": [0] * 12}
    features = {"img": {"_type": "Image"}, "fine": KINDS, "coarse": KINDS}
    parquet(tmp_path / "two.parquet", two, features)
    refused(tmp_path, tmp_path / "two.parquet", r"choose one, such as data\.label=fine")
    refused(tmp_path, tmp_path / "two.parquet", "has no column x; data.label is one", label="x")
    data, said, _ = prepared(tmp_path / "o", tmp_path / "two.parquet", label="fine")
    assert data.class_names == ("a", "b")
    assert "labels of fine" in said
    # Without metadata the type of the columns tells.
    parquet(tmp_path / "plain.parquet", {"image": IMAGE_ROWS, "label": [0, 1] * 6, "id": [3] * 12})
    assert prepared(tmp_path / "p", tmp_path / "plain.parquet")[0].class_names == ("0", "1")
    parquet(tmp_path / "no.parquet", {"text": ["x"] * 12})
    refused(tmp_path, tmp_path / "no.parquet", r"has 0 columns of images \(columns: text\)")
    elsewhere = [{"bytes": None, "path": "/home/x.png"}] * 12
    parquet(tmp_path / "far.parquet", {"image": elsewhere}, {"image": {"_type": "Image"}})
    refused(tmp_path, tmp_path / "far.parquet", "names image files and does not hold them")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and no more")
    refused(tmp_path, tmp_path / "bad.parquet", "is not a readable .parquet file")


def test_a_split_that_is_published_without_labels_is_refused(tmp_path):
    features = {"image": {"_type": "Image"}, "label": KINDS}
    for side, labels in (("train", [0, 1] * 6), ("test", [-1] * 12)):
        rows = {"image": IMAGE_ROWS, "label": labels}
        parquet(tmp_path / f"in/data/{side}-00000-of-00001.parquet", rows, features)
    refused(tmp_path, tmp_path / "in", "published without labels")
    for config in ("small", "large"):
        rows = {"image": IMAGE_ROWS, "label": [0, 1] * 6}
        parquet(tmp_path / f"many/{config}/train-00000-of-00001.parquet", rows, features)
    refused(tmp_path, tmp_path / "many", r"several data sets; set data\.path to the folder of one")


def test_copies_of_tables_are_removed(tmp_path, monkeypatch):
    temporary = tmp_path / "temporary"
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    temporary.mkdir()
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    for process in (ended.pid, os.getpid()):
        (temporary / f"images-{platform.node()}-{process}-x").mkdir()
    parquet(tmp_path / "x.parquet", {"image": IMAGE_ROWS, "label": [0, 1] * 6})
    prepared(tmp_path / "out", tmp_path / "x.parquet")
    image_files.read_images(tmp_path / "x.parquet")
    parquet(tmp_path / "bad.parquet", {"image": IMAGE_ROWS, "label": [0, 5] * 6})
    refused(tmp_path, tmp_path / "bad.parquet", "holds label 5 but none of 1")
    # What a process that lives has, stays.
    assert [p.name for p in temporary.iterdir()] == [f"images-{platform.node()}-{os.getpid()}-x"]


def test_copies_lie_where_there_is_room_for_the_data(tmp_path, monkeypatch):
    """Beside the payload, on the disk of the store, which other machines share."""
    parquet(tmp_path / "x.parquet", {"image": IMAGE_ROWS, "label": [0, 1] * 6})
    at, seen = context(tmp_path / "out", PrepareSettings(path=str(tmp_path / "x.parquet"))), []
    plain = at.map
    at.map = lambda function, items, parts, *common: (
        seen.extend(parts["train"].images.files) or plain(function, items, parts, *common)
    )
    prepare.run(at)
    assert seen
    assert all(Path(file).is_relative_to(at.path) for file in seen)
    assert not [place for place in at.path.iterdir() if place.is_dir()]


def shard(path, members):
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def test_two_words_for_one_side_are_refused(tmp_path):
    """Which is held out nobody can tell, and one must not take the other's place."""
    from datasets import Dataset, DatasetDict, Image

    rows = Dataset.from_dict({"image": [{"bytes": formats.png(p), "path": None} for p in PIXELS]})
    rows = rows.cast_column("image", Image())
    both = r"eval and test of .* both stand for 'test'; keep one of them"
    DatasetDict({"train": rows, "test": rows, "eval": rows}).save_to_disk(tmp_path / "saved")
    refused(tmp_path, tmp_path / "saved", both)
    (tmp_path / "parquet").mkdir()
    for name in ("train", "test", "eval"):
        rows.to_parquet(tmp_path / "parquet" / f"{name}-00000-of-00001.parquet")
    refused(tmp_path, tmp_path / "parquet", both)
    (tmp_path / "tars").mkdir()
    members = [("0.png", formats.png(PIXELS[0])), ("0.cls", b"0")]
    members += [("1.png", formats.png(PIXELS[1])), ("1.cls", b"1")]
    for name in ("train", "test", "eval"):
        shard(tmp_path / "tars" / f"{name}-000.tar", members)
    refused(tmp_path, tmp_path / "tars", both)
    (tmp_path / "tars" / "eval-000.tar").rename(tmp_path / "tars" / "val-000.tar")
    _, said, _ = prepared(tmp_path / "out", tmp_path / "tars")
    assert "held out: test shards; 1 shards of val passed over" in said
    shard(tmp_path / "tars" / "more-000.tar", members)
    refused(tmp_path, tmp_path / "tars", r"more-000\.tar of .* stands for no side beside train")


def test_tars_of_class_folders_with_a_split_are_refused(tmp_path):
    members = [(f"{'ab'[i % 2]}/{i}.png", formats.png(PIXELS[i])) for i in range(4)]
    for name in ("train", "val"):
        shard(tmp_path / f"{name}-000.tar", members)
    refused(tmp_path, tmp_path, "have class folders and a split, which are not read together")


def test_tars_that_are_not_certain_are_refused(tmp_path):
    image = formats.png(PIXELS[0])
    path = tmp_path / "x.tar"
    shard(path, [("0.png", image), ("0.cls", b"0"), ("1.png", image)])
    refused(tmp_path, path, r"1 of 2 images .* have no \.cls, the first 1\.png")
    shard(path, [("0.png", image), ("0.cls", b"0"), ("0.png", image)])
    refused(tmp_path, path, r"0\.png is twice")
    shard(path, [("0.png", image), ("0.jpg", image)])
    refused(tmp_path, path, "0 in .* has two images")
    shard(path, [("0.png", image), ("0.cls", b"cat")])
    refused(tmp_path, path, r"0\.cls holds no whole number")
    for label in (b"1.5", b'"cat"', b"[1]"):
        shard(path, [("0.png", image), ("0.json", b'{"label": %s}' % label)])
        refused(tmp_path, path, r"0\.json holds no whole number as label")
    path.write_bytes(b"no tar" * 200)
    refused(tmp_path, path, "is not a readable tar")


@pytest.mark.parametrize(
    "name",
    ["EDM's zip", "tar of class folders", "Hugging Face parquet", "LSUN's LMDB", "class folders"],
)
def test_samples_may_come_in_every_file_that_data_come_in(tmp_path, name):
    path, expected = formats.CASES[name].make(tmp_path)
    images, names = image_files.read_images(path)
    assert len(names) == len(images) == len(expected)
    assert sorted(map(bytes, images)) == sorted(map(bytes, np.ascontiguousarray(expected)))


MEMBERS = {f"{'ab'[i % 2]}/{i}.png": formats.png(PIXELS[i]) for i in range(12)}
LABELS = [[name, int(name[0] == "b")] for name in MEMBERS]


def zipped(file, members):
    file.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file


@pytest.mark.parametrize("spelling", ["{}", "./{}", "/{}", "set/{}", "set/./{}"])
def test_names_of_an_archive_in_any_spelling_are_classes(tmp_path, spelling):
    members = {spelling.format(name): data for name, data in MEMBERS.items()}
    data, _, _ = prepared(tmp_path / "out", zipped(tmp_path / "a.zip", members))
    assert data.class_names == ("a", "b")


def test_names_of_an_archive_of_windows_are_classes(tmp_path):
    members = {name.replace("/", "\\"): data for name, data in MEMBERS.items()}
    data, _, _ = prepared(tmp_path / "out", zipped(tmp_path / "a.zip", members))
    assert data.class_names == ("a", "b")


def test_empty_folders_of_an_archive_are_refused_as_on_a_disk(tmp_path):
    file = zipped(tmp_path / "a.zip", MEMBERS | {"c/": b""})
    refused(tmp_path, file, "c holds no image files, and stands beside class folders")
    split = {f"train/{name}": data for name, data in MEMBERS.items()} | {"val/a/": b""}
    refused(tmp_path, zipped(tmp_path / "b.zip", split), "val holds no image files")


@pytest.mark.parametrize("place", ["", "set/", "set/images/"])
def test_a_dataset_json_lies_on_top_or_where_all_images_lie(tmp_path, place):
    names = {f"{place}{i}.png": formats.png(PIXELS[i]) for i in range(12)}
    text = json.dumps({"labels": [[f"{i}.png", i % 3] for i in range(12)]})
    members = names | {f"{place}dataset.json": text}
    data, said, _ = prepared(tmp_path / "zip", zipped(tmp_path / "a.zip", members))
    assert data.num_classes == 3
    assert "labels by dataset.json" in said
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        archive.extractall(tmp_path / "in")
    other, _, _ = prepared(tmp_path / "folder", tmp_path / "in")
    assert other.train.labels.tolist() == data.train.labels.tolist()


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([*LABELS, [LABELS[0][0], 1]], r"names a/0\.png twice; leave one out"),
        ([[n, [1, 0] if k else k] for n, k in LABELS], "labels of several forms"),
    ],
)
def test_a_dataset_json_that_contradicts_itself_is_refused(tmp_path, labels, words):
    members = MEMBERS | {"dataset.json": json.dumps({"labels": labels})}
    refused(tmp_path, zipped(tmp_path / "a.zip", members), words)


def tarred(file, of_label):
    members = {}
    for i in range(12):
        suffix, data = of_label(i % 2)
        members |= {f"{i:03}.png": formats.png(PIXELS[i]), f"{i:03}.{suffix}": data}
    with tarfile.open(file, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file


@pytest.mark.parametrize(
    ("of_label", "taken"),
    [
        (lambda k: ("cls", f"{k}\n".encode()), True),
        (lambda k: ("cls", f"{k}.0".encode()), True),
        (lambda k: ("json", json.dumps({"label": float(k)}).encode()), True),
        (lambda k: ("json", json.dumps({"label": None}).encode()), None),
        (lambda k: ("cls", b"cat"), False),
        (lambda k: ("json", json.dumps({"label": k + 0.7}).encode()), False),
        (lambda k: ("json", json.dumps({"label": "cat"}).encode()), False),
        (lambda k: ("json", json.dumps({"label": [k]}).encode()), False),
        (lambda k: ("json", json.dumps({"label": k == 1}).encode()), False),
    ],
)
def test_labels_of_tars_are_whole_numbers_and_samples_need_none(tmp_path, of_label, taken):
    file = tarred(tmp_path / "a.tar", of_label)
    if taken is False:
        refused(tmp_path, file, "holds no whole number as label")
    else:
        assert prepared(tmp_path / "out", file)[0].num_classes == (2 if taken else 0)
    assert len(image_files.read_images(file)[1]) == 12


@pytest.mark.parametrize(
    ("images", "labels"),
    [("x_train", "y_train"), ("train_images", "train_labels"), ("X", "Y"), ("set", "set_labels")],
)
def test_labels_beside_an_array_by_their_names(tmp_path, images, labels):
    np.save(tmp_path / f"{images}.npy", PIXELS)
    np.save(tmp_path / f"{labels}.npy", np.arange(12) % 3)
    assert prepared(tmp_path / "out", tmp_path / f"{images}.npy")[0].num_classes == 3


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["cat", "dog"] * 6, "column label of .* is string, and labels are whole numbers"),
        ([0.0, 1.0] * 6, "column label of .* is double"),
        ([True, False] * 6, "column label of .* is bool"),
        ([[0], [1]] * 6, "column label of .* is list"),
    ],
)
def test_a_column_of_labels_that_are_no_numbers_is_not_passed_over(tmp_path, labels, words):
    parquet(tmp_path / "a.parquet", {"image": IMAGE_ROWS, "label": labels})
    refused(tmp_path, tmp_path / "a.parquet", words)
    assert len(image_files.read_images(tmp_path / "a.parquet")[1]) == 12


def test_a_column_named_label_is_the_labels_whatever_its_metadata_call_it(tmp_path):
    features = {"image": {"_type": "Image"}, "label": {"_type": "Value", "dtype": "int64"}}
    parquet(tmp_path / "a.parquet", {"image": IMAGE_ROWS, "label": [0, 1] * 6}, features)
    assert prepared(tmp_path / "out", tmp_path / "a.parquet")[0].num_classes == 2


def test_a_table_without_rows_holds_no_samples(tmp_path):
    import pyarrow as arrow

    kind = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
    parquet(tmp_path / "a.parquet", {"image": arrow.array([], kind)})
    with pytest.raises(ValueError, match="holds no images"):
        image_files.read_images(tmp_path / "a.parquet")
