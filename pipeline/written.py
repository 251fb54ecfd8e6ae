"""What a written value means to the setting that it is for, by the kind of the setting's type.

Numbers are those of YAML 1.2 (1e3 is whole), true and false are the truth values, text is taken as
it is written, a single value where a list is meant is a list of one, and a group or a dotted key
names what is below it. Everything else is refused in one sentence with an example.
"""

from __future__ import annotations

import json
import math
import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, Literal, NoReturn, Union, get_args, get_origin

import pydantic
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from pipeline.errors import UsageError
from pipeline.yaml12 import FLAGS, NULLS, NUMBER, WHOLE, Block, Scalar, YAMLError, parse, plain

WORDS = ("yes", "no", "on", "off", "y", "n", "true", "false")
DIGITS = 30  # of a whole number, at most
SHOWN = 80  # characters of a refused value


@dataclass(frozen=True)
class Kind:
    """What a type takes: each part of it that is not None or False is one way.

    Args:
        optional: null.
        number: `int` or `float`.
        flag: true or false.
        text: any text, or some words.
        items: the types of a list's items; with `...` at the end as many as there are.
        values: the type of a mapping's values; its keys are text.
        group: a settings class.
        anything: whatever stands there.
    """

    optional: bool = False
    number: type | None = None
    flag: bool = False
    text: bool = False
    items: tuple[Any, ...] | None = None
    values: Any = None
    group: type[pydantic.BaseModel] | None = None
    anything: bool = False

    @classmethod
    def of(cls, annotation: Any) -> Kind:
        """The kind of a type as settings declare them."""
        taken: dict[str, Any] = {}
        for one in _members(annotation):
            origin, arguments = get_origin(one), get_args(one)
            if one is types.NoneType:
                taken["optional"] = True
            elif one is bool:
                taken["flag"] = True
            elif one in (int, float):
                taken["number"] = float if taken.get("number") is float else one
            elif one is str or origin is Literal:
                taken["text"] = True
            elif origin in (tuple, list):
                taken["items"] = (*arguments, ...) if origin is list else arguments
            elif origin is dict:
                taken["values"] = arguments[1]
            elif isinstance(one, type) and issubclass(one, pydantic.BaseModel):
                taken["group"] = one
            else:
                taken["anything"] = True
        return cls(**taken)

    @property
    def item(self) -> Any:
        """The type of a list's first item."""
        return self.items[0]

    @property
    def many(self) -> bool:
        """Whether a list may have any number of items."""
        return self.items[-1] is ...

    @property
    def words(self) -> str:
        """What to give, in words."""
        if self.items is not None and not self.number:
            what = Kind.of(self.item).words.removeprefix("a ").removeprefix("whole ")
            return f"a list of {what}s" if self.many else f"a list of {len(self.items)} {what}s"
        number = "a whole number" if self.number is int else "a number"
        return number if self.number else "true or false" if self.flag else "a text"


