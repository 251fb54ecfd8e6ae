"""Nodes and their shards on clusters: GPUs of their own, lost machines, room that is waited for.

Each test is a process of its own: Ray keeps the token of the first cluster that one joins.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from pipeline import cluster, progress
from pipeline import plan as planning
from pipeline.address import check_alive
from pipeline.capacity import Amount
from pipeline.errors import DONE, NODE_FAILED, UsageError
from pipeline.graph import Graph
from pipeline.plan import Request
from pipeline.results import latest
from pipeline.run import Execution
from pipeline.stage import Workers
from pipeline.store import Store
from tests import s3
from tests.machines import cached, machines, start
from tests.toy import stages
from tests.toy.table import CATALOG

ROOT = Path(__file__).parent.parent.parent

PORT = 20000 + os.getpid() % 20000  # of a head of this process's own

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("own_clusters")]


@pytest.mark.parametrize("case", ["gpus", "queue", "token", "lost", "grows", "driver"])
def test_on_a_cluster(case, tmp_path):
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-m", "tests.pipeline.test_clusters", case, str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr


def execution(store, plan):
    said = []
    view = SimpleNamespace(update=lambda *a, **k: None, tick=lambda: None, message=said.append)
    listener = SimpleNamespace(
        view=view, tracker=None, on_change=None, said=said, log=lambda *a: None
    )
    return Execution(plan, store, listener, (), git={})


def run(store, *overrides):
    made = execution(store, planning.make(CATALOG, store, Request("chain", overrides=overrides)))
    made.run()
    left = {n: (p.state, p.error) for n, p in made.nodes.items() if p.state != progress.DONE}
    assert not left, left
    return made


@contextlib.contextmanager
def local(cpus, gpus=0):
    have = cluster.connect(None, cpus, gpus, ROOT)
    try:
        yield have
    finally:
        cluster.disconnect()


def shards(marks):
    """(index, GPUs, process, begun, ended) of each shard that ran to its end."""
    return [line.split() for line in marks.read_text().splitlines()]


def shards_hold_gpus_of_their_own(store, marks):
    with local(2, 2) as have:
        assert have.gpus == 2
        run(
            store,
            "resources.apply.gpus=1",
            *("apply.shards=3", "apply.seconds=5", f"apply.marks={marks}"),
        )
    found = shards(marks)
    assert sorted(index for index, *_ in found) == ["0", "1", "2"]
    assert {gpus for _, gpus, *_ in found} == {"0", "1"}
    assert len({process for _, _, process, *_ in found}) == 3, "CUDA stays with its first GPU"
    for one in found:
        for two in found:
            if one is not two and float(one[3]) < float(two[4]) and float(two[3]) < float(one[4]):
                assert one[1] != two[1], "at one time, one GPU each"


def groups_queue_and_memory_is_counted(store, marks):
    """Two nodes with two workers each on two cores; then two that together have not the memory."""
    with local(2) as have:
        resolved, graph = planning.build(CATALOG, Request("chain", overrides=["a.seconds=1"]))
        stage = replace(stages.NUMBER, workers=lambda settings: Workers(2, 2, 0, "value"))
        nodes = [replace(n, stage=stage) if n.stage is stages.NUMBER else n for n in graph]
        lose_a_training()
        together(store, planning.of_graph(store, "chain", resolved, Graph(nodes)))
        assert free() == 2, "what it held was found while those with workers ran"
        half = 0.6 * have.memory_gib
        overrides = [f"resources.number.memory_gib={half}", "a.seconds=1", "seed=5", "a.value=8"]
        plan = planning.make(CATALOG, store, Request("chain", overrides=overrides))
        planning.check_resources(plan, have, "here")
        together(store, plan)


def lose_a_training():
    """Its controller dies, and leaves what its workers held to nobody."""
    import ray

    class Controller:
        def reserve(self):
            ray.get(ray.util.placement_group([{"CPU": 1}, {"CPU": 1}]).ready())

    controller = ray.remote(num_cpus=0)(Controller).remote()
    ray.get(controller.reserve.remote())
    ray.kill(controller)
    assert free() == 0


def free():
    import ray

    time.sleep(1)  # Ray tells it now and then
    return ray.available_resources().get("CPU", 0)


def together(store, plan):
    """Run a chain whose numbers must not run at one time."""
    made = execution(store, plan)
    made.run()
    left = {n: (p.state, p.error) for n, p in made.nodes.items() if p.state != progress.DONE}
    assert not left, left
    a, b = (made.nodes[name].manifest for name in ("number/a", "number/b"))
    first, second = sorted((a, b), key=lambda manifest: manifest.started)
    ended, begun = (datetime.fromisoformat(x) for x in (first.finished, second.started))
    assert begun >= ended


def a_lost_machine_costs_its_shard_only(store, marks):
    """A raylet is killed while its shard runs; and code and room of a cluster are those of here."""
    # Ray reads how to show its token when it is imported, and the head must not wait for one.
    os.environ["RAY_AUTH_MODE"] = "disabled"
    import ray
    from ray.cluster_utils import Cluster

    machines = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    try:
        other = machines.add_node(num_cpus=1)
        check_alive(machines.address)
        have = cluster.connect(machines.address, 0, 0, ROOT, Amount(cpus=8))
        assert have.cpus == 8, "what it may grow to"
        assert cluster.here().cpus == 3
        killer = threading.Thread(target=kill_at_work, args=(machines, other, marks), daemon=True)
        killer.start()
        run(store, "apply.shards=9", "apply.seconds=1", f"apply.marks={marks}")
        killer.join(timeout=60)
        found = shards(marks)
        assert sorted(int(index) for index, *_ in found) == list(range(9)), "each ended once"
        until = time.monotonic() + 60  # Ray notices when it has the time
        while len([node for node in ray.nodes() if node["Alive"]]) > 1:
            assert time.monotonic() < until
            time.sleep(0.2)
    finally:
        cluster.disconnect()
        machines.shutdown()


def a_client_without_the_token_is_told_in_one_sentence(store, marks):
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 64}
    with head("--num-cpus=0") as place:
        for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
            del os.environ[name]
        os.environ["HOME"] = str(marks.parent)
        with pytest.raises(UsageError) as none:
            check_alive(place)
        os.environ["RAY_AUTH_TOKEN"] = "b" * 64
        with pytest.raises(UsageError) as another:
            check_alive(place)
    for found, what in ((none, "none"), (another, "another")):
        said = str(found.value)
        assert said.startswith(
            f"the Ray cluster at '{place}' asks for a token, and {what} is known here; put"
        ), said
        assert len(said) < 250


@contextlib.contextmanager
def head(*options):
    """The address of a head of its own, whose machines are gone at the end."""
    place = f"127.0.0.1:{PORT}"
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    command += ["--node-ip-address=127.0.0.1", f"--port={PORT}", "--disable-usage-stats"]
    command += options
    # Ray's sockets have short names.
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="r", ignore_cleanup_errors=True) as short:
        process = subprocess.Popen(
            command,
            env=os.environ | {"RAY_TMPDIR": short},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            check_alive(place, wait_seconds=60)
            yield place
        finally:
            family = psutil.Process(process.pid).children(recursive=True)
            process.terminate()
            process.wait()
            for one in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()


UNUSED = [
    *("initialization_commands", "setup_commands", "cluster_synced_files"),
    *("head_setup_commands", "worker_setup_commands"),
    *("head_start_ray_commands", "worker_start_ray_commands"),
]


def a_cluster_grows_to_what_a_node_needs(store, marks):
    """Ray's autoscaler with its stand-in for machines; at first there is none that works."""
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_FAKE_CLUSTER": "1"}
    os.environ["AUTOSCALER_UPDATE_INTERVAL_S"] = "1"
    kinds = {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "large": {"resources": {"CPU": 2}, "node_config": {}, "max_workers": 1},
    }
    config = {
        **{"cluster_name": "grows", "max_workers": 1, "available_node_types": kinds},
        **{"head_node_type": "ray.head.default", "idle_timeout_minutes": 5},
        "provider": {"type": "fake_multinode", "gcs_address": f"127.0.0.1:{PORT}"},
        # It reads these, and has no use for them.
        **{"auth": {}, "docker": {}, "file_mounts": {}, "upscaling_speed": 1.0},
        **{name: [] for name in UNUSED},
    }
    file = marks.with_suffix(".yaml")
    file.write_text(json.dumps(config))
    plan = planning.make(CATALOG, store, Request("chain", overrides=["resources.apply.cpus=2"]))
    with head("--num-cpus=0", f"--autoscaling-config={file}") as place:
        have = cluster.connect(place, 0, 0, ROOT, Amount(cpus=2))
        try:
            assert cluster.here().cpus == 0
            planning.check_resources(plan, have, "the cluster")
            with pytest.raises(UsageError, match="asks for 1 CPU"):
                planning.check_resources(plan, cluster.here(), "the cluster")
            made = execution(store, plan)
            made.run()
            assert {item.state for item in made.nodes.values()} == {progress.DONE}
            assert cluster.here().cpus == 2
        finally:
            cluster.disconnect()


