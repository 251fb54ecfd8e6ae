"""Two machines and a third that drives them, each with a cache of its own, a store on S3 between.

`python -m tests.machines FOLDER [RECIPE OVERRIDE...]` runs a recipe so, at smoke size and with two
workers a training, and once more on a local disk; it says whether the payloads are the same. With
`--trouble` a machine is lost while a network trains, and one while samples are drawn, each replaced
by a fresh one, and the server is away for 20 s.

Where the kernel lets us (`unshare`, as root), each machine has namespaces of its own: it sees no
process of the others, can write to nothing but disks in memory that nobody else sees, and is gone
whole when it is lost. Elsewhere the machines only have folders of their own.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.address import check_alive
from pipeline.results import latest
from pipeline.store import Store
from tests import s3

AWAY_SECONDS = 20
CPUS = 2  # of each machine
MEMORY_BYTES = 2**28  # of each machine's object store
RUN = ("--preset", "smoke", "train.num_workers=2")
STARTED = "Ray runtime started"
APART = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
# Nothing that is there can be written, and what can is nobody else's: $1 is what follows.
ALONE = """set -e
mount -o remount,bind,ro /
for place in /dev/shm "$(dirname "$HOME")" "$RAY_TMPDIR"; do mount -t tmpfs tmpfs "$place"; done
mkdir "$HOME"; cd "$HOME"
exec "$@"
"""


def can_be_apart() -> bool:
    """Whether a machine can have namespaces of its own here."""
    with contextlib.suppress(OSError):
        made = subprocess.run(
            [*APART, "sh", "-c", "mount -o remount,bind,ro /"], capture_output=True, check=False
        )
        return made.returncode == 0
    return False


@dataclass
class Cluster:
    """A Ray cluster whose head, at an address of its own, computes nothing."""

    folder: Path
    ray: str  # where Ray's own files go, by a short name
    apart: bool
    port: int
    machines: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    count: int = 1

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def cache(self, name: str) -> Path:
        """What that machine, which must be there, has for its cache."""
        below = self.folder / name / "cache"
        if not self.apart:
            return below
        family = Path(f"/proc/{self.machines[name].pid}/task/{self.machines[name].pid}/children")
        (first,) = family.read_text(encoding="ascii").split()
        return Path(f"/proc/{first}/root") / below.relative_to("/")

    def add(self, name: str, *options: str) -> None:
        """One machine more; without options one that computes."""
        home = self.folder / name
        home.mkdir(parents=True, exist_ok=True)
        alone = [*APART, "sh", "-c", ALONE, "sh"] if self.apart and not options else []
        if not options:
            self.count += 1
            options = (f"--address={self.address}", f"--num-cpus={CPUS}")
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block"]
        command += [f"--node-ip-address=127.0.0.{self.count}", "--disable-usage-stats"]
        command += [f"--object-store-memory={MEMORY_BYTES}", *options]
        places = {"HOME": str(home), "TMPDIR": str(home), "RAY_TMPDIR": self.ray}
        with (self.folder / f"{name}.log").open("wb") as log:
            self.machines[name] = subprocess.Popen(
                [*alone, *command],
                env=os.environ | places | {"PIPELINE_CACHE": str(home / "cache")},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def lose(self, name: str) -> None:
        """That machine is no more, in the midst of what it does."""
        process = self.machines.pop(name)
        if self.apart:
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def machines(folder: Path, apart: bool, names: Sequence[str] = ("one", "two")) -> Iterator[Cluster]:
    """A head and its machines, each at work in `folder`/NAME."""
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="r", ignore_cleanup_errors=True) as short:
        cluster = Cluster(folder, short, apart, port)
        try:
            cluster.add("head", "--head", f"--port={port}", "--num-cpus=0")
            check_alive(cluster.address, wait_seconds=60)
            for name in names:
                cluster.add(name)
            for name in names:
                _wait_for(lambda name=name: STARTED in (folder / f"{name}.log").read_text())
            yield cluster
        finally:
            for name in list(cluster.machines):
                cluster.lose(name)


def start(
    folder: Path,
    arguments: Sequence[str],
    program: Sequence[str] = ("-m", "pipeline"),
    **places: str,
) -> subprocess.Popen[bytes]:
    """Start a command whose own cache is `folder`/driver/cache."""
    return subprocess.Popen(
        [sys.executable, *program, "run", *arguments],
        env=os.environ | places | {"PIPELINE_CACHE": str(folder / "driver" / "cache")},
    )


def trouble(cluster: Cluster, store: Store, way: s3.Way) -> None:
    """Lose the first machine once a training has saved, the server and the other while sampling."""

    def replaced(name: str, by: str) -> None:
        cluster.lose(name)
        cluster.add(by)
        print(f"trouble: machine {name} is lost, {by} comes", flush=True)

    def states() -> bool:
        return any("/state-" in name for name in store.location.versions("work/train"))

    _wait_for(states)
    replaced("one", "three")
    _wait_for(lambda: store.location.children("artifacts/sample"))
    way.cut()
    print("trouble: the server is away", flush=True)
    time.sleep(AWAY_SECONDS)
    way.mend()
    replaced("two", "four")


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
    command, apart = [recipe, *RUN, *overrides], can_be_apart()
    print("machines with", "namespaces" if apart else "only folders", "of their own", flush=True)
    with s3.server() as server, machines(folder, apart) as cluster:
        uri = server.uri()
        asked = [*command, "--store", uri, "--address", cluster.address]
        driver = start(folder, asked, RAY_TMPDIR=cluster.ray)
        try:
            if troubled:
                trouble(cluster, Store(uri), server.way)
            if code := driver.wait():
                return code
        finally:
            driver.kill()
        ours = payloads(uri)
        for name in [name for name in cluster.machines if name != "head"]:
            _say(name, cached(cluster.cache(name)))
    own = cached(folder / "driver" / "cache")
    _say("driver", own)
    here = str(folder / "store")
    if code := start(folder, [*command, "--store", here]).wait():
        return code
    alone = payloads(here)
    other = {name for name in alone.keys() | ours.keys() if ours.get(name) != alone.get(name)}
    print(f"{len(alone)} nodes, of which {len(other)} differ: {sorted(other)}")
    return bool(other or arrays(own))


def _say(name: str, files: Sequence[str]) -> None:
    print(f"cache of {name}: {len(files)} files, {len(arrays(files))} of them arrays", flush=True)


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if word != "--trouble"]
    place, recipe, *overrides = [*words, "full"][: max(2, len(words))]
    sys.exit(main(Path(place).absolute(), recipe, overrides, "--trouble" in sys.argv))
