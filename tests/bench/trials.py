"""What a sweep adds to the work of its trials: fifty trials that do nothing.

    python -m tests.bench.trials [--trials 50] [--jobs 2]

Each trial runs one node of the toy catalog that returns at once, so all of its time is Ray Tune's,
the engine's and MLflow's. The whole command includes the start of Ray and the page.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.engine import line

SPACE = """
recipe: chain
metrics: {{value: {{node: number/a, direction: min}}}}
parameters: {{a.value: {{grid: {values}}}}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        space = Path(folder) / "space.yaml"
        space.write_text(SPACE.format(values=list(range(1, options.trials + 1))))
        words = ["sweep", "many", "--space", str(space), "--jobs", str(options.jobs)]
        begun = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "tests.toy", *words, "--store", f"{folder}/store"],
            capture_output=True,
            text=True,
        )
        whole = time.perf_counter() - begun
    if done.returncode:
        raise SystemExit(f"the sweep ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    told = re.findall(r"\[ *([\d.]+) s\] trial-\d+ (?:running|done)", done.stdout)
    span = float(told[-1]) - float(told[0])
    line("overhead a trial, first start to last end", span / options.trials, 0.5)
    line("overhead a trial, whole command", whole / options.trials, 0.5)


if __name__ == "__main__":
    main()
