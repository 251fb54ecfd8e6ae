"""Scores of sets of samples whose scores are known, and how they are stored."""

import json
import pickle
import shutil
from dataclasses import replace

import numpy as np
import pyarrow.parquet
import pytest
import torch

from pipeline.errors import StageError
from pipeline.graph import Node
from stages.artifacts import features as artifacts_features
from stages.artifacts import samples as artifacts_samples
from stages.artifacts import scores
from stages.data import prepare
from stages.methods import effects, frechet, memorization, protocol, strata
from stages.sampling import sample
from stages.scoring import evaluate, judge
from stages.scoring import features as scoring_features
from stages.scoring.references import References
from tests.stages.context import context, digests, make, sealed

SETTINGS = evaluate.EvaluateSettings(num_samples=48)


def samples_of(folder, images: torch.Tensor, **facts) -> artifacts_samples.Samples:
    """An artifact that holds given images."""
    at = context(folder, sample.SampleSettings())
    np.save(at.path / "samples.npy", images.numpy())
    np.save(at.path / "labels.npy", np.zeros(len(images), np.int64))
    description = {"training_step": 10, "method": "sit", "solver": "euler", "nfe": 5, "seed": 0}
    description |= {
        "time_density": "uniform",
        "grid": "uniform_t",
        "correction": "none",
        "num_samples": len(images),
    } | facts
    (at.path / "samples.json").write_text(json.dumps(description))
    return sealed(at, sample.STAGE, evaluate.Result())


@pytest.fixture(scope="session")
def score(few, extractor, references):
    """Scores sets of samples after taking their features."""

    def inputs(folder, sets):
        features = {
            evaluate.features_node(name): make(
                folder / "features" / name,
                scoring_features.STAGE,
                scoring_features.FeatureSettings(),
                data=few,
                extractor=extractor,
                samples=artifact,
            )
            for name, artifact in sets.items()
        }
        return {"samples": sets, "features": features, **references}

    def scored(folder, sets, settings=SETTINGS, **more):
        return make(folder, evaluate.STAGE, settings, **inputs(folder, sets), **more)

    scored.inputs = inputs
    return scored


