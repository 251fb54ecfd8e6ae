"""Search spaces over the toy catalog, written to files."""

import yaml

from sweeps import space
from sweeps.target import Sweep

CHAIN = {
    "recipe": "chain",
    "metrics": {"value": {"node": "total", "direction": "min"}},
    "parameters": {"a.value": {"grid": [3, 1, 2]}},
}


def write(folder, **changes):
    """A space file: CHAIN with changes; None leaves a key out."""
    tree = {key: value for key, value in (CHAIN | changes).items() if value is not None}
    path = folder / "space.yaml"
    path.write_text(yaml.safe_dump(tree))
    return str(path)


def sweep(folder, *overrides, **changes):
    return Sweep("toy", space.read("toy", write(folder, **changes)), None, tuple(overrides))
