"""Training a U-Net, and scans of the ICR over checkpoints and noise levels."""

import json

import numpy as np
import pytest
import torch

from pipeline.errors import StageError
from pipeline.graph import Node
from stages.catalog import STAGES
from stages.methods import alarm, grids, solvers
from stages.methods.draws import Draws
from stages.methods.icr import icr
from stages.methods.memorization import ratio
from stages.methods.path import EDMDenoiser
from stages.methods.views import PADDINGS, STRENGTHS, Views
from stages.nets.taps import POOLINGS, Tap
from stages.papers.icr import measure, scan
from stages.papers.wavelet import risk
from stages.sampling import sample
from stages.scoring import evaluate, features
from stages.settings import scans
from stages.settings.networks import NetworkSettings
from stages.settings.scans import ScannedOptions, ViewOptions
from stages.training import checkpoint, train, worker
from stages.training.checkpoint import CheckpointSettings
from tests.stages.conftest import trained_in
from tests.stages.context import context, digests, make, sealed

UNET = train.TrainSettings(
    method="edm",
    network=NetworkSettings(kind="unet", width=8),
    conditional=False,
    label_dropout=0.0,
    limit=20,
    batch_size=20,
    steps=12,
    warmup_steps=2,
    checkpoint_steps=(4, 8),
    log_every=4,
    save_every=5,
    ema=0.9,
)
pytestmark = pytest.mark.filterwarnings("ignore:ICR from few")
SCAN = scans.ScanSettings(num_images=24, num_views=3, view_seeds=(0, 1), batch_size=30)


@pytest.fixture(scope="module")
def unet(tmp_path_factory, few):
    """A tiny U-Net trained on 20 images, at steps 4, 8 and 12."""
    return trained_in(context(tmp_path_factory.mktemp("unet"), UNET, data=few))


@pytest.fixture(scope="module")
def rows(tmp_path_factory, unet, few):
    return make(tmp_path_factory.mktemp("scan"), scan.STAGE, SCAN, model=unet, data=few)


# --- training


def test_a_unet_is_trained_on_a_few_images_without_classes(tmp_path, few, unet):
    facts = unet.description
    assert (facts["network"], facts["method"], facts["num_images"]) == ("unet", "edm", 20)
    assert facts["config"]["num_classes"] == 0
    assert set(unet.metrics) == set(STAGES["train"].metrics(Node("train/x", train.STAGE, UNET)))
    names = {name for name, _, _ in unet.curves()} or set(unet.metrics)
    assert "loss/denoising" in names
    assert "images_per_second" in unet.manifest.timings
    other = trained_in(context(tmp_path, UNET.revised(limit=21), data=few))
    assert digests(other.path) != digests(unet.path)
    assert UNET.keyed() != UNET.revised(limit=21).keyed()
    with pytest.raises(StageError, match=r"limit=97 is above the 96 training images"):
        trained_in(context(tmp_path / "more", UNET.revised(limit=97), data=few))
    limited = UNET.revised(limit=97, limit_setting="icr.limited")
    with pytest.raises(StageError, match=r"icr.limited=97 is above the 96 training images"):
        trained_in(context(tmp_path / "more", limited, data=few))


def test_a_unet_sees_the_limited_images_alone(tmp_path, few, unet):
    data = few.load()
    first = data.train.first(20)
    assert torch.equal(first[:], data.train[:20])
    assert torch.equal(first.labels, data.train.labels[:20])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"network": NetworkSettings()}, "method=edm and network.kind=sit .* network.kind=unet"),
        ({"method": "sit"}, "method=sit and network.kind=unet .* network.kind=sit"),
        ({"density": {"kind": "logit_normal"}}, "density.kind=logit_normal and method=edm"),
        ({"network": {"kind": "unet", "depth": 3}}, "depth=3 and kind=unet .* only sit reads it"),
        ({"network": {"blocks": 2}}, "blocks=2 and kind=sit .* only unet reads it"),
        ({"network": {"kind": "unte"}}, "unknown network 'unte'; did you mean 'unet'"),
    ],
)
def test_contradictions_are_refused_in_words(changes, words):
    with pytest.raises(ValueError, match=words):
        UNET.revised(**changes)


