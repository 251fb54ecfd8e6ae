"""The files of infra/ are what their readers expect, and their commands are commands of ours."""

import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

from pipeline import capacity
from pipeline.__main__ import build_parser, main
from pipeline.capacity import Amount
from stages.encoders.weights import FOLDER, WEIGHT_FILES

INFRA = Path(__file__).parent.parent / "infra"
LINE = r"(?:.|\n(?=\s*(?:--|\w+\.\w+=)))*"  # and those that go on with an option or a setting
COMMAND = re.compile(f"python -m pipeline ({LINE})")
RECIPE = re.compile(f"run full --preset {LINE}")


def commands():
    for file in sorted(path for path in INFRA.iterdir() if path.is_file()):
        for found in COMMAND.finditer(file.read_text()):
            if not found[1].startswith('"$@"'):
                yield pytest.param(found[1], id=f"{file.name}: {found[1][:30]}")


@pytest.mark.parametrize("line", list(commands()))
def test_commands_parse(line):
    options, rest = build_parser().parse_known_args(shlex.split(line))
    assert all("=" in word for word in rest)
    assert options.command == "run"


def recipes():
    """What the files run, whoever calls it: by `run` with a preset, without where and with whom."""
    for file in sorted(path for path in INFRA.iterdir() if path.is_file()):
        for found in re.finditer(
            r"run full --preset (?:.|\n(?=\s*(?:--|\w+\.\w+=)))*", file.read_text()
        ):
            words = shlex.split(found[0])
            settings = [word for word in words if "." in word.partition("=")[0] and "=" in word]
            yield pytest.param(words[: words.index("--preset") + 2] + settings, id=file.name)


def test_recipes_are_found():
    assert [found.id for found in recipes()] == ["cluster.yaml", "kuberay.yaml", "slurm.sh"]


@pytest.mark.parametrize("words", list(recipes()))
def test_recipes_can_be_planned(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "cifar-10-batches-py").mkdir(parents=True)
    (tmp_path / FOLDER).mkdir()
    for first, *_ in WEIGHT_FILES.values():
        (tmp_path / FOLDER / first).touch()
    there = [word.replace("=/data/", f"={tmp_path}/data/") for word in words]
    code = main([*there, "--dry-run", "--store", str(tmp_path / "store")])
    assert code == 0, capsys.readouterr().err


@pytest.fixture
def job():
    """The RayJob, which follows its service account."""
    account, job = yaml.safe_load_all((INFRA / "kuberay.yaml").read_text())
    assert account["kind"] == "ServiceAccount"
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    return job


def test_the_entrypoint_of_the_cluster_job_runs_a_recipe(job):
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[:4] == ["python", "-m", "pipeline", "run"]
    assert build_parser().parse_known_args(words[3:])[0].address == "auto"


# Names of KubeRay's API (docs.ray.io/en/master/cluster/kubernetes/references/api.html).
JOB = {"entrypoint", "shutdownAfterJobFinishes", "backoffLimit", "rayClusterSpec"}
CLUSTER = {
    *("rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions"),
    *("headGroupSpec", "workerGroupSpecs"),
}
GROUP = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}


def test_the_cluster_job_has_the_fields_of_its_kind(job):
    spec = job["spec"]["rayClusterSpec"]
    (workers,) = spec["workerGroupSpecs"]
    assert job["spec"].keys() <= JOB
    assert spec.keys() <= CLUSTER
    assert workers.keys() == GROUP
    assert spec["headGroupSpec"].keys() == {"rayStartParams", "template"}
    assert all(isinstance(v, str) for v in spec["headGroupSpec"]["rayStartParams"].values())
    assert spec["authOptions"] == {"mode": "token"}


