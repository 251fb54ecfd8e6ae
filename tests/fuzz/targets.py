"""What reads input of others: each target takes draws, makes one input, and lets it be read.

A target may raise `PipelineError`, which a person reads as one sentence; whatever else it raises
is a fault. What it accepts must be what was written, or of the right shape.
"""

import contextlib
import io
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from pipeline import config, leases
from pipeline import plan as planning
from pipeline.artifact import MANIFEST, Manifest, _checksum
from pipeline.errors import DamagedArtifactError, DamagedRecordError
from pipeline.garbage import garbage
from pipeline.locations import is_plain
from pipeline.plan import Request
from pipeline.results import Run
from pipeline.store import Store
from pipeline.track.spool import SPOOL, STATE, State, is_pending, last_begin, read_events
from sweeps import space
from tests.fuzz import files
from tests.fuzz.making import as_json, atom, changed, flipped, value, yaml_text
from tests.inline import run_all
from tests.toy.table import CATALOG

Target = Callable[[random.Random], None]
KEYS = ("a.value", "b.seconds", "total.offset", "resources.number.cpus", "seed", "a", "", "x.y")


def targets(folder: Path) -> dict[str, Target]:
    """All targets, by name; they work below `folder`."""
    store = Store(folder / "store")
    run_all(CATALOG, store, Request("chain"))
    return {
        "manifest": _manifest(store),
        "record": _record(store),
        "state": _state(folder / "state"),
        "preset": _preset(folder),
        "override": _override,
        "space": _space(folder),
        "key": _key(folder),
        "spool": _spool(folder / "run"),
        "lock": _lock(folder),
        **files.targets(folder / "files"),
    }


def _manifest(store: Store) -> Target:
    file = next((store.local / "artifacts" / "total").glob(f"*/{MANIFEST}"))
    whole, key = file.read_bytes(), file.parent.name
    fields = dict(Manifest.parse(whole).__dict__)

    def read(draws: random.Random) -> None:
        if grown := draws.random() < 0.5:
            tree = changed(draws, fields)
            if isinstance(tree, dict) and draws.random() < 0.9:  # who writes it knows checksums
                tree = tree | {"checksum": _checksum(tree)}
            file.write_bytes(as_json(tree))
        else:
            file.write_bytes(flipped(draws, whole))
        try:
            found = store.manifest("total", key)
            store.open("total", key)
        except DamagedArtifactError:
            return
        finally:
            file.write_bytes(whole)
        assert grown or found is None or found.__dict__ == fields, "a damaged manifest was accepted"

    return read


def _record(store: Store) -> Target:
    plan = planning.make(CATALOG, store, Request("chain"))
    nodes = {
        name: {
            "stage": item.node.stage.name,
            "key": item.key,
            "upstream": list(item.node.upstream),
            "tags": {},
            "state": "done",
            "seconds": 1.0,
            "error": "",
            "timings": {"t": [[1, 2.0]]},
        }
        for name, item in plan.nodes.items()
    }
    whole = {
        "id": "r",
        "recipe": "chain",
        "preset": "plain",
        "overrides": [],
        "command": "python -m pipeline run chain",
        "created": "2026",
        "state": "running",
        "settings": plan.resolved.settings.model_dump(mode="json"),
        "git": {},
        "nodes": nodes,
    }
    folder = store.local / "runs" / "r"
    folder.mkdir(parents=True)

    def read(draws: random.Random) -> None:
        grown = draws.random() < 0.6
        data = as_json(changed(draws, whole)) if grown else flipped(draws, as_json(whole))
        (folder / "run.json").write_bytes(data)
        lines = as_json(value(draws)) + b"\n" + as_json({"total": value(draws)}) + b'\n{"to'
        (folder / "nodes.jsonl").write_bytes(lines if draws.random() < 0.5 else b"")
        try:
            record = store.read_run("r")
        except DamagedRecordError:
            return
        run = Run(store, record)
        assert run.id == "r"
        run.text()
        for doomed in garbage(store, 0)[0]:
            assert is_plain(doomed), f"gc would remove {doomed}"

    return read


