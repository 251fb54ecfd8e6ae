"""REPA, REG and MaskAlign as trainings: equal gradients by parts and workers, resumption, refusals;
their samples with a class token, and their diagnostics."""

import math

import pytest
import torch

from pipeline.errors import StageError
from pipeline.graph import Node
from stages.artifacts import data as artifacts_data
from stages.artifacts import network as network_artifact
from stages.artifacts.teacher import Teacher
from stages.catalog import STAGES
from stages.methods import density, diagnostics, drawn_at, table
from stages.methods.draws import Draws
from stages.papers.maskalign import diagnose
from stages.sampling import sample
from stages.settings.methods import options_of
from stages.settings.networks import NetworkSettings, config_of, num_parameters
from stages.training import loop, train
from tests.stages import losses
from tests.stages.conftest import TINY, trained_in
from tests.stages.context import context, digests, make

METHODS = ("repa", "reg", "maskalign")
SMALL = {"alignment_depth": 1, "projector_width": 8}


def settings_of(method: str, **changes) -> train.TrainSettings:
    return TINY.revised(method=method, **dict.fromkeys(METHODS, SMALL) | changes)


@pytest.fixture(scope="module")
def models(tmp_path_factory, few, teacher):
    """A tiny network of every method."""
    return {
        method: trained_in(
            context(tmp_path_factory.mktemp(method), settings_of(method), data=few, teacher=teacher)
        )
        for method in METHODS
    }


def parts_of(few, teacher, method="maskalign", size=20):
    """Network without zeros, loss and batches of a method."""
    settings, data = settings_of(method), few.load()
    own = settings.loss_options.of_network(teacher.description["width"])
    config = config_of(settings.network, data.shape, data.num_classes, **own)
    network = network_artifact.build_network("sit", config, 0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.2, generator=generator)
    loss = settings.loss_options.loss(0.1, None)
    batches = loop.Batches(data.train, data.train.labels, size, 0, teacher=teacher.load())
    return network, loss, batches


def gradient(network, loss, batch, accumulate=1, share=1.0):
    """The flat gradient and the terms."""
    how = loop.Optimization(1e-3, accumulate=accumulate)
    network.zero_grad()
    terms = loop.backward(network, loss, batch, how, share)
    found = [p.grad.flatten() for p in network.parameters() if p.grad is not None]
    return torch.cat(found), terms


# --- one loop


