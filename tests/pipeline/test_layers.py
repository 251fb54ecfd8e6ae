"""Imports point one way: sweeps -> stages -> pipeline, and down the folders of stages; no circles;
few modules touch Ray, MLflow, torch; names tell files apart; keys cover no more than they must."""

import ast
import os
import re
import sys
import tomllib
from graphlib import TopologicalSorter
from itertools import combinations
from pathlib import Path

import pytest

from pipeline import config
from pipeline.graph import Graph
from stages.catalog import CATALOG, RECIPES

ROOT = Path(__file__).parents[2]
RANK = {"pipeline": 0, "stages": 1, "sweeps": 2}
COMPOSITION_ROOT = "pipeline/__main__.py"
# What lies in stages/, from top to bottom; a tuple lies side by side.
ORDER = [
    *("catalog", "papers", "recipes", "bench", "paper", "report"),
    ("training", "sampling", "scoring"),
    *(
        "pages",
        "data",
        "settings",
        "networks",
        "artifacts",
        "encoders",
        "nets",
        "shards",
        "methods",
    ),
]
TOGETHER = ("combined", "beyond")  # those that may import others
ENDINGS = r"(s|es|e|d|ed|r|er|or|ing|ning|y|ies|ion|al|_?nodes)?"


class Running(ast.NodeTransformer):
    """A tree without what stands under `if TYPE_CHECKING:`, which never runs."""

    def visit_If(self, node):
        self.generic_visit(node)
        return node.orelse if getattr(node.test, "id", "") == "TYPE_CHECKING" else node


def imports(path):
    """Every module that a file imports, inside functions too."""
    yield from _imports(ast.parse(path.read_text()), path)


def _imports(tree, path):
    for node in ast.walk(tree):
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
    engine = ("run", "cluster", "fanout", "outcomes", "reservations", "shipping")
    core = {f"pipeline/{m}.py" for m in engine}
    for path in files():
        name = path.relative_to(ROOT).as_posix()
        modules = set(imports(path))
        if name not in core:
            assert "ray" not in modules, f"{name} imports Ray core"
        if name not in ("sweeps/trial.py", "sweeps/tuning.py"):
            assert not any(m.startswith("ray.tune") for m in modules), f"{name} imports Ray Tune"
        if not name.startswith("pipeline/track/"):
            assert not any(m.partition(".")[0] == "mlflow" for m in modules), name


def test_every_package_that_is_imported_is_declared():
    other = {"PIL": "pillow", "yaml": "pyyaml", "sklearn": "scikit-learn", "pywt": "pywavelets"}
    other |= {"skimage": "scikit-image", "cleanfid": "clean-fid"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    used = ("optuna", "latents", "lmdb", "datasets")
    needed = project["dependencies"] + [one for extra in used for one in extras[extra]]
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
    declaring = 0
    for path in sorted((ROOT / "stages").rglob("*.py")):
        tree = ast.parse(path.read_text())
        tops = set()
        for node in tree.body:
            if isinstance(node, ast.Import):
                tops |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                tops.add(node.module.partition(".")[0])
        if any(getattr(node, "id", "") == "Stage" for node in ast.walk(tree)):
            declaring += 1
            assert not tops & heavy, f"{path.name} imports {tops & heavy} at the top"
    assert declaring >= 18


@pytest.fixture(scope="module")
def graph():
    """`{module: modules of ours that it imports when it runs}`."""
    paths = {_module(path): path for path in files()}
    found = {}
    for name, path in paths.items():
        tree = Running().visit(ast.parse(path.read_text()))
        named = set(_imports(tree, path))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                members = {f"{node.module}.{alias.name}" for alias in node.names}
                named |= members & paths.keys()
                if members <= paths.keys():
                    named.discard(node.module)  # the package's own file gives nothing
        found[name] = named & paths.keys() - {name}
    return found


def _module(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_no_files_import_each_other_in_a_circle(graph):
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_imports_go_down_the_folders_of_stages(graph):
    rank = {
        name: place
        for place, names in enumerate(ORDER)
        for name in ((names,) if isinstance(names, str) else names)
    }
    ours = {name: name.split(".")[1:] for name in graph if name.startswith("stages.")}
    assert {parts[0] for parts in ours.values()} == rank.keys()
    upward = [
        f"{name} -> {other}"
        for name, parts in ours.items()
        for other in graph[name] & ours.keys()
        if not _is_down(parts, ours[other], rank)
    ]
    assert not upward


def _is_down(parts, other, rank):
    if parts[0] != other[0]:
        return rank[parts[0]] < rank[other[0]]
    return parts[0] != "papers" or parts[1] in (other[1], *TOGETHER)


def test_no_two_files_of_a_folder_differ_by_an_ending_only():
    for folder in {path.parent for path in files()}:
        stems = sorted({path.stem for path in folder.glob("*.py")})
        for shorter, longer in combinations(stems, 2):
            stem = os.path.commonprefix((shorter, longer))
            ends = (shorter[len(stem) :], longer[len(stem) :])
            alike = len(stem) > 3 and all(re.fullmatch(ENDINGS, end) for end in ends)
            assert not alike, f"{folder.relative_to(ROOT)}: {shorter}.py and {longer}.py"


def test_folders_say_what_lives_in_them():
    folders = {path.parent for path in files()} - {ROOT / "stages" / "presets"}
    for folder in folders:
        text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
        assert text, f"{folder.relative_to(ROOT)}/__init__.py says nothing"
        front_door = {"solvers", "wavelet", "track", "losses"} & {folder.name}
        assert front_door or len(text.splitlines()) <= 10, folder


@pytest.fixture(scope="module")
def keyed(tmp_path_factory):
    """The modules in the key of every node of the recipes full and evaluate, on digits."""
    found, samples = {}, tmp_path_factory.mktemp("samples")
    for number in range(40):
        (samples / f"{number}.png").touch()
    own = [f"evaluate.path={samples}", "evaluate.num_samples=40"]
    for recipe, overrides in (("full", ()), ("evaluate", own)):
        settings = config.resolve(CATALOG, "digits", overrides).settings
        made = Graph(RECIPES[recipe](settings), CATALOG.exclude_sources)
        found |= {name: set(made.identities[name].sources) for name in made.nodes}
    return found


@pytest.mark.parametrize(
    ("node", "most"), [("evaluate/sit", 18), ("features/train", 20), ("external", 15)]
)
def test_keys_cover_no_more_code_than_results_depend_on(keyed, node, most):
    print(node, len(keyed[node]), *sorted(keyed[node]), sep="\n  ")
    assert len(keyed[node]) <= most


def test_editing_a_solver_or_the_report_makes_little_again(keyed):
    solvers = [name for name, of in keyed.items() if any("methods.solvers" in m for m in of)]
    assert not [n for n in solvers if n.startswith(("features", "train", "prepare", "extractor"))]
    shown = re.compile(r"stages\.(report|pages|papers\.\w+\.(section|claims))\b")
    assert {name for name, of in keyed.items() if any(map(shown.match, of))} == {"report"}