def _state(folder: Path) -> Target:
    import torch

    from stages.training import resume

    tensors = {"w": torch.arange(12.0).reshape(3, 4), "n": torch.tensor(3)}

    def fresh() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()

    fresh()
    resume.save(folder, 5, tensors, {"curves": []})
    whole = (folder / resume.SLOTS[0]).read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])

    def grown(draws: random.Random) -> bytes:
        text = as_json(changed(draws, header))
        size = draws.choice((len(text), 0, 1, 2**63, 2**64 - 1, len(text) + 8, length))
        return size.to_bytes(8, "little") + text + whole[8 + length :]

    def read(draws: random.Random) -> None:
        data = grown(draws) if draws.random() < 0.5 else flipped(draws, whole)
        (folder / resume.SLOTS[0]).write_bytes(data)
        with contextlib.redirect_stdout(io.StringIO()):  # what a person is told
            found = resume.latest(folder)
        if found is not None:
            step, read_back, record = found
            assert (step, record) == (5, {"curves": []}), "a damaged state was accepted"
            assert all(torch.equal(read_back[k], v) for k, v in tensors.items())
        if any(folder.glob("*.damaged")):
            fresh()

    return read


def _preset(folder: Path) -> Target:
    whole = b"extends: plain\na: {value: 5, seconds: 1.5}\nb:\n  steps: 3\nseed: 4\n"
    file = folder / "preset.yaml"

    def read(draws: random.Random) -> None:
        if draws.random() < 0.5:
            file.write_bytes(yaml_text(draws).encode(errors="replace"))
        else:
            file.write_bytes(flipped(draws, whole))
        config.resolve(CATALOG, str(file), ())

    return read


def _override(draws: random.Random) -> None:
    key = draws.choice(KEYS) if draws.random() < 0.8 else str(atom(draws))
    text = draws.choice((str(atom(draws)), json.dumps(value(draws)), yaml_text(draws)))
    config.resolve(CATALOG, None, (f"{key}={text}" if draws.random() < 0.95 else text,))


def _space(folder: Path) -> Target:
    whole = (
        b"recipe: chain\nobjective: total:value\nmode: max\ntrials: 4\nparameters:\n"
        b"  a.value: {grid: [1, 2]}\n  b.value: {loguniform: [1, 8]}\n"
    )
    file = folder / "space.yaml"

    def read(draws: random.Random) -> None:
        grown = draws.random() < 0.5
        text = yaml_text(draws).encode(errors="replace") if grown else flipped(draws, whole)
        file.write_bytes(text)
        space.read("toy", str(file))

    return read


def _key(folder: Path) -> Target:
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    store = Store(f"memory://fuzz/{folder.name}")

    class Hostile:
        """A server that lists what it likes."""

        names: tuple[str, ...] = ()

        def find(self, path, detail=False):
            return {f"{path}/{name}": {"size": 5} for name in self.names}

        def ls(self, path, detail=False):
            return [f"{path}/{name}" for name in self.names]

        def get_file(self, path, local):
            Path(local).write_bytes(b"owned")

        def cat_file(self, path, start=None, end=None):
            return b"owned"

    server = Hostile()
    store.location.fs = server
    parts = ("..", ".", "", "a", "b", "/", "\x00", "\n", "x" * 300, "~", "%2e%2e", "..\\..", "é")

    def read(draws: random.Random) -> None:
        count = draws.randrange(1, 5)
        server.names = tuple(
            "/".join(draws.choice(parts) for _ in range(draws.randrange(1, 6)))
            for _ in range(count)
        )
        for name in store.location.children("artifacts"):
            assert is_plain(name)
            assert "/" not in name
        try:
            store.work("number", "k").pull()
        finally:
            shutil.rmtree(store.local, ignore_errors=True)

    return read


def _spool(folder: Path) -> Target:
    folder.mkdir()
    event = {"event": "begin", "time_ms": 1, "uri": "sqlite:///x.db"}
    state = {"uri": "u", "offset": 3, "ended": True, "steps": {"": {"m": [[0, 4, 1]]}}, "runs": {}}

    def read(draws: random.Random) -> None:
        line = as_json(changed(draws, event)) + b"\n"
        (folder / SPOOL).write_bytes(line if draws.random() < 0.5 else flipped(draws, line * 3))
        told = as_json(changed(draws, state))
        (folder / STATE).write_bytes(told if draws.random() < 0.5 else flipped(draws, told))
        is_pending(folder)
        State.load(folder, "u")
        read_events(folder, 0)
        last_begin(folder)

    return read


def _lock(folder: Path) -> Target:
    store = Store(f"memory://locks/{folder.name}")
    sign = {"host": "h", "where": "w", "token": "t", "time": 1.0}

    def read(draws: random.Random) -> None:
        told = as_json(changed(draws, sign))
        store.location.write("locks/x.json", told if draws.random() < 0.5 else flipped(draws, told))
        assert isinstance(leases.holder(store.location, "x", "here"), str)
        leases.is_stale(store.location, "x")

    return read
