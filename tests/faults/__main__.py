"""`python -m tests.faults --rounds 100 --seed 0`: faults by turns, at random moments.

Each round runs a graph, does something to it, runs the same command until it is done, and compares
every payload with an undisturbed run. `--smoke` adds the whole smoke graph on a server that speaks
S3, killed twice, against a local disk. Prints a table.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline import plan as planning
from pipeline.plan import Request
from pipeline.store import Store
from pipeline.track import send_pending
from tests import s3
from tests.faults import kinds
from tests.faults.running import Command
from tests.inline import run_all
from tests.toy.table import CATALOG

WIDTH, STEPS, ATTEMPTS = 6, 30, 4
GRAPH = ("wide", f"width={WIDTH}", f"a.steps={STEPS}")


@dataclass
class Tally:
    """What rounds of one fault came to."""

    rounds: int = 0
    repeated: int = 0  # nodes run again though their artifact was there
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)


def payloads(store: Store) -> dict[str, str]:
    """Payload digests by node; of a graph that is not whole, those that are there."""
    plan = planning.make(CATALOG, store, Request(GRAPH[0], overrides=GRAPH[1:]))
    return {
        n: p.manifest.payload for n, p in plan.nodes.items() if p.manifest and n not in plan.todo
    }


def play(
    fault: kinds.Fault,
    folder: Path,
    draws: random.Random,
    expected: Mapping[str, str],
    server: s3.Server | None = None,
) -> Tally:
    """One round; its tally."""
    tally, begun = Tally(rounds=1), time.monotonic()
    folder.mkdir()
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    if fault.place == kinds.SMALL_DISK:
        kinds.small_disk(folder / "store")
    uri = server.uri() if fault.place == kinds.S3 else str(folder / "store")
    marks, clock, store = folder / "marks", folder / "clock", Store(uri)
    command = ("tests.toy", "run", *GRAPH, "a.seconds=1", f"a.marks={marks}", "--jobs", "2")
    environment = kinds.wrong_clock(folder, clock) if fault.clock else {}
    runs = [Command((*command, "--store", uri), folder / "log", environment)]
    try:
        runs[0].wait_for(" done in ", draws.randrange(1, WIDTH))
        time.sleep(draws.random())
        whole, begun_before = set(payloads(store)), len(_lines(marks))
        scene = kinds.Scene(runs[0], store.local, clock, draws, server, store.location)
        fault.do(scene)
        runs += scene.others
        codes = [run.wait() for run in runs]
        while codes[0] != 0 and len(runs) - len(scene.others) < ATTEMPTS:
            runs.append(runs[0].again())
            codes[0] = runs[-1].wait()
        if any(codes):
            tally.problems.append(f"ended with {codes}: {runs[-1].said()[-400:]}")
        tally.repeated = len(whole.intersection(_lines(marks)[begun_before:]))
        if tally.repeated > fault.repeats:
            tally.problems.append(f"{tally.repeated} finished nodes were made again")
        tally.problems += _judged(Store(uri), expected, runs)
    finally:
        for run in runs:
            run.end()
        if fault.place == kinds.SMALL_DISK:
            kinds.unmount(folder / "store")
    tally.seconds = time.monotonic() - begun
    return tally


def _judged(store: Store, expected: Mapping[str, str], runs: Sequence[Command]) -> list[str]:
    """What is wrong with a store, and with what commands said and left behind."""
    problems = [f"says {said}" for run in runs if (said := _traceback(run.said()))]
    found = payloads(store)
    if found != expected:
        differ = sorted(n for n in expected if found.get(n) != expected[n])
        problems.append(f"lost or other bytes: {', '.join(differ)}")
    for run in runs:
        run.wait_for_sender()
    _, left = send_pending(store.local)
    if left:
        problems.append(f"MLflow lacks some of {', '.join(left)}")
    return problems + [f"left behind: {o}" for run in runs if (o := run.orphans())]


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").split() if file.exists() else []


def _traceback(said: str) -> str:
    """A traceback of ours in what a command said, "" if there is none."""
    _, found, rest = said.partition("Traceback (most recent call last)")
    return (found + rest)[:600]


def smoke(folder: Path, server: s3.Server) -> Tally:
    """The whole smoke graph on S3, parent and child killed, against a local disk."""
    tally, begun = Tally(rounds=1), time.monotonic()
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    uris = (server.uri(), str(folder / "local"))
    base = ("pipeline", "run", "full", "--preset", "smoke", "--store")
    log = folder / "smoke.log"
    first = Command((*base, uris[0]), log)
    first.wait_for(" done in ", 10)
    first.process.kill()
    first.wait()
    time.sleep(2)
    second = Command((*base, uris[0]), log)
    second.wait_for(" done in ", 25)
    if (child := second.child()) is not None:
        child.kill()
    codes = (second.wait(), Command((*base, uris[1]), log).wait())
    stores = [Store(uri) for uri in uris]
    made = [{at: s.manifest(*at).payload for at in s.artifacts()} for s in stores]
    if codes != (0, 0) or made[0] != made[1] or not made[0]:
        differ = [at for at in made[1] if made[0].get(at) != made[1][at]]
        tally.problems.append(f"ended with {codes}; {len(differ)} of {len(made[1])} differ")
    tally.seconds = time.monotonic() - begun
    return tally


def table(tallies: Mapping[str, Tally]) -> str:
    """The tallies as a table in Markdown."""
    lines = ["| fault | rounds | finished nodes repeated | seconds a round | result |"]
    lines.append("| --- | ---: | ---: | ---: | --- |")
    for name, tally in tallies.items():
        result = f"{len(tally.problems)} failed" if tally.problems else "same bytes, none left"
        each = tally.seconds / tally.rounds
        lines.append(f"| {name} | {tally.rounds} | {tally.repeated} | {each:.0f} | {result} |")
    count = sum(tally.rounds for tally in tallies.values())
    failed = sum(len(tally.problems) for tally in tallies.values())
    lines.append(f"\n{count} rounds, {failed} problems")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100, metavar="N")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="number of the first")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    parser.add_argument("--only", metavar="WORDS", help="faults whose names hold these")
    parser.add_argument("--smoke", action="store_true", help="also the whole smoke graph on S3")
    options = parser.parse_args()
    faults = {name: f for name, f in kinds.FAULTS.items() if (options.only or "") in name}
    order = list(faults)
    random.Random(options.seed).shuffle(order)
    tallies: dict[str, Tally] = {}
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the rounds so far are told
    with (
        contextlib.suppress(KeyboardInterrupt),
        tempfile.TemporaryDirectory() as place,
        s3.server() as server,
    ):
        run_all(CATALOG, Store(f"{place}/expected"), Request(GRAPH[0], overrides=GRAPH[1:]))
        expected = payloads(Store(f"{place}/expected"))
        for number in range(options.first, options.first + options.rounds):
            name = order[number % len(order)]
            draws = random.Random(f"{options.seed} {number}")
            at = Path(place) / str(number)
            try:
                tally = play(faults[name], at, draws, expected, server)
            except kinds.NotHereError as error:
                print(f"{number + 1} {name}: left out, {error}", file=sys.stderr, flush=True)
                continue
            _add(tallies, name, tally)
            said = "; ".join(tally.problems) or "ok"
            took = f"{tally.seconds:.0f} s"
            print(f"{number + 1} {name}: {said} ({took})", file=sys.stderr, flush=True)
        if options.smoke:
            _add(tallies, "S3: the smoke graph, killed twice", smoke(Path(place), server))
    print(table(tallies))
    return 1 if any(tally.problems for tally in tallies.values()) else 0


def _add(tallies: dict[str, Tally], name: str, tally: Tally) -> None:
    known = tallies.setdefault(name, Tally())
    known.rounds += tally.rounds
    known.repeated += tally.repeated
    known.seconds += tally.seconds
    known.problems += tally.problems


if __name__ == "__main__":
    sys.exit(main())