@pytest.mark.parametrize("method", METHODS)
def test_parts_of_a_batch_add_up_to_the_whole(few, teacher, method):
    network, loss, batches = parts_of(few, teacher, method)
    whole, terms = gradient(network, loss, batches(3))
    for accumulate in (2, 3, 20, 1000):
        found, same = gradient(network, loss, batches(3), accumulate)
        assert (found - whole).norm() < 1e-5 * whole.norm()
        for name, value in terms.items():
            assert same[name].item() == pytest.approx(value.item(), rel=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("world", [2, 3])
def test_shares_of_processes_average_to_the_whole(few, teacher, monkeypatch, method, world):
    """Three do not divide 20: shares of 6, 7 and 7, each weighted by its size."""
    network, loss, batches = parts_of(few, teacher, method)
    whole, terms = gradient(network, loss, batches(3))
    found, means = [], []
    for rank in range(world):
        monkeypatch.setattr(loop, "_rank_and_world", lambda rank=rank: (rank, world))
        part, of_rank = gradient(network, loss, batches(3), share=batches.share)
        found.append(part)
        means.append(of_rank)
    mean = torch.stack(found).mean(0)
    assert (mean - whole).norm() < 1e-6 * whole.norm()
    for name, value in terms.items():
        average = sum(of[name] for of in means) / world
        assert average.item() == pytest.approx(value.item(), rel=1e-5)


def test_accumulated_steps_train_the_same_network(tmp_path, few, teacher, models):
    settings = settings_of("maskalign", accumulate=4)
    made = trained_in(context(tmp_path, settings, data=few, teacher=teacher))
    pairs = [artifact.load().network(7).parameters() for artifact in (made, models["maskalign"])]
    ours, theirs = (torch.cat([p.flatten() for p in found]) for found in pairs)
    assert (ours - theirs).norm() < 1e-4 * theirs.norm()


def test_a_longer_training_passes_through_the_shorter_one(tmp_path, few, teacher, models):
    """The learning rate is constant, so checkpoints compare at equal steps."""
    short = settings_of("reg", steps=14, checkpoint_steps=(7,))
    made = trained_in(context(tmp_path, short, data=few, teacher=teacher))
    for step in (7, 14):
        ours, theirs = (a.load().network(step).state_dict() for a in (made, models["reg"]))
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize("method", METHODS)
def test_an_interrupted_training_ends_with_the_same_bytes(
    tmp_path, few, teacher, models, monkeypatch, method
):
    true = options_of(method).mathematics
    failing = losses.failing(true)
    monkeypatch.setattr(losses, "Failing", failing, raising=False)
    monkeypatch.setattr(losses, "FAILS_AT", {"interrupt": 12, "nan": None})
    at = context(tmp_path, settings_of(method), data=few, teacher=teacher)
    monkeypatch.setattr(options_of(method), "mathematics", "tests.stages.losses:Failing")
    with pytest.raises(losses.InterruptedTrainingError):
        trained_in(at)
    monkeypatch.setattr(options_of(method), "mathematics", true)
    assert digests(trained_in(at).path) == digests(models[method].path)
    assert any("continuing after step 10" in line for line in at.logged)


def test_the_teacher_and_the_mask_matter(tmp_path, few, teacher, models):
    assert len({tuple(digests(model.path).values()) for model in models.values()}) == len(METHODS)
    for changes in ({"mask_ratio": 0.5}, {"mix_layers": 0}, {"alignment_weight": 0.1}):
        other = settings_of("maskalign", maskalign=SMALL | changes, steps=7, checkpoint_steps=())
        made = trained_in(context(tmp_path / str(changes), other, data=few, teacher=teacher))
        assert made.metrics["gradient_norm"] != models["maskalign"].metrics["gradient_norm"]


def test_without_mask_and_mixing_it_trains_reg_s_network(tmp_path, few, teacher, models):
    plain = settings_of("maskalign", maskalign=SMALL | {"mask_ratio": 0.0, "mix_layers": 0})
    made = trained_in(context(tmp_path, plain, data=few, teacher=teacher))
    ours, theirs = (a.load().network(18).state_dict() for a in (made, models["reg"]))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-6)


def test_what_a_training_says_of_itself(models):
    facts = models["maskalign"].description
    assert facts["method"] == "maskalign"
    assert facts["config"]["class_token_dim"] == facts["config"]["teacher_dim"] == 16
    assert facts["config"]["mix_layers"] == 2
    assert facts["parameters"] == num_parameters("sit", facts["config"])
    for method, made in models.items():
        declared = STAGES["train"].metrics(Node("train/x", train.STAGE, settings_of(method)))
        assert set(made.metrics) == set(declared)
    # Four patches and the class token; of MaskAlign's, one patch is masked.
    rates = {name: model.manifest.timings for name, model in models.items()}
    for method, tokens in (("repa", 4), ("reg", 5), ("maskalign", 4)):
        for (_, rate), (_, seconds) in zip(
            rates[method]["tokens_per_second"], rates[method]["step_seconds"], strict=True
        ):
            assert rate * seconds == pytest.approx(20 * tokens)


def test_a_method_s_settings_enter_its_own_keys_alone():
    other = {"maskalign": SMALL | {"mask_ratio": 0.5}}
    assert settings_of("reg").keyed() == settings_of("reg", **other).keyed()
    assert settings_of("maskalign").keyed() != settings_of("maskalign", **other).keyed()
    assert not {"repa", "reg", "maskalign"} & TINY.keyed().keys()


# --- bad input


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "maskalign", "maskalign": {"mask_ratio": 1.0}}, ("mask_ratio",)),
        ({"method": "maskalign", "maskalign": {"mask_ratio": -0.1}}, ("mask_ratio",)),
        (
            {"method": "repa", "repa": {"alignment_depth": 5}},
            ("repa.alignment_depth=5 is beyond network.depth=4",),
        ),
        ({"num_workers": (3, 2)}, ("num_workers", "min <= max")),
        ({"num_workers": (0, 2)}, ("num_workers", "min <= max")),
        ({"num_workers": 5000}, ("num_workers", "4096")),
        ({"num_workers": (1, 100)}, ("batch_size=64", "num_workers=100")),
        ({"batch_size": 250, "num_workers": 8}, ("batch_size=250", "248", "256")),
    ],
)
def test_contradictions_are_refused_in_words(changes, words):
    with pytest.raises(ValueError, match=words[0]) as refused:
        train.TrainOptions(**changes)
    assert all(word in str(refused.value) for word in words)


