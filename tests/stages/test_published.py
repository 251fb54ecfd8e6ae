"""Published protocols end to end, on an archive of guided diffusion's and a made reference."""

import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import config
from pipeline.__main__ import main
from pipeline.errors import StageError, UsageError
from pipeline.graph import Graph
from pipeline.plan import Request
from pipeline.store import Store
from stages.artifacts import reading
from stages.artifacts.scores import Scores
from stages.catalog import CATALOG, RECIPES
from stages.data import references
from stages.data.readers.order import mixed_order
from stages.encoders import suites
from stages.methods import suite, tf_resize
from stages.methods.effects import difference
from stages.methods.protocol import ProtocolError
from stages.methods.strata import standard_error
from stages.scoring import against, external, handed_out, made_reference, published
from stages.scoring.published import PublishedSettings
from tests import dinov2_like, inception_like
from tests.inline import run_all
from tests.networks.test_recipes import edm
from tests.stages.context import context, digests, make

ARCHIVE = Path(__file__).parents[1] / "fixtures" / "samples_adm" / "samples_32x8x8x3.npz"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A stand-in for Inception's file, and a reference of 40 images made with it."""
    folder = tmp_path_factory.mktemp("published")
    inception_like.write(folder / "inception-2015-12-05.pt")
    pixels = np.random.RandomState(1).randint(0, 200, (40, 8, 8, 3)).astype(np.uint8)
    np.savez(folder / "images.npz", arr_0=pixels)
    made_reference.make(folder / "images.npz", folder / "reference.npz", str(folder))
    return folder


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    settings = external.ExternalSettings(path=str(ARCHIVE))
    return make(tmp_path_factory.mktemp("archive") / "o", external.STAGE, settings)


def settings_of(folder, **changes):
    own = {"protocol": "adm", "protocol_samples": 32, "weights": str(folder)}
    return PublishedSettings(**own | {"reference": str(folder / "reference.npz")} | changes)


def scores(out, archive, settings):
    made = make(out, published.STAGE, settings, samples={"external": archive})
    assert isinstance(made, Scores)
    return {row.score.metric: row.score for row in made.load()}


def inception(folder, pixels):
    """Features, maps and probabilities, by the file itself and hooks on its layers."""
    network = torch.jit.load(folder / "inception-2015-12-05.pt")
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        stem = network.layers.mixed(network.layers.conv((tf_resize.resized(x) - 128) / 128))
        maps = network.layers.mixed_6.conv(stem)[:, :7]
        return (
            network(x, return_features=True).numpy().astype(np.float64),
            maps.permute(0, 2, 3, 1).reshape(len(x), 2023).numpy().astype(np.float64),
            network(x, no_output_bias=True).numpy().astype(np.float64),
        )


def frechet(a, b):
    """Of few images: tr (C1 C2)^(1/2) is the nuclear norm of their centred features' product."""
    one, two = ((x - x.mean(0)) / (len(x) - 1) ** 0.5 for x in (a, b))
    root = np.linalg.norm(one @ two.T, "nuc")
    apart = a.mean(0) - b.mean(0)
    return apart @ apart + (one**2).sum() + (two**2).sum() - 2 * root


@pytest.fixture(scope="module")
def adm(folder, archive, tmp_path_factory):
    return scores(tmp_path_factory.mktemp("adm") / "o", archive, settings_of(folder))


def test_the_archives_scores_are_those_of_the_files_computed_apart(folder, adm):
    ours, reference = np.load(ARCHIVE)["arr_0"], np.load(folder / "images.npz")["arr_0"]
    (pools, maps, p), (pools_r, maps_r, _) = (inception(folder, x) for x in (ours, reference))
    assert adm.keys() == {"fid", "sfid", "inception_score", "precision", "recall"}
    assert adm["fid"].value == pytest.approx(frechet(pools, pools_r), rel=1e-3)
    assert adm["sfid"].value == pytest.approx(frechet(maps, maps_r), rel=1e-3)
    kl = p * (np.log(p) - np.log(p.mean(0)))
    assert adm["inception_score"].value == pytest.approx(np.exp(kl.sum(1).mean()), rel=1e-4)
    both = suite.precision_recall(torch.from_numpy(pools), torch.from_numpy(pools_r))
    expected = [one.value for one in both]
    assert (adm["precision"].value, adm["recall"].value) == pytest.approx(expected, abs=0.04)


