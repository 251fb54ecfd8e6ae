"""What a written value means to the setting that it is for."""

from pathlib import Path
from typing import Any, Literal

import pydantic
import pytest
from pydantic import Field

from pipeline import config
from pipeline.errors import UsageError
from pipeline.stage import Catalog, Place, Settings
from pipeline.written import Kind, kind_of


class Inner(Settings):
    depth: int = Field(2, ge=1)
    rate: float = 0.5


class Group(Settings):
    rate: float = 0.005
    steps: int = 100
    clip: float | None = None
    limit: int | None = Field(None, ge=64)
    share: float | None = Field(None, ge=0, le=1)
    flag: bool = False
    betas: tuple[float, float] = (0.9, 0.95)
    ends: tuple[float, float] | None = None
    counts: tuple[int, ...] = (3, 5)
    names: tuple[Literal["one", "two"], ...] = ("one",)
    files: tuple[str, ...] = ()
    workers: int | tuple[int, int] = 0
    device: Literal["cpu", "cuda"] = "cpu"
    path: Place | None = None
    title: str = "Report"
    hints: dict[str, float] = Field({})
    free: dict[str, Any] = Field({})
    inner: Inner = Inner()
    other: Inner | None = None


class Whole(Settings):
    g: Group = Group()


def resolve(*overrides, folder, preset="{}"):
    (folder / "p.yaml").write_text(preset)
    catalog = Catalog(settings=Whole, stages={}, recipes={}, presets=folder, default_preset="p")
    return config.resolve(catalog, None, overrides).settings.g


def override(text, folder):
    key = text.partition("=")[0].strip()
    value = resolve(text, folder=folder)
    for part in key.split(".")[1:]:
        value = getattr(value, part)
    return value


def refusal(folder, *overrides, preset="{}"):
    with pytest.raises(UsageError) as caught:
        resolve(*overrides, folder=folder, preset=preset)
    said = str(caught.value)
    assert "\n" not in said
    return said


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("g.rate=1e-4", 1e-4),
        ("g.rate=1e-4 # slower", 1e-4),
        ("g.rate='1e-4'", 1e-4),
        ("g.rate=+.5", 0.5),
        ("g.rate=1.", 1.0),
        ("g.rate=.5e3", 500.0),
        (" g.rate =3", 3.0),
        ("g.steps=1e3", 1000),
        ("g.steps=2.0", 2),
        ("g.clip=null", None),
        ("g.clip=~", None),
        ("g.clip=", None),
        ("g.flag=TRUE", True),
        ("g.flag='true'", True),
        ("g.counts=7", (7,)),
        ("g.counts=1e1", (10,)),
        ("g.counts=[3,5]", (3, 5)),
        ("g.counts=[]", ()),
        ("g.names=two", ("two",)),
        ('g.names=["two", "one"]', ("two", "one")),
        ("g.files=out/run #1", ("out/run #1",)),
        ("g.files=[a, 010]", ("a", "010")),
        ("g.files='a,b'", ("a,b",)),
        ("g.workers=2", 2),
        ("g.workers=[2, 4]", (2, 4)),
        ("g.ends=[0, 1]", (0.0, 1.0)),
        ("g.ends=null", None),
        ("g.hints.train/sit-0.5=3", {"train/sit-0.5": 3.0}),
        ("g.hints={train: 1e1}", {"train": 10.0}),
        ("g.free={a: [1, yes]}", {"a": [1, "yes"]}),
        ("g.inner={depth: 4}", Inner(depth=4)),
        ("g.other.depth=4", 4),
    ],
)
def test_an_override_is_read_by_the_kind_of_its_setting(text, value, tmp_path):
    if "hints." in text:
        assert resolve(text, folder=tmp_path).hints == value
        return
    found = override(text, tmp_path) if not text.startswith(" ") else resolve(text, folder=tmp_path)
    assert (found.rate if isinstance(found, Group) else found) == value