def _members(annotation: Any) -> Iterator[Any]:
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _members(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for one in get_args(annotation):
            yield from _members(one)
    else:
        yield annotation


def kind_of(model: type[pydantic.BaseModel], key: str) -> Kind | None:
    """The kind of a setting by its dotted key; None for an unknown one."""
    name, _, rest = key.partition(".")
    if name not in model.model_fields:
        return None
    kind = Kind.of(model.model_fields[name].annotation)
    if not rest:
        return kind
    if kind.group is not None:
        return kind_of(kind.group, rest)
    return None if kind.values is None else Kind.of(kind.values)


def overriding(model: type[pydantic.BaseModel], key: str, text: str) -> Block:
    """What `key=text` of a command line is as a settings file. Text settings take it literally."""
    kind = kind_of(model, key) or Kind(anything=True)
    listed = kind.items is not None and Kind.of(kind.item).text
    try:
        if (kind.text and not kind.anything) or (listed and not text.lstrip().startswith("[")):
            value = _literal(kind, text)
        else:
            value = parse(text)
    except YAMLError as error:
        raise UsageError(f"{key}={_short(text)} {error}") from error
    if kind.group is not None and isinstance(value, Scalar) and not kind.optional:
        value = Scalar(text, plain=False)  # nothing at all is no group to set
    block = Block()
    block[key] = value
    return block


def _literal(kind: Kind, text: str) -> Scalar:
    """A text as typed; in quotes from end to end, without them."""
    if text[:1] in ("'", '"') and text[:1] == text[-1:]:
        try:
            quoted = parse(text)
        except YAMLError:
            quoted = None
        if isinstance(quoted, Scalar):
            return quoted
    unset = kind.optional or kind.items is not None
    return Scalar(text, plain=unset and text in (*NULLS, "None"))


def meant(model: type[pydantic.BaseModel], written: Block, origin: str = "") -> dict[str, Any]:
    """A settings file, or a part of it, as the data of a settings class.

    Unknown keys stay, for the class to refuse.

    Args:
        origin: where it was written, as errors say it; "" for a command line.

    Raises:
        UsageError: a value that its setting does not take, or a setting that is given twice.
    """
    return _Meaning(origin).group(model, written, "")


@dataclass(frozen=True)
class _Meaning:
    origin: str

    def group(self, model: type[pydantic.BaseModel], written: Block, at: str) -> dict[str, Any]:
        data = {}
        for name, value in self.undotted(model, written, at).items():
            info = model.model_fields.get(name)
            if info is None:
                data[name] = plain(value)
                continue
            kind, key = Kind.of(info.annotation), f"{at}{name}"
            emptied = isinstance(value, Scalar) and value.empty
            if emptied and self.origin and (kind.group or kind.values):
                continue  # all that stood below it was taken out
            data[name] = self.value(kind, value, key, _example(kind, info))
        return data

    def undotted(self, model: type[pydantic.BaseModel], written: Block, at: str) -> Block:
        """The same with `a.b: 1` as `a: {b: 1}`."""
        whole = Block()
        for key, value in written.items():
            name, _, rest = key.partition(".")
            part, line = Block(), written.line(key)
            if rest and key not in model.model_fields:
                inner = Block()
                inner[rest], inner.lines[rest] = value, line
                value = inner
            else:
                name = key
            part[name], part.lines[name] = value, line
            whole = self.joined(whole, part, at)
        return whole

    def joined(self, one: Block, other: Block, at: str) -> Block:
        """Two blocks in one; refused where both give a value."""
        whole = Block()
        whole.update(one)
        whole.lines.update(one.lines)
        for key, value in other.items():
            had = whole.get(key)
            if isinstance(had, Block) and isinstance(value, Block):
                whole[key] = self.joined(had, value, f"{at}{key}.")
            elif had is None or (isinstance(had, Scalar) and had.empty):
                whole[key] = value
            elif not (isinstance(value, Scalar) and value.empty):
                raise UsageError(
                    f"{at}{key} is given twice in {self.origin or 'one setting'}, in line "
                    f"{whole.line(key)} and in line {other.line(key)}; leave one out"
                )
            whole.lines[key] = other.line(key)
        return whole

    def value(self, kind: Kind, written: Any, key: str, example: Any) -> Any:
        if kind.anything:
            return plain(written)
        if isinstance(written, Block):
            if kind.group is not None:
                return self.group(kind.group, written, f"{key}.")
            if kind.values is not None:
                inner = Kind.of(kind.values)
                return {k: self.value(inner, v, f"{key}.{k}", 1) for k, v in written.items()}
            self.refuse(kind, written, key, example)
        if isinstance(written, list):
            if kind.items is None:
                self.refuse(kind, written, key, example)
            return self.listed(kind, written, key, example)
        if written.null and kind.optional:
            return None
        if kind.group is not None or kind.values is not None:
            first = next(iter(kind.group.model_fields), "KEY") if kind.group else "NAME"
            where = self.where(written)
            raise UsageError(
                f"{key} is a group of settings{where}; set one of its keys, such as {key}.{first}"
            )
        if written.plain and written.text == "None" and kind.optional:
            self.fail(written, key, f"write null to leave it unset: {key}=null")
        if kind.items is not None and not kind.number:
            return self.listed(kind, [written], key, example)
        return self.single(kind, written, key, example)

    def listed(self, kind: Kind, written: list[Any], key: str, example: Any) -> list[Any]:
        alone = written[0] if len(written) == 1 and isinstance(written[0], Scalar) else None
        if alone is not None and alone.plain and ("," in alone.text or alone.null):
            self.refuse(kind, alone, key, example)
        if not kind.many and len(written) != len(kind.items):
            self.refuse(kind, alone or written, key, example)
        kinds = [Kind.of(kind.item)] * len(written)
        if not kind.many:
            kinds = [Kind.of(one) for one in kind.items]
        first = example[0] if isinstance(example, list | tuple) and example else None
        found = []
        for place, (one, value) in enumerate(zip(kinds, written, strict=True)):
            if isinstance(value, list) and one.items is None and not one.anything:
                self.refuse(kind, written, key, example)
            found.append(self.value(one, value, key if alone else f"{key}.{place}", first))
        return found

    def single(self, kind: Kind, written: Scalar, key: str, example: Any) -> Any:
        if kind.number and (number := _number(kind.number, written.text.strip())) is not None:
            return number
        if kind.flag and written.text.strip() in FLAGS:
            return FLAGS[written.text.strip()]
        if kind.text and not written.null:
            return written.text
        self.refuse(kind, written, key, example)

    def refuse(self, kind: Kind, written: Any, key: str, example: Any) -> NoReturn:
        text = written.text.strip() if isinstance(written, Scalar) else ""
        remedy = f"give {kind.words}"
        if kind.items is not None and "," in text:
            bare = text.strip("()[] ").split(",")
            remedy = "give a list"
            example = [part for one in bare if (part := one.strip(" '\""))]
        if kind.flag:
            example = text.lower() in ("yes", "on", "y", "1")
        if example is not None:
            remedy += f", such as {key}={_flow(example)}"
        if kind.items is not None and "," in text and Kind.of(kind.item).text:
            remedy += "; in quotes where the comma belongs to the text"
        elif kind.number:
            remedy += _oddity(text)
        self.fail(written, key, remedy)

    def fail(self, written: Any, key: str, remedy: str) -> NoReturn:
        raise UsageError(f"{key}={_short(_flow(written))}{self.where(written)}: {remedy}")

    def where(self, written: Any) -> str:
        line = f", line {written.line}" if isinstance(written, Scalar) and written.line else ""
        return f" (from {self.origin}{line})" if self.origin else ""


def _number(kind: type, text: str) -> int | float | None:
    """A finite number of YAML 1.2, or None. Whole ones may be written 1e3 or 2.0."""
    if not NUMBER.fullmatch(text):
        return None
    try:
        exact = Decimal(text)
        if exact.adjusted() <= DIGITS and (whole := exact.to_integral_value()) == exact:
            return int(whole) if kind is int or WHOLE.fullmatch(text) else float(text)
    except ArithmeticError:
        return None
    return float(text) if kind is float and math.isfinite(float(text)) else None


def _oddity(text: str) -> str:
    """Why what looks like a number to some is none here."""
    if text.lower().strip("+-.") in ("inf", "infinity", "nan"):
        return "; it must be finite"
    if text.lower() in WORDS:
        return f"; {text} is no number"
    if re.fullmatch(r"[-+]?0[xob]\w+", text, re.IGNORECASE):
        return "; in decimal digits"
    if re.fullmatch(r"[-+]?[\d_]*_[\d_.]*", text):
        return "; without underscores"
    if re.fullmatch(r"[-+]?0\d+(e.*)?", text):
        return "; without zeros in front"
    if re.fullmatch(r"[-+]?\d*,\d+", text):
        return "; with a point, not a comma"
    return ""


def _example(kind: Kind, info: FieldInfo) -> Any:
    """A value that a setting takes: its default, or one within its bounds."""
    default = info.get_default()
    if default not in (PydanticUndefined, None, (), ""):
        return default
    if kind.items is not None and not kind.number:
        inner = Kind.of(kind.item)
        count = 1 if kind.many else len(kind.items)
        return [1] * count if inner.number else None
    if not kind.number:
        return None
    bounds = {k: getattr(one, k) for one in info.metadata for k in ("ge", "le") if hasattr(one, k)}
    return 0.5 if bounds.get("le", 2) <= 1 else max(1, bounds.get("ge", 1))


def _flow(value: Any) -> str:
    """A value on one line of YAML."""
    if isinstance(value, Scalar):
        return value.text
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_flow(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
