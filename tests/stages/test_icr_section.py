"""The report's section on the ICR: every number it says is one that was measured."""

from types import SimpleNamespace

import pytest

from stages.artifacts.scan import ScanRow
from stages.pages.curves import grouped
from stages.papers.icr import claims as icr_claims
from stages.papers.icr import section as icr_section


def row(step, value, sigma=0.2, **more):
    common = {
        "icr_seeds": (value, value),
        "naive": value - 0.1,
        "mean_snr": 1 / value - 1,
        "trace_signal": 1.0,
        "trace_noise": 2.0,
        "trace_between": 1.5,
        "alignment": 0.1,
        "uniformity": -1.0,
        "rankme": 9.0,
        "denoising_mse": 0.02,
        "denoising_mse_error": 0.001,
        "denoising_mse_train": 0.01,
    }
    return ScanRow(step=step, sigma=sigma, icr=value, **common | more)


def scan(rows, abscissa="training_step", **more):
    lowest = min(rows, key=lambda found: found.icr)
    facts = {
        "abscissa": abscissa,
        "model": {"num_images": 64, "seed": 0},
        "dataset": "digits",
        "std": 0.75,
        "strength": "strong",
        "num_views": 6,
        "view_seeds": [0, 1],
        "images": "held_out",
        "num_images": 256,
        "components": None,
        "icr_error": 0.002,
        "memorized": 0.05,
        "memorization_step": 400,
        "alarm": {
            "step": lowest.step,
            "rise": rows[-1].icr - lowest.icr,
            "confirmed_step": 200,
            "false_alarms": 0.004,
        },
    }
    return SimpleNamespace(description=facts | more, load=lambda: list(rows))


FIRST = scan([row(50, 0.78), row(100, 0.75), row(400, 0.79, memorization_ratio=0.3, fid=9.0)])
SECOND = scan([row(50, 0.80), row(100, 0.74), row(400, 0.80, memorization_ratio=0.5, fid=7.0)])
SIGMA = scan(
    [row(400, 0.7, 0.1, probe_accuracy=0.9), row(400, 0.6, 0.4, probe_accuracy=0.8)],
    "sigma_1000",
    components=16,
    alarm=None,
)
SCANS = {
    "scan/unet-limited": FIRST,
    "scan/unet-limited-seed1": SECOND,
    "scan/unet-limited-sigma": SIGMA,
}


def test_nothing_for_runs_without_scans():
    assert icr_section.sections({}) == []


def test_scans_of_several_training_seeds_are_one_curve():
    first, second = (icr_section.Group(*of) for of in grouped(SCANS).items())
    assert (first.label, len(first.scans)) == ("unet-limited, 64 images", 2)
    xs, means, errors = first.icr()
    assert xs == [50, 100, 400]
    assert means == pytest.approx([0.79, 0.745, 0.795])
    assert errors == pytest.approx([0.01, 0.005, 0.005])
    assert first.curve(lambda found: found.fid) == ([400], [8.0], [pytest.approx(1.0)])
    # A single training: the error over view seeds, pooled.
    assert second.icr() == ([0.1, 0.4], [0.7, 0.6], [0.002, 0.002])


def test_claims_are_means_and_spreads_over_training_seeds():
    (section,) = icr_section.sections({"scans": SCANS})
    claims, windows = section.tables
    assert "final minus minimum" in claims
    for said in ("0.0500", "0.0141", "0.0400", "0.0400, 0.0600", "yes, yes", "400, 400"):
        assert said in claims, said
    assert "0.6000" in windows
    assert "0.900" in windows
    assert [figure.name for figure in section.figures] == ["icr-steps", "icr-further", "icr-sigma"]
    assert "training step" in section.figures[0].svg
    assert "standard deviations of the training pixels" in section.figures[2].svg
    quantities = {line[0] for line in section.figures[0].rows[1:]}
    assert quantities == {
        "ICR",
        *(label.replace("\n", " ") for label in icr_section.BESIDE.values()),
    }


def test_whether_the_warning_came_first():
    assert icr_claims.warned_before(FIRST.description) is True
    late = scan([row(50, 0.8), row(400, 0.7)], memorization_step=50)
    assert icr_claims.warned_before(late.description) is False
    assert (
        icr_claims.warned_before(scan([row(50, 0.8)], memorization_step=None).description) is None
    )


def test_guards_are_told():
    guarded = scan([row(50, 0.8, guards=("few degrees of freedom: f < 4 d",)), row(90, 0.7)])
    (section,) = icr_section.sections({"scans": {"scan/x": guarded}})
    assert "few degrees of freedom: f &lt; 4 d" in section.text
