"""The formats of networks from elsewhere, and the files that one is read from. Opens no weights."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

from stages.networks import diffusers_folders

FORMATS = ("bench", "sit", "repa", "reg", "dit", "edm", "edm2", "jit", "diffusers", "python")

# Of the project's own folders, and of those that `convert` makes of EDM's pickles.
BENCH_FACTS, BENCH_WEIGHTS = "model.json", "step-*.safetensors"
BENCH_NEEDED = ("network", "config", "method", "steps", "shape", "num_classes")
CONVERTED_FACTS, CONVERTED_WEIGHTS = "network.json", "weights.safetensors"


def names_a_function(path: str | Path) -> bool:
    """Whether a path is none, but `module:function`."""
    place, colon, name = str(path).partition(":")
    dotted = place.replace(".", "_").isidentifier() and name.isidentifier()
    return bool(colon) and dotted and not Path(path).exists()


def sources(function: str) -> list[Path]:
    """The file that the module of `module:function` lies in, and those of the modules that it
    imports from the same folder or package, in functions too. Imports none of them."""
    name = function.partition(":")[0]
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return []
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        return []
    first = Path(spec.origin)
    up = len(name.split(".")) - (first.name != "__init__.py")
    root, found, waiting = first.parents[up], [], [first]
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.append(file)
            waiting += _imported(file, root)
    return [first, *sorted(set(found) - {first})]


def _imported(file: Path, root: Path) -> list[Path]:
    """The files below a folder that a module's imports name, the packages they lie in included."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return []
    dotted: list[tuple[Path, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            dotted += [(root, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = file.parents[node.level - 1] if node.level else root
            module = f"{node.module}." if node.module else ""
            dotted += [(start, f"{module}{alias.name}") for alias in node.names]
    files = []
    for start, name in dotted:
        folder = start
        for part in name.split("."):
            files += [folder / f"{part}.py", folder / part / "__init__.py"]
            folder = folder / part
    return [path for path in files if path.is_file()]


def folder_format(folder: Path) -> str:
    """bench, converted (edm, edm2) or diffusers. Raises ValueError for any other folder."""
    if (folder / BENCH_FACTS).is_file():
        return "bench"
    if (folder / CONVERTED_FACTS).is_file():
        return "converted"
    if diffusers_folders.recognised(folder):
        return "diffusers"
    raise ValueError(
        f"{folder} is a folder of no known format: it holds neither {BENCH_FACTS} (bench), "
        f"{CONVERTED_FACTS} (edm, edm2, converted) nor model_index.json or config.json (diffusers)"
    )


def folder_of(path: Path) -> Path:
    """Of a converted network's or a diffusers network's weights the folder they lie in, which
    describes them; any other path as it is."""
    facts = {CONVERTED_WEIGHTS: CONVERTED_FACTS, **diffusers_folders.DESCRIBED}.get(path.name)
    return path.parent if facts and (path.parent / facts).is_file() else path


def files_of(path: str | Path) -> list[Path]:
    """The files that a network at a path is read from.

    Raises ValueError where there is nothing, and for a folder of no known format.
    """
    if names_a_function(path):
        return sources(str(path))
    path = folder_of(Path(path).expanduser())
    if not path.exists():
        raise ValueError(f"there is no network at {path}")
    if not path.is_dir():
        return [path]
    kind = folder_format(path)
    if kind == "bench":
        weights = sorted((path / "checkpoints").glob(BENCH_WEIGHTS))
        if not weights:
            raise ValueError(f"{path} holds no checkpoints/{BENCH_WEIGHTS}")
        return [path / BENCH_FACTS, *weights]
    if kind == "converted":
        return [path / CONVERTED_FACTS, path / CONVERTED_WEIGHTS]
    return diffusers_folders.files(path)
