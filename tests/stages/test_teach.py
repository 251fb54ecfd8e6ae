"""The teacher's stage: features on the student's grid, resumption, refusals, the probe."""

import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from pipeline.errors import StageError, UsageError
from stages.artifacts.teacher import TeacherNetwork
from stages.data import prepare
from stages.methods import table, training_views
from stages.methods.representation import probe_accuracy
from stages.nets.vit import EmbeddedViT
from stages.settings import teachers
from stages.training import own_teacher, probing, resume, teach
from tests.stages.conftest import TEACH
from tests.stages.context import digests, make


def network_of(data):
    return own_teacher._network(own_teacher._config(TEACH, data), TEACH.seed)


def test_features_are_the_network_s_on_the_student_s_grid(few, teacher):
    facts, features = teacher.description, teacher.load()
    assert (facts["grid"], facts["teacher_grid"], facts["width"]) == ([2, 2], [2, 2], 16)
    assert features.patches.shape == (96, 4, 16)
    assert features.class_tokens.shape == (96, 16)
    targets, tokens = features.batch(torch.tensor([7, 3]))
    torch.testing.assert_close(targets.norm(dim=-1), torch.ones(2, 4))
    # Again from the stored weights.
    network = network_of(few.load()).eval()
    network.load_state_dict(load_file(teacher.path / own_teacher.WEIGHTS))
    with torch.no_grad():
        expected = network.tokens(few.load().train[np.array([7, 3])])
    torch.testing.assert_close(tokens, expected[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(targets, F.normalize(expected[:, 1:], dim=-1), rtol=1e-4, atol=1e-5)


def test_the_probe_is_of_held_out_images(few, teacher):
    data, features = few.load(), teacher.load()
    network = network_of(data).eval()
    with torch.no_grad():
        train, test = (network.tokens(part[slice(None)])[:, 0] for part in (data.train, data.test))
    untrained = probe_accuracy(train, data.train.labels, test, data.test.labels)
    assert teacher.metrics["probe_accuracy_class_untrained"] == pytest.approx(untrained)
    assert len(features) == len(data.train)


def test_an_interrupted_teacher_ends_with_the_same_bytes(tmp_path, few, teacher, monkeypatch):
    monkeypatch.setattr(own_teacher, "SAVE_EVERY", 2)
    whole = resume.save

    def stop(folder, step, tensors, record):
        whole(folder, step, tensors, record)
        if step == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(resume, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, teach.STAGE, TEACH, data=few)
    monkeypatch.setattr(resume, "save", whole)
    assert digests(make(tmp_path, teach.STAGE, TEACH, data=few).path) == digests(teacher.path)


def test_a_teacher_that_learns_classes_is_loaded_again(tmp_path, few, teacher, monkeypatch):
    settings = TEACH.revised(objective="labels", stem=2, jitter=0.5, padding="border")
    views = []
    monkeypatch.setattr(
        own_teacher, "Views", lambda **how: views.append(how) or training_views.Views(**how)
    )
    assert settings.keyed() != TEACH.keyed()
    assert {"objective", "stem", "jitter", "padding"}.isdisjoint(TEACH.keyed())
    assert settings.keyed() == settings.revised(temperature=0.7).keyed()
    made = make(tmp_path, teach.STAGE, settings, data=few)
    assert views == [{"padding": "border", "jitter": 0.5}]
    facts, data = made.description, few.load()
    assert (facts["config"]["outputs"], facts["config"]["stem"]) == (data.num_classes, 2)
    tokens = own_teacher.frozen(made.path, facts, "cpu")(data.train[np.array([7, 3])])
    targets, classes = made.load().batch(torch.tensor([7, 3]))
    torch.testing.assert_close(classes, tokens[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(targets, F.normalize(tokens[:, 1:], dim=-1), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(classes, teacher.load().batch(torch.tensor([7, 3]))[1], atol=1e-2)
    # It has learned something of the labels: its logits are better than those of chance.
    network = own_teacher._network(facts["config"], settings.seed)
    network.load_state_dict(load_file(made.path / own_teacher.WEIGHTS))
    with torch.no_grad():
        trained, fresh = (
            F.cross_entropy(one(data.train[slice(None)]), data.train.labels).item()
            for one in (network, own_teacher._network(facts["config"], settings.seed))
        )
    assert trained < fresh


def test_classes_that_there_are_not_are_not_learned(tmp_path, few):
    data = few.load()
    settings = TEACH.revised(objective="labels")
    unlabelled = SimpleNamespace(num_classes=0, shape=data.shape, train=data.train)
    with pytest.raises(ValueError, match="labels learns classes, and these data have none"):
        own_teacher.teacher(SimpleNamespace(settings=settings), unlabelled)


def test_first_weights_are_drawn_in_a_fixed_order():
    """Encoder, stem, then the head from its first layer on: another order is another teacher, and
    moves what is measured of networks aligned with it."""
    import timm

    sizes = {"img_size": (8, 8), "patch_size": 4, "in_chans": 1, "embed_dim": 16, "depth": 1}
    torch.manual_seed(3)
    network = EmbeddedViT((8, 8), 1, 4, width=16, depth=1, num_heads=2)
    torch.manual_seed(3)
    timm.models.vision_transformer.VisionTransformer(**sizes, num_heads=2, num_classes=0)
    for layer in (network.head[0], network.head[2]):
        expected = torch.nn.Linear(16, 16)
        assert torch.equal(layer.weight, expected.weight)


def fake(monkeypatch, grid=(2, 2), width=3, fails_after=None):
    """A teacher whose class token is the image's mean and whose patches are its pixels."""
    calls = []

    def tokens(images):
        if len(calls) == fails_after:
            raise KeyboardInterrupt
        calls.append(len(images))
        size = grid[0] * grid[1]
        patches = F.adaptive_avg_pool2d(images, grid).flatten(1).view(-1, size, 1)
        both = torch.cat([images.mean((1, 2, 3)).view(-1, 1, 1), patches + 2], dim=1)
        return torch.cat([both, both**2, both**3], dim=-1)

    def build(ctx, data):
        return TeacherNetwork("fake", "0" * 64, "none", grid, width, tokens, tokens)

    monkeypatch.setitem(table.TEACHERS, "embedded", "tests.stages.test_teach:_built")
    monkeypatch.setattr("tests.stages.test_teach._built", build, raising=False)
    return calls


def test_an_interrupted_pass_goes_on(tmp_path, few, monkeypatch):
    calls = fake(monkeypatch)
    settings = TEACH.revised(batch_size=2, probe_images=10)
    whole = make(tmp_path / "whole", teach.STAGE, settings, data=few)
    passes = len(calls)
    fake(monkeypatch, fails_after=passes - 5)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "cut", teach.STAGE, settings, data=few)
    calls = fake(monkeypatch)
    cut = make(tmp_path / "cut", teach.STAGE, settings, data=few)
    assert len(calls) == passes - 40  # 40 of 48 passes were known to be whole
    assert digests(cut.path) == digests(whole.path)


def test_features_that_changed_while_a_pass_was_interrupted_are_made_again(
    tmp_path, few, monkeypatch
):
    calls = fake(monkeypatch)
    settings = TEACH.revised(batch_size=2, probe_images=10)
    whole = make(tmp_path / "whole", teach.STAGE, settings, data=few)
    passes = len(calls)
    fake(monkeypatch, fails_after=passes - 5)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "cut", teach.STAGE, settings, data=few)
    array = np.load(tmp_path / "cut" / "work" / teach.PATCHES, mmap_mode="r+")
    array[7, 0, 0] += 1
    array.flush()
    calls = fake(monkeypatch)
    cut = make(tmp_path / "cut", teach.STAGE, settings, data=few)
    assert len(calls) == passes
    assert digests(cut.path) == digests(whole.path)


@pytest.mark.parametrize("links", [True, False])
def test_a_payload_lost_after_the_last_pass_is_made_again(tmp_path, few, monkeypatch, links):
    if not links:

        def refused(*names):
            raise OSError("no links here")

        monkeypatch.setattr(os, "link", refused)
    calls = fake(monkeypatch)
    settings = TEACH.revised(batch_size=2, probe_images=10)
    whole = digests(make(tmp_path, teach.STAGE, settings, data=few).path)
    passes = len(calls)
    shutil.rmtree(tmp_path / "payload")
    if not links:  # the pass is made again, and another kill must not pass for its end
        fake(monkeypatch, fails_after=passes - 47)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path, teach.STAGE, settings, data=few)
    calls = fake(monkeypatch)
    assert digests(make(tmp_path, teach.STAGE, settings, data=few).path) == whole
    assert len(calls) == (passes - 48 if links else passes)


def test_another_grid_is_refused_or_resampled(tmp_path, few, monkeypatch):
    fake(monkeypatch, grid=(4, 4))
    finer = TEACH.revised(patch=2)
    with pytest.raises(StageError, match=r"4x4 patches is not .*2x2; set teach.interpolate=true"):
        make(tmp_path / "no", teach.STAGE, finer, data=few)
    made = make(tmp_path / "yes", teach.STAGE, finer.revised(interpolate=True), data=few)
    assert made.load().patches.shape == (96, 4, 3)
    assert made.description["teacher_grid"] == [4, 4]


@pytest.mark.parametrize(
    ("options", "size", "patch", "refused"),
    [
        ({}, 8, 2, False),
        ({"patch": 4}, 8, 2, True),
        ({"patch": 4, "interpolate": True}, 8, 2, False),
        ({"kind": "dinov2-base"}, 8, 2, True),
        ({"kind": "dinov2-base"}, 32, 2, False),
        ({"kind": "dinov2-base"}, None, 2, False),
    ],
)
def test_grids_are_checked_before_any_work(options, size, patch, refused):
    settings = teachers.TeachOptions(**options)
    if refused:
        with pytest.raises(ValueError, match=r"teach.interpolate=true"):
            teachers.check_grids(settings, size, patch)
    else:
        teachers.check_grids(settings, size, patch)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"min_probe": 1.0}, "below teach.min_probe=1.0; raise teach.steps"),
        ({"min_gain": 0.9}, r"less than 0\.\d+ \(teach.min_gain=0.9\); raise teach.steps"),
    ],
)
def test_a_poor_teacher_is_refused(tmp_path, few, monkeypatch, options, words):
    fake(monkeypatch)
    with pytest.raises(StageError, match=words):
        make(tmp_path, teach.STAGE, TEACH.revised(**options), data=few)


