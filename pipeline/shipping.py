"""Code and settings on the machines of a cluster: the same as here, or sent along."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import platform
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline import cache
from pipeline.errors import UsageError
from pipeline.provenance import installed

PACKAGES = ("pipeline", "stages", "sweeps")
COMPARED = ("numpy", "torch")
ANSWER_SECONDS = 120.0
# Where a store is and how it is reached; what is secret is for whoever starts the machines.
FORWARDED = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "HF_HUB_OFFLINE",
    "RAY_TRAIN_V2_ENABLED",
)


def runtime_environment(code: Path | None) -> dict[str, Any]:
    """What Ray takes to the workers: variables that are set here, and the packages in `code`."""
    variables = {name: os.environ[name] for name in FORWARDED if name in os.environ}
    variables |= cache.given()
    shipped = [str(code / name) for name in PACKAGES if (code / name).is_dir()] if code else []
    return ({"env_vars": variables} if variables else {}) | (
        {"py_modules": shipped} if shipped else {}
    )


@functools.cache
def facts() -> Mapping[str, str]:
    """What must be the same on all machines, by what to call it."""
    digest = hashlib.sha256()
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        for place in (spec.submodule_search_locations or ()) if spec else ():
            _add(digest, name, Path(place))
    versions = {name: installed(name) for name in COMPARED}
    return {"code": digest.hexdigest()[:12], "Python": platform.python_version(), **versions}


def _add(digest: Any, name: str, folder: Path) -> None:
    for path in sorted(folder.rglob("*.py")):
        data = path.read_bytes()
        digest.update(f"{name}/{path.relative_to(folder).as_posix()} {len(data)}\n".encode())
        digest.update(data)


def difference(wanted: Mapping[str, str]) -> str:
    """What is other in this process than in the one that wants it; "" where nothing is."""
    found = facts() if wanted else {}
    parts = [
        f"{name} {found.get(name)} instead of {value}"
        for name, value in wanted.items()
        if found.get(name) != value
    ]
    return f"{socket.gethostname()} has {', '.join(parts)}; {REMEDY}" if parts else ""


REMEDY = (
    "install the same version of the bench and its packages on every machine, or send this code "
    "along with --ship"
)


def check_machines() -> None:
    """Ask every machine of the cluster that this process has joined.

    Raises:
        UsageError: one has other code, or none.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(difference)
    asked = {}
    for node in ray.nodes():
        if node["Alive"] and node["Resources"].get("CPU"):
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            options = task.options(num_cpus=0, scheduling_strategy=there)
            asked[options.remote(facts())] = node["NodeManagerHostname"]
    done, _ = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_SECONDS)
    for reference in done:
        try:
            other = ray.get(reference)
        except ray.exceptions.RuntimeEnvSetupError as error:
            raise UsageError(f"--ship: {asked[reference]} cannot take the code: {error}") from error
        except ray.exceptions.RayTaskError as error:
            reason = str(error.cause or error).strip().splitlines()[-1]
            raise UsageError(
                f"{asked[reference]}, a machine of the cluster, does not have this code "
                f"({reason}); {REMEDY}"
            ) from error
        except ray.exceptions.RayError:
            continue  # it has left meanwhile
        if other:
            raise UsageError(f"a machine of the cluster differs from this one: {other}")