def test_the_protocol_says_all_that_scores_depend_on(adm):
    protocol = adm["fid"].protocol
    assert protocol.name == "adm-32"
    assert protocol.crop == "none"  # the made reference's images were not cropped
    assert protocol.rules == (
        "rounding before, by whoever made the files, crop none, classes random"
    )
    assert "TensorFlow" in protocol.resize
    assert protocol.num_reference == 40
    assert "where published numbers are of 50000" in adm["fid"].caution
    assert adm["precision"].protocol.details == "k=3, against 40 images"


def test_a_map_the_wrong_way_round_is_another_sfid(folder, archive, adm, tmp_path):
    arrays = dict(np.load(folder / "reference.npz"))
    order = np.arange(2023).reshape(17, 17, 7).transpose(2, 0, 1).reshape(-1)
    arrays |= {"mu_s": arrays["mu_s"][order], "sigma_s": arrays["sigma_s"][np.ix_(order, order)]}
    np.savez(tmp_path / "wrong.npz", **arrays)
    settings = settings_of(folder, reference=str(tmp_path / "wrong.npz"))
    wrong = scores(tmp_path / "o", archive, settings)
    assert wrong["fid"].value == pytest.approx(adm["fid"].value)
    assert wrong["sfid"].value > 1.5 * adm["sfid"].value


def test_scores_of_two_protocols_are_never_subtracted(folder, archive, adm, tmp_path):
    edm = scores(tmp_path / "e", archive, settings_of(folder, protocol="edm", best_of=1))
    assert edm["fid"].value == pytest.approx(adm["fid"].value)  # one number, yet
    with pytest.raises(ProtocolError, match="measured differently"):
        difference(adm["fid"], edm["fid"])
    fid = adm["fid"]
    down = replace(fid, protocol=replace(fid.protocol, rounding="down"))
    with pytest.raises(ProtocolError, match="rounding"):
        difference(fid, down)


def test_the_least_of_three_sets(folder, archive, tmp_path):
    settings = settings_of(folder, protocol="edm", protocol_samples=10)
    least = scores(tmp_path / "3", archive, settings)["fid"]
    pixels, reference = np.load(ARCHIVE)["arr_0"], np.load(folder / "images.npz")["arr_0"]
    theirs = inception(folder, reference)[0]
    each = [frechet(inception(folder, pixels[i : i + 10])[0], theirs) for i in (0, 10, 20)]
    assert least.value == pytest.approx(min(each), rel=1e-3)
    assert least.protocol.best_of == 3
    assert "the least of 3 sets" in least.protocol.rules
    images = np.load(ARCHIVE)["arr_0"].copy()
    images[:, 0] = 0
    np.savez(tmp_path / "other.npz", arr_0=images)
    given = external.ExternalSettings(path=str(tmp_path / "other.npz"))
    made = make(tmp_path / "o", external.STAGE, given)
    other = scores(tmp_path / "5", made, settings)
    apart = difference(other["fid"], least)
    assert apart.value == other["fid"].value - least.value != 0
    with pytest.raises(StageError, match=r"takes 96 \(3 sets of .*best_of=1 takes one set"):
        scores(tmp_path / "4", archive, settings.revised(protocol_samples=32))


def test_references_that_do_not_fit_are_refused_before_work(folder, tmp_path):
    def refused(match, **changes):
        with pytest.raises(UsageError, match=match):
            list(published.STAGE.files(settings_of(folder, **changes)))

    arrays = np.load(folder / "reference.npz")
    np.savez(tmp_path / "plain.npz", mu=arrays["mu"], sigma=arrays["sigma"])
    plain = str(tmp_path / "plain.npz")
    refused("no mu_s and sigma_s", reference=plain)
    refused(r"set evaluate\.resizer=tf if", reference=plain, protocol="edm")
    refused("the distance would mean nothing", reference=plain, protocol="edm", resizer="clean")
    refused("no DINOv2 statistics", protocol="fd-dinov2")
    refused("inception needs the file", weights=str(tmp_path))
    settings = settings_of(folder, reference=plain, protocol="edm", resizer="tf")
    assert len(list(published.STAGE.files(settings))) == 2
    with pytest.raises(ValueError, match=r"set evaluate\.reference"):
        PublishedSettings(protocol="adm", protocol_samples=32)


