"""The screen that ends a run, and claims as tables, from the run's claims.json."""

import json
from types import SimpleNamespace

import pytest

from pipeline import results
from pipeline.errors import UsageError
from pipeline.store import Store
from stages.catalog import PAPERS
from stages.pages import findings
from stages.pages.findings import Claim, Effect, Finding
from stages.pages.made import Made
from stages.report import claims, summary

SIT = Claim("MaskAlign", "fewer steps than SiT", "no number stated here", ("full", "train"))
NEEDED = Claim("MaskAlign", "Mixing is needed", "2.67 against 3.54", ("train",))
PEAK = Claim("SteinDiff", "Singular values peak", "above 1", ("full",))
FADES = Claim("SteinDiff", "The gain fades", "no number", ("stein", "train"))


COLUMNS = ("set", "metric", "value", "error", "floor", "N", "protocol", "details")


def table(*rows):
    """The report's table of scores: (set, metric, value, N) each, of one protocol an N."""
    data = [[name, metric, fid, 0.1, 0.6, n, f"p-{n}", ""] for name, metric, fid, n in rows]
    return {"columns": COLUMNS, "data": data}


SETS = (
    ("sample/worse", "fid", 9.5, 1500),
    ("sample/best", "kid", 0.0, 1500),
    ("sample/best", "fid", 2.25, 1500),
    ("sample/least-of-few", "fid", 0.1, 800),
    ("sample/copies", "fid", 0.2, 1500),
)


class Run:
    """As much of a run as the summary reads: its record, and a folder."""

    def __init__(self, folder, recipe="full", preset="digits", overrides=()):
        tags = {"sample/copies": {"data": "64 images"}, "sample/best": {"data": "all"}}
        nodes = {name: {"tags": tags.get(name, {})} for name, *_ in SETS}
        self.id, self.data = "r1", {"recipe": recipe, "preset": preset, "nodes": nodes}
        self.data["overrides"] = list(overrides)
        self.store = SimpleNamespace(run_path=lambda run: folder)

    def text(self):
        return "\n".join(f"node {number}" for number in range(20))


def write_scores(folder, *rows):
    (folder / "tables").mkdir(exist_ok=True)
    (folder / "tables" / "scores.json").write_text(json.dumps(table(*rows)), encoding="utf-8")


@pytest.fixture
def run(tmp_path):
    effect = Effect(-0.32, 0.01, "paired", unit="%", scope="these networks")
    peak = Effect(1.18, None, "bound")
    found = [
        Finding(SIT, "steps until FD", effect, findings.HOLDS),
        Finding(NEEDED, "", None, findings.ABSENT),
        Finding(PEAK, "of a step", peak, findings.HOLDS),
        Finding(FADES, "", None, findings.ABSENT),
    ]
    claims.write(tmp_path, found)
    write_scores(tmp_path, *SETS)
    return Run(tmp_path)


def test_the_words_for_verdicts_are_those_of_the_findings():
    assert summary.VERDICTS == (findings.HOLDS, findings.FAILS, findings.OPEN)
    assert summary.ABSENT == findings.ABSENT


def test_a_run_ends_with_a_claim_a_paper_the_best_score_and_what_to_run_next(run):
    assert summary.ending(run).splitlines() == [
        "MaskAlign      Fewer steps than SiT",
        "               holds*: -0.32 % [-0.34, -0.3], these networks",
        "SteinDiff      Singular values peak",
        "               holds: at least 1.18 (of a step)",
        "* stays when all claims are looked at together (Holm)",
        "",
        "best:    fid 2.25 ± 0.1 (floor 0.6), sample/best, of 2 sets of samples under p-1500",
        "numbers: python -m pipeline show r1",
        "next:    python -m pipeline run train    measures 2 claims that this run did not",
    ]


def test_a_claims_name_is_told_in_a_narrow_column():
    """MLflow's table of runs shows about 16 letters of a metric's name."""
    every = claims.findings(Made({}), [paper.claims for paper in PAPERS if paper.claims])
    names = [summary.metric_of(finding.plain()) for finding in every]
    assert "FD REG: MaskAlign" in names
    assert "local: Wavelet score" in names
    assert len(names) > 20
    assert len({name[:16] for name in names}) == len(names)
    assert max(len(name.partition(":")[0]) for name in names) <= 16


def test_a_runs_page_says_what_it_found(run):
    assert summary.summary(run).note.splitlines() == [
        "- MaskAlign: fewer steps than SiT: holds*: -0.32 % [-0.34, -0.3], these networks",
        "- SteinDiff: Singular values peak: holds: at least 1.18 (of a step)",
        "",
        "Best: fid 2.25 ± 0.1 (floor 0.6), sample/best, p-1500",
    ]