# --- sampling


def test_samples_of_a_unet_are_those_of_its_denoiser(tmp_path, few, unet):
    settings = sample.SampleSettings(grid="edm", nfe=3, num_samples=8, block_size=8, step=8)
    found = make(tmp_path, sample.STAGE, settings, model=unet)
    network = unet.load().network(8)
    denoiser = EDMDenoiser(network.inner, network.sigma_data, dtype=torch.float32)
    levels = grids.edm(3, s_max=settings.s_max, s_min=settings.s_min)
    noise = Draws(0, torch.arange(8), -1).noise((1, 8, 8)).double()
    expected = solvers.solve(denoiser, levels[0] * noise, levels, "dpmpp2m").float()
    assert torch.equal(found.load().images, expected)
    assert not found.load().labels.any()
    assert found.description["num_training_images"] == 20


def test_guidance_of_a_network_without_classes_is_refused(tmp_path, unet):
    settings = sample.SampleSettings(nfe=2, num_samples=4, block_size=4, guidance=2.0)
    with pytest.raises(StageError, match=r"guidance=2: .* without classes"):
        make(tmp_path, sample.STAGE, settings, model=unet)


def test_copies_are_sought_among_the_images_trained_on(tmp_path, few, unet, extractor, references):
    settings = sample.SampleSettings(grid="edm", nfe=2, num_samples=40, block_size=40)
    found = make(tmp_path / "sample", sample.STAGE, settings, model=unet)
    # Copies of training image 0: it was trained on; of 50: it was not.
    images = few.load().train[:]
    copies = torch.cat([images[[0]], images[[50]]]).repeat(20, 1, 1, 1).numpy()
    np.save(found.path / "samples.npy", copies)
    inputs = {"data": few, "extractor": extractor, "samples": found}
    seen = make(tmp_path / "features", features.STAGE, features.FeatureSettings(), **inputs)
    assert seen.load().neighbours.max() < 20
    scores = make(
        tmp_path / "scores",
        evaluate.STAGE,
        evaluate.EvaluateSettings(num_samples=40),
        samples={"sample/x": found},
        features={"features/x": seen},
        **references,
    )
    (row,) = [r for r in scores.load() if r.score.metric == "memorization_ratio"]
    assert row.score.value == ratio(torch.from_numpy(copies), images[:20]) == 0.5
    assert "among 20 training images" in row.score.protocol.details


SCANNED = {"num_images": 24, "num_views": 3, "view_seeds": (0, 1)}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layer": "inner.middle"}, "scan.layer=inner.middle: no layer is named .* inner.mid"),
        ({"layer": "inner.noise_embedding"}, "scan.layer=.*: pooling 'tokens' takes"),
        ({"pooling": "tokens"}, "scan.layer=unset: pooling 'tokens' takes"),
        ({"num_images": 49}, "scan.num_images=49 is above the 48 held-out images"),
        ({"num_images": 3}, "scan.num_images=3 and scan.num_views=3 give .* 6 degrees of freedom"),
        ({"components": 17}, "icr.components=17 is above the 16 features of layer inner.mid"),
    ],
)
def test_a_scan_that_cannot_be_made_costs_no_training(tmp_path, few, unet, changes, words):
    settings = UNET.revised(scanned=[SCANNED, SCANNED | changes])
    at = context(tmp_path, settings, data=few)
    with pytest.raises(StageError, match=words):
        worker.train_worker(at)
    assert not at.sent
    assert not list(at.work.path.iterdir())
    given = CheckpointSettings(path=str(unet.path), scanned=settings.scanned)
    with pytest.raises(StageError, match=words):
        make(tmp_path / "given", checkpoint.STAGE, given, data=few)


