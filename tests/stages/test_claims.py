"""The claims table: effects with their errors, verdicts that follow, and what is not measured."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

from stages.claims import csflow, stein, wavelet
from stages.claims import findings as f
from stages.lipschitz import StepRow
from stages.methods.protocol import Protocol, Score
from stages.scores import Row
from stages.sections import claims as section

CLAIM = f.Claim("M", "better", "-1 %", ("full", "deep"))


def protocol(count=50):
    return Protocol(
        name="p",
        extractor="e",
        extractor_hash="h",
        resize="none",
        reference="r",
        num_reference=100,
        num_samples=count,
    )


def score(value, error=0.1, count=50, metric="fid"):
    kind = "none" if error is None else "jackknife"
    return Score(metric=metric, value=value, protocol=protocol(count), error=error, error_kind=kind)


@pytest.mark.parametrize(
    ("value", "error", "wanted", "said"),
    [
        (-3.0, 1.0, f.LOWER, f.HOLDS),
        (-2.0, 1.0, f.LOWER, f.OPEN),  # within 2 errors, the bound itself too
        (3.0, 1.0, f.LOWER, f.FAILS),
        (3.0, 1.0, f.HIGHER, f.HOLDS),
        (0.1, 1.0, f.HIGHER, f.OPEN),
    ],
)
def test_verdicts(value, error, wanted, said):
    assert f.verdict(f.Effect(value, error, "seeds", 3), wanted) == said


def test_verdicts_without_an_error():
    assert f.verdict(None, f.LOWER) == f.ABSENT
    assert f.verdict(f.Effect(-1e-9, None, f.EXACT), f.LOWER) == f.HOLDS
    assert f.verdict(f.Effect(1.2, None, f.BOUND), f.HIGHER, 1.0) == f.HOLDS
    assert f.verdict(f.Effect(-5.0, None, "none"), f.LOWER) == f.OPEN  # nobody knows the error
    with pytest.raises(ValueError, match="error None of kind 'seeds'"):
        f.Effect(1.0, None, "seeds")


def test_change_of_one_seed_carries_the_scores_own_errors():
    effect = f.change({"NFE 5": {0: (score(9.0, 0.09), score(10.0, 0.2))}})
    assert effect.value == pytest.approx(-10)
    assert effect.error == pytest.approx(90 * math.hypot(0.01, 0.02))
    assert (effect.error_kind, effect.num_seeds) == ("jackknife", 1)
    # Two conditions: the geometric mean, and its smaller error.
    two = f.change({n: {0: (score(9.0, 0.09), score(10.0, 0.2))} for n in (5, 10)})
    assert two.value == pytest.approx(-10)
    assert two.error == pytest.approx(effect.error / math.sqrt(2))


def test_change_over_seeds_is_paired():
    # Levels differ wildly between seeds; the ratios hardly do.
    pairs = {
        s: (score(level * r), score(level))
        for s, (level, r) in enumerate([(1.0, 0.9), (30.0, 0.92), (7.0, 0.88)])
    }
    effect = f.change({5: pairs})
    logs = [math.log(r) for r in (0.9, 0.92, 0.88)]
    mean = sum(logs) / 3
    spread = math.sqrt(sum((one - mean) ** 2 for one in logs) / 2 / 3)
    assert effect.value == pytest.approx(100 * (math.exp(mean) - 1))
    assert effect.error == pytest.approx(100 * math.exp(mean) * spread)
    assert (effect.error_kind, effect.num_seeds) == ("seeds", 3)


def test_only_the_same_protocol_metric_and_error_pair():
    ours = {5: {0: score(1.0), 1: score(1.0)}, 10: {0: score(1.0, None)}}
    theirs = {5: {0: score(2.0), 1: score(2.0, count=60)}, 10: {0: score(2.0)}}
    assert set(f.paired(ours, theirs)) == {5}
    assert set(f.paired(ours, theirs)[5]) == {0}
    assert f.compared(CLAIM, "w", {5: {0: score(1.0)}}, {6: {0: score(2.0)}}).verdict == f.ABSENT


def test_a_score_that_is_not_positive_gives_no_change():
    assert f.change({5: {0: (score(-0.1), score(1.0))}}) is None


# --- methods ------------------------------------------------------------------------------------


def rows(values, metric="fid", seed=0, **which):
    facts = {
        "method": "sit",
        "solver": "dpmpp2m",
        "correction": "none",
        "grid": "uniform_t",
        "training_step": 10,
        "time_density": "uniform",
    } | which
    return [
        Row(node="n", nfe=nfe, seed=seed, score=score(value, 0.001 * value, metric=metric), **facts)
        for nfe, value in values.items()
    ]


def by_text(found):
    return {finding.claim.text: finding for finding in found}


def test_csflow():
    scores = {
        "u": rows({5: 10.0, 10: 10.0}),
        "c": rows({5: 9.0, 10: 9.0}, grid="csflow a=0.4"),
        "m": rows({5: 8.0, 10: 8.0}, grid="minsnr a=0.4"),
        "t": rows({5: 9.1}, grid="csflow a=0.4", time_density="csflow a=0.4", training_step=14),
        "b": rows({5: 9.1}, grid="csflow a=0.4", training_step=14),
    }
    found = by_text(csflow.findings(scores))
    grid = found["Better FID at equal evaluations from the time grid alone"]
    assert grid.verdict == f.HOLDS
    assert grid.effect.value == pytest.approx(-10)
    assert [row[0] for row in grid.details] == ["condition", "NFE 5", "NFE 10"]
    assert found["More with fine-tuning"].verdict == f.OPEN  # against as many plain steps
    assert found["Better than MinSNR at equal a"].verdict == f.FAILS
    assert found["Better than P2 at equal a"].verdict == f.ABSENT
    assert {one.verdict for one in csflow.findings({"u": scores["u"]})} == {f.ABSENT}


def lipschitz(nfe, *maxima):
    found = [
        StepRow(step=k, level=1.0, next_level=0.5, t=0.5, mean=0.4, maximum=value)
        for k, value in enumerate(maxima, start=1)
    ]
    return SimpleNamespace(description={"nfe": nfe, "solver": "dpmpp2m"}, load=lambda: found)


def test_stein():
    scores = {
        "p": rows({3: 10.0, 5: 10.0, 10: 10.0, 20: 10.0}),
        "c": rows({3: 99.0, 5: 8.0, 10: 9.0, 20: 10.0}, correction="calibrated"),
        "l": rows({5: 30.0}, correction="literal"),
    }
    found = by_text(stein.findings(scores, [lipschitz(100, 0.9), lipschitz(6, 0.9, 1.3)]))
    better = found["Better FID at 5 to 10 evaluations for DPM-Solver++ 2M"]
    assert better.verdict == f.HOLDS
    assert better.effect.value == pytest.approx(100 * (math.sqrt(0.8 * 0.9) - 1))  # 5 and 10 alone
    fades = found["The gain fades with more evaluations for DPM-Solver++ 2M"]
    assert fades.verdict == f.HOLDS
    assert fades.effect.value == pytest.approx(20)
    literal = found["The same with the paper's literal form for DPM-Solver++ 2M"]
    assert literal.verdict == f.FAILS
    assert found["Better FID at 5 to 10 evaluations for UniPC"].verdict == f.ABSENT
    peaks = found["Singular values of large steps peak above 1"]
    assert (peaks.verdict, peaks.effect.value) == (f.HOLDS, 1.3)
    (below,) = (one for one in stein.findings({}, [lipschitz(6, 0.9)]) if one.effect)
    assert below.verdict == f.OPEN  # a lower bound below 1 shows nothing


def test_no_gain_has_nothing_to_fade():
    scores = {
        "p": rows({5: 10.0, 20: 10.0}),
        "c": rows({5: 11.0, 20: 12.0}, correction="calibrated"),
    }
    found = by_text(stein.findings(scores, []))
    fades = found["The gain fades with more evaluations for DPM-Solver++ 2M"]
    assert (fades.verdict, fades.note) == (f.OPEN, "no gain at 5 evaluations to fade")


def risk(name, kind, *by_image, dataset="digits"):
    """A denoiser with the errors of images at sigma 0.5 and 2."""
    per_image = torch.tensor(by_image, dtype=torch.float64)
    return SimpleNamespace(
        name=name,
        kind=kind,
        mse=tuple(per_image.mean(1).tolist()),
        per_image=per_image,
        dataset=dataset,
        sigmas=(0.5, 2.0),
    )


def test_wavelet():
    risks = [
        risk("independent-d3", "score", (1.5, 1.4, 1.6), (3.0, 2.9, 3.1)),
        risk("local-d1", "score", (9.0, 9.0, 9.0), (9.0, 9.0, 9.0)),
        risk("local-d2", "score", (1.0, 1.1, 0.9), (2.1, 2.0, 2.2)),
        risk("band-tied-d2", "score", (1.2, 1.3, 1.1), (2.0, 1.9, 2.1)),
        risk("sit", "network", (0.5, 0.45, 0.55), (2.0, 2.1, 1.9)),
        risk("sit-labelled", "network", (0.1, 0.1, 0.1), (0.1, 0.1, 0.1)),
    ]
    found = by_text(wavelet.findings(risks))
    reliable = found["The local-coupled family is the most reliable over sigma"]
    gaps = [math.log(1.0 / 1.2), math.log(2.1 / 2.0)]
    assert reliable.effect.value == pytest.approx(100 * sum(gaps) / 2)
    assert "local-d2 1.05, independent-d3 1.5, band-tied-d2 1.2" in reliable.note
    narrows = found["The gap to trained networks narrows at low to moderate noise"]
    assert narrows.effect.value == pytest.approx(100 * (math.log(2.0) - math.log(1.05)))
    # Image by image: shares of the mean, at 0.5 minus at 2.
    influence = [0.0, 1.1 - 0.9 - (2.0 / 2.1 - 1.05), 0.9 - 1.1 - (2.2 / 2.1 - 0.95)]
    mean = sum(influence) / 3
    spread = math.sqrt(sum((one - mean) ** 2 for one in influence) / 2 / 3)
    assert narrows.effect.error == pytest.approx(100 * spread)
    assert narrows.verdict == f.FAILS
    assert {one.verdict for one in wavelet.findings([])} == {f.ABSENT}
    assert len(list(wavelet.findings([*risks, *photographs(risks)]))) == 3


def photographs(risks):
    """The same on another data set, which has no network."""
    return [
        SimpleNamespace(**vars(one) | {"dataset": "photographs"})
        for one in risks
        if one.kind == "score"
    ]


# --- the table ----------------------------------------------------------------------------------


def test_the_table_and_its_files(tmp_path):
    found = [
        f.Finding(CLAIM),
        f.Finding(
            CLAIM, "a <b>", f.Effect(-4.0, 1.0, "seeds", 3, "%"), f.HOLDS, "n", (("x",), (1,))
        ),
    ]
    assert section.row(found[0])[3:] == ("", "", "not measured in this run (recipe full or deep)")
    assert section.row(found[1])[3:] == ("-4.0\u00a0±\u00a01.0\u00a0%", "3 seeds", "holds")
    page = section.section(found)
    assert "a &lt;b&gt;; n" in page.tables[0]
    assert "1 holds, 1 not measured" in page.text
    section.write(tmp_path, found)
    read = json.loads((tmp_path / "claims.json").read_text())
    assert read[1]["effect"]["value"] == -4.0
    assert read[0]["effect"] is None
    table = section.table(found)
    assert all(len(line) == len(table["columns"]) for line in table["data"])
    json.dumps(table)
