"""The report's score sections: protocols apart, kinds of errors said, neighbours as they are."""

import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

from stages.artifacts import scores
from stages.artifacts.features import FeatureArrays
from stages.data.readers.order import mixed_order
from stages.methods.protocol import Influence, Protocol, Score
from stages.report import extractor as extractor_section
from stages.report import neighbours
from stages.report import scores as score_section
from stages.scoring import external
from stages.scoring import features as scoring_features
from stages.scoring.extractor import caution_of
from tests.stages.context import make

FACTS = {
    **dict.fromkeys(scores.WHICH, "x"),
    **{"nfe": 5, "training_step": 10, "seed": 0},
}


def protocol(count=100, **changes):
    return Protocol(
        **{
            "name": f"digits-embedded-{count}",
            "extractor": "embedded",
            "extractor_hash": "0" * 64,
            "resize": "none",
            "reference": "digits training images",
            "num_reference": 500,
            "num_samples": count,
        }
        | changes
    )


def row(
    value, *, metric="fid", kind="jackknife", seeds=1, count=100, caution="", details="", **which
):
    more = {name: which.pop(name) for name in ("error", "at_most", "influence") if name in which}
    found = Score(
        **{
            "metric": metric,
            "value": value,
            "protocol": protocol(count, details=details),
            "error": 0.5,
            "error_kind": kind,
            "num_seeds": seeds,
            "floor": 1.25,
            "caution": caution,
        }
        | more
    )
    return scores.row_of(which.pop("node", "sample/a"), FACTS | which, found)


def test_a_long_table_is_folded_and_names_its_curves():
    few = {f"evaluate/c{n}": [row(3.0)] for n in range(score_section.UNFOLDED)}
    tables = score_section.overview(few).tables
    assert not any("the last sets" in table for table in tables)
    tables = score_section.overview(few | {"evaluate/more": [row(4.0)]}).tables
    assert any("<summary>the last sets of 31 curves</summary>" in table for table in tables)
    assert any("<td>more</td>" in table for table in tables)


def test_two_protocols_are_never_on_one_axis():
    curves = {
        "evaluate/a": [row(3.0, nfe=5), row(2.0, nfe=10)],
        "evaluate/b": [row(30.0, nfe=5, count=50), row(20.0, nfe=10, count=50)],
    }
    figures = score_section.plots("fid-over-nfe", curves, "fid", "nfe", "NFE")
    assert [figure.name for figure in figures] == ["fid-over-nfe", "fid-over-nfe-2"]
    for figure, own, count in zip(figures, "ab", (100, 50), strict=True):
        assert {line[0] for line in figure.rows[1:]} == {own}
        assert f"digits-embedded-{count}, {count} samples a point" in figure.caption
    tables = "".join(score_section.overview(curves).tables)
    assert tables.count("<p>Protocol") == 2


def test_the_best_of_each_score_is_marked_and_what_may_be_as_good():
    curves = {
        "evaluate/worse": [row(9.0), row(0.4, metric="recall")],
        "evaluate/near": [row(3.5), row(1.1, metric="recall")],
        "evaluate/best": [row(3.0), row(0.9, metric="recall")],
    }
    section = score_section.overview(curves)
    assert "<td class=best>3.00<span class=error>\u00a0±\u00a00.50</span></td>" in section.tables[1]
    assert "<td class=close>3.50" in section.tables[1]
    assert "<td class=best>1.10" in section.tables[1]
    assert "<td>9.00" in section.tables[1]
    assert "<td>FID (lower is better)</td><td>3.00" in section.first
    assert "</td><td>best</td><td class=number>1.25</td>" in section.first
    assert "<td>recall (higher is better)</td><td>1.10" in section.first
    alike = {"evaluate/a": [row(3.0)], "evaluate/b": [row(3.0)]}
    assert "class=best" not in "".join(score_section.overview(alike).tables)
    assert score_section.overview(alike).first == ""


def looks(*rows):
    """How each row's score looks among the last sets of as many curves."""
    curves = {f"evaluate/c{place}": [one] for place, one in enumerate(rows)}
    table = score_section.overview(curves).tables[1]
    lines = [line.partition("</tr>")[0] for line in table.split("<tr>")[2 : 2 + len(rows)]]
    return [re.search("class=(best|close)|$", line).group(1) or "" for line in lines]


