"""The ICR during training: the alarm, its news, stopping, and all of it across interruptions."""

import shutil

import pytest
import torch

from pipeline import config
from pipeline.errors import StageError, UsageError
from pipeline.graph import Node
from stages.catalog import CATALOG, RECIPES, STAGES
from stages.methods import table
from stages.methods.alarm import alarm
from stages.papers.icr import live, scan
from stages.settings import scans
from stages.settings.losses.sit import SiTOptions
from stages.settings.scans import LiveOptions
from stages.training import run, train, worker
from tests.stages import losses
from tests.stages.conftest import TINY, trained_in
from tests.stages.context import context, digests, sealed

pytestmark = pytest.mark.filterwarnings("ignore:ICR from few")
VIEWS = {"num_images": 24, "num_views": 3, "view_seeds": (0, 1), "batch_size": 36}
LIVE = TINY.revised(live=VIEWS)


def watched(monkeypatch, curve):
    """Let the measured ICR follow `curve`, a value for each look, the same for both seeds."""
    values = iter(curve)

    def fake(subject, viewer, sigma):
        value = next(values)
        return [value, value + 1e-4]

    monkeypatch.setattr(live.measure, "icr_of_seeds", fake)


def curve_of(result):
    return [(step, value) for name, step, value in result.curves if name == "icr"]


def test_the_live_icr_is_that_of_a_scan(tmp_path, few):
    at = context(tmp_path / "live", LIVE, data=few)
    worker.train_worker(at)
    result = run.finish(at)
    assert set(result.metrics) == {"loss/velocity", "gradient_norm", "icr"}
    assert set(result.metrics) == set(STAGES["train"].metrics(Node("train/sit", train.STAGE, LIVE)))
    model = sealed(at, train.STAGE, result)
    scanned = context(tmp_path / "scan", scans.ScanSettings(**VIEWS), model=model, data=few)
    rows = sealed(scanned, scan.STAGE, scan.run(scanned)).load()
    assert [step for step, _ in curve_of(result)] == [7, 14, 18]
    assert [v for _, v in curve_of(result)] == pytest.approx([row.icr for row in rows], abs=1e-9)
    assert ("icr", *curve_of(result)[0]) in at.sent
    values = torch.tensor([row.icr_seeds for row in rows], dtype=torch.float64)
    found = alarm([7, 14, 18], values)
    assert result.tags == {"alarm" if found.confirmed else "alarm_state": found.words}


def test_watching_changes_no_weights(tmp_path, few, model):
    found = trained_in(context(tmp_path, LIVE, data=few))
    names = [name for name in digests(model.path) if name.startswith("checkpoints")]
    assert names
    assert all(digests(found.path)[name] == digests(model.path)[name] for name in names)


@pytest.mark.parametrize("interruptions", [(3,), (11, 12), (8, 16)])
def test_a_watched_training_that_is_interrupted_ends_the_same(
    tmp_path, few, monkeypatch, interruptions
):
    monkeypatch.setattr(SiTOptions, "mathematics", "tests.stages.losses:FailingLoss")
    monkeypatch.setattr(losses, "FAILS_AT", {"interrupt": None, "nan": None})
    settings = LIVE.revised(live=VIEWS | {"every": 2})
    whole = context(tmp_path / "whole", settings, data=few)
    worker.train_worker(whole)
    expected = run.finish(whole)
    for step in interruptions:
        losses.FAILS_AT["interrupt"] = step
        with pytest.raises(losses.InterruptedTrainingError):
            worker.train_worker(context(tmp_path / "cut", settings, data=few))
    losses.FAILS_AT["interrupt"] = None
    cut = context(tmp_path / "cut", settings, data=few)
    worker.train_worker(cut)
    result = run.finish(cut)
    assert (result.curves, result.tags) == (expected.curves, expected.tags)
    assert digests(cut.path) == digests(whole.path)


