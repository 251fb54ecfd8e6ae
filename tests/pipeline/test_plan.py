"""A plan says for every node whether it is cached, and why it is not."""

import json
from dataclasses import replace

import pytest

from pipeline import plan as planning
from pipeline.capacity import Amount
from pipeline.commands import plan_text
from pipeline.errors import UsageError
from pipeline.garbage import garbage
from pipeline.graph import Graph
from pipeline.plan import CACHED, DAMAGED, PARTIAL, TODO, Request
from pipeline.record import Record, finished_run
from pipeline.stage import Workers
from pipeline.store import Store
from pipeline.track.spool import SPOOL, Spool
from tests.inline import run_all
from tests.toy import stages
from tests.toy.table import CATALOG


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def make(store, *overrides, **selection):
    return planning.make(CATALOG, store, Request("chain", overrides=overrides, **selection))


def record(store, plan, state="finished"):
    import contextlib

    with contextlib.ExitStack() as stack:
        entry = Record.open(store, plan, [], stack)
        entry.end(state)
    return entry


def ran(store, *overrides):
    """A plan that was run and recorded."""
    artifacts = run_all(CATALOG, store, Request("chain", overrides=overrides))
    record(store, make(store, *overrides))
    return artifacts


def test_a_fresh_store_has_everything_to_do(store):
    plan = make(store)
    assert {node.state for node in plan.nodes.values()} == {TODO}
    assert {node.reason for node in plan.nodes.values()} == {"never made"}


def test_finished_nodes_are_cached_and_their_cost_known(store):
    artifacts = ran(store)
    assert artifacts["total"].load() == 10
    plan = make(store)
    assert plan.todo == []
    assert all(node.seconds is not None for node in plan.nodes.values())
    assert "4 cached, 0 to do" in plan_text(plan, 1)


def test_reasons_name_what_changed(store):
    ran(store)
    plan = make(store, "a.value=9")
    reasons = {name: node.reason for name, node in plan.nodes.items() if node.state != CACHED}
    assert reasons["number/a"] == "value 3 -> 9"
    assert reasons["apply/a"] == "reads number/a"
    assert reasons["total"] == "reads apply/a"
    assert plan.nodes["number/b"].state == CACHED
    assert (
        make(store, "apply.function=square")
        .nodes["apply/a"]
        .reason.startswith("function double -> square")
    )
    threads = make(store, "resources.number.threads=2").nodes["number/a"].reason
    assert threads == "threads 1 -> 2"


def test_unkeyed_settings_run_nothing_again(store):
    ran(store)
    assert make(store, "apply.shards=7", "resources.apply.cpus=2").todo == []


def test_interrupted_work_shows_as_partial(store):
    plan = make(store)
    node = plan.nodes["number/a"]
    (store.work("number", node.key).path / "step").write_text("3")
    found = make(store).nodes["number/a"]
    assert found.state == PARTIAL
    assert "continues" in found.reason


def test_a_flipped_byte_is_found_and_named(store):
    artifacts = ran(store)
    (artifacts["number/a"].path / "number.json").write_text("4")
    plan = make(store)
    assert plan.todo == ["number/a"]
    assert plan.nodes["number/a"].state == DAMAGED
    assert "number.json does not match" in plan.nodes["number/a"].reason


def test_force_makes_again_what_is_cached(store):
    ran(store)
    assert make(store, force=["apply"]).todo == ["apply/a"]


def test_a_node_that_can_never_start_is_refused(store):
    plan = make(store, "resources.number.cpus=64", "resources.number.gpus=0")
    with pytest.raises(UsageError, match=r"number/a asks for 64 CPUs.*resources\.number\.cpus"):
        planning.check_resources(plan, Amount(2, 0), where="this machine")
    gpu = make(store, "resources.apply.gpus=1")
    with pytest.raises(UsageError, match="apply/a asks for 1 GPUs"):
        planning.check_resources(gpu, Amount(2, 0), where="this machine")


@pytest.mark.parametrize(
    ("workers", "words"),
    [
        (
            Workers(64, 64, 0, "value"),
            "starts 64 workers, which take 64 CPUs at once, and this "
            "machine has 2; set number.value to at most 2",
        ),
        (
            Workers(2, 0, 2, "value"),
            "starts 2 workers, which take 2 GPUs at once, .* has 0; set number.value to 0",
        ),
        (Workers(2, 2, 0, "value"), None),
    ],
)
def test_workers_that_a_node_starts_count_too(store, workers, words):
    resolved, graph = planning.build(CATALOG, Request("chain"))
    stage = replace(
        stages.NUMBER, workers=lambda settings: workers if settings.value == 3 else None
    )
    nodes = [replace(n, stage=stage) if n.stage is stages.NUMBER else n for n in graph]
    plan = planning.of_graph(store, "chain", resolved, Graph(nodes))
    assert plan.graph["number/b"].cpus == 1
    if words is None:
        assert plan.graph["number/a"].cpus == 2
        return planning.check_resources(plan, Amount(2, 0), where="this machine")
    with pytest.raises(UsageError, match=f"number/a {words}"):
        planning.check_resources(plan, Amount(2, 0), where="this machine")
    return None


def test_library_versions_that_changed_are_told(store, monkeypatch):
    from tests.inline import job_of

    plan = make(store)
    from pipeline import worker

    worker.execute(job_of(plan.graph, store, "number/a", ("pydantic",)), lambda event: None)
    assert make(store).warnings == []
    monkeypatch.setattr(planning, "installed", lambda package: "99")
    assert "pydantic" in make(store).warnings[0]


