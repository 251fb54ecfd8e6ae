"""The page of runs side by side: differences under one protocol, refusals, panels and samples."""

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest

from pipeline.compare import Changed, Comparison
from stages.artifacts.diagnosis import Measured
from stages.artifacts.scores import Row
from stages.methods.protocol import Protocol, Score
from stages.papers.maskalign import diagnose
from stages.report import compare_page, compare_scores


def protocol(**changes):
    fields = {
        "name": "p",
        "extractor": "embedded",
        "extractor_hash": "a" * 64,
        "resize": "none",
        "reference": "digits training images",
        "num_reference": 100,
        "num_samples": 50,
    }
    return Protocol(**fields | changes)


def row(metric, value, error=0.5, nfe=5, **changes):
    kind = "none" if error is None else "jackknife"
    score = Score(
        metric=metric, value=value, protocol=protocol(**changes), error=error, error_kind=kind
    )
    return Row("sample/x", "sit", "euler", "none", "uniform_t", nfe, 10, "uniform", 0, score)


class Node:
    """A node with an artifact that holds rows, curves or a grid."""

    def __init__(self, stage, key, **fields):
        self.data = {"stage": stage, "key": key, "state": "done", "seconds": 1.0}
        fields = {"curves": dict, "metrics": {}, "abscissa": None} | fields
        self.manifest = SimpleNamespace(
            key=key,
            curves=fields["curves"](),
            metrics=fields["metrics"],
            abscissa=fields["abscissa"],
        )
        self.artifact = SimpleNamespace(**{"manifest": self.manifest} | fields)


class Run(dict):
    """What the page reads of a run."""

    def __init__(self, name, nodes, method="sit"):
        super().__init__(nodes)
        self.id, self.state = name, "finished"
        self.settings = {"train": {"method": method}}
        nodes = {key: node.data for key, node in nodes.items()}
        self.data = {
            "id": name,
            "recipe": "full",
            "preset": "smoke",
            "created": "2026-06-01T00:00:00",
            "git": {},
            "command": "run <full>",
            "nodes": nodes,
        }


def scores(key, *rows):
    return Node("evaluate", key, settings={"abscissa": "nfe"}, load=lambda: list(rows))


def lines(*runs):
    return {(line.name, line.metric): line for line in compare_scores.lines(runs)}


def test_differences_under_one_protocol():
    a = Run("a", {"evaluate/sit-euler": scores("1", row("fid", 5.0), row("fid", 4.0, nfe=9))})
    b = Run("b", {"evaluate/sit-euler": scores("2", row("fid", 5.5), row("fid", 2.0, nfe=9))})
    found = lines(a, b)
    assert found["sit-euler, NFE 5", "fid"].differences == ("+0.50\u00a0±\u00a00.71, within noise",)
    assert found["sit-euler, NFE 9", "fid"].differences == ("-2.00\u00a0±\u00a00.71, lower",)
    assert [line.headline for line in found.values()] == [False, True]
    assert "50 samples against 100 digits training images" in found["sit-euler, NFE 5", "fid"].group


def test_scores_of_different_protocols_are_not_subtracted():
    a = Run("a", {"evaluate/sit-euler": scores("1", row("fid", 5.0))})
    b = Run("b", {"evaluate/sit-euler": scores("2", row("fid", 1.0, extractor_hash="b" * 64))})
    c = Run("c", {"evaluate/sit-euler": scores("3", row("fid", 5.0))})
    (line,) = lines(a, b, c).values()
    assert line.values == (
        "5.00\u00a0±\u00a00.50",
        "1.00\u00a0±\u00a00.50",
        "5.00\u00a0±\u00a00.50",
    )
    assert line.differences == ("refused", "equal")
    assert "not subtracted: extractor_hash 'aaaaaaaaaaaa' against 'bbbbbbbbbbbb'" in line.group