def refused(folder, settings, words, **inputs):
    """Refused before the first step: nothing was kept."""
    with pytest.raises(StageError, match=words):
        trained_in(context(folder, settings, **inputs))
    assert not list((folder / "work").glob("*.safetensors"))


def test_a_teacher_that_does_not_fit_is_refused(tmp_path, few, data, teacher):
    finer = settings_of("repa", network=TINY.network.model_dump() | {"patch": 2})
    refused(
        tmp_path / "grid", finer, r"4 patches, the network's grid is 4x4", data=few, teacher=teacher
    )
    refused(
        tmp_path / "data",
        settings_of("repa"),
        r"of 96 images of digits, the data are 1500",
        data=data,
        teacher=teacher,
    )


def test_labels_out_of_range_are_refused(tmp_path, few, teacher, monkeypatch):
    broken = few.load()
    broken.train.labels[5] = 10
    monkeypatch.setattr(artifacts_data.Data, "load", lambda self: broken)
    refused(
        tmp_path, settings_of("reg"), r"labels run from 0 to 10, but", data=few, teacher=teacher
    )


def test_a_checkpoint_of_another_architecture_names_what_differs(tmp_path, few, teacher, models):
    deeper = settings_of("reg", network=NetworkSettings(width=16, depth=2, heads=2, patch=4))
    words = r"has method maskalign \(here reg\), depth 1 \(here 2\), mix_layers 2 \(here none\)"
    refused(tmp_path, deeper, words, data=few, teacher=teacher, start=models["maskalign"])


# --- samples and diagnostics


@pytest.mark.parametrize("solver", [*table.PLAIN_SOLVERS, "sde"])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_class_token_goes_beside_the_image_in_every_solver(tmp_path, models, solver, guidance):
    """The image's samples differ from those with the token held at zero, and are finite."""
    settings = sample.SampleSettings(
        solver=solver, nfe=5, num_samples=12, block_size=6, guidance=guidance
    )
    made = make(tmp_path, sample.STAGE, settings, model=models["maskalign"])
    images = made.load().images
    assert images.shape == (12, 1, 8, 8)
    assert images.isfinite().all()
    assert made.description["solver"] == solver
    again = make(
        tmp_path / "again",
        sample.STAGE,
        settings.revised(num_samples=6, shard_size=6),
        model=models["maskalign"],
    )
    assert torch.equal(again.load().images, images[:6])


@pytest.mark.parametrize("method", METHODS)
def test_diagnostics_are_the_mathematics_on_every_checkpoint(
    tmp_path, few, teacher, models, method
):
    settings = diagnose.DiagnoseSettings(num_images=60, batch_size=30)
    made = make(tmp_path, diagnose.STAGE, settings, model=models[method], data=few, teacher=teacher)
    found = made.load()
    assert [measured.step for measured in found] == [7, 14, 18]
    network, data = models[method].load().network(14), few.load()
    total, gaps = None, []
    for first in (0, 30):
        indices = torch.arange(first, first + 30)
        targets, tokens = teacher.load().batch(indices)
        draws = Draws(0, indices, drawn_at.DIAGNOSIS)
        batch = diagnostics.Batch(
            data.train[first : first + 30], data.train.labels[indices], draws, targets, tokens
        )
        one = diagnostics.alignment_heatmap(network, batch)
        total = one if total is None else total + one
        masked, full = diagnostics.stability_gap(network, batch, draws.keep(4, 3))
        gaps.append((masked - full).item())
    assert torch.tensor(found[1].full).flatten().tolist() == pytest.approx(
        total.probability.tolist()
    )
    assert found[1].gap == pytest.approx(sum(gaps) / 2, abs=1e-7)
    assert found[1].gap_error == pytest.approx(abs(gaps[0] - gaps[1]) / 2, abs=1e-7)
    assert made.metrics["alignment_gap"] == found[-1].gap
    assert made.manifest.timings["step_seconds"] > 0


