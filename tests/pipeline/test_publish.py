"""What a finished, partial or damaged run leaves in its folder and hands to MLflow."""

import contextlib
import dataclasses
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest

from pipeline import cluster, partial, progress, publish, record, session
from pipeline import plan as planning
from pipeline.artifact import Artifact
from pipeline.errors import DamagedArtifactError, UsageError
from pipeline.graph import Node
from pipeline.stage import Input, Result, Settings, Stage
from pipeline.store import Store
from tests.inline import run_all
from tests.toy import stages
from tests.toy.table import CATALOG as TOY
from tests.toy.table import chain

DAMAGED = None  # what a report finds damaged


class Page(Artifact):
    tracked = ("figures/*.svg", "claims.json")
    tables = ("tables/*.json",)


def write(context):
    names = sorted(context.inputs["numbers"])
    for folder in ("figures", "tables"):
        (context.path / folder).mkdir()
    (context.path / publish.PAGE).write_text(f"<p>{names}</p>{publish.MARKER}")
    for name in names:
        (context.path / "figures" / f"{name.replace('/', '-')}.svg").write_text("<svg></svg>")
    values = [context.inputs["numbers"][name].load() for name in names]
    (context.path / "claims.json").write_text(json.dumps(values))
    (context.path / "tables" / "scores.json").write_text("{}")
    return Result()


def timed(run):
    return publish.Timed("<h3>times</h3>", {"step-time": "<svg></svg>"})


NUMBERS = {"numbers": Input(stages.Number, many=True)}
REPORT = Stage("report", Settings, Page, "tests.pipeline.test_publish:write", inputs=NUMBERS)


def reported(toy):
    return [*chain(toy), Node("report", REPORT, Settings(), {"numbers": ["total", "apply/a"]})]


CATALOG = dataclasses.replace(
    TOY,
    stages={**TOY.stages, "report": REPORT},
    recipes={"reported": reported},
    report_timed="tests.pipeline.test_publish:timed",
)


@pytest.fixture
def run(tmp_path):
    """A store with every node done, and the run's record."""
    store = Store(tmp_path)
    request = planning.Request("reported", preset="plain")
    run_all(CATALOG, store, request)
    plan = planning.make(CATALOG, store, request)
    nodes = {
        name: {
            "stage": one.node.stage.name,
            "key": one.key,
            "state": "done",
            "seconds": 1.0,
            "upstream": [],
            "error": "",
        }
        for name, one in plan.nodes.items()
    }
    data = {
        "id": "r",
        "recipe": "reported",
        "preset": "plain",
        "state": "finished",
        "settings": plan.resolved.settings.model_dump(mode="json"),
        "created": "2026-06-01T00:00:00",
        "command": "c",
        "git": {},
        "nodes": nodes,
    }
    return store, data


def lose(store, data, name):
    """A node that never ran."""
    node = data["nodes"][name]
    data["state"], node["state"] = "failed", "failed"
    store.set_aside(node["stage"], node["key"])


def names(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix() for path in files}


OWN = {"report.html", "figures/step-time.svg", "figures/graph.svg"}
PART = {"figures/apply-a.svg", "claims.json", "tables/scores.json"}


def test_a_finished_run_has_its_page_and_every_figure_as_files(run):
    store, data = run
    page = publish.report(CATALOG, store, data)
    assert "<h3>times</h3>" in page.read_text()
    assert names(page.parent) == {*OWN, *PART, "figures/total.svg"}
    root = ElementTree.parse(page.parent / "figures" / "graph.svg").getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "number/a" in "".join(root.itertext())


def test_a_partial_run_keeps_what_its_report_wrote(run):
    store, data = run
    publish.report(CATALOG, store, data)
    for name in ("report", "total"):
        lose(store, data, name)
    page = publish.report(CATALOG, store, data)
    assert "<p>[&#x27;apply/a&#x27;]" in page.read_text().replace("'", "&#x27;")
    assert names(page.parent) == {*OWN, *PART}  # without the figure that is no longer


def test_a_damaged_report_is_made_anew(run):
    store, data = run
    whole = publish.report(CATALOG, store, data).read_text()
    place = store.open("report", data["nodes"]["report"]["key"]).path / publish.PAGE
    place.chmod(0o644)
    place.write_text("damaged")
    page = publish.report(CATALOG, store, data)
    assert page.read_text() == whole
    assert names(page.parent) == {*OWN, *PART, "figures/total.svg"}


