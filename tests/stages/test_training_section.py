"""The report's section on training: numbers of its sources, seeds together, computed verdicts."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from stages.artifacts.diagnosis import Measured
from stages.artifacts.scores import Row
from stages.methods.protocol import Protocol, Score
from stages.pages.made import Made
from stages.papers.maskalign import section as maskalign_section
from stages.report import timed
from stages.report import training as section


@dataclass
class Manifest:
    timings: dict


@dataclass
class Trained:
    rows: list
    seconds: list
    method: str = "reg"
    settings: dict = field(default_factory=lambda: {"batch_size": 64})

    @property
    def manifest(self):
        rates = [(step, 100 / value) for step, value in self.seconds]
        waiting = [(step, value / 10) for step, value in self.seconds]
        times = {"step_seconds": self.seconds, "tokens_per_second": rates}
        return Manifest(times | {"data_waiting_share": waiting})

    @property
    def description(self):
        return {"method": self.method, "network": "sit", "steps": [4], "parameters": 7}

    def curves(self):
        return self.rows


@dataclass
class Scored:
    rows: list
    settings: dict = field(default_factory=lambda: {"abscissa": "training_step"})

    def load(self, every_seed=False):
        return self.rows


def score(value: float) -> Score:
    protocol = Protocol(
        name="p", extractor="e", extractor_hash="h", resize="r", reference="d",
        num_reference=9, num_samples=9,
    )  # fmt: skip
    return Score(metric="fid", value=value, protocol=protocol, error=None, error_kind="none")


def scored(method: str, values: dict[int, tuple[float, ...]]) -> Scored:
    """values: by training step, one for every seed."""
    return Scored(
        [
            Row("n", method, "dpmpp2m", "none", "g", 20, step, "uniform", seed, score(value))
            for step, of_seeds in values.items()
            for seed, value in enumerate(of_seeds)
        ]
    )


def loss_rows(first: float) -> list:
    return [("loss/velocity", 2, first), ("loss/velocity", 4, first / 2), ("gradient_norm", 4, 1)]


TRAINING = {
    "train/reg": Trained(loss_rows(1.0), [(2, 0.1), (4, 0.3)]),
    "train/reg-seed1": Trained(loss_rows(3.0), [(2, 0.2), (4, 0.2)]),
    "train/maskalign": Trained(loss_rows(4.0), [(2, 0.1), (4, 0.1)], "maskalign"),
}
SCORES = {
    "evaluate/maskalign": scored("maskalign", {2: (4.0, 5.0, 6.0), 4: (2.0, 3.0, 4.0)}),
    "evaluate/reg": scored("reg", {2: (5.0, 6.1, 6.9), 4: (2.0, 3.5, 3.5)}),
    "evaluate/maskalign-mix0": scored("maskalign", {2: (3.0, 3.9, 5.1)}),
}


def test_seeds_stand_as_one_curve_with_their_error():
    (found,) = section.sections({"training": TRAINING, "scores": {}}, {})
    figures = {figure.name: figure for figure in found.figures}
    assert list(figures) == ["loss-velocity"]
    curves = {row[:2]: row[2:] for row in figures["loss-velocity"].rows[1:]}
    assert curves["reg", 2] == (2.0, pytest.approx(1.0))  # 1 and 3
    assert curves["maskalign", 4] == (2.0, None)


def test_speeds_of_seeds_stand_together_beside_those_of_reg():
    figure = timed.speeds(TRAINING)
    times = {row[:2]: row[2] for row in figure.rows[1:]}
    assert times["reg", 4] == pytest.approx(250)  # milliseconds
    assert "milliseconds a step" in figure.svg
    lines = {line[0]: line[2:] for line in timed.costs(TRAINING)[1:]}
    assert lines["maskalign"] == pytest.approx((100, 1000, 0.5, 0.01))  # .1 s over REG's .2 s
    assert lines["reg"][2] == 1


def test_verdicts_at_equal_steps_are_of_paired_seeds():
    (found,) = maskalign_section.report(Made({"scores": SCORES}))
    heading, *lines = maskalign_section.against_ancestors(SCORES)
    assert heading[:2] == ("compared with", "training step")
    by_step = {line[1]: line for line in lines}
    assert {line[0] for line in lines} == {"reg"}
    assert by_step[2][-2:] == (3, "holds")  # -1, -1.1, -.9
    assert by_step[4][-2:] == (3, "inconclusive")  # 0, -.5, .5
    # Without mixing it is better here: what takes a part away is compared at its own last step.
    _, *ablated = maskalign_section.ablation(SCORES)
    assert [(line[0], line[1], line[-1]) for line in ablated] == [
        ("maskalign-mix0", 2, "does not hold"),
        ("reg", 2, "holds"),
    ]
    assert sum("<h3>" in part for part in found.tables) == 2


@dataclass
class Diagnosed:
    found: list
    manifest = SimpleNamespace(stage="diagnose")

    def load(self):
        return self.found


def measured(step: int, gap: float, ratio: float | None) -> Measured:
    quarter = [[0.1, 0.2], [0.3, 0.4]]
    return Measured(step, quarter, quarter, ratio, 0.5, 3.0, 0.4, -0.5, -0.5 - gap, gap, 0.01)


def test_alignment_is_shown_with_heatmaps_of_the_last_checkpoint():
    diagnoses = {
        "diagnose/maskalign": Diagnosed([measured(2, 0.1, 4.0), measured(4, 0.2, None)]),
        "diagnose/reg": Diagnosed([measured(2, 0.3, 2.0), measured(4, 0.4, 6.0)]),
        "diagnose/reg-seed1": Diagnosed([measured(2, 0.5, 2.0), measured(4, 0.4, 6.0)]),
    }
    (found,) = maskalign_section.report(Made({"papers": diagnoses}))
    gap, ratio, variation = found.figures
    assert [figure.name for figure in found.figures] == [s[0] for s in maskalign_section.SUMMARIES]
    values = {row[:2]: row[2:] for row in gap.rows[1:]}
    assert values["maskalign", 4] == (0.2, 0.01)
    assert values["reg", 2] == (pytest.approx(0.4), pytest.approx(0.1))
    assert ("maskalign", 2, 4.0) in {row[:3] for row in ratio.rows[1:]}
    assert ("maskalign", 4) not in {row[:2] for row in ratio.rows[1:]}  # infinite
    assert len(variation.rows) == 5
    assert [panel.name for panel in found.panels] == [
        "heatmap-maskalign-full", "heatmap-maskalign-masked", "heatmap-reg-full",
    ]  # fmt: skip
    assert "max/min infinite" in found.panels[0].caption
    assert found.panels[2].rows[1] == (0, 0.1, 0.2)
    assert "patch column" in found.panels[0].svg


def test_a_ratio_that_is_infinite_everywhere_has_no_empty_figure():
    diagnoses = {"diagnose/reg": Diagnosed([measured(2, 0.1, None), measured(4, 0.2, None)])}
    (found,) = maskalign_section.report(Made({"papers": diagnoses}))
    assert [figure.name for figure in found.figures] == ["stability-gap", "alignment-variation"]


def test_without_sources_there_is_no_section():
    assert list(section.sections({}, {})) == []
