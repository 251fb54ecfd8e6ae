"""The engine's budgets on this machine: measured beside target.

    python -m tests.bench.engine [--full]

Times are wall-clock seconds of whole commands, the least of a few tries where they are short.
`--full` adds the first and second run of `full` on the default preset, and a run of 5,000 nodes
that do nothing (minutes).
"""

import argparse
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pipeline.results import latest
from pipeline.store import Store


def timed(*command: str, tries: int = 1) -> float:
    """Least wall-clock seconds of a command that must succeed."""
    return min(_once(command) for _ in range(tries))


def _once(command: tuple[str, ...]) -> float:
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True)
    seconds = time.perf_counter() - begun
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    return seconds


def line(what: str, measured: float, target: float, unit: str = "s") -> None:
    verdict = "held" if measured <= target else "MISSED"
    print(f"{what:<52} {measured:>9.3f} {unit:<3} target {target:>7g}  {verdict}", flush=True)


def light_commands(store: str) -> None:
    line("--help", timed("pipeline", "--help", tries=5), 0.25)
    line(
        "plan full, nothing made yet", timed("pipeline", "plan", "full", *_at(store), tries=5), 0.6
    )


def smoke(store: str) -> None:
    command = ("pipeline", "run", "full", "--preset", "smoke", *_at(store))
    line("run full --preset smoke, first", timed(*command), 90)
    line("run full --preset smoke, unchanged", timed(*command, tries=5), 1.0)
    line("plan full --preset smoke, all cached", timed(*_plan(command), tries=5), 0.6)


def _plan(command: tuple[str, ...]) -> tuple[str, ...]:
    return ("pipeline", "plan", *command[2:])


def full(store: str) -> None:
    command = ("pipeline", "run", "full", *_at(store))
    line("run full, first", timed(*command), 400)
    line("run full, unchanged", timed(*command, tries=5), 1.0)
    run = latest("full", Store(store))
    began = _seconds_to_first_step(Path(store) / "runs" / run.id)
    if began is not None:
        line("from the command to the first training step", began, 10)


def _seconds_to_first_step(folder: Path) -> float | None:
    """From the run record's beginning to the train node's start, by its manifest."""
    import datetime

    store = Store(folder.parent.parent)
    data = store.read_run(folder.name)
    for node in data["nodes"].values():
        if node["stage"] == "train":
            started = store.manifest("train", node["key"]).started
            parse = datetime.datetime.fromisoformat
            return (parse(started) - parse(data["created"])).total_seconds()
    return None


def node_overhead(store: str, widths: tuple[int, ...]) -> None:
    """Slopes between runs of ever more nodes that do nothing: start-up falls out."""
    before = None
    for width in widths:
        arguments = ("tests.toy", "run", "wide", f"width={width}", "--jobs", "1")
        with tempfile.TemporaryFile("w+", encoding="utf-8") as said:
            command = [sys.executable, "-m", *arguments, *_at(f"{store}-{width}")]
            process = subprocess.Popen(command, stdout=said, stderr=said)
            _, status, used = os.wait4(process.pid, 0)
            said.seek(0)
            text = said.read()
        if status:
            raise SystemExit(f"a run of {width} nodes ended with {status}:\n{text}")
        stamps = [float(s) for s in re.findall(r"\[ *([\d.]+) s\]", text)]
        seconds = stamps[-1] - stamps[0]
        if before is not None:
            slope = 1000 * (seconds - before[1]) / (width - before[0])
            line(f"engine time a node, {before[0]:,} to {width:,} nodes", slope, 20, "ms")
            line(f"memory of the driver, {width:,} nodes", used.ru_maxrss / 1024, 1024, "MiB")
        before = width, seconds


def large_plan(store: str) -> None:
    """A tree of 5,000 nodes, none of them made; and the most memory that a command took so far."""
    command = ("tests.toy", "plan", "wide", "width=5000", *_at(store))
    line("plan of 5,000 nodes", timed(*command, tries=3), 3)
    most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    line("most memory of a command so far", most, 1024, "MiB")


def _at(store: str) -> tuple[str, str]:
    return "--store", store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="also time what takes minutes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        light_commands(f"{folder}/light")
        large_plan(f"{folder}/large")
        node_overhead(f"{folder}/toy", (10, 1000, 5000) if options.full else (10, 1000))
        smoke(f"{folder}/smoke")
        if options.full:
            full(f"{folder}/full")


if __name__ == "__main__":
    main()
