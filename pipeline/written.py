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

from pipeline.errors import UsageError
from pipeline.yaml12 import FLAGS, NUMBER, WHOLE, Block, Scalar, YAMLError, parse, plain

WORDS = ("yes", "no", "on", "off", "y", "n", "true", "false")
DIGITS = 30  # of a whole number, at most
UNSET = ("", "null", "None")  # what a command line may say for null; the last is refused
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
    unset = kind.optional and text in UNSET
    return Scalar(text, plain=unset or kind.items is not None)


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
        if isinstance(written, list) and kind.items is not None:
            return self.listed(kind, written, written, key, example)
        if isinstance(written, Scalar) and written.null and kind.optional:
            return None
        if kind.values is not None:
            self.fail(written, key, f"give names with values, such as {key}={{NAME: VALUE}}")
        if kind.group is not None:
            first = next(iter(kind.group.model_fields), "KEY")
            where = self.where(written)
            raise UsageError(
                f"{key} is a group of settings{where}; set one of its keys, such as {key}.{first}"
            )
        if isinstance(written, list):
            self.refuse(kind, written, key, example)
        if written.plain and written.text == "None" and kind.optional:
            self.fail(written, key, f"write null to leave it unset: {key}=null")
        if kind.items is not None and not kind.number:
            if written.plain and ("," in written.text or written.null):
                self.refuse(kind, written, key, example)
            return self.listed(kind, [written], written, key, example)
        try:
            return _single(kind, written)
        except ValueError:
            self.refuse(kind, written, key, example)

    def listed(self, kind: Kind, items: list[Any], written: Any, key: str, example: Any) -> Any:
        """The items of a list that was written as `written`."""
        if not kind.many and len(items) != len(kind.items):
            self.refuse(kind, written, key, example)
        kinds = [Kind.of(kind.item)] * len(items) if kind.many else list(map(Kind.of, kind.items))
        found = []
        for place, (inner, item) in enumerate(zip(kinds, items, strict=True)):
            if inner.anything or inner.values is not None or inner.items is not None:
                found.append(self.value(inner, item, f"{key}.{place}", None))
                continue
            try:
                found.append(_single(inner, item))
            except ValueError:
                self.refuse(kind, written, key, example, item)
        return found

    def refuse(
        self, kind: Kind, written: Any, key: str, example: Any, item: Any = None
    ) -> NoReturn:
        """Say what to give instead. item: the one of a list that is wrong."""
        odd = written if item is None else item
        text = odd.text.strip() if isinstance(odd, Scalar) else ""
        commas = kind.items is not None and isinstance(written, Scalar) and "," in text
        remedy = "give a list" if commas else f"give {kind.words}"
        if commas:
            parts = [part.strip(" '\"") for part in text.strip("()[] ").split(",")]
            example = [part for part in parts if part]
        if kind.flag:
            example = text.lower() in ("yes", "on", "y", "1")
        if example is not None:
            remedy += f", such as {key}={_flow(example)}"
        if commas and Kind.of(kind.item).text:
            remedy += "; in quotes where the comma belongs to the text"
        elif not commas and (kind.number or kind.items is not None):
            remedy += _oddity(text)
        self.fail(written, key, remedy)

    def fail(self, written: Any, key: str, remedy: str) -> NoReturn:
        raise UsageError(f"{key}={_short(_flow(written))}{self.where(written)}: {remedy}")

    def where(self, written: Any) -> str:
        line = f", line {written.line}" if isinstance(written, Scalar) and written.line else ""
        return f" (from {self.origin}{line})" if self.origin else ""


def _single(kind: Kind, written: Any) -> Any:
    """The value of a number, truth value or text. Raises ValueError."""
    if isinstance(written, Scalar):
        text = written.text.strip()
        if kind.number and (number := _number(kind.number, text)) is not None:
            return number
        if kind.flag and text in FLAGS:
            return FLAGS[text]
        if kind.text and not written.null:
            return written.text
    raise ValueError("of another kind")


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
    if re.fullmatch(r"[-+]?[\d,.]+", text) and "," in text:
        return "; without a comma (decimals begin with a point)"
    return ""


def _example(kind: Kind, info: FieldInfo) -> Any:
    """A value that a setting takes: its default, or one within its bounds."""
    if not info.is_required() and info.get_default() not in (None, (), ""):
        return info.get_default()
    if kind.items is not None and not kind.number:
        inner = Kind.of(kind.item)
        count = 1 if kind.many else len(kind.items)
        return [1] * count if inner.number else ["FIRST", "SECOND"] if inner.text else None
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