def test_scores_of_a_published_protocol_are_not_subtracted_from_others():
    def published(key, *rows):
        return Node("published", key, settings={"abscissa": "nfe"}, load=lambda: list(rows))

    clean = Run("a", {"evaluate/sit-euler": scores("1", row("fid", 5.0))})
    own = {"name": "adm-50", "rounding": "nearest", "classes": "random"}
    adm = Run("b", {"evaluate/sit-euler": published("2", row("fid", 1.0, **own))})
    down = Run("c", {"evaluate/sit-euler": published("3", row("fid", 2.0, **own, crop="adm"))})
    same = Run("d", {"evaluate/sit-euler": published("4", row("fid", 3.0, **own))})
    (line,) = lines(clean, adm).values()
    assert line.differences == ("refused",)
    assert "not subtracted: name 'p' against 'adm-50'" in line.group
    assert next(iter(lines(adm, down).values())).differences == ("refused",)
    assert next(iter(lines(adm, same).values())).differences[0].startswith("+2.00")


def test_runs_of_other_methods_are_aligned():
    a = Run("a", {"evaluate/sit-euler": scores("1", row("fid", 5.0))}, "sit")
    b = Run("b", {"evaluate/repa-euler": scores("2", row("fid", 5.0, error=None))}, "repa")
    (line,) = lines(a, b).values()
    assert line.name == "METHOD-euler, NFE 5"
    assert line.differences == ("refused",)  # an error of a kind and none
    assert compare_scores.aligned([a, a])[0] == {"evaluate/sit-euler": "evaluate/sit-euler"}


def curve(key, values):
    rows = [("loss/velocity", step, value) for step, value in enumerate(values, start=1)]
    rows += [("secret", 1, 1.0)]
    return Node("train", key, curves=lambda: rows, abscissa="training_step")


def grid(key, tmp_path, seed):
    (tmp_path / key).mkdir()
    (tmp_path / key / "grid.png").write_bytes(key.encode())
    facts = {"seed": seed, "training_step": 10, "nfe": 5, "solver": "euler"}
    return Node("sample", key, path=tmp_path / key, description=facts)


def comparing(*runs):
    measured = tuple(compare_scores.lines(runs))
    return Comparison(runs, (), (), measured, ())


def test_the_page(tmp_path):
    a = Run(
        "a",
        {
            "train/sit": curve("1", [3.0, 2.0]),
            "sample/sit-step10": grid("2", tmp_path, 0),
            "sample/sit-equal": grid("same", tmp_path, 0),
            "evaluate/sit-euler": scores("3", row("fid", 5.0)),
        },
    )
    b = Run(
        "b",
        {
            "train/sit": curve("11", [3.0, 1.0]),
            "sample/sit-step10": grid("12", tmp_path, 1),
            "sample/sit-equal": a["sample/sit-equal"],
            "evaluate/sit-euler": scores("13", row("fid", 1.0, extractor_hash="b" * 64)),
        },
    )
    text = compare_page.compared(comparing(a, b))
    assert "run &lt;full&gt;" in text
    assert "No setting differs" in text
    assert "loss/velocity train/sit" in text
    assert "secret" not in text
    assert "B, training step 10, euler, 5 evaluations, seed 1: other noise" in text
    assert "sample/sit-equal" not in text
    # Each protocol has a panel of its own, so no line crosses from one to the other.
    assert "fid sit-euler; protocol p, extractor aaaaaaaaaaaa" in text
    assert "fid sit-euler; protocol p, extractor bbbbbbbbbbbb" in text
    assert "http" not in text.replace("http://www.w3.org", "")


