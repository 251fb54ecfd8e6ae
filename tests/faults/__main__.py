"""`python -m tests.faults --rounds 100 --seed 0`: faults by turns, at random moments.

Each round runs a graph, does something to it, runs the same command until it is done, and compares
every payload with an undisturbed run. `--smoke` adds the whole smoke graph on a server that speaks
S3, killed twice, against a local disk. Prints a table.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipeline import plan as planning
from pipeline.plan import Request
from pipeline.store import Store
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


def play(fault, folder: Path, draws: random.Random, expected: Mapping, server=None) -> Tally:
    """One round; its tally."""
    tally, begun = Tally(rounds=1), time.monotonic()
    folder.mkdir()
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    uri = server.uri() if server else str(folder / "store")
    store = Store(uri)
    marks = folder / "marks"
    command = ("tests.toy", "run", *GRAPH, "a.seconds=1", f"a.marks={marks}", "--jobs", "2")
    command += ("--store", uri)
    disturbed = Command(command, folder / "log")
    disturbed.wait_for(" done in ", draws.randrange(1, WIDTH))
    time.sleep(draws.random())
    whole_before = set(payloads(store))
    fault(kinds.Scene(disturbed, store.local, draws, server))
    code = disturbed.wait()
    runs = [disturbed]
    while code != 0 and len(runs) < ATTEMPTS:
        runs.append(Command(command, folder / "log"))
        code = runs[-1].wait()
    if code != 0:
        tally.problems.append(f"ended with {code}: {runs[-1].said()[-400:]}")
    found = payloads(Store(uri))
    if found != expected:
        differ = sorted(n for n in expected if found.get(n) != expected[n])
        tally.problems.append(f"lost or other bytes: {', '.join(differ)}")
    begun_nodes = marks.read_text().split()
    tally.repeated = sum(begun_nodes.count(n) > 1 for n in whole_before if n.startswith("number"))
    for run in runs:
        if orphans := run.orphans():
            tally.problems.append(f"left behind: {orphans}")
        run.end()
    tally.seconds = time.monotonic() - begun
    return tally


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
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    parser.add_argument("--only", metavar="WORDS", help="faults whose names hold these")
    parser.add_argument("--smoke", action="store_true", help="also the whole smoke graph on S3")
    options = parser.parse_args()
    faults = {**kinds.LOCAL, **kinds.REMOTE}
    faults = {name: f for name, f in faults.items() if (options.only or "") in name}
    order = list(faults)
    random.Random(options.seed).shuffle(order)
    tallies: dict[str, Tally] = {}
    with tempfile.TemporaryDirectory() as place, s3.server() as server:
        run_all(CATALOG, Store(f"{place}/expected"), Request(GRAPH[0], overrides=GRAPH[1:]))
        expected = payloads(Store(f"{place}/expected"))
        for number in range(options.rounds):
            name = order[number % len(order)]
            draws = random.Random(f"{options.seed} {number}")
            where = server if name in kinds.REMOTE else None
            tally = play(faults[name], Path(place) / str(number), draws, expected, where)
            _add(tallies, name, tally)
            said = "; ".join(tally.problems) or "ok"
            print(f"{number + 1}/{options.rounds} {name}: {said}", file=sys.stderr, flush=True)
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
