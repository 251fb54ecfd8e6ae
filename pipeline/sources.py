"""What code an artifact depends on: the syntax trees of the modules that made it.

The closure of a node is its stage module plus the modules its settings name, plus everything of
the same package that these import, inside functions too. Comments, docstrings, formatting, the
`description` of a settings field and what stands under `if TYPE_CHECKING:`, which never runs,
change nothing.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Collection, Iterable
from functools import cache
from pathlib import Path

from pipeline import remembered


def closure(roots: Iterable[str], exclude: Collection[str] = ()) -> dict[str, str]:
    """`{module: digest}` of `roots` and what they import from their own top-level packages."""
    return dict(_closure(frozenset(roots), frozenset(exclude)))


@cache
def _closure(roots: frozenset[str], exclude: frozenset[str]) -> dict[str, str]:
    digests: dict[str, str] = {}
    waiting = sorted(roots)
    packages = {root.partition(".")[0] for root in waiting}
    while waiting:
        name = waiting.pop()
        if name in digests or name in exclude:
            continue
        digest, imports = scan(name)
        digests[name] = digest
        waiting += [module for module in imports if module.partition(".")[0] in packages]
    return dict(sorted(digests.items()))


# Raise it when the way of hashing changes.
FORMAT = 2


def scan(module: str) -> tuple[str, tuple[str, ...]]:
    """Digest of a module's syntax tree, and the modules it imports.

    Remembered between commands by the file's path, size and time of change.
    """
    path = _path(module)
    status = path.stat()
    state = f"{FORMAT} {status.st_size} {status.st_mtime_ns}"
    digest, imports = remembered.under(f"source {path}", state, lambda: _scan(path, module))
    return digest, tuple(imports)


def _scan(path: Path, module: str) -> tuple[str, tuple[str, ...]]:
    tree = _WithoutTypeChecking().visit(ast.parse(path.read_text(encoding="utf-8")))
    digest = hashlib.sha256("".join(_tokens(tree)).encode()).hexdigest()
    return digest, tuple(_imports(tree, module.partition(".")[0]))


@cache
def _path(module: str) -> Path:
    """The file of a module, found without importing the packages that it lies in."""
    parent, _, leaf = module.rpartition(".")
    if not parent:
        spec = importlib.util.find_spec(module)
        if spec is not None and spec.origin is not None:
            return Path(spec.origin)
    else:
        folder = _path(parent).parent
        for path in (folder / f"{leaf}.py", folder / leaf / "__init__.py"):
            if path.is_file():
                return path
    raise ModuleNotFoundError(f"no source for module {module}")


@cache
def _is_module(name: str) -> bool:
    """Whether a dotted name is a module file (`from a import b` may name either)."""
    parent, _, leaf = name.rpartition(".")
    if not parent:
        return False
    origin = _path(parent)
    if origin.name != "__init__.py":
        return False  # a module's members are no modules
    folder = origin.parent
    return (folder / f"{leaf}.py").is_file() or (folder / leaf / "__init__.py").is_file()


class _WithoutTypeChecking(ast.NodeTransformer):
    """Takes `if TYPE_CHECKING:` out of a tree and leaves what stands under its `else`."""

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        self.generic_visit(node)
        name = getattr(node.test, "attr", getattr(node.test, "id", ""))
        return node.orelse if name == "TYPE_CHECKING" else node


def _imports(tree: ast.AST, package: str) -> list[str]:
    """Dotted names that a tree imports; `from package import member` counts as both."""
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.append(node.module)
            if node.module.partition(".")[0] == package:
                members = (f"{node.module}.{alias.name}" for alias in node.names)
                names += [member for member in members if _is_module(member)]
    return sorted(set(names))


def _tokens(node: object) -> Iterable[str]:
    """A canonical text of a syntax tree that is the same for every Python version."""
    if isinstance(node, ast.AST):
        yield f"({type(node).__name__}"
        for name in node._fields:
            value = getattr(node, name, None)
            if name == "body" and isinstance(value, list):
                value = _without_docstring(value)
            elif name == "keywords":
                value = [k for k in value if k.arg != "description"]
            if value is None or value == [] or name in ("ctx", "kind", "type_comment"):
                continue
            yield f" {name}="
            yield from _tokens(value)
        yield ")"
    elif isinstance(node, list):
        yield "["
        for item in node:
            yield from _tokens(item)
            yield ","
        yield "]"
    else:
        yield repr(node)


def _without_docstring(body: list) -> list:
    first = body[0] if body else None
    if (
        isinstance(first, ast.Expr)
        and isinstance(first.value, ast.Constant)
        and isinstance(first.value.value, str)
    ):
        return body[1:]
    return body
