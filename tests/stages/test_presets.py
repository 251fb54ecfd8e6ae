"""Presets of the papers' own data, in miniature, on small files in the true formats."""

import json

import pytest

from pipeline.fingerprint import fingerprint
from pipeline.plan import Request
from pipeline.store import Store
from stages.catalog import CATALOG
from tests.inline import run_all
from tests.stages.true_files import cifar_files, mnist_files, placed

SMALL = (
    "train.network={width: 16, depth: 1, heads: 2}",
    "train.steps=4",
    "train.warmup_steps=1",
    "train.num_checkpoints=1",
    "train.log_every=2",
    "train.batch_size=10",
    "sample.nfe=3",
    "wavelet.num_samples=4",
    "wavelet.risk.num_images=10",
    "evaluate.num_samples=40",
)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder with MNIST and CIFAR-10 where `fetch` puts them."""
    monkeypatch.chdir(tmp_path)
    placed(tmp_path / "data" / "mnist", mnist_files())
    placed(tmp_path / "data" / "cifar10" / "cifar-10-batches-py", cifar_files())
    yield tmp_path
    fingerprint.cache_clear()


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "side"), [("mnist32", 32), ("mnist64", 64)])
def test_the_wavelet_papers_comparison(folder, preset, side):
    request = Request("wavelet", preset, (*SMALL, "sample.solvers=[euler]"))
    made = run_all(CATALOG, Store(str(folder / "store")), request)
    assert made["prepare"].description["shape"] == [1, side, side]
    scores = {name for name in made if name.startswith("fit/")}
    assert scores == {f"fit/wavelet-{m}" for m in ("independent-d3", "band-tied-d3", "local-d2")}
    risks = {name: made[name].load() for name in made if name.startswith("risk/")}
    assert "risk/sit" in risks
    for risk in risks.values():
        assert risk.sigmas == (1.0, 1.5, 2.0, 3.0, 4.0)
    report = (made["report"].path / "report.html").read_text()
    assert "Wavelet score: mnist" in report


@pytest.mark.slow
def test_icrs_experiment_in_miniature(folder):
    changes = (
        *("train.device=cpu", "extractor.device=cpu", "sample.device=cpu", "scan.device=cpu"),
        *(f"resources.{s}.gpus=0" for s in ("extractor", "features", "train", "sample", "scan")),
        *(f"resources.{name}.gpus=0" for name in ("calibrate", "lipschitz", "trajectory")),
        *("resources.follow.gpus=0", "resources.grids.gpus=0"),
        *("extractor.epochs=1", "extractor.min_accuracy=0", "icr.limited=20", "icr.nfe=3"),
        "icr.train={steps: 6, warmup_steps: 1, batch_size: 10, log_every: 2, precision: float32}",
        *(
            "icr.train.network={width: 8, blocks: 1}",
            "icr.num_samples=40",
            "evaluate.num_samples=40",
        ),
        *("icr.sigmas=[0.1,0.3]", "icr.components=4", "scan.num_images=20", "scan.num_views=3"),
        "scan.view_seeds=[0,1]",
    )
    request = Request("icr", "cifar10-4096", changes)
    made = run_all(CATALOG, Store(str(folder / "store")), request)
    assert made["prepare"].description["num_train"] == 100
    rows = made["scan/unet-limited"].load()
    assert rows
    assert {"scan/unet-rich", "scan/unet-limited", "scan/unet-rich-sigma"} <= made.keys()
    assert json.loads((made["report"].path / "claims.json").read_text())


@pytest.mark.slow
def test_maskaligns_comparison_on_glyphs_in_miniature(folder):
    devices = ("extractor", "teach", "train", "diagnose", "sample", "evaluate", "scan")
    changes = (
        *(f"{section}.device=cpu" for section in devices),
        *(
            f"resources.{stage}.gpus=0"
            for stage in (
                *(*devices, "features", "calibrate", "lipschitz"),
                *("trajectory", "follow", "grids"),
            )
        ),
        *("data.limit=124", "data.limit_held_out=62", "extractor.epochs=1"),
        *(
            "extractor.min_accuracy=0",
            "teach.steps=2",
            "teach.min_gain=-1",
            "teach.min_probe=0",
            "teach.width=16",
        ),
        *("teach.depth=1", "teach.heads=2", "teach.train_batch_size=16", "teach.precision=float32"),
        *("train.network={width: 32, depth: 5, heads: 2}", "train.batch_size=8", "train.steps=4"),
        *("train.warmup_steps=1", "train.log_every=2", "train.precision=float32"),
        *("train.compile=false", "train.num_checkpoints=1", "maskalign.steps=4"),
        *("maskalign.num_checkpoints=1", "diagnose.num_images=20", "diagnose.batch_size=10"),
        *("sample.nfe=3", "sample.checkpoint_nfe=3", "sample.num_samples=62"),
        *("sample.sweep_samples=62", "evaluate.num_samples=62"),
    )
    request = Request("train", "glyphs32", changes)
    made = run_all(CATALOG, Store(str(folder / "store")), request)
    facts = made["prepare"].description
    assert (facts["shape"], facts["num_train"], facts["num_test"]) == ([1, 32, 32], 124, 62)
    methods = {name.partition("/")[2] for name in made if name.startswith("evaluate/")}
    assert {"sit", "repa", "reg", "maskalign"} <= methods
    assert json.loads((made["report"].path / "claims.json").read_text(encoding="utf-8"))
