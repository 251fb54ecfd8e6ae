"""What a sweep adds to the work of its trials: fifty trials that do nothing.

    python -m tests.bench.trials [--trials 50] [--jobs 2] [--workers]

Each trial runs one node of the toy catalog that returns at once, so all of its time is Ray Tune's,
the engine's and MLflow's. The whole command includes the start of Ray and the page. `--workers`
adds a sweep of a training without and with two Ray Train workers: their losses must agree.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pipeline.store import Store
from tests.bench.engine import line

SPACE = """
recipe: chain
metrics: {{value: {{node: number/a, direction: min}}}}
parameters: {{a.value: {{grid: {values}}}}}
"""


WORKERS = """
recipe: full
metrics: {loss/velocity: {node: train/sit, direction: min}}
parameters: {train.num_workers: {grid: [0, 2]}}
settings: {train.steps: 10, train.warmup_steps: 2}
"""


def sweep(module: str, folder: str, text: str, *more: str) -> tuple[str, float]:
    """What a sweep of a space said, and the seconds that the command took."""
    space = Path(folder) / "space.yaml"
    space.write_text(text)
    words = ["sweep", "bench", "--space", str(space), "--store", f"{folder}/store", *more]
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", module, *words], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the sweep ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout, time.perf_counter() - begun


def overhead(trials: int, jobs: int) -> None:
    values = list(range(1, trials + 1))
    with tempfile.TemporaryDirectory() as folder:
        said, whole = sweep("tests.toy", folder, SPACE.format(values=values), "--jobs", str(jobs))
    told = re.findall(r"\[ *([\d.]+) s\] trial-\d+ (?:running|done)", said)
    span = float(told[-1]) - float(told[0])
    line("overhead a trial, first start to last end", span / trials, 0.5)
    line("overhead a trial, whole command", whole / trials, 0.5)


def workers() -> None:
    with tempfile.TemporaryDirectory() as folder:
        sweep("pipeline", folder, WORKERS, "--preset", "smoke", "--jobs", "2")
        trials = Store(f"{folder}/store").runs()[0]["sweep"]["trials"]
    alone, together = (trial["measured"]["loss/velocity"][0] for trial in trials)
    line("loss with two workers against none, relative", abs(together / alone - 1), 1e-4, "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--workers", action="store_true", help="trainings with workers, too")
    options = parser.parse_args()
    overhead(options.trials, options.jobs)
    if options.workers:
        workers()


if __name__ == "__main__":
    main()
