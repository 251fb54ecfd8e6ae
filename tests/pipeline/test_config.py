"""Settings: layers, origins, and one sentence for every mistake."""

import re

import pytest

from pipeline import config
from pipeline.errors import UsageError
from tests.toy.table import CATALOG


def resolve(*overrides, preset=None):
    return config.resolve(CATALOG, preset, overrides)


def test_later_layers_win_and_origins_are_kept(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("extends: big\na: {value: 5, seconds: 1.5}\n")
    found = config.resolve(CATALOG, str(file), ["a.seconds=2.5"])
    assert (found.settings.a.value, found.settings.a.seconds) == (5, 2.5)
    assert found.settings.b.value == 40
    assert found.origins["a.value"] == "preset mine"
    assert found.origins["a.seconds"] == "command line"
    assert found.origins["b.value"] == "preset big"
    assert found.origins["total.offset"] == "default"
    assert found.preset == "mine"


def test_scientific_notation_without_a_dot_is_a_number():
    assert resolve("total.offset=1e-3").settings.total.offset == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("override", "pattern"),
    [
        ("a.valu=3", "unknown setting 'a.valu'; did you mean 'a.value'"),
        ("offset=3", "unknown setting 'offset'; did you mean 'total.offset'"),
        ("total.foo=3", "unknown setting 'total.foo'; total has .*offset"),
        ("aa.value=3", "unknown setting 'aa'; did you mean 'a'"),
        ("a.value=x", "a.value=x: give a whole number, such as a.value=1"),
        ("a.value=1001", "a.value=1001: .*less than or equal to 1000"),
        ("a=3", "a is a group of settings; set one of its keys, such as a.value"),
        ("a.value", "write key=value"),
        ("=3", "write key=value"),
    ],
)
def test_a_mistake_is_one_sentence_that_names_the_setting(override, pattern):
    with pytest.raises(UsageError) as caught:
        resolve(override)
    assert re.search(pattern, str(caught.value))
    assert "\n" not in str(caught.value)


def test_contradictions_name_both_settings():
    with pytest.raises(UsageError, match=r"a\.value and b\.value .* lower one"):
        resolve("a.value=600", "b.value=600")


@pytest.mark.parametrize(
    ("content", "pattern"),
    [
        ("a: [1", "not valid YAML"),
        ("just words", "key: value"),
        (None, "cannot be read: No such file"),
        (b"\xff\xfe\x00a", "save it as UTF-8"),
    ],
)
def test_unreadable_preset_files_are_refused(tmp_path, content, pattern):
    file = tmp_path / "p.yaml"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError, match=pattern):
        resolve(preset=str(file))


def test_unknown_preset_suggests_a_name():
    with pytest.raises(UsageError, match=r"unknown preset 'bgi'.*big"):
        resolve(preset="bgi")


def test_a_resolved_preset_written_out_resolves_to_the_same(tmp_path):
    import yaml

    first = resolve("a.value=9")
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump(first.settings.model_dump(mode="json")))
    assert resolve(preset=str(file)).settings == first.settings


def test_presets_that_extend_each_other_are_refused(tmp_path):
    (tmp_path / "one.yaml").write_text("extends: two.yaml\n")
    (tmp_path / "two.yaml").write_text("extends: one.yaml\n")
    with pytest.raises(UsageError, match=r"circle \(one\.yaml -> two\.yaml -> one\.yaml\)"):
        config.resolve(CATALOG, str(tmp_path / "one.yaml"))


def test_a_file_extends_the_one_beside_it(tmp_path, monkeypatch):
    (tmp_path / "base.yaml").write_text("a: {value: 7}\n")
    (tmp_path / "mine.yaml").write_text("extends: base.yaml\n")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert config.resolve(CATALOG, str(tmp_path / "mine.yaml")).settings.a.value == 7