def graph(recipe, *overrides):
    settings = config.resolve(CATALOG, "smoke", overrides).settings
    return Graph(RECIPES[recipe](settings), CATALOG.exclude_sources)


def test_a_run_that_names_a_reference_reads_no_training_pixels(folder):
    chosen = (
        "evaluate.protocol=adm",
        f"evaluate.path={ARCHIVE}",
        f"evaluate.reference={folder / 'reference.npz'}",
        f"evaluate.weights={folder}",
        "evaluate.protocol_samples=32",
    )
    nodes = graph("evaluate", *chosen)
    assert set(nodes.nodes) == {"external", "evaluate/external", "report"}
    with pytest.raises(UsageError, match=r"set evaluate\.reference"):
        graph("evaluate", "evaluate.protocol=adm", f"evaluate.path={ARCHIVE}")
    with pytest.raises(UsageError, match="only published protocols read it"):
        graph("evaluate", "evaluate.rounding=down", f"evaluate.path={ARCHIVE}")
    with pytest.raises(UsageError, match=r"evaluate\.path=.* samples, and evaluate\.protocol=adm"):
        graph("evaluate", *chosen[:-1])  # which is of 50,000


def test_the_recipe_evaluate_scores_and_reports_without_a_data_set(folder, tmp_path):
    changes = (
        *("evaluate.protocol=adm", f"evaluate.path={ARCHIVE}", f"evaluate.weights={folder}"),
        *(f"evaluate.reference={folder / 'reference.npz'}", "evaluate.protocol_samples=32"),
    )
    request = Request(recipe="evaluate", preset="smoke", overrides=changes)
    made = run_all(CATALOG, Store(str(tmp_path / "store")), request)
    page = (made["report"].path / "report.html").read_text()
    assert "Protocol <b>adm-32</b>: 32 samples against 40 of the reference file" in page
    assert "crop none, classes random" in page
    assert "not comparable with them" in page
    assert made["external"].is_rounded


# ------------------------------------------------------------------ a run's own samples

NETWORK = (
    *("networks.format=edm", "sample.nfe=3", "sample.grid=edm", "sample.block_size=20"),
    "sample.batch_size=20",
)


def published_by(folder, tmp_path, *overrides, **changes):
    """The artifacts of the recipe evaluate under a published protocol."""
    chosen = {"protocol": "adm", "weights": folder, "protocol_samples": 16}
    chosen |= {"reference": folder / "reference.npz"} | changes
    words = [f"evaluate.{name}={value}" for name, value in chosen.items()]
    request = Request(recipe="evaluate", preset="smoke", overrides=(*words, *overrides))
    return run_all(CATALOG, Store(str(tmp_path / "store")), request)


@pytest.fixture(scope="module")
def own(folder, tmp_path_factory):
    """EDM's network of the fixtures: its samples, scores and report, without a data set."""
    tmp_path = tmp_path_factory.mktemp("own")
    path = f"networks.path={edm(tmp_path / 'network', 'edm/ddpmpp')}"
    return published_by(folder, tmp_path, path, *NETWORK)