def test_of_classes_that_need_no_teacher_half_of_the_rest_is_asked():
    def judged(trained, untrained):
        both = {"class_trained": trained, "class_untrained": untrained}
        probes = {f"probe_accuracy/{name}": value for name, value in both.items()}
        probing._judge(probes, TEACH.revised(min_gain=0.1))

    judged(0.9901, 0.98)
    with pytest.raises(StageError, match=r"0\.005 above .* less than 0\.01 \(teach\.min_gain=0\.1"):
        judged(0.985, 0.98)
    judged(0.98, 0.85)
    with pytest.raises(StageError, match=r"0\.090 above .* less than 0\.1 \("):
        judged(0.94, 0.85)


def test_a_missing_weight_file_is_one_sentence(tmp_path):
    settings = teachers.TeachSettings(kind="dinov2-base", weights=str(tmp_path), student_patch=2)
    with pytest.raises(UsageError, match=r"dinov2_vitb14_pretrain.pth.*set teach.weights"):
        teach.weight_files(settings)


def test_what_trains_the_embedded_one_is_not_dino_s():
    dino = teachers.TeachSettings(kind="dinov2-base", student_patch=2)
    assert dino.keyed() == dino.revised(steps=7, seed=3, width=32).keyed()
    assert TEACH.keyed() != TEACH.revised(steps=7).keyed()
    assert "compile" not in TEACH.keyed()
    assert TEACH.revised(compile=True).keyed()["compile"] is True


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weights": "x"}, "weights=x and kind=embedded contradict"),
        ({"kind": "dinov2-base", "patch": 2}, "patch=2 and kind=dinov2-base contradict"),
        ({"width": 30, "heads": 4}, "width=30 is not divisible by heads=4; set width to 28"),
        ({"kind": "dino"}, "unknown teacher 'dino'; did you mean 'dinov2"),
    ],
)
def test_contradictions_are_refused_in_words(options, words):
    with pytest.raises(ValueError, match=words):
        teachers.TeachOptions(**options)


def test_pixels_must_show_the_same_images(tmp_path, few, monkeypatch):
    fake(monkeypatch)
    other = make(
        tmp_path / "other",
        prepare.STAGE,
        prepare.PrepareSettings(limit=90, limit_held_out=48),
    )
    with pytest.raises(StageError, match=r"train labels of teach.pixels are not those of data"):
        make(tmp_path / "t", teach.STAGE, TEACH, data=few, pixels=other)
    made = make(tmp_path / "same", teach.STAGE, TEACH, data=few, pixels=few)
    assert len(made.load()) == 96