def test_an_interrupted_run_goes_on_under_its_own_id(store):
    import contextlib

    plan = make(store)
    with contextlib.ExitStack() as stack:
        first = Record.open(store, plan, [], stack).id
        with contextlib.ExitStack() as other:
            assert Record.open(store, plan, [], other).id != first, "it is still going on"
    with contextlib.ExitStack() as stack:
        again = Record.open(store, plan, [], stack)
        assert again.data["state"] == "running"
        again.end("finished")
    assert finished_run(store, plan)["id"] == again.id
    assert finished_run(store, make(store, "a.value=9")) is None


def test_garbage_is_what_no_kept_run_uses(store):
    ran(store, "a.value=1")
    ran(store, "a.value=2")
    old = {p.key for p in make(store, "a.value=1").nodes.values()}
    new = {p.key for p in make(store, "a.value=2").nodes.values()}
    doomed, kept = garbage(store, keep=1)
    gone = {name.rpartition("/")[2] for name in doomed if name.startswith("artifacts/")}
    assert gone == old - new
    assert kept == 1
    assert garbage(store, keep=5)[0] == []
    with store.lock(f"run-{store.runs()[0]['id']}"), pytest.raises(UsageError, match="going on"):
        garbage(store, keep=1)


def test_gc_leaves_what_mlflow_lacks(store):
    ran(store)
    run_id = store.runs()[0]["id"]
    spool = Spool(store.local / "runs" / run_id)
    spool.append("begin")
    spool.close()
    said = []
    doomed, kept = garbage(store, 0, said.append)
    assert (doomed, kept) == ([], 1), "its artifacts too: the spool names files in them"
    assert run_id in said[0]
    assert "MLflow lacks some of it" in said[0]
    (store.local / "runs" / run_id / SPOOL).unlink()
    assert f"runs/{run_id}" in garbage(store, 0)[0]


def test_run_records_are_plain_json(store):
    ran(store)
    data = store.runs()[0]
    assert json.loads(json.dumps(data)) == data
    assert list(data["nodes"]) == ["number/a", "number/b", "apply/a", "total"]


def test_a_killed_run_is_told_as_interrupted(store):
    import contextlib

    from pipeline.results import latest

    with contextlib.ExitStack() as stack:
        Record.open(store, make(store), [], stack)
        assert latest("chain", store).state == "running"
    assert latest("chain", store).state == "interrupted"


def test_a_hint_serves_until_something_was_measured(store):
    from dataclasses import replace

    def hinted(toy):
        return [replace(node, hint_seconds=9.0) for node in CATALOG.recipes["chain"](toy)]

    catalog = replace(CATALOG, recipes={"chain": hinted})
    plan = planning.make(catalog, store, Request("chain"))
    assert {node.seconds for node in plan.nodes.values()} == {9.0}
    ran(store)
    again = planning.make(catalog, store, Request("chain", overrides=("a.value=9",))).nodes
    # It is another number, whose time nothing was counted of; those behind it are as they were.
    assert again["number/a"].seconds == 9
    assert all(again[name].seconds < 9 for name in ("number/b", "apply/a", "total"))


def test_the_longest_chain_of_work_is_the_most_urgent(store):
    # number/a takes 2 s and apply/a hangs from it; number/b alone takes 3 s; total needs both.
    seconds = {"number/a": 2.0, "number/b": 3.0, "apply/a": 4.0, "total": None}
    plan = make(store)
    timed = {n: replace(item, seconds=seconds[n]) for n, item in plan.nodes.items()}
    assert replace(plan, nodes=timed).by_urgency() == ["number/a", "apply/a", "number/b", "total"]
    known = timed | {"number/a": replace(timed["number/a"], state=CACHED)}
    assert replace(plan, nodes=known).by_urgency()[-1] == "total"
    known["apply/a"] = replace(timed["apply/a"], state=CACHED)
    assert replace(plan, nodes=known).by_urgency()[0] == "number/b"


def test_how_long_a_plan_takes_is_its_work_over_the_cores_or_its_longest_chain(store):
    found = planning.make(CATALOG, store, Request("chain"))
    seconds = {"number/a": 10.0, "number/b": 20.0, "apply/a": 3.0, "total": 4.0}
    nodes = {name: replace(node, seconds=seconds[name]) for name, node in found.nodes.items()}
    plan = replace(found, nodes=nodes)
    assert plan.about_seconds(Amount(1)) == 37
    assert (
        plan.about_seconds(Amount(2)) == plan.about_seconds(Amount(100)) == 24
    )  # number/b and total
    assert plan_text(plan, 2).endswith("4 to do (37.0 s of work, about 24.0 s on 2 cores)")
    assert "about" not in plan_text(found, 2)  # of unknown cost


def test_settings_that_a_recipe_makes_for_a_node_are_refused_in_words(store):
    words = r"^a node of recipe chain: value=2004: input should be less than or equal to 1000$"
    with pytest.raises(UsageError, match=words):
        make(store, "seed=2000")


def test_a_large_artifact_is_checked_by_who_reads_it_and_small_ones_behind_it_here(monkeypatch):
    from types import SimpleNamespace

    monkeypatch.setattr(planning, "VERIFY_BYTES", 100)
    large, small = SimpleNamespace(num_bytes=101), SimpleNamespace(num_bytes=40)
    assert planning._verified(large, 0) == 0
    assert planning._verified(small, 0) == 40
    assert planning._verified(small, 61) == 0
    assert planning._verified(None, 0) == 0
