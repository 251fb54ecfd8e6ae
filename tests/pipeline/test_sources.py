"""Which edits change a key, and which do not."""

import importlib
import sys

import pytest

from pipeline import remembered, sources

BASE = '''"""Docstring."""
import json
from package.helper import add


def run(x: int = 3) -> int:
    """Say something."""
    from package import late
    # a comment
    return add(x, late.ONE)
'''


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "main.py").write_text(BASE)
    (folder / "helper.py").write_text("def add(a, b):\n    return a + b\n")
    (folder / "late.py").write_text("ONE = 1\n")
    (folder / "unused.py").write_text("TWO = 2\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder
    sys.modules.pop("package", None)
    importlib.invalidate_caches()
    _forget()


def _forget():
    for cached in (sources._closure, sources._path, sources._is_module):
        cached.cache_clear()


def digests(exclude=()):
    _forget()
    return sources.closure(["package.main"], exclude)


def test_closure_follows_imports_inside_functions(package):
    assert set(digests()) == {"package", "package.main", "package.helper", "package.late"}
    assert "package.helper" not in digests(exclude={"package.helper"})


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# a comment", "# another comment, longer"),
        ('"""Say something."""', '"""Say something else."""'),
        ('"""Docstring."""', '"""Other."""'),
        ("return add(x, late.ONE)", "return add(\n        x,\n        late.ONE,\n    )"),
    ],
)
def test_comments_docstrings_and_layout_change_nothing(package, old, new):
    before = digests()
    (package / "main.py").write_text(BASE.replace(old, new))
    assert digests() == before


@pytest.mark.parametrize(
    ("old", "new"),
    [("= 3", "= 4"), ("x, late", "late.ONE + x, late"), ("add(x", "add(-x"), ("json", "math")],
)
def test_code_changes_the_digest(package, old, new):
    before = digests()
    (package / "main.py").write_text(BASE.replace(old, new))
    assert digests() != before


def test_a_description_of_a_setting_changes_nothing(package):
    text = "class S:\n    a: int = Field(1, ge={}, description='{}')\n"
    (package / "late.py").write_text(text.format(0, "one"))
    first = digests()
    (package / "late.py").write_text(text.format(0, "two"))
    assert digests() == first
    (package / "late.py").write_text(text.format(1, "two"))
    assert digests() != first


def test_a_function_that_shares_its_name_with_a_module_is_no_module(package):
    (package / "late.py").write_text("from package.helper import unused\nONE = 1\n")
    assert "package.unused" not in digests()
    (package / "late.py").write_text("from package import unused\nONE = 1\n")
    assert "package.unused" in digests()


@pytest.mark.parametrize("test", ["TYPE_CHECKING", "typing.TYPE_CHECKING"])
def test_imports_for_type_checkers_never_run_and_change_nothing(package, test):
    before = digests()
    guarded = f"if {test}:\n    from package import unused\n"
    (package / "late.py").write_text(f"{guarded}ONE = 1\n")
    assert digests() == before
    (package / "late.py").write_text(f"{guarded}else:\n    from package import unused\nONE = 1\n")
    assert "package.unused" in digests()


def test_scans_are_remembered_and_an_edit_is_seen(package, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = digests()
    remembered.save()
    assert not remembered._unsaved
    with monkeypatch.context() as cut:
        cut.setattr(sources, "_scan", None)  # a remembered file is not read again
        assert digests() == before
    (package / "late.py").write_text("ONE = 3\n")
    assert digests() != before


def test_an_unused_module_does_not_matter(package):
    before = digests()
    (package / "unused.py").write_text("TWO = 3\n")
    assert digests() == before
