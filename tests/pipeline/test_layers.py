"""Imports point one way: sweeps -> stages -> pipeline; few modules touch Ray, MLflow, torch."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RANK = {"pipeline": 0, "stages": 1, "sweeps": 2}
COMPOSITION_ROOT = "pipeline/__main__.py"


def imports(path):
    """Every module that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module


def files():
    return [path for package in RANK for path in sorted((ROOT / package).rglob("*.py"))]


@pytest.mark.parametrize("path", files(), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_point_one_way(path):
    name = path.relative_to(ROOT).as_posix()
    package = name.partition("/")[0]
    tops = {module.partition(".")[0] for module in imports(path)}
    above = {top for top in tops if RANK.get(top, -1) > RANK[package]}
    assert not above or name == COMPOSITION_ROOT, f"{name} imports {above}"
    assert not tops & {"tests", "infra"}


def test_only_the_engine_touches_ray_core_and_mlflow():
    for path in files():
        name = path.relative_to(ROOT).as_posix()
        modules = set(imports(path))
        if name not in ("pipeline/run.py", "pipeline/cluster.py"):
            assert "ray" not in modules, f"{name} imports Ray core"
        if name not in ("sweeps/trial.py", "sweeps/tuning.py"):
            assert not any(m.startswith("ray.tune") for m in modules), f"{name} imports Ray Tune"
        if not name.startswith("pipeline/track/"):
            assert not any(m.partition(".")[0] == "mlflow" for m in modules), name


def test_every_package_that_is_imported_is_declared():
    other = {"PIL": "pillow", "yaml": "pyyaml", "sklearn": "scikit-learn", "pywt": "pywavelets"}
    other |= {"skimage": "scikit-image", "cleanfid": "clean-fid"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = project["dependencies"] + project["optional-dependencies"]["optuna"]
    declared = {re.match(r"[\w-]+", text)[0].lower() for text in needed}
    tops = {module.partition(".")[0] for path in files() for module in imports(path)}
    tops -= {*sys.stdlib_module_names, *RANK}
    assert {other.get(top, top) for top in tops} <= declared


def test_the_mathematics_touches_no_engine_and_no_files():
    banned = {"ray", "mlflow", "pipeline", "argparse", "pathlib", "os", "yaml", "safetensors"}
    for folder in ("methods", "nets"):
        for path in sorted((ROOT / "stages" / folder).rglob("*.py")):
            tops = {module.partition(".")[0] for module in imports(path)}
            assert not tops & banned, f"{path.name} imports {tops & banned}"


def test_stage_modules_import_nothing_heavy_at_the_top():
    heavy = {"torch", "numpy", "ray", "mlflow", "timm", "sklearn", "scipy", "pyarrow", "matplotlib"}
    for path in sorted((ROOT / "stages").glob("*.py")):
        tree = ast.parse(path.read_text())
        tops = set()
        for node in tree.body:
            if isinstance(node, ast.Import):
                tops |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                tops.add(node.module.partition(".")[0])
        if any(getattr(node, "id", "") == "Stage" for node in ast.walk(tree)):
            assert not tops & heavy, f"{path.name} imports {tops & heavy} at the top"