def test_few_images_do_for_few_components(tmp_path, few, unet):
    """What is checked is what the scan's own mathematics refuses: d + 1 degrees of freedom."""
    for components, num_images in ((4, 2), (4, 3), (None, 8), (None, 9)):
        options = {"num_images": num_images, "components": components}
        scanned = ScannedOptions(**SCANNED | options)
        loaded, data = unet.load(), few.load()
        enough = num_images * 2 > (components or 16) + 1
        found = SCAN.revised(sigmas=(0.2,), **options)
        if enough:
            measure.check([scanned], loaded, loaded.network(), data)
            make(tmp_path / str(num_images), scan.STAGE, found, model=unet, data=few)
            continue
        with pytest.raises(ValueError, match="ICR needs more than d \\+ 1"):
            measure.check([scanned], loaded, loaded.network(), data)
        with pytest.raises(StageError, match="degrees of freedom"):
            make(tmp_path / str(num_images), scan.STAGE, found, model=unet, data=few)


def test_checking_scans_changes_no_training(tmp_path, few, unet):
    found = trained_in(context(tmp_path, UNET.revised(scanned=[SCANNED]), data=few))
    assert digests(found.path) == digests(unet.path)


# --- scans


def test_a_row_is_the_icr_of_the_layer_under_the_views(few, unet, rows):
    assert [row.step for row in rows.load()] == [4, 8, 12]
    row = rows.load()[1]
    data, network = few.load(), unet.load().network(8)
    sigma, values = 0.2 * data.std, []
    for seed in (0, 1):
        views = Views("strong", 3, seed)(data.test[:24], range(24), sigma)
        with Tap(network, "inner.mid", "spatial") as tap, torch.no_grad():
            network(views.flatten(0, 1), sigma)
        values.append(icr(tap.features.unflatten(0, (24, 3))))
    assert row.icr_seeds == pytest.approx([v.value for v in values], abs=1e-5)
    assert row.icr == pytest.approx(sum(v.value for v in values) / 2, abs=1e-5)
    assert row.naive == pytest.approx(sum(v.naive_value for v in values) / 2, abs=1e-5)
    traces = [v.traces for v in values]
    assert row.trace_noise == pytest.approx(sum(t.noise for t in traces) / 2, rel=1e-4)
    assert 0 < row.probe_accuracy <= 1
    assert len(row.probe_right) == len(data.test)
    assert row.probe_right.count("1") / len(row.probe_right) == pytest.approx(row.probe_accuracy)


def test_the_held_out_error_is_that_of_the_risk_of_the_network(tmp_path, few, unet, rows):
    settings = risk.RiskSettings(
        denoiser="network", sigmas=(0.2,), num_images=24, num_draws=1, map_levels=1, step=8
    )
    found = make(tmp_path, risk.STAGE, settings, data=few, model=unet).load()
    row = rows.load()[1]
    assert row.denoising_mse == pytest.approx(found.mse[0], rel=1e-5)
    assert row.denoising_mse_error == pytest.approx(found.standard_error[0], rel=1e-4)


def test_what_is_said_of_a_scan(rows):
    facts, metrics = rows.description, rows.metrics
    lowest = min(rows.load(), key=lambda row: row.icr)
    assert metrics["icr_minimum_step"] == facts["alarm"]["step"] == lowest.step
    assert metrics["icr_fall"] == pytest.approx(rows.load()[0].icr - rows.load()[-1].icr)
    assert rows.manifest.abscissa == "training_step"
    assert facts["alarm"]["standard_error"] == max(
        facts["alarm"][name] for name in ("view_error", "jitter")
    )
    assert facts["alarm"]["view_error"] == pytest.approx(2**0.5 * facts["icr_error"])
    result = json.loads((rows.path / "scan.json").read_text())
    assert [row["fid"] for row in result["rows"]] == [None] * 3


def test_only_what_is_new_is_scanned(tmp_path, few, unet, rows, monkeypatch):
    scanned = []
    plain = scan.scan_item

    def counting(item, *common):
        scanned.append(item.step)
        return plain(item, *common)

    monkeypatch.setattr(scan, "scan_item", counting)
    first = context(tmp_path / "first", SCAN.revised(steps=(4, 8)), model=unet, data=few)
    scan.run(first)
    # The same training, longer: weights of the same steps are the same.
    longer = UNET.revised(steps=16, checkpoint_steps=(4, 8, 12))
    model = trained_in(context(tmp_path / "longer", longer, data=few))
    second = context(tmp_path / "second", SCAN, model=model, data=few)
    second.memory = first.memory
    again = sealed(second, scan.STAGE, scan.run(second))
    assert scanned == [4, 8, 12, 16]
    assert again.load()[:3] == rows.load()
    other = context(tmp_path / "other", SCAN.revised(steps=(4,), sigma=0.3), model=unet, data=few)
    other.memory = first.memory
    scan.run(other)
    assert scanned == [4, 8, 12, 16, 4]


