"""Run a graph in this process, without Ray: for tests of plans and stages."""

from pipeline import plan as planning
from pipeline import worker
from pipeline.artifact import Artifact
from pipeline.graph import Graph
from pipeline.store import Store


def job_of(graph: Graph, store: Store, name: str, packages: tuple[str, ...] = ()) -> worker.Job:
    """The job that the engine would hand to a worker."""
    key, place = graph.keys[name], graph.place
    return worker.job_of(graph, graph[name], key, store.uri, place, packages=packages)


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
