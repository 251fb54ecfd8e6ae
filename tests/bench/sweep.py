"""The sweep over solvers and corrections: how much of its time is not the network's.

    python -m tests.bench.sweep [--preset digits] [--jobs 2] [--store DIR] [KEY=VALUE ...]

Runs every `sample` and `calibrate` node of the recipe `full` anew, on a trained model (which is
trained first where the store has none), from the start of the first to the end of the last.
Overhead = 1 - network seconds / (span x jobs): everything but network calls counts, Ray, the store,
files, pictures, noise, the solvers' own arithmetic, and workers that wait.
"""

import argparse
import subprocess
import sys
import tempfile
from datetime import datetime

from pipeline.results import Run, latest
from pipeline.store import Store
from tests.bench.engine import line

STAGES = ("sample", "calibrate")


def command(options: argparse.Namespace, store: str, *more: str) -> None:
    """One run of the recipe full that must succeed."""
    words = ["run", "full", "--preset", options.preset, "--store", store, *more]
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", *words, *options.overrides],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout[-2000:]}")


def measure(run: Run, jobs: int) -> None:
    """Print what the nodes of the sweep took, and the share that was not the network's."""
    nodes = (run[name] for name in run)
    swept = [node for node in nodes if node.data["stage"] in STAGES and node.manifest]
    manifests = [node.manifest for node in swept]
    begun = min(datetime.fromisoformat(manifest.started) for manifest in manifests)
    ended = max(datetime.fromisoformat(manifest.finished) for manifest in manifests)
    span = (ended - begun).total_seconds()
    network = sum(manifest.timings["network_seconds"] for manifest in manifests)
    inside = sum(manifest.seconds for manifest in manifests)
    print(f"{len(swept)} nodes in {span:.1f} s on {jobs} workers; network {network:.1f} s")
    line("in nodes, but not in the network", 100 * (1 - network / inside), 10, "%")
    line("overhead of the sweep", 100 * (1 - network / (span * jobs)), 10, "%")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="digits")
    parser.add_argument("--jobs", type=int, default=2, help="workers")
    parser.add_argument("--store", help="a store with the trained model (default: a fresh one)")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = options.store or folder
        command(options, store, "--only", "train")
        again = [word for stage in STAGES for word in ("--only", stage, "--force", stage)]
        command(options, store, *again, "--jobs", str(options.jobs))
        measure(latest("full", Store(store)), options.jobs)


if __name__ == "__main__":
    main()