def test_a_scan_that_was_killed_goes_on(tmp_path, few, unet, rows, monkeypatch):
    plain, scanned = scan.scan_item, []

    def killed(item, *common):
        scanned.append(item.step)
        if scanned == [4, 8]:
            raise KeyboardInterrupt
        return plain(item, *common)

    monkeypatch.setattr(scan, "scan_item", killed)
    first = context(tmp_path / "first", SCAN, model=unet, data=few)
    with pytest.raises(KeyboardInterrupt):
        scan.run(first)
    second = context(tmp_path / "second", SCAN, model=unet, data=few)
    second.memory = first.memory
    made = sealed(second, scan.STAGE, scan.run(second))
    assert scanned == [4, 8, 8, 12]
    assert digests(made.path) == digests(rows.path)


def test_a_continued_training_is_scanned_under_all_its_steps(tmp_path, few, unet):
    """Steps of a row, of samples and of scores count those of the start too."""
    settings = UNET.revised(steps=6, checkpoint_steps=(), num_checkpoints=1, save_every=50)
    at = context(tmp_path / "more", settings, data=few, start=unet)
    model = trained_in(at)
    found = make(tmp_path / "scan", scan.STAGE, SCAN, model=model, data=few)
    assert [row.step for row in found.load()] == [18]


def test_a_scan_over_noise_levels(tmp_path, few, unet):
    settings = SCAN.revised(sigmas=(0.1, 0.2, 1.0), components=4)
    found = make(tmp_path, scan.STAGE, settings, model=unet, data=few)
    assert [(row.step, row.sigma) for row in found.load()] == [(12, 0.1), (12, 0.2), (12, 1.0)]
    assert found.manifest.abscissa == "sigma_1000"
    assert found.description["alarm"] is None
    assert all(row.retained < 1 for row in found.load())
    assert "probe_accuracy_sigma" in found.metrics


def test_any_layer_of_a_sit_too(tmp_path, few, model):
    settings = SCAN.revised(layer="blocks.0", steps=(14,), probe=False)
    found = make(tmp_path, scan.STAGE, settings, model=model, data=few).load()
    data, network = few.load(), model.load().network(14)
    y = Views("strong", 3, 0)(data.test[:24], range(24), 0.2 * data.std).flatten(0, 1)
    sigma = 0.2 * data.std
    with Tap(network, "blocks.0", "tokens") as tap, torch.no_grad():
        network(y / (1 + sigma), torch.full((len(y),), sigma / (1 + sigma)))
    expected = icr(tap.features.unflatten(0, (24, 3)))
    assert found[0].icr_seeds[0] == pytest.approx(expected.value, abs=1e-4)
    assert found[0].probe_accuracy is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layer": "inner.middle"}, r"no layer is named 'inner.middle'; did you mean inner.mid"),
        ({"layer": "inner.noise_embedding"}, r"pooling 'tokens' takes"),
        ({"steps": (5,)}, r"no checkpoint of step 5 was kept \(there are 4, 8, 12\)"),
        ({"num_images": 49}, r"num_images=49 is above the 48 held-out images"),
        ({"num_images": 3}, r"f = n \(V - 1\) = 6 degrees of freedom"),
        ({"strength": "none", "sigma": 1e-12}, "do not vary between the views"),
    ],
)
def test_bad_scans_are_refused_in_words(tmp_path, few, unet, changes, words):
    with pytest.raises(StageError, match=words):
        make(tmp_path, scan.STAGE, SCAN.revised(**changes), model=unet, data=few)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_views": 1}, "greater than or equal to 2"),
        ({"view_seeds": (0,)}, "at least 2"),
        ({"view_seeds": (0, 0)}, "repeats a seed"),
        ({"sigmas": (0.2, 0.1)}, "ascend"),
        ({"sigmas": (0.1, 0.2), "steps": (4, 8)}, "sigmas=.* and steps=.* contradict"),
    ],
)
def test_bad_settings_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        SCAN.revised(**changes)


