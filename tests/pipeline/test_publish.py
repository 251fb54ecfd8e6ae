"""What a finished, partial or damaged run leaves in its folder and hands to MLflow."""

import dataclasses
import json
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest

from pipeline import plan as planning
from pipeline import publish, session
from pipeline.artifact import Artifact
from pipeline.graph import Node
from pipeline.stage import Input, Result, Settings, Stage
from pipeline.store import Store
from tests.inline import run_all
from tests.toy import stages
from tests.toy.table import CATALOG as TOY
from tests.toy.table import chain


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