def values(artifact, node):
    return {row.score.metric: row.score for row in artifact.load() if row.node == node}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory, few, score):
    """Copies of training images, held-out images, and noise, at steps 30, 20 and 10."""
    folder = tmp_path_factory.mktemp("scored")
    data = few.load()
    noise = torch.randn(48, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    sets = {
        "copies": samples_of(folder / "a", data.train[:48], training_step=30),
        "real": samples_of(folder / "b", data.test[:], training_step=20),
        "noise": samples_of(folder / "c", noise, training_step=10),
    }
    return score(folder / "scores", sets)


def test_scores_order_the_sets(artifact):
    copies, real, noise = (values(artifact, name) for name in ("copies", "real", "noise"))
    assert copies["fid"].value < real["fid"].value < noise["fid"].value / 3
    assert copies["kid"].value < noise["kid"].value
    assert copies["memorization_ratio"].value == 1.0
    assert real["memorization_ratio"].value < 0.2
    assert copies["memorization_ratio"].floor == real["memorization_ratio"].value
    assert noise["precision"].value < real["precision"].value
    assert real["fid"].value == pytest.approx(real["fid"].floor, rel=0.7)


METRICS = {
    *("fid", "fid_infinity", "sfid", "kid", "precision", "recall", "density", "coverage"),
    *("inception_score", "memorization_ratio"),
}


def test_every_score_has_error_floor_and_protocol(artifact):
    found = values(artifact, "real")
    assert set(found) == METRICS
    for metric, score in found.items():
        assert score.protocol.name == "digits-embedded-48"
        assert (score.protocol.num_samples, score.protocol.num_reference) == (48, 96)
        assert score.error_kind == ("jackknife" if metric == "inception_score" else "influence")
        assert (score.influence is None) == (metric == "inception_score")
        assert score.error >= 0
        assert score.floor is not None
    assert found["fid"].error > 0
    assert found["sfid"].value == pytest.approx(found["sfid"].floor, rel=0.7)
    assert found["precision"].value == pytest.approx(found["precision"].floor, abs=0.2)
    assert found["inception_score"].value == pytest.approx(found["inception_score"].floor)


def test_too_few_images_for_the_features_are_flagged_in_the_score(artifact):
    found = values(artifact, "real")
    for metric in ("fid", "fid_infinity"):
        assert "48 images cannot fill 64 feature dimensions" in found[metric].caution
        assert "cannot fill 64" in str(found[metric])
    assert "cannot fill 112 feature" in found["sfid"].caution
    assert found["kid"].caution == ""


def test_settings_that_change_a_score_are_in_its_protocol(tmp_path, few, score, artifact):
    sets = {"real": samples_of(tmp_path / "m", few.load().test[:], training_step=20)}
    other = SETTINGS.revised(neighbours=3, memorization_threshold=0.5)
    one, two = values(artifact, "real"), values(score(tmp_path, sets, other), "real")
    for metric in ("precision", "memorization_ratio"):
        with pytest.raises(protocol.ProtocolError, match="details"):
            effects.difference(one[metric], two[metric])
    assert effects.difference(one["fid"], two["fid"]).value == 0
    fewer = values(score(tmp_path / "f", sets, SETTINGS.revised(num_samples=40)), "real")
    with pytest.raises(protocol.ProtocolError, match="num_samples 48 against 40"):
        effects.difference(one["fid"], fewer["fid"])


def test_sets_that_differ_in_their_seed_become_a_mean_with_the_seeds_error(tmp_path, few, score):
    data = few.load()
    images = torch.cat([data.test[:], data.train[:]])
    sets = {
        f"s{seed}": samples_of(tmp_path / str(seed), images[20 * seed :][:48], seed=seed)
        for seed in range(3)
    }
    sets["alone"] = samples_of(tmp_path / "a", data.test[:], training_step=30)
    found = score(tmp_path / "s", sets)
    rows = {(row.node, row.score.metric): row for row in found.load()}
    assert {node for node, _ in rows} == {"s0", "alone"}
    single = [row.score for row in found.load(every_seed=True) if row.score.metric == "fid"]
    assert [s.error_kind for s in single] == ["influence"] * 4
    mean = rows["s0", "fid"]
    expected = np.array([s.value for s in single[:3]])
    assert mean.seed is None
    assert (mean.score.error_kind, mean.score.num_seeds) == ("seeds", 3)
    assert mean.score.value == pytest.approx(expected.mean())
    assert mean.score.error == pytest.approx(expected.std(ddof=1) / 3**0.5)
    alone = rows["alone", "fid"]
    assert (alone.seed, alone.score.error_kind, alone.score.num_seeds) == (0, "influence", 1)
    with pytest.raises(protocol.ProtocolError, match="errors of kind"):
        effects.difference(mean.score, alone.score)


def test_memorisation_has_the_error_of_a_share(tmp_path, few, score):
    data = few.load()
    sets = {"half": samples_of(tmp_path / "h", torch.cat([data.train[:24], data.test[:24]]))}
    found = values(score(tmp_path / "s", sets), "half")["memorization_ratio"]
    share = memorization.ratio(torch.cat([data.train[:24], data.test[:24]]), data.train[:])
    assert found.value == pytest.approx(share)
    assert found.error == pytest.approx((share * (1 - share) / 47) ** 0.5)


@pytest.mark.parametrize(("among", "expected"), [(0, None), (24, 24)])
def test_copies_are_sought_among_so_many_images_or_not_at_all(
    tmp_path, few, extractor, references, among, expected
):
    images = torch.cat([few.load().train[:24], few.load().test[:24]])
    samples = samples_of(tmp_path / "a", images)
    settings = scoring_features.FeatureSettings(nearest_among=among)
    given = {"data": few, "extractor": extractor, "samples": samples}
    features = make(tmp_path / "f", scoring_features.STAGE, settings, **given)
    name = evaluate.features_node("sample/a")
    inputs = {"samples": {"sample/a": samples}, "features": {name: features}, **references}
    at = SETTINGS.revised(num_samples=48)
    found = values(make(tmp_path / "s", evaluate.STAGE, at, **inputs), "sample/a")
    if expected is None:
        assert features.load().neighbours is None
        assert "memorization_ratio" not in found
        assert "fid" in found
        return
    score = found["memorization_ratio"]
    assert score.value == memorization.ratio(images, few.load().train[:expected])
    assert f"among {expected} training images" in str(score.protocol)


def test_scores_against_other_images_are_not_compared(tmp_path, few, extractor):
    """Data of one kind have one name, and Inception one hash whatever the data."""
    images = np.random.default_rng(0).integers(0, 256, (2, 144, 8, 8), np.uint8)
    facts, found = [], []
    for folder, pixels in zip((tmp_path / "a", tmp_path / "b"), images, strict=True):
        folder.mkdir()
        np.savez(folder / "x.npz", x_train=pixels, y_train=np.arange(144) % 10)
        chosen = {"dataset": "npz", "path": str(folder / "x.npz"), "held_out": 48}
        data = make(folder / "data", prepare.STAGE, prepare.PrepareSettings(**chosen))
        inputs = {"data": data, "extractor": extractor}
        sets = {
            part: make(
                folder / part,
                scoring_features.STAGE,
                scoring_features.FeatureSettings(part=part),
                **inputs,
            )
            for part in ("train", "test")
        }
        bench = judge.judge_of(sets["train"], sets["test"], SETTINGS)
        found.append(bench.score("fid", 10.0, 1.0))
        facts.append(data.manifest.files["train.npy"]["sha256"])
    assert [score.protocol.name for score in found] == ["npz-embedded-48"] * 2
    assert found[0].protocol.reference == f"npz training images {facts[0][:12]}"
    with pytest.raises(protocol.ProtocolError, match=f"reference .*{facts[0][:12]}.* against"):
        effects.difference(*found)


def test_a_part_of_the_training_images_is_drawn_not_their_first(tmp_path, references):
    """Sorted by class, the first training images would be of the first classes alone."""
    clusters = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
    clusters[:50] += 100
    empty = dict.fromkeys(("spatial", "logits", "neighbours", "neighbour_distances"))
    train = artifacts_features.FeatureArrays(clusters, **empty)
    samples = artifacts_features.FeatureArrays(clusters[1::2], **empty)
    settings = SETTINGS.revised(num_samples=50)
    bench = judge.judge_of(references["train"], references["held_out"], settings)
    of = samples_of(tmp_path, torch.zeros(50, 1, 8, 8))
    bench = replace(bench, references=References.of(train, train, settings))
    scores = judge._feature_scores(samples, *seen(samples, judge.Scored(of, 50), bench))
    found = {score.metric: score.value for score in scores}
    assert found["precision"] > 0.8


def seen(samples, scored, bench):
    """What scores from features are made of beside these."""
    fd = judge.Frechet.of(samples.features, bench.references.features, scored, bench)
    return fd, scored, bench


def of_real(features, labels):
    empty = dict.fromkeys(("spatial", "logits", "neighbours", "neighbour_distances"))
    return artifacts_features.FeatureArrays(features, **empty | {"labels": labels})


@pytest.fixture
def real():
    """Real images of two classes far apart: 800 to train on, 200 held out."""
    labels = torch.arange(1000) % 2
    noise = torch.randn(1000, 4, generator=torch.Generator().manual_seed(0))
    features = noise + 10 * labels[:, None]
    return of_real(features[:800], labels[:800]), of_real(features[800:], labels[800:])


def gaps(tmp_path, bench, found, train, held_out):
    of = judge.Scored(samples_of(tmp_path, torch.zeros(len(found.features), 1, 8, 8)), 200)
    settings = bench.settings.revised(num_samples=200)
    against = References.of(train, held_out, settings)
    fd, *rest = seen(found, of, replace(bench, references=against, settings=settings))
    return {score.metric: score for score in judge._held_out(fd.principal, *rest)}


def test_the_gap_to_held_out_images_tells_copies(tmp_path, references, real):
    """Of fresh samples it is 0 within its error, of copied training images above."""
    train, held_out = real
    bench = judge.judge_of(references["train"], references["held_out"], SETTINGS)
    labels = torch.arange(200) % 2
    noise = torch.randn(200, 4, generator=torch.Generator().manual_seed(1))
    fresh = of_real(noise + 10 * labels[:, None], labels)
    found = gaps(tmp_path / "1", bench, fresh, train, held_out)
    assert found["fid_held_out"].value == pytest.approx(
        frechet.distance_from_features(fresh.features, held_out.features)
    )
    assert abs(found["fid_gap"].value) < 3 * found["fid_gap"].error
    near = held_out.features + 3  # samples that are as the training images, and these elsewhere
    moved = of_real(near, held_out.labels)
    apart = gaps(tmp_path / "2", bench, fresh, train, moved)["fid_gap"]
    assert apart.value > 3 * apart.error


def test_no_gap_where_training_images_are_too_few_to_draw_from(tmp_path, references, real):
    train, held_out = real
    bench = judge.judge_of(references["train"], references["held_out"], SETTINGS)
    few = of_real(train.features[:399], train.labels[:399])
    assert gaps(tmp_path, bench, held_out, few, held_out).keys() == {"fid_held_out"}


def test_floors_have_random_labels_where_samples_have_them(references):
    """Classes that are far apart make far more of chance than fixed shares do."""
    train, held_out = references["train"], references["held_out"]
    in_shares, by_chance = (
        judge.judge_of(train, held_out, SETTINGS, chosen).floors["fid"] for chosen in (True, False)
    )
    assert by_chance > 1.2 * in_shares


def test_evaluations_against_the_same_images_have_their_floors_from_each_other(
    tmp_path, few, score, monkeypatch
):
    inputs = score.inputs(tmp_path, {"one": samples_of(tmp_path / "1", few.load().test[:])})
    first = context(tmp_path / "a", SETTINGS, **inputs)
    evaluate.run(first)
    monkeypatch.setattr(judge, "_floors", lambda *given: pytest.fail("computed again"))
    again = context(tmp_path / "b", SETTINGS.revised(abscissa="nfe"), **inputs)
    again.memory = first.memory
    evaluate.run(again)
    assert digests(again.path) == digests(first.path)
    other = context(tmp_path / "c", SETTINGS.revised(neighbours=3), **inputs)
    other.memory = first.memory
    with pytest.raises(pytest.fail.Exception, match="computed again"):
        evaluate.run(other)


def test_features_of_other_samples_or_extractors_are_refused(tmp_path, few, score):
    images = few.load().test[:]
    sets = {"one": samples_of(tmp_path / "1", images)}
    inputs = score.inputs(tmp_path, sets)
    moved = inputs | {"samples": {"one": samples_of(tmp_path / "2", images, nfe=9)}}
    with pytest.raises(StageError, match="features/one holds features of other samples than one"):
        make(tmp_path / "a", evaluate.STAGE, SETTINGS, **moved)
    file = inputs["train"].path / "features.json"
    facts = json.loads(file.read_text())
    facts["extractor"]["weights_hash"] = "0" * 64
    shutil.copytree(inputs["train"].path, tmp_path / "copy")
    (tmp_path / "copy" / "features.json").write_text(json.dumps(facts))
    other = artifacts_features.FeatureSet(tmp_path / "copy", inputs["train"].manifest)
    with pytest.raises(StageError, match="another extractor than the training images"):
        make(tmp_path / "b", evaluate.STAGE, SETTINGS, **inputs | {"train": other})


def test_groups_of_sets_give_the_same_scores(tmp_path, few, score, artifact, monkeypatch):
    monkeypatch.setattr(evaluate, "SHARD_NUMBERS", 1)
    data = few.load()
    noise = torch.randn(48, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    sets = {
        "copies": samples_of(tmp_path / "a", data.train[:48], training_step=30),
        "real": samples_of(tmp_path / "b", data.test[:], training_step=20),
        "noise": samples_of(tmp_path / "c", noise, training_step=10),
    }
    sent = judge.judge_of
    # As it reaches another process.
    monkeypatch.setattr(
        evaluate, "judge_of", lambda *a, **k: pickle.loads(pickle.dumps(sent(*a, **k)))
    )
    assert digests(score(tmp_path / "s", sets).path) == digests(artifact.path)


def test_rows_and_curves_follow_the_abscissa(tmp_path, few, score, artifact):
    nodes = list(dict.fromkeys(row.node for row in artifact.load()))
    assert nodes == ["noise", "real", "copies"]
    sets = {
        f"n{nfe}": samples_of(tmp_path / str(nfe), few.load().test[:], nfe=nfe) for nfe in (9, 5)
    }
    at = context(tmp_path / "x", SETTINGS.revised(abscissa="nfe"), **score.inputs(tmp_path, sets))
    result = evaluate.run(at)
    assert [step for name, step, _ in result.curves if name == "fid"] == [5, 9]
    assert result.abscissa == "nfe"
    assert result.metrics["fid"] == [v for name, _, v in result.curves if name == "fid"][-1]


def test_trajectory_rms_is_the_distance_to_the_reference(tmp_path, few, score):
    images = few.load().test[:]
    reference = samples_of(tmp_path / "r", torch.cat([images, images]), nfe=100)
    moved = samples_of(tmp_path / "m", images + 0.3)
    found = score(tmp_path / "s", {"moved": moved}, reference=reference)
    assert found.metrics["trajectory_rms"] == pytest.approx(0.3, rel=1e-5)
    known = values(found, "moved")["trajectory_rms"]
    assert known.floor == 0
    assert known.protocol.details == "to euler, NFE 100, grid uniform_t"
    facts = {"solver": "heun", "nfe": 99, "correction": "calibrated"}
    other = samples_of(tmp_path / "h", images, **facts)
    scores = score(tmp_path / "u", {"moved": moved}, reference=other)
    to_other = values(scores, "moved")["trajectory_rms"]
    assert to_other.protocol.details.endswith("heun, NFE 99, grid uniform_t, correction calibrated")
    with pytest.raises(protocol.ProtocolError, match="details"):
        effects.difference(known, to_other)
    other = samples_of(tmp_path / "o", images, seed=1)
    with pytest.raises(StageError, match="reference differ in seed"):
        score(tmp_path / "t", {"other": other}, reference=reference)


def test_only_the_first_samples_count(tmp_path, few, score, artifact):
    images = torch.cat([few.load().test[:], torch.zeros(50, 1, 8, 8)])
    more = samples_of(tmp_path / "m", images, training_step=20)
    found = score(tmp_path / "s", {"real": more})
    assert values(found, "real") == values(artifact, "real")


def test_twice_is_the_same_bytes(tmp_path, few, score):
    sets = {"real": samples_of(tmp_path / "m", few.load().test[:])}
    one = score(tmp_path / "1", sets)
    two = score(tmp_path / "2", sets)
    assert digests(one.path) == digests(two.path)


def test_neighbours_are_left_out_where_nobody_asks_for_them(tmp_path, few, score, artifact):
    sets = {"real": samples_of(tmp_path / "m", few.load().test[:], training_step=20)}
    settings = SETTINGS.revised(neighbours=0)
    found = values(score(tmp_path / "s", sets, settings), "real")
    manifolds = {"precision", "recall", "density", "coverage"}
    assert found.keys() == METRICS - manifolds
    assert found["fid"] == values(artifact, "real")["fid"]
    at = context(tmp_path / "x", settings, **score.inputs(tmp_path / "y", sets))
    evaluate.run(at)
    assert any("evaluate.neighbours=5" in line for line in at.logged)
    slots = {"samples": ["a"], "features": ["f"], "train": "t", "held_out": "h"}
    for count, expected in ((0, set()), (5, manifolds)):
        node = Node("evaluate", evaluate.STAGE, SETTINGS.revised(neighbours=count), slots)
        assert manifolds & set(evaluate.STAGE.metrics(node)) == expected


def test_bad_sets_are_refused(tmp_path, few, score):
    with pytest.raises(StageError, match="there are no samples"):
        score(tmp_path / "0", {})
    small = samples_of(tmp_path / "m", few.load().test[:47])
    with pytest.raises(StageError, match=r"small holds 47 samples, fewer than evaluate.num_samp"):
        score(tmp_path / "1", {"small": small})


def test_what_samples_contribute_is_stored_with_what_they_were_made_from(tmp_path, few, score):
    """Same noise and labels: paired, whatever made them. Other noise, or made elsewhere: not."""
    images = few.load().test[:]
    facts = {"a": {"nfe": 3}, "b": {"nfe": 5}, "other": {"nfe": 7, "seed": 1}}
    sets = {
        name: samples_of(tmp_path / name, images + 0.01 * i, labels="reference", **more)
        for i, (name, more) in enumerate(facts.items())
    }
    sets["elsewhere"] = samples_of(tmp_path / "e", images, nfe=9)
    stored = score(tmp_path / "s", sets)
    for metric in ("fid", "kid", "memorization_ratio"):
        found = {name: values(stored, name)[metric].influence for name in sets}
        assert found["a"].samples == found["b"].samples
        assert len({one.samples for one in found.values()}) == 3
        for name in sets:
            one, error = found[name], values(stored, name)[metric].error
            assert one.psi.dtype == np.float32
            assert strata.standard_error(one.psi, one.strata) == pytest.approx(error, rel=1e-4)
    bound = values(stored, "a")["memorization_ratio"]
    assert (bound.at_most is None) == (bound.value > 0)


def test_scores_of_another_version_are_refused(tmp_path, artifact):
    folder = tmp_path / "old"
    shutil.copytree(artifact.path, folder)
    table = pyarrow.parquet.read_table(folder / scores.FILE)
    pyarrow.parquet.write_table(table.replace_schema_metadata(None), folder / scores.FILE)
    (folder / scores.INFLUENCE).unlink()
    with pytest.raises(scores.OldScoresError, match="format 2 or older, and this version reads 3"):
        scores.Scores(folder, artifact.manifest).load()