def test_guards_are_kept_with_their_row(tmp_path, few, unet):
    settings = SCAN.revised(num_images=12, steps=(4,))
    (row,) = make(tmp_path, scan.STAGE, settings, model=unet, data=few).load()
    assert any("few degrees of freedom" in guard for guard in row.guards)


def test_a_guard_that_acted_for_several_seeds_is_said_once(few, monkeypatch):
    """Its numbers differ between view seeds, what it says does not."""

    def noise(subject, viewer, seed, sigma):  # features without content: the ratio is clipped at 0
        return torch.randn(30, 4, 3, generator=torch.Generator().manual_seed(seed))

    seeds = [s for s in range(20) if "clipped" in str(icr(noise(0, 0, s, 0)).guards)][:3]
    options = ViewOptions(num_views=4, view_seeds=seeds)
    monkeypatch.setattr(measure, "features", noise)
    row = measure.measure(None, measure.Viewer(few.load().test[:30], options), 0.1)
    (guard,) = [guard for guard in row["guards"] if "clipped" in guard]
    (first,) = [guard for guard in icr(noise(0, 0, seeds[0], 0)).guards if "clipped" in guard]
    assert guard == f"{first} (and alike for 2 more seeds)"


def test_only_a_confirmed_alarm_is_one_in_mlflow(tmp_path, few, unet, monkeypatch):
    monkeypatch.setattr(alarm, "FIRST_LOOK", 3)
    monkeypatch.setattr(alarm, "jitter", lambda curve: curve[..., 0] * 0)
    found = {}
    for name, last in (("flat", 0.70), ("risen", 0.80)):
        values = dict(zip((4, 8, 12), (0.75, 0.70, last), strict=True))
        plain = scan.scan_item

        def measured(item, *common, plain=plain, values=values):
            seeds = [values[item.step], values[item.step] + 1e-4]
            return plain(item, *common) | {"icr_seeds": seeds}

        with monkeypatch.context() as patched:
            patched.setattr(scan, "scan_item", measured)
            found[name] = scan.run(context(tmp_path / name, SCAN, model=unet, data=few)).tags
    assert found["flat"] == {
        "alarm_state": "ICR lowest at step 8 (0.7000), not confirmed by a rise"
    }
    assert list(found["risen"]) == ["alarm"]
    assert "confirmed at step 12" in found["risen"]["alarm"]


def test_settings_name_what_the_mathematics_knows():
    def choices(name):
        return set(ViewOptions.model_json_schema()["properties"][name]["enum"])

    assert choices("strength") == set(STRENGTHS)
    assert choices("padding") == set(PADDINGS)
    assert choices("pooling") == set(POOLINGS)


def test_views_are_made_once(few):
    images = few.load().test[:10]
    viewer = measure.Viewer(images, ViewOptions(num_views=2, view_seeds=(0, 1), batch_size=6))
    first = list(viewer(0, 0.1))
    assert [part.shape[:2] for part in first] == [(3, 2), (3, 2), (3, 2), (1, 2)]
    assert all(a is b for a, b in zip(first, viewer(0, 0.1), strict=True))
    whole = Views("strong", 2, 0)(images, range(10), 0.1)
    assert torch.equal(torch.cat(first), whole)


def test_the_images_viewed_are_held_out_or_those_trained_on(few):
    data = few.load()
    held_out = ViewOptions(num_images=20)
    assert torch.equal(measure.images_of(data, held_out), data.test[:20])
    training = held_out.revised(images="training")
    assert torch.equal(measure.images_of(data, training), data.train[:20])
    assert torch.equal(measure.images_of(data, training, seen=7), data.train[:7])
    with pytest.raises(ValueError, match=r"num_images=9999 is above the \d+ held-out images"):
        measure.images_of(data, held_out.revised(num_images=9999))
