"""YAML as settings are written in it: of version 1.2, every value with its own text and line.

What a value means is decided where its kind is known (`pipeline.written`): `010` is a fine name of
a folder and no number. Refused: a key that is given twice, anchors that hold themselves or grow
without bounds, foreign tags, and files that are not UTF-8.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import UsageError

MOST = 100_000  # values that a file may have, what its anchors repeat counted each time
NULLS = ("", "~", "null", "Null", "NULL")
FLAGS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
NUMBER = re.compile(r"[-+]?(\.\d+|(0|[1-9]\d*)(\.\d*)?|0\d+\.\d*)([eE][-+]?\d+)?", re.ASCII)
WHOLE = re.compile(r"[-+]?(0|[1-9]\d*)", re.ASCII)
ENDLESS = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
KINDS = ("str", "int", "float", "bool", "null", "seq", "map", "merge")
PROBLEMS = {  # PyYAML's words, and ours for some
    "but found another document": "a second document (---) begins; keep one",
    "second occurrence": "an anchor (&) of this name stands there already; give it another name",
    "mapping values are not allowed here": "a second colon, or a line that is indented wrongly",
}
TAGS = {"!", *(f"tag:yaml.org,2002:{kind}" for kind in KINDS)}


@dataclass(frozen=True)
class Scalar:
    """A value as it was written. plain: without quotes. line: counted from 1, 0 where unknown."""

    text: str
    plain: bool = True
    line: int = 0

    @property
    def null(self) -> bool:
        return self.plain and self.text in NULLS

    @property
    def empty(self) -> bool:
        """Whether nothing stands behind the key."""
        return self.plain and not self.text

    def value(self) -> Any:
        """What YAML 1.2 takes it for where no kind is asked for: None, a truth value, a number or
        text. Forms that readers of YAML disagree about (010, 1_000, 12:30, yes) are text."""
        if not self.plain:
            return self.text
        if self.null:
            return None
        if self.text in FLAGS:
            return FLAGS[self.text]
        if WHOLE.fullmatch(self.text) and len(self.text) < 400:
            return int(self.text)
        if NUMBER.fullmatch(self.text):
            return float(self.text)
        if ENDLESS.fullmatch(self.text):
            return float(self.text.replace(".", ""))
        return self.text


class Block(dict[str, Any]):
    """A mapping, with the line of each key."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: dict[str, int] = {}

    def line(self, key: str) -> int:
        return self.lines.get(key, 0)


class YAMLError(ValueError):
    """Text that is no YAML, or YAML that settings cannot be written in; one sentence."""


def read(path: Path, what: str = "preset") -> Block:
    """A YAML file of `key: value` lines; `what` it is called in errors.

    Raises:
        UsageError: the file cannot be read, or holds something else.
    """
    try:
        text = _decoded(path.read_bytes())
        tree = parse(text)
    except OSError as error:
        raise UsageError(f"{what} file {path} cannot be read: {error.strerror}") from error
    except YAMLError as error:
        raise UsageError(f"{what} file {path} {error}") from error
    if isinstance(tree, Scalar) and tree.null:
        return Block()
    if not isinstance(tree, Block):
        raise UsageError(f"{what} file {path} must hold settings as 'key: value' lines")
    return tree


def parse(text: str) -> Scalar | Block | list[Any]:
    """A YAML text as `Scalar`s, lists and `Block`s. Raises YAMLError."""
    try:
        node = yaml.compose(text, Loader=yaml.BaseLoader)
        if node is None:
            return Scalar("")
        if _size(node, {}) > MOST:
            raise YAMLError(f"grows to more than {MOST:,} values through its anchors (&) and *")
        return _built(node, {})
    except RecursionError:
        raise YAMLError("is nested too deeply") from None
    except yaml.YAMLError as error:
        raise YAMLError(_explained(error, text)) from error


def plain(written: Any) -> Any:
    """What was written as plain data, where no kind is asked for."""
    if isinstance(written, Scalar):
        return written.value()
    if isinstance(written, Mapping):
        return {key: plain(value) for key, value in written.items()}
    if isinstance(written, list):
        return [plain(value) for value in written]
    return written


def _decoded(data: bytes) -> str:
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        if not utf16 and b"\0" not in data:
            return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise YAMLError(f"is not UTF-8 text (line {line}); save it as UTF-8") from error
    raise YAMLError("is UTF-16 or no text at all; save it as UTF-8")


def _explained(error: yaml.YAMLError, text: str) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is None:  # a character that YAML forbids
        found = getattr(error, "character", None)
        return f"is not valid YAML: it holds the character {_named(found)}"
    lines = text.splitlines()
    line = lines[mark.line] if mark.line < len(lines) else ""
    if "\t" in line[: len(line) - len(line.lstrip())] or "'\\t'" in error.problem:
        return f"is not valid YAML (line {mark.line + 1}): it has a tab there; use spaces"
    problem = PROBLEMS.get(str(error.problem), error.problem)
    return f"is not valid YAML (line {mark.line + 1}): {problem}"


def _named(character: int | str | bytes | None) -> str:
    return f"U+{character:04X}" if isinstance(character, int) else repr(character)


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


def _size(node: yaml.Node, sizes: dict[int, int]) -> int:
    """How many values a node has with all that it repeats. Raises YAMLError for one in itself."""
    if id(node) in sizes:
        return sizes[id(node)]
    parts: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        parts = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        parts = node.value
    sizes[id(node)] = -1
    for part in parts:
        if sizes.get(id(part)) == -1:
            raise YAMLError(f"holds an anchor that is part of itself (line {_line(part)})")
    sizes[id(node)] = 1 + sum(_size(part, sizes) for part in parts)
    return sizes[id(node)]


def _built(node: yaml.Node, built: dict[int, Any]) -> Any:
    if id(node) not in built:
        if node.tag not in TAGS:
            raise YAMLError(f"has the tag {node.tag} (line {_line(node)}); write the value alone")
        if isinstance(node, yaml.ScalarNode):
            built[id(node)] = Scalar(node.value, node.style is None, _line(node))
        elif isinstance(node, yaml.SequenceNode):
            built[id(node)] = [_built(part, built) for part in node.value]
        else:
            built[id(node)] = _block(node, built)
    return built[id(node)]


def _block(node: yaml.MappingNode, built: dict[int, Any]) -> Block:
    block, merged, first = Block(), [], {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise YAMLError(f"has a key that is no word (line {_line(key_node)})")
        key = key_node.value.strip()
        if not key:
            raise YAMLError(f"has a key that is empty (line {_line(key_node)})")
        if key in first:
            again = "; write <<: [*ONE, *OTHER]" if key == "<<" else "; leave one out"
            lines = f", in line {first[key]} and in line {_line(key_node)}"
            if first[key] == _line(key_node):
                lines = f" in line {first[key]}"
            raise YAMLError(f"has '{key}' twice{lines}{again}")
        first[key] = _line(key_node)
        value = _built(value_node, built)
        if key == "<<" and key_node.style is None:
            merged = value if isinstance(value, list) else [value]
        else:
            block[key] = value
            block.lines[key] = first[key]
    for other in merged:
        if not isinstance(other, Block):
            raise YAMLError(f"has '<<' without a mapping (line {first['<<']}); write <<: *ANCHOR")
        for key, value in other.items():
            if key not in block:
                block[key] = value
                block.lines[key] = other.line(key)
    return block