def test_the_alarm_is_said_once_and_taken_back(tmp_path, few, monkeypatch):
    watched(monkeypatch, [0.8, 0.74, 0.68, 0.74, 0.8, 0.6, 0.44, 0.6, 0.76])
    at = context(tmp_path, LIVE.revised(live=VIEWS | {"every": 2}), data=few)
    worker.train_worker(at)
    assert [message.partition(" (")[0] for message, _ in at.noticed] == [
        "ICR lowest at step 6",
        "the alarm of step 6 is taken back: ICR lowest at step 12",
        "ICR lowest at step 14",
    ]
    assert "confirmed at step 10: memorisation may follow" in at.noticed[0][0]
    assert all(tags["alarm"] in message for message, tags in at.noticed)
    taken_back = at.noticed[1][1]
    assert taken_back["alarm"].startswith("taken back: ICR lowest at step 12")


def test_an_alarm_that_was_never_confirmed_is_none_in_mlflow(tmp_path, few, monkeypatch):
    watched(monkeypatch, [0.8, 0.7, 0.6])
    at = context(tmp_path, LIVE, data=few)
    worker.train_worker(at)
    assert not at.noticed
    words = "ICR lowest at step 18 (0.6000), not confirmed by a rise"
    assert run.finish(at).tags == {"alarm_state": words}


def test_training_stops_when_the_alarm_stands(tmp_path, few, monkeypatch):
    options = VIEWS | {"every": 2, "stop": True, "stop_confirmations": 2}
    watched(monkeypatch, [0.8, 0.74, 0.68, 0.74, 0.8, 0.86])
    at = context(tmp_path, LIVE.revised(live=options), data=few)
    worker.train_worker(at)
    result = run.finish(at)
    found = sealed(at, train.STAGE, result)
    # The second confirmation of the minimum at 6.
    assert found.description["steps"] == [7, 12]
    assert found.load().network().training is False
    assert at.noticed[-1][0].startswith("training ends at step 12 of 18")
    assert "lowest at step 6" in result.tags["alarm"]
    # Resumed after the stop, before the artifact was made: nothing more is trained.
    again = context(tmp_path / "again", LIVE.revised(live=options), data=few)
    shutil.copytree(tmp_path / "work", again.work.path, dirs_exist_ok=True)
    worker.train_worker(again)
    run.finish(again)
    assert digests(again.path) == digests(at.path)


def test_bad_watches_are_refused_before_training(tmp_path, few):
    for changes, words in (
        ({"layer": "blocks.9"}, "no layer is named 'blocks.9'"),
        ({"num_images": 49}, "scan.num_images=49 is above the 48 held-out images"),
    ):
        with pytest.raises(StageError, match=words):
            worker.train_worker(context(tmp_path, LIVE.revised(live=VIEWS | changes), data=few))


def nodes(*overrides):
    settings = config.resolve(CATALOG, "smoke", overrides).settings
    return {node.name: node for node in RECIPES["full"](settings)}


def test_settings_turn_it_on():
    plain, on = nodes(), nodes("scan.live=true", "scan.live_every=5")
    for name in ("train/sit", "train/unet-limited"):
        assert plain[name].settings.live is None
        assert "live" not in plain[name].settings.keyed()
        assert on[name].settings.live == LiveOptions(view_seeds=(0, 1), num_images=60, every=5)
    assert "stages.papers.icr.live:Watch" in on["train/sit"].stage.sources(on["train/sit"].settings)
    assert table.WATCH not in plain["train/sit"].stage.sources(plain["train/sit"].settings)
    stopping = nodes("scan.live=true", "scan.stop=true")
    assert stopping["sample/unet-limited-last"].settings.step is None
    assert not [name for name in stopping if "-step" in name and "unet" in name]
    # Trainings that are compared at equal steps go on.
    stops = {name: n.settings.live.stop for name, n in stopping.items() if name[:6] == "train/"}
    assert [name for name, stop in stops.items() if stop] == [
        "train/unet-rich",
        "train/unet-limited",
    ]
    with pytest.raises(UsageError, match="stop=True and live=false contradict"):
        nodes("scan.stop=true")