def test_pods_have_what_a_run_needs(job):
    spec = job["spec"]["rayClusterSpec"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounted.keys() == {volume["name"] for volume in pod["volumes"]}
        assert mounted == {
            "data": "/data",
            "weights": f"/bench/{FOLDER}",
            "cache": "/cache",
            "shared-memory": "/dev/shm",
        }
        assert container["envFrom"][0]["secretRef"]["name"] == "diffusion-bench"
        assert pod["serviceAccountName"] == "diffusion-bench"
        assert pod["securityContext"]["runAsNonRoot"]


def test_the_job_knows_what_its_cluster_may_grow_to(job):
    (workers,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    limits = workers["template"]["spec"]["containers"][0]["resources"]["limits"]
    most = workers["maxReplicas"]
    found = build_parser().parse_known_args(shlex.split(job["spec"]["entrypoint"])[3:])[0]
    assert capacity.read(found.up_to) == Amount(
        most * float(limits["cpu"]),
        most * float(limits["nvidia.com/gpu"]),
        most * float(limits["memory"].removesuffix("Gi")),
    )


def test_the_launcher_s_file_is_one():
    import json

    import jsonschema
    import ray.autoscaler

    (folder,) = ray.autoscaler.__path__
    schema = json.loads((Path(folder) / "ray-schema.json").read_text())
    cluster = yaml.safe_load((INFRA / "cluster.yaml").read_text())
    jsonschema.validate(cluster, schema)
    types = cluster["available_node_types"].values()
    assert all(kind["node_config"]["IamInstanceProfile"] for kind in types)


def test_the_tracking_server_is_reached_by_its_service_s_name():
    services = yaml.safe_load((INFRA / "mlflow.yaml").read_text())["services"]
    words = shlex.split(services["mlflow"]["command"].replace("${", "").replace("}", ""))
    assert words[0] == "server"
    hosts = words[words.index("--allowed-hosts") + 1].split(",")
    assert {"mlflow:5000", "localhost:5000"} <= set(hosts)
    uri = services["mlflow"]["environment"]["MLFLOW_BACKEND_STORE_URI"]
    assert uri.startswith("postgresql+psycopg2://")
    assert "@database/" in uri
    assert not any("PASSWORD" in word for word in words), "every process could read it"


def test_the_image_names_extras_that_exist():
    (extras,) = re.findall(r'"\.\[([\w,]+)\]"', (INFRA / "Dockerfile").read_text())
    for extra in extras.split(","):
        assert f"\n{extra} = [" in (INFRA.parent / "pyproject.toml").read_text()


def test_the_image_s_user_is_not_root():
    words = (INFRA / "Dockerfile").read_text()
    assert re.search(r"^USER bench$", words, re.M)
    assert words.index("pip install") < words.index("USER bench") < words.index("ENTRYPOINT")


STANDINS = {
    "scontrol": 'printf "node1\\nnode2\\n"',
    # Options end where the command begins; each node has one core.
    "srun": """while [[ $1 == -* ]]; do [[ $1 == -w ]] && shift; shift; done
unset SLURM_CPUS_PER_TASK
export SLURM_CPUS_ON_NODE=1 SLURM_GPUS_ON_NODE=0
exec "$@\"""",
    "python": f'exec {sys.executable} -m tests.joined "${{@:3}}"',
}


@pytest.mark.slow
def test_the_slurm_script_runs_a_recipe_on_two_nodes(tmp_path):
    """With what stands in for Slurm: two raylets on this machine, a token between them."""
    for name, text in STANDINS.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="r") as short:  # sockets have short names
        bins = f"{tmp_path}:{Path(sys.executable).parent}"
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "SLURM_"))},
            **{"PATH": f"{bins}:{os.environ['PATH']}", "PYTHONPATH": str(INFRA.parent)},
            **{"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_ID": str(os.getpid())},
            **{"SLURM_SUBMIT_DIR": str(INFRA.parent), "RAY_TMPDIR": short},
            **{"SLURM_CPUS_ON_NODE": "1", "NODES": "2"},
        }
        words = ["run", "chain", "apply.shards=4", "--store", str(tmp_path / "store")]
        done = subprocess.run(
            ["bash", INFRA / "slurm.sh", *words],
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 nodes joined" in done.stdout
    assert "total     value 10" in done.stdout