def kill_at_work(machines, other, marks):
    while not marks.exists():
        time.sleep(0.05)
    time.sleep(0.5)
    machines.remove_node(other, allow_graceful=False)


REPORTED = (
    "import sys; from pipeline.__main__ import main; from tests.pipeline.test_publish import *; "
    "sys.exit(main(sys.argv[1:], lambda: CATALOG))"
)


def a_driver_fetches_nothing_for_a_report_of_what_there_is(store, marks):
    """Neither after a node that failed, nor where only some are asked for, which are there."""
    folder = marks.parent
    os.environ["PIPELINE_CACHE"] = str(folder / "driver" / "cache")
    with s3.server() as server, machines(folder, apart=False, names=("one",)) as lent:
        uri = server.uri()
        for asked, code in (("b.fail=true",), NODE_FAILED), (("--only", "apply/a"), DONE):
            command = ["reported", *asked, "--store", uri, "--address", lent.address]
            process = start(folder, command, ("-c", REPORTED), RAY_TMPDIR=lent.ray)
            assert process.wait(120) == code
            run = latest(store=uri)
            page = run.store.run_path(run.id) / "report.html"
            assert "['apply/a']" in page.read_text(), "what was made is in it"
            assert json.loads((page.parent / "claims.json").read_text()) == [6]
        found = {name.split("/")[2] for name in cached(lent.cache("one"))}
        assert found == {"number", "apply"}
    assert cached(folder / "driver" / "cache") == []


CASES = {
    "driver": a_driver_fetches_nothing_for_a_report_of_what_there_is,
    "gpus": shards_hold_gpus_of_their_own,
    "queue": groups_queue_and_memory_is_counted,
    "token": a_client_without_the_token_is_told_in_one_sentence,
    "grows": a_cluster_grows_to_what_a_node_needs,
    "lost": a_lost_machine_costs_its_shard_only,
}

if __name__ == "__main__":
    folder = Path(sys.argv[2])
    CASES[sys.argv[1]](Store(folder / "store"), folder / "marks")