def test_what_is_close_to_the_best_is_tested_as_any_difference():
    # 2.5 errors: beyond the normal's interval, within Student's of three seeds each (df 4: 2.78).
    seeds = {"kind": "seeds", "seeds": 3, "error": 1.0}
    far = 3.0 + 2.5 * 2**0.5
    assert looks(row(3.0, **seeds), row(far, **seeds)) == ["best", "close"]
    assert looks(row(3.0, error=1.0), row(far, error=1.0)) == ["best", ""]
    # No copies among 60 may be a share of up to 5 %.
    none = {"metric": "memorization_ratio", "error": 0.0, "at_most": 0.05}
    few = {"metric": "memorization_ratio", "error": 0.01}
    assert looks(row(0.0, **none), row(0.04, **few)) == ["best", "close"]
    # What sets from the same noise share cancels.
    noise = np.random.default_rng(0).normal(0, 30, 400)
    paired = [
        row(value, kind="influence", error=1.5, influence=influence(noise + shift))
        for value, shift in ((3.0, 0), (3.5, np.linspace(-1, 1, 400)))
    ]
    assert looks(*paired) == ["best", ""]
    apart = [
        row(value, kind="influence", error=1.5, influence=influence(noise, f"noise {value}"))
        for value in (3.0, 3.5)
    ]
    assert looks(*apart) == ["best", "close"]
    # Without an error nothing is known to be close.
    unknown = {"kind": "none", "error": None}
    assert looks(row(3.0, **unknown), row(3.1, **unknown)) == ["best", ""]


def influence(psi, samples="noise"):
    return Influence(np.asarray(psi, np.float32), np.zeros(len(psi), np.int64), samples)


def test_only_what_was_measured_alike_is_ranked():
    def copies(value, among):
        return row(value, metric="memorization_ratio", details=f"among {among}", error=0.001)

    assert looks(copies(0.0, 1500), copies(0.9, 64)) == ["", ""]
    curves = [copies(0.1, 1500), copies(0.2, 1500), copies(0.9, 64), copies(0.7, 64)]
    assert looks(*curves) == ["best", "", "", "best"]
    first = score_section.overview({f"evaluate/c{n}": [one] for n, one in enumerate(curves)}).first
    assert "(lower is better), among 1500</td><td>0.1000" in first
    assert "(lower is better), among 64</td><td>0.7000" in first


@pytest.mark.parametrize("metric", ["precision", "recall", "coverage"])
def test_above_what_real_images_score_is_not_the_best(metric):
    low, high, above = (row(value, metric=metric, error=0.1) for value in (0.1, 1.2, 1.3))
    assert looks(high, low) == ["best", ""]
    assert looks(above, high) == ["", ""]  # real images score 1.25


def test_density_is_not_ranked():
    assert looks(row(1.2, metric="density"), row(0.1, metric="density")) == ["", ""]


def test_kinds_of_errors_are_said_and_not_mixed():
    one = {"evaluate/a": [row(3.0)], "evaluate/b": [row(4.0)]}
    (figure,) = score_section.plots("x", one, "fid", "nfe", "NFE")
    assert figure.caption.endswith("one standard error (jackknife).")
    mixed = {"evaluate/a": [row(3.0)], "evaluate/b": [row(4.0, kind="seeds", seeds=3)]}
    (figure,) = score_section.plots("x", mixed, "fid", "nfe", "NFE")
    assert {line[0] for line in figure.rows[1:]} == {"a (jackknife)", "b (3 seeds)"}
    assert "the kind that the legend names" in figure.caption
    text = "".join(score_section.overview(mixed).tables)
    assert "<th>kind of error</th>" in text
    assert ">3 seeds<" in text
    assert ">jackknife<" in text


def test_the_seeds_of_a_training_are_one_curve_with_the_error_over_them():
    curves = {
        "evaluate/few": [row(3.0, training_step=2), row(2.0, training_step=4)],
        "evaluate/few-seed1": [row(5.0, training_step=2), row(4.0, training_step=4)],
        "evaluate/all": [row(1.0, training_step=2), row(0.5, training_step=4)],
        "evaluate/all-seed1": [row(1.0, training_step=2)],
    }
    (figure,) = score_section.plots("x", curves, "fid", "training_step", "training step")
    assert figure.rows[1:] == [
        ("few", 2, 4.0, pytest.approx(1.0)),
        ("few", 4, 3.0, pytest.approx(1.0)),
        ("all", 2, 1.0, 0.0),
    ]
    assert figure.caption.endswith("one standard error (2 seeds).")


def test_seeds_that_were_scored_at_no_common_step_are_not_averaged():
    first, other = ([row(value, training_step=step)] for value, step in ((3.0, 10), (5.0, 20)))
    at, found = score_section._over_seeds([first, other], "training_step")
    assert (at, [score.value for score in found]) == ([10], [3.0])
    at, found = score_section._over_seeds([first, first], "training_step")
    assert (at, [score.num_seeds for score in found]) == ([10], [2])


