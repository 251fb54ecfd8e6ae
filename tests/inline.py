"""Run a graph in this process, without Ray: for tests of plans and stages."""

from pipeline import plan as planning
from pipeline import worker
from pipeline.artifact import Artifact
from pipeline.graph import Graph
from pipeline.store import Store


def job_of(graph: Graph, store: Store, name: str, packages: tuple[str, ...] = ()) -> worker.Job:
    """The job that the engine would hand to a worker."""
    node = graph[name]
    inputs = {}
    for slot, declared in node.stage.inputs.items():
        where = {n: (graph[n].stage.name, graph.keys[n]) for n in node.slot(slot)}
        inputs[slot] = where if declared.many else next(iter(where.values()), None)
    return worker.Job(
        node=name,
        key=graph.keys[name],
        identity=graph.identities[name],
        run=node.stage.run,
        output=node.stage.output.type_name(),
        settings=node.settings,
        inputs=inputs,
        store=store.uri,
        packages=packages,
    )


def run_all(catalog, store: Store, request: planning.Request) -> dict[str, Artifact]:
    """Run what a plan has to do, in order, and return every artifact by node name.

    Raises:
        AssertionError: a node failed.
    """
    plan = planning.make(catalog, store, request)
    for name in plan.todo:
        outcome = worker.execute(job_of(plan.graph, store, name), lambda event: None)
        assert outcome.state == worker.DONE, f"{name}: {outcome.error}"
    return {n: store.open(p.node.stage.name, p.key) for n, p in plan.nodes.items()}
