"""The formats of networks from elsewhere, and the files that one is read from. Opens no weights."""

from __future__ import annotations

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


def source(function: str) -> Path | None:
    """The file that the module of `module:function` lies in."""
    try:
        spec = importlib.util.find_spec(function.partition(":")[0])
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec and spec.origin else None


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
        origin = source(str(path))
        return [] if origin is None else [origin]
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
