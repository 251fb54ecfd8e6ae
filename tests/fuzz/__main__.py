"""`python -m tests.fuzz --count 100000 --seed 0`: hostile inputs, counted by what reads them."""

import argparse
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

from pipeline.errors import PipelineError

SLOW_SECONDS, LATE_SECONDS = 2.0, 20


MOST_BYTES = 2 * 2**30  # that a reader may take


class _Late:
    """Ends what takes too long, as a fault."""

    def __init__(self) -> None:
        signal.signal(signal.SIGALRM, self._end)

    def __enter__(self) -> None:
        signal.alarm(LATE_SECONDS)

    def __exit__(self, *_: object) -> None:
        signal.alarm(0)

    @staticmethod
    def _end(*_: object) -> None:
        raise AssertionError(f"was not done after {LATE_SECONDS} s")


def _limit_memory() -> None:
    """From now on, what takes much memory gets a MemoryError, which is a fault."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + MOST_BYTES
    hardest = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (limit, hardest))


def run(count: int, seed: int, only: str | None = None, most: int = 5) -> dict[str, list[str]]:
    """Give `count` inputs to all targets in turn; the faults of each, at most `most` in words."""
    from tests.fuzz.guard import Guard
    from tests.fuzz.targets import targets

    with tempfile.TemporaryDirectory() as place:
        os.environ["XDG_CACHE_HOME"], tempfile.tempdir = f"{place}/cache", place
        known = targets(Path(place))
        chosen = {name: known[name] for name in known if only in (None, name)}
        guard, late, faults = Guard(Path(place)), _Late(), {name: [] for name in chosen}
        _limit_memory()
        for number in range(count):
            name = list(chosen)[number % len(chosen)]
            draws, begun = random.Random(f"{seed} {number}"), time.monotonic()
            guard.on = True
            try:
                with late:
                    chosen[name](draws)
            except PipelineError as error:
                if not str(error) or "Traceback" in str(error):
                    faults[name].append(f"{number}: says {str(error)[:200]!r}")
            except Exception:
                faults[name].append(f"{number}: {traceback.format_exc()[-1500:]}")
            finally:
                guard.on = False
            faults[name] += [f"{number}: {escape}" for escape in guard.escapes]
            guard.escapes.clear()
            if time.monotonic() - begun > SLOW_SECONDS:
                faults[name].append(f"{number}: took {time.monotonic() - begun:.1f} s")
            if sum(map(len, faults.values())) > most:
                break
        return faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    parser.add_argument("--only", metavar="TARGET")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # libraries of damaged files have much to say
    begun = time.monotonic()
    faults = run(options.count, options.seed, options.only)
    lines = ["| what reads it | inputs | faults |", "| --- | ---: | ---: |"]
    for name, found in faults.items():
        share = options.count // len(faults)
        lines.append(f"| {name} | {share:,} | {len(found)} |")
        for text in found:
            print(text, file=sys.stderr)
    print(*lines, sep="\n")
    total = sum(map(len, faults.values()))
    print(f"\n{options.count} inputs, {total} faults, {time.monotonic() - begun:.0f} s")
    return 1 if total else 0


if __name__ == "__main__":
    sys.exit(main())