def test_the_page_opens_on_settings_scores_and_the_last_samples(tmp_path):
    def made(name, first):
        nodes = {f"train/m{n}": curve(f"{name}{n}", [3.0, first]) for n in range(5)}
        nodes |= {f"sample/m-step{n}": grid(f"{name}s{n}", tmp_path, 0) for n in (10, 20)}
        nodes["evaluate/m"] = scores(f"{name}e", row("fid", first))
        return Run(name, nodes)

    changed = (Changed("train.lr", ("0.1", "0.2")),)
    of = replace(comparing(made("a", 1.0), made("b", 2.0)), settings=changed)
    text = compare_page.compared(of)
    seen = re.sub(r"<details.*?</details>", "", text, flags=re.DOTALL)
    assert "<td>train.lr</td><td>0.1</td><td>0.2</td>" in seen
    assert "<td>fid</td>" in seen
    assert ("<h3>sample/m-step20</h3>" in seen, "<h3>sample/m-step10</h3>" in seen) == (True, False)
    before, found, _ = text.partition("<summary>more: 2 figures")
    assert found
    shown = [f"loss/velocity train/m{n} " in before for n in range(5)]
    assert shown == [True, True, True, False, False]
    assert "the installed package" in seen


def test_panels_say_against_which_images_scores_were_measured():
    a, b = (
        Run(
            k, {"evaluate/x": scores(k, row("fid", 5.0, reference=f"npz training images {k * 12}"))}
        )
        for k in "cd"
    )
    text = compare_page.compared(comparing(a, b))
    for k in "cd":
        assert f"extractor aaaaaaaaaaaa, npz training images {k * 12}" in text
    assert "measured under different protocols" in text


def test_pictures_beyond_the_budget_are_left_out_and_said(tmp_path, monkeypatch):
    monkeypatch.setattr(compare_page, "PICTURE_BYTES", 5)
    a = Run("a", {"sample/x": grid("22", tmp_path, 0), "sample/y": grid("44", tmp_path, 0)})
    b = Run("b", {"sample/x": grid("33", tmp_path, 0), "sample/y": grid("55", tmp_path, 0)})
    text = compare_page.compared(comparing(a, b))
    assert "sample/x</h3>" in text
    assert "sample/y</h3>" not in text
    assert "1 sets more are left out" in text


def test_last_grids_of_the_runs_own_seed_are_seen_first_and_kept_first(tmp_path, monkeypatch):
    steps = [f"{n}{seed}" for n in (10, 80) for seed in ("", "-seed1")]
    a, b = (
        Run(k, {f"sample/m-step{s}": grid(f"{k}{s}".encode().hex(), tmp_path, 0) for s in steps})
        for k in "ab"
    )

    def headings():
        text = compare_page.compared(comparing(a, b))
        seen = re.sub(r"<details.*?</details>", "", text, flags=re.DOTALL)
        return [re.findall(r"<h3>sample/m-step(.*?)</h3>", one) for one in (seen, text)]

    assert headings() == [["80"], ["80", "10", "10-seed1", "80-seed1"]]
    monkeypatch.setattr(compare_page, "PICTURE_BYTES", 12)  # of one set
    assert headings() == [["80"], ["80"]]


@pytest.mark.parametrize("metric", ["loss/velocity", "icr", "denoising_mse", "lipschitz_max"])
def test_shared_names_are_drawn(metric):
    assert compare_page.METRICS.fullmatch(metric)


def diagnosed(key, gap):
    """A diagnosis with the curves that its stage writes."""
    one = Measured(10, [[1.0]], [[1.0]], 1.0, 0.1, 1.0, 0.1, 0.5 + gap, 0.5, gap, 0.01)
    rows = [(name, one.step, value) for name, value in diagnose._metrics(one)]
    return Node("diagnose", key, curves=lambda: rows, abscissa="training_step")


def test_alignment_gaps_are_laid_over_each_other():
    a, b = (Run(k, {"diagnose/reg": diagnosed(k, gap)}) for k, gap in (("a", 0.1), ("b", 0.2)))
    text = compare_page.compared(comparing(a, b))
    assert "alignment_gap diagnose/reg" in text
    assert "alignment_gap_error" not in text
