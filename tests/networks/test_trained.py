"""EDM's and EDM2's U-Nets and JiT trained by EDM's loss, compiled, scanned and sampled."""

import pytest
import torch

from pipeline.plan import Request
from pipeline.store import Store
from stages.artifacts.network import build_network
from stages.catalog import CATALOG
from stages.settings.networks import NetworkSettings, config_of
from tests.inline import run_all

KINDS = {
    "song": ["width=16"],
    "dhariwal": ["width=16", "multipliers=[1,4]", "attention=[4]"],
    "edm2": ["width=16", "multipliers=[1,4]", "attention=[4]"],
    "jit": ["width=32", "depth=3", "heads=2", "bottleneck=8", "context=4"],
}


def network_of(kind):
    words = dict(word.split("=") for word in KINDS[kind])
    given = {k: [int(n) for n in v.strip("[]").split(",")] for k, v in words.items()}
    given = {k: v if k in ("multipliers", "attention") else v[0] for k, v in given.items()}
    config = config_of(NetworkSettings(kind=kind, **given), (3, 8, 8), 4)
    return build_network(kind, config, seed=0)


@pytest.mark.parametrize("kind", KINDS)
def test_dropped_labels_are_left_out(kind):
    network = network_of(kind).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        y, sigma = torch.randn(2, 3, 8, 8), torch.tensor([0.5, 2.0])
        labels, drop = torch.tensor([1, 3]), torch.tensor([True, False])
        found = network(y, sigma, labels, drop=drop)
        without, plain = network(y, sigma), network(y, sigma, labels)
    # Rows of a batch may be summed in another order.
    torch.testing.assert_close(found[0], without[0])
    torch.testing.assert_close(found[1], plain[1])
    assert (found[0] - plain[0]).abs().max() > 1e-3
    assert (network.channels, network.image_size, network.num_classes) == (3, (8, 8), 4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_they_compute_the_same(kind):
    network = network_of(kind).eval()
    y, sigma, labels = torch.randn(2, 3, 8, 8), torch.tensor([0.5, 2.0]), torch.tensor([1, 3])
    with torch.no_grad():
        expected = network(y, sigma, labels)
        network.compile(backend="eager", fullgraph=True)  # as one graph, without breaks
        torch.testing.assert_close(network(y, sigma, labels), expected)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "method"), [*((kind, "edm") for kind in KINDS), ("jit", "jit")])
def test_trained_by_edms_loss_and_jits(tmp_path, kind, method):
    overrides = [
        *(f"train.network.{word}" for word in (f"kind={kind}", *KINDS[kind])),
        *(f"train.method={method}", "train.steps=60", "train.num_checkpoints=1", "data.limit=200"),
        *("train.lr=0.003", "extractor.epochs=1", "extractor.min_accuracy=0", "scan.live=true"),
        *("sample.num_samples=60", "train.batch_size=16", "scan.num_images=60"),
        *("scan.num_views=8", "sample.grid=edm"),
        *(f"{paper}.in_full=false" for paper in ("maskalign", "csflow", "icr", "wavelet", "stein")),
    ]
    overrides += [] if kind == "jit" else ["train.network.depth=4"]  # the default: unread
    only = [f"sample/{method}-step60"]
    made = run_all(CATALOG, Store(tmp_path / "store"), Request("full", "smoke", overrides, only))
    trained, term = made[f"train/{method}"], "velocity" if method == "jit" else "denoising"
    losses = [v for name, _, v in trained.curves() if name == f"loss/{term}"]
    assert losses[-1] < 0.8 * losses[0]
    assert any(name == "icr" for name, _, _ in trained.curves())
    assert made[only[0]].load().images.isfinite().all()
    assert trained.description["time_density"] == (
        "logit_normal a=1" if method == "jit" else "uniform"
    )