def test_cautions_and_floors_are_shown():
    text = "".join(
        score_section.overview({"evaluate/a": [row(3.0, caution="too few images")]}).tables
    )
    assert "<p class='failed'>fid: too few images.</p>" in text
    assert "real images" in text
    assert "1.25" in text


@pytest.fixture
def inputs(tmp_path, few, extractor):
    """A run's inputs whose samples are two held-out images and a copy of training image 7."""
    data = few.load()
    pixels = np.concatenate([data.test.raw([0, 1]), data.train.raw([7])]).repeat(20, axis=0)
    levels = np.rint(pixels[:, 0] * (255 / 16)).astype(np.uint8)
    np.savez(tmp_path / "set.npz", levels)
    samples = make(
        tmp_path / "s",
        external.STAGE,
        external.ExternalSettings(path=str(tmp_path / "set.npz")),
        data=few,
    )
    features = make(
        tmp_path / "f",
        scoring_features.STAGE,
        scoring_features.FeatureSettings(),
        data=few,
        extractor=extractor,
        samples=samples,
    )

    class Evaluated:
        settings = {"abscissa": "training_step", "memorization_threshold": 0.2}  # noqa: RUF012

    return {
        "data": few,
        "samples": {"external": samples},
        "features": {"features/external": features},
        "scores": {"evaluate/external": Evaluated},
    }


def test_copies_are_shown_beside_their_training_image(inputs, few):
    curves = {"evaluate/external": [row(1.0, node="external")]}
    (section,) = neighbours.sections(inputs, curves)
    (picture,) = section.pictures
    assert "33.3 % of 60 samples" in picture.caption
    sheet = np.asarray(Image.open(io.BytesIO(picture.png)))
    pixel = 48 // 8  # of a grid; one pixel parts the images
    assert sheet.shape == ((4 * 9 - 1) * pixel, (12 * 9 - 1) * pixel)

    def shown(row, column):
        top, left = 9 * pixel * row, 9 * pixel * column
        return sheet[top : top + 8 * pixel : pixel, left : left + 8 * pixel : pixel].astype(int)

    copied = np.rint(few.load().train.raw([7])[0, 0].numpy() * (255 / 16))
    for column in range(neighbours.FIRST, neighbours.FIRST + neighbours.NEAREST):
        assert np.abs(shown(0, column) - copied).max() <= 1
        assert np.abs(shown(1, column) - copied).max() <= 1
        assert np.abs(shown(2, column) - copied).max() > 50
    given = [*few.load().test.raw([0, 1])[:, 0], few.load().train.raw([7])[0, 0]]
    first = np.rint(given[mixed_order(60)[0] // 20].numpy() * (255 / 16))
    assert np.abs(shown(0, 0) - first).max() <= 1
    assert neighbours.sections(inputs | {"features": {}}, curves) == []


def test_what_was_left_out_is_said_once(inputs):
    class Unsought:
        description = {"left_out": "neighbours are left out: a <long> search"}  # noqa: RUF012

        def load(self, count):
            return FeatureArrays(*[torch.zeros(count, 2), *[None] * 4])

    curves = {"evaluate/external": [row(1.0, node="external")]}
    given = inputs | {"features": {"features/external": Unsought(), "features/b": Unsought()}}
    (section,) = neighbours.sections(given, curves)
    assert section.pictures == ()
    assert section.text == "<p>neighbours are left out: a &lt;long&gt; search.</p>"
    text = score_section.overview(curves, "no <precision>: evaluate.neighbours=5").text
    assert text.endswith("<p>no &lt;precision&gt;: evaluate.neighbours=5.</p>")
    assert "evaluate.neighbours" not in score_section.overview(curves).text


def test_the_extractors_validation_is_shown(extractor):
    (section,) = extractor_section.sections({"extractor": extractor})
    assert len(section.figures) == 1
    assert "share of classes left out" in section.tables[0]
    assert ("Caution" in section.text) == (caution_of(extractor.description) != "")
    assert extractor_section.sections({}) == []


def test_labels_of_a_number_line_do_not_lie_over_each_other():
    steps = [25, 50, 100, 141, 200, 283, 400, 566, 800]
    assert score_section.apart(steps) == [25, 100, 200, 283, 400, 566, 800]
    assert score_section.apart(steps, logarithmic=True) == steps
    assert score_section.apart([3]) == [3]
