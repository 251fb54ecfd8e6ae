"""Two machines and a third that drives them, each with a cache of its own, a store on S3 between.

`python -m tests.machines FOLDER [RECIPE OVERRIDE...]` runs a recipe so, at smoke size and with two
workers a training, and once more on a local disk; it says whether the payloads are the same. With
`--trouble` a machine is lost while a network trains, and one while samples are drawn, each replaced
by a fresh one, and the server is away for 20 s.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.results import latest
from pipeline.store import Store
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


def trouble(cluster: Any, lent: list[Any], folder: Path, store: Store, way: s3.Way) -> None:
    """Lose the first machine once a training has saved, the server and the other while sampling."""

    def replaced(name: str) -> None:
        cluster.remove_node(lent.pop(0), allow_graceful=False)
        lent.append(add(cluster, folder / name))
        print(f"trouble: a machine is lost, {name} comes", flush=True)

    def states() -> bool:
        return any("/state-" in name for name in store.location.versions("work/train"))

    _wait_for(states)
    replaced("three")
    _wait_for(lambda: store.location.children("artifacts/sample"))
    way.cut()
    print("trouble: the server is away", flush=True)
    time.sleep(20)
    way.mend()
    replaced("four")


def _wait_for(happened: Callable[[], Any]) -> None:
    while not happened():
        time.sleep(0.2)


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


def main(folder: Path, recipe: str, overrides: Sequence[str], troubled: bool) -> int:
    command = [recipe, *RUN, *overrides]
    with s3.server() as server, machines(folder) as (cluster, lent):
        uri = server.uri()
        driver = start(folder, [*command, "--store", uri, "--address", cluster.address])
        if troubled:
            trouble(cluster, lent, folder, Store(uri), server.way)
        if code := driver.wait():
            return code
        ours = payloads(uri)
    here = str(folder / "store")
    if code := start(folder, [*command, "--store", here]).wait():
        return code
    other = {name for name, digest in payloads(here).items() if ours.get(name) != digest}
    for place in sorted(folder.iterdir()):
        files = cached(place)
        print(f"cache of {place.name}: {len(files)} files, {len(arrays(files))} of them arrays")
    print(f"{len(ours)} nodes, of which {len(other)} differ: {sorted(other)}")
    return bool(other or arrays(cached(folder / "driver")))


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if word != "--trouble"]
    place, recipe, *overrides = [*words, "full"][: max(2, len(words))]
    sys.exit(main(Path(place).absolute(), recipe, overrides, "--trouble" in sys.argv))