def test_alignment_is_diagnosed_where_it_was_trained(tmp_path, few, teacher, models):
    """t is drawn with the training's own density, and another one is refused."""
    logit_normal = {"kind": "logit_normal", "mean": 2.0, "std": 0.1}
    trained = settings_of("repa", steps=4, checkpoint_steps=(4,), density=logit_normal)
    model = trained_in(context(tmp_path / "train", trained, data=few, teacher=teacher))
    settings = diagnose.DiagnoseSettings(num_images=30, batch_size=30, density=logit_normal)
    inputs = {"model": model, "data": few, "teacher": teacher}
    (found,) = make(tmp_path / "own", diagnose.STAGE, settings, **inputs).load()
    data, indices = few.load(), torch.arange(30)
    targets, tokens = teacher.load().batch(indices)
    draws = Draws(0, indices, drawn_at.DIAGNOSIS)
    batch = diagnostics.Batch(data.train[:30], data.train.labels[:30], draws, targets, tokens)
    network, keep = model.load().network(4), draws.keep(4, 3)
    of_time = density.LogitNormal(2.0, 0.1)
    losses = [
        [x.item() for x in diagnostics.stability_gap(network, batch, keep, which)]
        for which in (of_time, None)
    ]
    assert [found.masked_alignment, found.full_alignment] == pytest.approx(losses[0], abs=1e-7)
    assert abs(losses[0][1] - losses[1][1]) > 1e-5
    plain = settings.revised(density={"kind": "uniform"})
    with pytest.raises(StageError, match="density is uniform, and the network was trained with"):
        make(tmp_path / "uniform", diagnose.STAGE, plain, **inputs)


def test_patches_that_no_mask_left_in_are_null_and_in_no_summary(tmp_path, few, teacher, models):
    """Two images and one kept patch each: two patches at the most are ever seen."""
    settings = diagnose.DiagnoseSettings(num_images=2, mask_ratio=0.7)
    inputs = {"model": models["maskalign"], "data": few, "teacher": teacher}
    made = make(tmp_path, diagnose.STAGE, settings, **inputs)
    for measured in made.load():
        cells = [value for row in measured.masked for value in row]
        assert 2 <= cells.count(None) <= 3
        assert (measured.masked_max_min_ratio, measured.masked_variation) == (1, 0)
    assert "NaN" not in (made.path / "diagnosis.json").read_text()
    assert all(math.isfinite(value) for value in made.metrics.values())


def test_an_unconditional_training_on_labelled_images_is_diagnosed(tmp_path, few, teacher):
    settings = settings_of("reg", conditional=False)
    model = trained_in(context(tmp_path / "model", settings, data=few, teacher=teacher))
    assert model.description["config"]["num_classes"] == 0
    inputs = {"model": model, "data": few, "teacher": teacher}
    made = make(tmp_path / "made", diagnose.STAGE, diagnose.DiagnoseSettings(), **inputs)
    assert all(math.isfinite(measured.gap) for measured in made.load())


def test_one_patch_has_nothing_to_diagnose(tmp_path, few, teacher, models, monkeypatch):
    network = models["maskalign"].load().network(18)
    monkeypatch.setattr(network, "num_patches", 1)
    monkeypatch.setattr("stages.artifacts.network.TrainedModel.network", lambda *_: network)
    inputs = {"model": models["maskalign"], "data": few, "teacher": teacher}
    with pytest.raises(StageError, match=r"sees an image as one patch.*lower train.network.patch"):
        make(tmp_path, diagnose.STAGE, diagnose.DiagnoseSettings(), **inputs)


def test_a_training_without_a_teacher_is_not_diagnosed(tmp_path, few, teacher, model):
    settings = diagnose.DiagnoseSettings()
    with pytest.raises(StageError, match="method sit aligns with no teacher"):
        make(tmp_path, diagnose.STAGE, settings, model=model, data=few, teacher=teacher)


def test_the_teacher_s_type_is_what_trainings_take():
    assert train.STAGE.inputs["teacher"].type is Teacher
    for method in ("sit", *METHODS):
        needed = "teacher" in train.STAGE.needs(train.TrainSettings(method=method))
        assert needed == (method in METHODS)