def test_a_runs_own_samples_are_drawn_rounded_and_scored_as_the_protocol_says(
    folder, own, tmp_path
):
    assert own.keys() == {"checkpoint/given", "sample/given", "evaluate/given", "report"}
    samples = own["sample/given"]
    facts = samples.description
    assert (facts["num_samples"], facts["classes"], facts["labels"]) == (16, "random", "equal")
    labels = np.load(samples.path / "labels.npy")
    assert np.bincount(labels, minlength=3).max() > 6  # not in turn
    assert labels.max() < 3
    assert samples.stored().dtype == np.uint8
    found = {row.score.metric: row.score for row in own["evaluate/given"].load()}
    assert found.keys() == {"fid", "sfid", "inception_score", "precision", "recall"}
    assert found["fid"].protocol.rules == "rounding nearest, crop none, classes random"
    page = (own["report"].path / "report.html").read_text()
    assert "Protocol <b>adm-16</b>" in page
    assert "rounding nearest, crop none, classes random" in page
    # What leaves is what was scored: the archive reads back to the same bytes and numbers.
    pixels = suite.rounded(samples.load().images, "nearest").numpy()
    handed_out.write_adm(samples, tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as out:
        assert np.array_equal(out["arr_0"].transpose(0, 3, 1, 2), pixels)
        assert np.array_equal(out["arr_1"], labels)
    handed_out.write_png(samples, tmp_path / "png")
    for place in ("out.npz", "png"):
        given = external.ExternalSettings(path=str(tmp_path / place))
        back = make(tmp_path / f"{place}-read", external.STAGE, given)
        assert np.array_equal(back.stored()[np.argsort(mixed_order(16))], pixels)
    again = scores(tmp_path / "again", back, settings_of(folder, protocol_samples=16))
    for metric, score in found.items():
        assert again[metric].value == pytest.approx(score.value, rel=1e-5)
    handed_out.write_picture(samples, tmp_path / "grid.png")
    assert Image.open(tmp_path / "grid.png").size == (534, 102)


def test_errors_of_published_scores_are_of_what_samples_contribute(own):
    for row in own["evaluate/given"].load():
        score = row.score
        assert (score.error_kind, score.influence.psi.shape) == ("influence", (16,))
        assert score.error == pytest.approx(score.influence.psi.std(ddof=1) / 4, rel=1e-5)
        assert not score.influence.strata.any()  # drawn at random: in no fixed shares
        assert score.influence.network


def test_a_network_of_latents_is_decoded_rounded_down_and_scored_by_dinov2(tmp_path, monkeypatch):
    """EDM2's distance end to end: the least of three sets, classes in turn, no data set."""
    monkeypatch.setattr(suites, "DINO_DEPTH", dinov2_like.DEPTH)
    dinov2_like.write(tmp_path / "dinov2_vitl14_pretrain.pth")
    np.savez(tmp_path / "images.npz", arr_0=np.load(ARCHIVE)["arr_0"][:12])
    words = ["reference", str(tmp_path / "images.npz"), "--protocol", "fd-dinov2"]
    assert main([*words, "--to", str(tmp_path / "own.npz"), "--weights", str(tmp_path)]) == 0
    found = references.read(tmp_path / "own.npz")
    images = torch.from_numpy(np.load(ARCHIVE)["arr_0"][:12].transpose(0, 3, 1, 2).copy())
    theirs = suites.load("dinov2-large", str(tmp_path))(images).features.double()
    assert np.allclose(found.dinov2.mean, theirs.mean(0), atol=1e-6)
    assert np.allclose(found.dinov2.cov, np.cov(theirs.T), atol=1e-6)
    assert (found.num_images, found.crop) == (12, "none")
    rng = np.random.RandomState(0)
    root = rng.normal(size=(30, 1024)) / 5
    statistics = {"mu": rng.normal(size=1024) / 9, "sigma": root.T @ root / 30}
    (tmp_path / "own.pkl").write_bytes(pickle.dumps({"fd_dinov2": statistics, "num_images": 30}))
    fixtures = ARCHIVE.parents[1]
    chosen = {"protocol": "fd-dinov2", "reference": tmp_path / "own.pkl", "protocol_samples": 10}
    made = published_by(
        tmp_path,
        tmp_path,
        f"networks.path={fixtures / 'sit/sigma_true/SiT-tiny.pt'}",
        *("networks.format=sit", "networks.num_heads=3", "sample.nfe=2", "sample.block_size=30"),
        f"latents.autoencoder={fixtures / 'diffusers/dit/vae'}",
        **chosen | {"rounding": "down", "classes": "balanced"},
    )
    nodes = {"checkpoint/given", "sample/given", "decode/given", "evaluate/given", "report"}
    assert made.keys() == nodes
    (row,) = made["evaluate/given"].load()
    assert row.score.protocol.rules == (
        "rounding down, crop unknown, classes balanced, the least of 3 sets"
    )
    labels, pixels = made["sample/given"].load().labels.numpy(), made["decode/given"].stored()
    assert pixels.shape == (30, 3, 16, 16)
    assert np.bincount(labels).tolist() == [6] * 5
    network = suites.load("dinov2-large", str(tmp_path))
    features = network(torch.from_numpy(np.array(pixels))).features.double().numpy()
    # tr (C1 C2)^(1/2) of few samples: the singular values of their centred rows times a root of C2.
    values = []
    for x in (features[:10], features[10:20], features[20:]):
        z = (x - x.mean(0)) / 3
        apart = x.mean(0) - statistics["mu"]
        common = np.linalg.norm(z @ root.T / 30**0.5, "nuc")
        values.append(apart @ apart + (z**2).sum() + np.trace(statistics["sigma"]) - 2 * common)
    assert row.score.value == pytest.approx(min(values), rel=1e-6)
    first = 10 * int(np.argmin(values))
    strata, psi = labels[first : first + 10], row.score.influence.psi
    assert row.score.error == pytest.approx(standard_error(psi, strata))
    assert row.score.error != pytest.approx(psi.std(ddof=1) / 10**0.5)


KEPT = (".json", "-fid-value.npy", "-fid-psi.npy")


def test_an_interrupted_evaluation_goes_on_and_keeps_no_features(
    folder, archive, tmp_path, monkeypatch
):
    settings = settings_of(
        folder, protocol="edm", protocol_samples=10, best_of=3, shard_size=5, batch_size=5
    )
    at = context(tmp_path, settings, samples={"a/x": archive})
    calls, real = [], against._arrays

    def arrays(span, *more):
        calls.append(span)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(span, *more)

    monkeypatch.setattr(against, "_arrays", arrays)
    with pytest.raises(KeyboardInterrupt):
        published.run(at)
    published.run(at)
    assert [span.start for span in calls] == [0, 5, 10, 15, 20, 20, 25]
    kept = {file.name for file in at.work.path.glob("a-x*")}
    names = [f"a-x~{i}-scores{end}" for i in range(3) for end in KEPT]
    assert kept == set(names)
    before = len(calls)
    published.run(at)
    assert len(calls) == before


def test_readers_are_those_asked_for_and_change_no_byte(folder, archive, tmp_path, monkeypatch):
    settings = settings_of(folder, protocol="edm", protocol_samples=10, best_of=1, batch_size=5)
    asked, in_order = [], reading.in_order
    monkeypatch.setattr(
        reading, "in_order", lambda *given: asked.append(given[-1]) or in_order(*given)
    )
    made = [
        make(tmp_path / str(n), published.STAGE, one, samples={"a/x": archive})
        for n, one in enumerate((settings, settings.revised(readers=3)))
    ]
    assert asked == [0, 3]
    assert digests(made[0].path) == digests(made[1].path)
    assert settings.keyed() == settings.revised(readers=3).keyed()


def test_samples_that_the_settings_contradict_are_refused(folder, own, tmp_path):
    for name, other in (("classes", "balanced"), ("rounding", "down")):
        told = dict(own["sample/given"].description, rounding="nearest")
        samples = SimpleNamespace(description=told, is_rounded=True)
        settings = settings_of(folder, **{name: other})
        with pytest.raises(StageError, match=rf"takes {name} {other}, and the samples' is"):
            published.protocol_of(settings, references.read(settings.reference), samples)


def test_recipes_under_a_published_protocol(folder):
    chosen = ("evaluate.protocol=edm", "evaluate.protocol_samples=20", f"evaluate.weights={folder}")
    chosen += (f"evaluate.reference={folder / 'reference.npz'}",)
    for recipe in ("full", "train", "stein", "csflow", "icr"):
        nodes = graph(recipe, *chosen)
        assert not [n for n in nodes.nodes if n.startswith(("extractor", "features"))]
        scored = [node for node in nodes if node.name.startswith("evaluate/")]
        assert {node.stage.name for node in scored} == {"published"}
        for node in scored:
            for name in (*node.slot("samples"), *node.slot("reference")):
                settings = nodes[name].settings
                found = (settings.num_samples, settings.classes, settings.labels)
                assert found == (60, "random", "equal")  # the least of three sets of 20
                # Rounded where nothing but the protocol reads them.
                alone = node.slot("reference") == () and recipe == "train"
                assert settings.kept == "nearest" or not alone
            for name in node.slot("reference"):
                swept = (*node.slot("samples"), name)
                assert {nodes[one].settings.kept for one in swept} == {"float32"}
    assert "prepare" in nodes.nodes  # trainings read it
    with pytest.raises(UsageError, match="this recipe scores no samples"):
        graph("wavelet", *chosen)
    with pytest.raises(UsageError, match=r"leave sample\.classes unset, or set evaluate\.classes="):
        graph("stein", *chosen, "sample.classes=balanced")
    with pytest.raises(UsageError, match=r"set evaluate\.reference"):
        graph("full", chosen[0])


def test_few_steps_of_a_network_given_read_no_training_pixels(folder, tmp_path):
    network = edm(tmp_path / "network", "edm/ddpmpp")
    chosen = ("evaluate.protocol=adm", f"evaluate.reference={folder / 'reference.npz'}")
    chosen += (f"evaluate.weights={folder}", f"networks.path={network}", "networks.format=edm")
    chosen += ("data.dataset=npz", "data.path=nowhere.npz", "stein.solvers=[dpmpp2m, churn]")
    nodes = graph("stein", *chosen, "stein.corrections=[none]")
    stages = {node.stage.name for node in nodes}
    assert "prepare" not in stages
    assert {"checkpoint", "sample", "published", "lipschitz", "report"} <= stages
    assert not {"extractor", "features", "evaluate"} & stages
    assert nodes["evaluate/given-dpmpp2m"].slot("reference")
    corrected = graph("stein", *chosen, "stein.corrections=[none, calibrated]")
    assert "prepare" in corrected.nodes  # calibrated on images of the data


SDE = ("sample.checkpoint_solver=sde", "sample.checkpoint_nfe=250")
CHURN = ("sample.checkpoint_solver=churn", "sample.checkpoint_nfe=511")
ADM = ("evaluate.protocol=adm", "evaluate.reference=VIRTUAL_imagenet256_labeled.npz")
EDM = ("evaluate.protocol=edm", "evaluate.reference=any.npz", "evaluate.resizer=tf")
REPA = ("evaluate.rounding=down", "networks.path=last.pt", "networks.format=repa")
INTERVAL = ("sample.guidance=1.8", "sample.guidance_interval=[0,0.7]")
ONE = ("evaluate.best_of=1", "evaluate.classes=balanced")


@pytest.mark.parametrize(
    ("preset", "chosen", "expected"),
    [
        ("sit-imagenet256", (*ADM, *SDE), ("sde", 250, 50_000, "random", "nearest")),
        (
            "sit-imagenet256",
            (*ADM, *SDE, *REPA, *INTERVAL, ONE[1]),
            ("sde", 250, 50_000, "balanced", "down"),
        ),
        ("edm-cifar10", EDM, ("heun", 35, 150_000, "random", "nearest")),
        ("edm-cifar10", (*EDM, *CHURN), ("churn", 511, 150_000, "random", "nearest")),
        (
            "edm2-imagenet64",
            ("evaluate.protocol=fd-dinov2", "evaluate.reference=img64.pkl"),
            ("heun", 63, 150_000, "random", "nearest"),
        ),
        ("jit-imagenet256", (*EDM, *ONE), ("heun", 99, 50_000, "balanced", "nearest")),
    ],
)
def test_the_settings_of_published_tables_are_taken(preset, chosen, expected):
    settings = config.resolve(CATALOG, preset, chosen).settings
    nodes = {node.name: node for node in RECIPES["evaluate"](settings)}
    assert not {"prepare", "encode", "extractor"} & nodes.keys()
    made, scored = (nodes[name].settings for name in ("sample/given", "evaluate/given"))
    found = (made.solver, made.nfe, made.num_samples, made.classes, scored.stated("rounding"))
    assert found == expected
    if "decode/given" in nodes:
        assert nodes["decode/given"].settings.rounding == expected[-1]


# ------------------------------------------------------------------ the reference that is made


def test_a_made_reference_is_of_all_images_and_reads_as_adms(folder):
    found = references.read(folder / "reference.npz")
    pixels = np.load(folder / "images.npz")["arr_0"]
    pools, maps, _ = inception(folder, pixels)
    assert found.kind == "adm"
    assert np.allclose(found.inception.mean, pools.mean(0), atol=1e-4)
    assert np.allclose(found.inception.cov, np.cov(pools, rowvar=False), atol=1e-4)
    assert np.allclose(found.spatial.mean, maps.mean(0), atol=1e-3)
    kept = found.images.array.reshape(40, -1)
    assert sorted(map(tuple, kept)) == sorted(map(tuple, pixels.reshape(40, -1)))


def test_a_reference_of_a_folder_is_cropped_as_asked(folder, tmp_path, monkeypatch):
    pixels = np.random.RandomState(2).randint(0, 256, (12, 30, 20, 3)).astype(np.uint8)
    (tmp_path / "images").mkdir()
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "images" / f"{i:02}.png")
    to = tmp_path / "made.npz"
    arguments = ["reference", str(tmp_path / "images"), "--to", str(to), "--size", "8"]
    monkeypatch.setattr(made_reference, "KEPT", 5)
    assert main([*arguments, "--weights", str(folder)]) == 0
    found = references.read(to)
    assert (found.crop, found.num_images, found.images.shape) == ("adm", 12, (5, 8, 8, 3))
    assert main([*arguments, "--weights", str(folder)]) == 2  # it is there already