def test_what_to_run_next_is_on_the_same_data(run):
    run.data["overrides"] = ["data.path=my pictures", "data.size=16", "train.lr=0.1"]
    *_, last = summary.ending(run).splitlines()
    assert "run train 'data.path=my pictures' data.size=16    measures 2" in last
    run.data["overrides"] = ["extractor.kind=inception", "extractors.none=1"]
    *_, last = summary.ending(run).splitlines()
    assert "run train extractor.kind=inception    measures 2" in last


def test_the_best_score_is_of_sets_measured_alike_and_of_no_network_that_saw_few_images(run):
    """The least of fewer samples, and copies of 64 images, are not the best."""
    found = summary.summary(run)
    assert found.metrics["best fid"] == 2.25
    assert found.tags["best fid"] == "fid 2.25 ± 0.1 (floor 0.6), sample/best, p-1500"


def test_the_best_score_is_of_the_measurement_with_the_most_sets_then_samples(run, tmp_path):
    few = [(f"sample/{fid}", "fid", fid, 800) for fid in (7.0, 6.0)]
    for more, best in (([], 2.25), ([("sample/third", "fid", 8.0, 800)], 6.0)):
        write_scores(tmp_path, SETS[0], SETS[2], *few, *more)
        assert summary.summary(run).metrics["best fid"] == best
    write_scores(tmp_path, SETS[-1])
    assert "best fid" not in summary.summary(run).metrics
    assert "best:" not in summary.ending(run)


def test_the_tables_of_a_report_have_what_the_summary_reads():
    from stages.report.scores import HEADING

    assert set(COLUMNS) <= set(HEADING)


def test_papers_that_a_run_did_not_measure_take_one_line_or_none(run, monkeypatch):
    found = summary.claims(run)
    absent = found[-1] | {"verdict": summary.ABSENT}
    others = [absent | {"claim": absent["claim"] | {"method": name}} for name in ("A", "B")]
    monkeypatch.setattr(summary, "claims", lambda run: [*found, *others])
    assert "not measured   A, B" in summary.ending(run).splitlines()
    monkeypatch.setattr(summary, "claims", lambda run: others)
    assert summary.ending(run).startswith("best: ")


def test_claims_become_a_table_a_paper(run):
    tables = summary.claims_as(run, "markdown")
    row = "| fewer steps than SiT | no number stated here | -0.32 % [-0.34, -0.3], these networks |"
    assert f"{row} holds* |" in tables
    assert "Not measured here (recipe train): Mixing is needed." in tables
    assert "`python -m pipeline run full --preset digits` (run r1)" in tables
    assert "    holds: at least 1.18 (of a step)" in summary.claims_as(run, "text").splitlines()


def test_a_run_without_claims_ends_with_its_first_nodes(tmp_path):
    lines = summary.ending(Run(tmp_path)).splitlines()
    assert lines[:2] == ["node 0", "node 1"]
    assert lines[-1] == "... and 8 more: python -m pipeline show r1"
    with pytest.raises(UsageError, match="run r1 has no claims; write them: python -m pipeline"):
        summary.claims_as(Run(tmp_path), "text")


def test_damaged_claims_are_said_with_the_remedy(run, tmp_path):
    (tmp_path / "claims.json").write_text(json.dumps([1])[:-1], encoding="utf-8")
    with pytest.raises(UsageError, match=r"claims.json is damaged; write it again with: .* r1"):
        summary.claims_as(run, "text")


def test_a_run_and_a_node_show_themselves_in_a_notebook(tmp_path):
    store = Store(tmp_path)
    node = {"stage": "prepare", "key": "k", "state": "done", "seconds": 1.0, "error": "<b>"}
    data = {"id": "r1", "recipe": "full", "preset": "smoke", "state": "finished"}
    found = results.Run(store, data | {"nodes": {"prepare": node}})
    figures = store.run_path("r1") / "figures"
    figures.mkdir(parents=True)
    for name in ("a", "fid-over-steps", "z"):
        (figures / f"{name}.svg").write_text("<svg></svg>", encoding="utf-8")
    shown = found._repr_html_()
    assert shown.startswith("<b>r1: full/smoke, finished</b>")
    assert shown.index("alt='fid-over-steps'") < shown.index("alt='a'")
    assert "3 figures in" in shown
    assert "<b>prepare</b> done &lt;b&gt;" in found["prepare"]._repr_html_()
