"""The reader of YAML: version 1.2, with what no settings file should hold refused."""

import time

import pytest

from pipeline.errors import UsageError
from pipeline.yaml12 import Scalar, YAMLError, parse, plain, read


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1e3", 1000.0),
        ("+.5", 0.5),
        ("1.", 1.0),
        (".5e3", 500.0),
        ("-12", -12),
        ("0", 0),
        ("0.50", 0.5),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("-.inf", float("-inf")),
        *((word, word) for word in ("010", "0o17", "0x10", "1_000", "12:30", "yes", "off", "n")),
        ("2026-01-01", "2026-01-01"),
        ("'1e-4'", "1e-4"),
        ("[1, yes, {a: 010}]", [1, "yes", {"a": "010"}]),
    ],
)
def test_a_value_is_what_yaml_1_2_says_or_text_where_readers_disagree(text, value):
    found = plain(parse(text))
    assert (found, type(found)) == (value, type(value))


def test_what_was_written_is_kept():
    assert parse("a:\n  b: 010 # eight?\n")["a"]["b"] == Scalar("010", plain=True, line=2)
    assert parse("'yes'") == Scalar("yes", plain=False, line=1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "train:\n  lr: 1\ndata: {}\ntrain:\n  steps: 5\n",
            "'train' twice, in line 1 and in line 4",
        ),
        ("train:\n  lr: 1\n  lr: 2\n", "'lr' twice, in line 2 and in line 3"),
        ("{a: 1, b: 2, a: 3}", "'a' twice in line 1"),
        ("- {x: 1}\n- y: 1\n  'y': 2\n", "'y' twice, in line 2 and in line 3"),
        ("1: a\n'1': b\n", "'1' twice"),
        ("a: &a {x: 1}\nb: {<<: *a, <<: *a}\n", r"'<<' twice .*<<: \[\*ONE, \*OTHER\]"),
        ("a: {<<: 3}\n", "'<<' without a mapping .line 1"),
        ("a: &a [1, *a]\n", "part of itself .line 1"),
        ("a: &a\n  b: {c: *a}\n", "part of itself .line 1"),
        ("a: &a\n  <<: *a\n", "part of itself"),
        ("a: !!python/object/apply:os.system [ls]\n", "the tag .*line 1"),
        ("a: !own 3\n", "the tag !own .line 1"),
        ("? [a, b]\n: 3\n", "a key that is no word .line 1"),
        ("'': 3\n", "a key that is empty"),
        ("a: 1\n---\nb: 2\n", "not valid YAML .line 2.: .*a second document"),
        ("a: *b\n", "undefined alias 'b'"),
        ("a: &x 1\nb: &x 2\n", "line 2.: an anchor .&. of this name stands there already"),
        ("a:\n  b: 1\n   c: 2\n", "line 3.: a second colon, or a line that is indented wrongly"),
        ("a:\n\tb: 1\n", "line 2.: it has a tab there; use spaces"),
        ("a:\t1\n", "line 1.: it has a tab there; use spaces"),
        ("a: \x07\n", r"the character U\+0007"),
        ("[" * 5000, "nested too deeply"),
        ("\n".join(" " * i + "a:" for i in range(2000)), "nested too deeply"),
    ],
)
def test_what_no_settings_file_should_hold_is_refused(text, said):
    with pytest.raises(YAMLError, match=said):
        parse(text)


def test_anchors_that_grow_without_bounds_are_refused_at_once():
    lines = ["l0: &l0 [" + ", ".join("x" * 9) + "]"]
    lines += [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]" for i in range(1, 12)]
    began = time.monotonic()
    with pytest.raises(YAMLError, match="more than 100,000 values"):
        parse("\n".join(lines))
    assert time.monotonic() - began < 1
    assert len(plain(parse("\n".join(lines[:3])))["l2"]) == 9


def test_merge_keys_fill_what_a_mapping_lacks():
    tree = plain(parse("a: &a {x: 1, y: 2}\nb: &b {z: 3}\nc: {x: 9, <<: [*a, *b]}\nd: {'<<': 4}\n"))
    assert tree["c"] == {"x": 9, "y": 2, "z": 3}
    assert tree["d"] == {"<<": 4}


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbfa: 1\r\nb: \xc3\xb6\r\n",
        "a: 1\nb: ö\n".encode(),
        "---\na: 1\nb: ö\n...\n".encode(),
    ],
)
def test_utf_8_is_read_with_a_mark_or_without_and_with_either_line_ends(tmp_path, data):
    (tmp_path / "p.yaml").write_bytes(data)
    assert plain(read(tmp_path / "p.yaml")) == {"a": 1, "b": "ö"}


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-le", "utf-32"])
def test_other_encodings_are_told_to_be_saved_as_utf_8(tmp_path, encoding):
    (tmp_path / "p.yaml").write_bytes("# Größe\na: 1\n".encode(encoding))
    with pytest.raises(UsageError, match=r"preset file .*p\.yaml is .*; save it as UTF-8$"):
        read(tmp_path / "p.yaml")


def test_an_empty_file_holds_nothing(tmp_path):
    (tmp_path / "p.yaml").write_text("# nothing yet\n")
    assert read(tmp_path / "p.yaml") == {}