# ------------------------------------------------------------------ samples leave


def test_an_exported_archive_reads_back_bit_for_bit(archive, tmp_path):
    assert handed_out.write_adm(archive, tmp_path / "out.npz") == 32
    with np.load(tmp_path / "out.npz") as out, np.load(ARCHIVE) as original:
        assert np.array_equal(out["arr_0"], original["arr_0"])
        assert out.files == ["arr_0"]  # who made them knows their classes, the archive's reader not
    settings = external.ExternalSettings(path=str(tmp_path / "out.npz"))
    again = make(tmp_path / "again", external.STAGE, settings)
    assert np.array_equal(again.stored(), archive.stored())
    assert handed_out.write_png(archive, tmp_path / "png") == 32
    first = np.asarray(Image.open(tmp_path / "png" / "000000.png"))
    assert np.array_equal(first, np.load(ARCHIVE)["arr_0"][0])
    settings = external.ExternalSettings(path=str(tmp_path / "png"))
    assert np.array_equal(make(tmp_path / "p", external.STAGE, settings).stored(), archive.stored())
    assert handed_out.write_picture(archive, tmp_path / "grid.png") == 32


def test_own_samples_are_rounded_and_have_their_labels(tmp_path, monkeypatch):
    monkeypatch.setattr(handed_out, "BLOCK", 3)
    images = np.random.RandomState(0).uniform(-1.2, 1.2, (7, 1, 4, 4)).astype(np.float32)
    own = tmp_path / "own"
    own.mkdir()
    np.save(own / "samples.npy", images)
    np.save(own / "labels.npy", np.arange(7))
    samples = SimpleNamespace(path=own, stored=lambda: np.load(own / "samples.npy"))
    for rule in ("nearest", "down"):
        handed_out.write_adm(samples, tmp_path / f"{rule}.npz", rule)
        with np.load(tmp_path / f"{rule}.npz") as out:
            assert out["arr_0"].shape == (7, 4, 4, 3)
            assert out["arr_1"].tolist() == list(range(7))
            expected = suite.rounded(torch.from_numpy(images), rule).numpy()
            assert np.array_equal(out["arr_0"][..., 2], expected[:, 0])