def test_mlflow_gets_what_the_reports_node_did_not_give_it(run):
    store, data = run

    def sent():
        found = {}
        tracker = SimpleNamespace(
            artifact=lambda path, where, table=False: found.update({(where, path.name): table})
        )
        entry = SimpleNamespace(data=data)
        parts = SimpleNamespace(catalog=CATALOG, store=store, entry=entry, tracker=tracker)
        parts._call = lambda function, *arguments: function(*arguments)
        session._Session._publish(parts)
        return found

    own = {("report", path.rpartition("/")[2]): False for path in OWN}
    assert sent() == own
    for name in ("report", "total"):
        lose(store, data, name)
    assert sent() == own | {
        ("report", "apply-a.svg"): False,
        ("report", "claims.json"): False,
        ("report", "scores.json"): True,
    }


def test_what_is_found_damaged_while_it_is_read_is_left_out(run, monkeypatch):
    store, data = run
    for name in ("report", "total"):
        lose(store, data, name)
    nodes = data["nodes"]
    monkeypatch.setitem(globals(), "DAMAGED", (nodes["apply/a"]["stage"], nodes["apply/a"]["key"]))
    job, _ = partial.job_of(CATALOG, store, data, "report")
    job = dataclasses.replace(job, run="tests.pipeline.test_publish:write_or_find")
    files = partial.render(job, (publish.PAGE, "left.txt"))
    assert sorted(files) == [publish.PAGE], "what was begun before is not in it"
    assert files[publish.PAGE].startswith(b"<p>[]</p>")
    monkeypatch.setitem(globals(), "DAMAGED", ("number", "elsewhere"))
    job = dataclasses.replace(job, run="tests.pipeline.test_publish:always_damaged")
    with pytest.raises(DamagedArtifactError, match=r"b\.bin is missing"):
        partial.render(job, (publish.PAGE,))


def write_or_find(context):
    """As `write`, and in an object store, where damage shows when files are read."""
    if context.inputs["numbers"]:
        (context.path / "left.txt").write_text("half")
        raise DamagedArtifactError("a.bin is missing", DAMAGED)
    return write(context)


def always_damaged(context):
    raise DamagedArtifactError("b.bin is missing", DAMAGED)


def ended(state, said, call):
    """What is said when a run with a partial report ends."""
    parts = SimpleNamespace(
        entry=SimpleNamespace(
            data={"nodes": {"a": {"state": "failed", "error": "why"}}},
            folder=Path("r"),
            end=lambda state: None,
        ),
        relay=SimpleNamespace(stop=str, close=lambda say: say("relay"), problems=["p"]),
        tracker=SimpleNamespace(close=lambda *said, timeout: None),
        _publish=call,
    )
    session._Session._close(parts, state)
    assert session._Session._last_words(parts, state) == session._EXIT_CODES[state]
    return said


def test_why_a_node_failed_is_said_once_and_before_its_report_is_made(monkeypatch):
    said = []
    monkeypatch.setattr(session, "say", said.append)
    monkeypatch.setattr(session, "decided", lambda code: None)
    ended(record.FAILED, said, lambda: said.append("report"))
    assert said[0].startswith("a failed: why")
    assert said[1:] == ["relay", "report", "warning: p"]


def test_what_fails_alike_is_said_once(tmp_path):
    nodes = {f"n{i}": {"state": progress.FAILED, "error": "the same"} for i in range(7)}
    nodes |= {"other": {"state": progress.FAILED, "error": "else"}}
    lines = session.failure_text({"nodes": nodes}, tmp_path).splitlines()
    assert [line for line in lines if "failed: " in line] == [
        "n0 failed: the same",
        "other failed: else",
    ]
    assert lines[2] == "  so did n1, n2, n3, n4 and 2 more"


class FakeRay:
    """Of Ray what waits for a task: `late`, whether it takes longer than a moment."""

    exceptions = SimpleNamespace(RayTaskError=KeyError, GetTimeoutError=TimeoutError)

    def __init__(self, late, error=None):
        self.late, self.error, self.cancelled = late, error, []

    def wait(self, tasks, timeout):
        return ([], tasks) if self.late else (tasks, [])

    def get(self, task, timeout):
        if self.error:
            raise self.error
        return 7

    def cancel(self, task):
        self.cancelled.append(task)
        raise RuntimeError("Ray is lost")


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    ("error", "raised"), [(None, None), (TimeoutError(), UsageError), (KeyboardInterrupt(), None)]
)
def test_a_call_on_a_cluster_says_that_it_takes_long_and_ends(monkeypatch, late, error, raised):
    ray, said = FakeRay(late, error), []
    monkeypatch.setitem(sys.modules, "ray", ray)
    task = SimpleNamespace(options=lambda **options: task, remote=lambda *arguments: "task")
    monkeypatch.setattr(cluster, "remote", lambda function: task)
    monkeypatch.setattr(cluster, "own_terms", lambda: (None, {}))
    expected = pytest.raises(raised or type(error)) if error else contextlib.nullcontext()
    with expected:
        assert cluster.call(abs, -7, slow=lambda: said.append("late")) == 7
    assert said == ["late"] * late
    assert ray.cancelled == ["task"]
