"""Two machines and a third that drives them, each with a cache of its own, a store on S3 between.

`python -m tests.machines FOLDER [RECIPE OVERRIDE...]` runs a recipe so, at smoke size and with two
workers a training, and once more on a local disk; it says whether the payloads are the same.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.results import latest
from tests import s3

CPUS = 2  # of each machine
RUN = ("--preset", "smoke", "train.num_workers=2")


@contextlib.contextmanager
def machines(folder: Path) -> Iterator[tuple[Any, list[Any]]]:
    """A Ray cluster whose head computes nothing, and its two machines; caches in `folder`."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        yield cluster, [add(cluster, folder / name) for name in ("one", "two")]
    finally:
        cluster.shutdown()


def add(cluster: Any, cache: Path) -> Any:
    """One machine more, with that cache."""
    return cluster.add_node(num_cpus=CPUS, env_vars={"PIPELINE_CACHE": str(cache)})


def start(folder: Path, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start a command whose own cache is `folder`/driver."""
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", "run", *arguments],
        env=os.environ | {"PIPELINE_CACHE": str(folder / "driver")},
    )


def payloads(store: str) -> dict[str, str]:
    """The digest of what each node of the newest run holds."""
    run = latest(store=store)
    return {name: run[name].manifest.payload for name in run}


def cached(cache: Path) -> list[str]:
    """What files of artifacts a cache holds."""
    return sorted(
        str(path.relative_to(cache)) for path in cache.glob("*/artifacts/**/*") if path.is_file()
    )


def arrays(files: Sequence[str]) -> list[str]:
    """Those that hold arrays or weights."""
    return [file for file in files if file.endswith((".npy", ".npz", ".bin", ".safetensors"))]


def main(folder: Path, recipe: str, overrides: Sequence[str]) -> int:
    command = [recipe, *RUN, *overrides]
    with s3.server() as server, machines(folder) as (cluster, _):
        uri = server.uri()
        code = start(folder, [*command, "--store", uri, "--address", cluster.address]).wait()
        if code:
            return code
        ours = payloads(uri)
    here = str(folder / "store")
    if code := start(folder, [*command, "--store", here]).wait():
        return code
    other = {name for name, digest in payloads(here).items() if ours.get(name) != digest}
    for name in ("driver", "one", "two"):
        files = cached(folder / name)
        print(f"cache of {name}: {len(files)} files, {len(arrays(files))} of them arrays")
    print(f"{len(ours)} nodes, of which {len(other)} differ: {sorted(other)}")
    return bool(other or arrays(cached(folder / "driver")))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).absolute(), (sys.argv[2:] or ["full"])[0], sys.argv[3:]))