LITERAL = """
yes|010|1e3|2026-01-01|12:30|a: b|run #1|#1|[a]|{a}|*x|&x|!x|- x|say 'hi'|a=b|~|true|x, y|%
"""


@pytest.mark.parametrize("text", LITERAL.strip().split("|"))
def test_text_and_paths_take_an_override_literally(text, tmp_path):
    assert override(f"g.title={text}", tmp_path) == text
    if text != "~":
        assert override(f"g.path={text}", tmp_path) == str(Path(text).absolute())


def test_a_text_in_quotes_from_end_to_end_is_taken_without_them(tmp_path):
    assert override('g.title="a # b"', tmp_path) == "a # b"
    assert override("g.title='None'", tmp_path) == "None"
    assert override("g.title=null", tmp_path) == "null"
    assert override("g.path=null", tmp_path) is None
    assert override("g.path=~", tmp_path) == str(Path.home())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("g.steps=010", "g.steps=010: give a whole number, such as g.steps=100; .*zeros in front"),
        ("g.steps=1_000", "without underscores"),
        ("g.steps=0o17", "in decimal digits"),
        ("g.steps=0x10", "in decimal digits"),
        ("g.steps=yes", "yes is no number"),
        ("g.steps=true", "true is no number"),
        ("g.rate=on", "on is no number"),
        ("g.rate=0,5", r"give a number, such as g\.rate=0\.005; without a comma"),
        ("g.steps=12:30", "give a whole number"),
        ("g.steps=2.5", "give a whole number"),
        ("g.steps=1e400", "give a whole number"),
        ("g.steps=1e999999999", "give a whole number"),
        ("g.rate=1e400", "give a number"),
        ("g.rate=.inf", "it must be finite"),
        ("g.rate=-.INF", "it must be finite"),
        ("g.rate=nan", "it must be finite"),
        ("g.clip=.nan", "it must be finite"),
        ("g.counts=[.inf]", r"g.counts=\[.inf\]: give a list of numbers, .*finite"),
        ("g.hints={train: .inf}", "g.hints.train=.inf: .*finite"),
        ("g.rate=null", "give a number, such as g.rate=0.005"),
        ("g.rate=", "give a number, such as g.rate=0.005"),
        ("g.rate=[1]", r"g.rate=\[1\]: give a number"),
        ("g.rate={a: 1}", "give a number"),
        ("g.rate=[1", r"g.rate=\[1 is not valid YAML"),
        ("g.clip=None", "write null to leave it unset: g.clip=null"),
        ("g.path=None", "write null to leave it unset: g.path=null"),
        ("g.limit=x", "such as g.limit=64"),
        ("g.share=x", "such as g.share=0.5"),
        ("g.flag=yes", "give true or false, such as g.flag=true"),
        ("g.flag=1", "give true or false, such as g.flag=true"),
        ("g.flag=off", "give true or false, such as g.flag=false"),
        ("g.betas=0.9,0.99", r"give a list, such as g.betas=\[0.9, 0.99\]$"),
        ("g.betas=(0.9, 0.99)", r"give a list, such as g.betas=\[0.9, 0.99\]$"),
        ("g.betas=0.9", r"give a list of 2 numbers, such as g.betas=\[0.9, 0.95\]"),
        ("g.betas=[0.9, 0.9, 1]", "give a list of 2 numbers"),
        ("g.counts=3,5", r"such as g.counts=\[3, 5\]$"),
        ("g.counts=3 5", r"give a list of numbers, such as g.counts=\[3, 5\]"),
        ("g.counts=[3, yes]", "yes is no number"),
        ("g.counts=[[3]]", "give a list of numbers"),
        ("g.names=one,two", r"such as g.names=\[one, two\]"),
        ("g.files=a,b", r"such as g.files=\[a, b\]; in quotes where"),
        ("g.files=", "give a list of texts"),
        ("g.names=[one", "not valid YAML"),
        ("g.workers=2,4", r"such as g.workers=\[2, 4\]$"),
        ("g.device=gpu", "input should be 'cpu' or 'cuda'"),
        ("g.inner=", "g.inner is a group of settings; set one of its keys, such as g.inner.depth"),
        ("g.inner=null", "g.inner is a group of settings"),
        ("g.inner=[3]", "g.inner is a group of settings"),
        ("g.inner={depth: 1, depth: 2}", "has 'depth' twice in line 1"),
        ("g.hints=3", r"give names with values, such as g.hints=\{NAME: VALUE\}"),
        ("g.rate.x=3", "give a number"),
        ("g.ratte=010", "unknown setting 'g.ratte'; did you mean 'g.rate'"),
    ],
)
def test_another_kind_is_refused_in_one_sentence_with_an_example(text, said, tmp_path):
    with pytest.raises(UsageError, match=said) as caught:
        override(text, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_preset_is_read_by_kind_too(tmp_path):
    found = resolve(
        folder=tmp_path,
        preset="g:\r\n  title: 010\r\n  steps: 1e3\r\n  rate: '1e-4'\r\n  counts: 7\r\n"
        "  path: 2026-01-01\r\n",
    )
    assert (found.title, found.steps, found.rate, found.counts) == ("010", 1000, 1e-4, (7,))
    assert found.path.endswith("/2026-01-01")
    said = refusal(tmp_path, preset="g:\n  betas: 0.9, 0.99\n")
    assert said == (
        "g.betas=0.9, 0.99 (from preset p, line 2): give a list, such as g.betas=[0.9, 0.99]"
    )
    assert "give a text" in refusal(tmp_path, preset="g: {title: null}")


def test_dotted_keys_of_a_preset_are_groups(tmp_path):
    found = resolve(
        folder=tmp_path, preset="g.rate: 0.1\ng:\n  inner.depth: 3\ng.inner:\n  rate: 0.2\n"
    )
    assert (found.rate, found.inner) == (0.1, Inner(depth=3, rate=0.2))
    assert resolve(folder=tmp_path, preset="g.hints.a/b-0.5: 3\n").hints == {"a/b-0.5": 3}


@pytest.mark.parametrize(
    ("preset", "said"),
    [
        (
            "g.rate: 1\ng:\n  rate: 2\n",
            "g.rate is given twice in preset p, in line 1 and in",
        ),
        (
            "g.inner.depth: 1\ng:\n  inner.depth: 2\n",
            "g.inner.depth is given twice .* line 3",
        ),
        ("g.inner: {depth: 1}\ng: {inner: {depth: 2}}\n", "g.inner.depth is given twice"),
        ("g: 5\ng.rate: 1\n", "g is given twice"),
        ("g.ratte: 1\n", "unknown setting 'g.ratte'; did you mean 'g.rate'"),
        ("h.rate: 1\n", "unknown setting 'h'"),
    ],
)
def test_a_setting_that_is_given_twice_in_two_forms_is_refused(preset, said, tmp_path):
    with pytest.raises(UsageError, match=said):
        resolve(folder=tmp_path, preset=preset)


def test_an_emptied_group_is_empty(tmp_path):
    found = resolve(
        folder=tmp_path, preset="g:\n  rate: 0.1\n  inner:\n    # depth: 3\n  hints:\n  other:\n"
    )
    assert (found.rate, found.inner, found.hints, found.other) == (0.1, Inner(), {}, None)
    assert resolve(folder=tmp_path, preset="g:\ng.rate: 0.1\n").rate == 0.1
    assert "give a number" in refusal(tmp_path, preset="g:\n  rate:\n")


def test_numbers_of_settings_are_finite_however_they_are_made():
    for kind, values in ((Inner, {"rate": float("inf")}), (Group, {"betas": (0.9, float("nan"))})):
        with pytest.raises(pydantic.ValidationError, match="finite number"):
            kind(**values)


def test_the_kind_of_a_setting_is_found_by_its_key():
    assert kind_of(Whole, "g.inner.depth").number is int
    assert kind_of(Whole, "g.hints.a.b").number is float
    assert kind_of(Whole, "g.nothing") is None
    assert Kind.of(int | float).number is float
