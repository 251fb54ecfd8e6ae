"""`python -m tests.fuzz --count 100000 --seed 0`: hostile inputs, counted by what reads them."""

import argparse
import os
import random
import sys
import tempfile
import time
import traceback
from pathlib import Path

from pipeline.errors import PipelineError

SLOW_SECONDS = 2.0


def run(count: int, seed: int, only: str | None = None, most: int = 5) -> dict[str, list[str]]:
    """Give `count` inputs to all targets in turn; the faults of each, at most `most` in words."""
    from tests.fuzz.guard import Guard
    from tests.fuzz.targets import targets

    with tempfile.TemporaryDirectory() as place:
        os.environ["XDG_CACHE_HOME"] = f"{place}/cache"
        known = targets(Path(place))
        chosen = {name: known[name] for name in known if only in (None, name)}
        guard, faults = Guard(Path(place)), {name: [] for name in chosen}
        for number in range(count):
            name = list(chosen)[number % len(chosen)]
            draws, begun = random.Random(f"{seed} {number}"), time.monotonic()
            guard.on = True
            try:
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
    begun = time.monotonic()
    faults = run(options.count, options.seed, options.only)
    for name, found in faults.items():
        share = options.count // len(faults)
        print(f"| {name} | {share} | {len(found)} |")
        for text in found:
            print(text, file=sys.stderr)
    total = sum(map(len, faults.values()))
    print(f"{options.count} inputs, {total} faults, {time.monotonic() - begun:.0f} s")
    return 1 if total else 0


if __name__ == "__main__":
    sys.exit(main())
