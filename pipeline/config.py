"""Settings from presets and overrides: `preset < --preset FILE < key=value`, each with its origin.

Every mistake is one sentence (`UsageError`) that names the setting and, where there is one, the
nearest known key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pydantic

from pipeline.errors import UsageError, nearest
from pipeline.stage import Catalog, Settings
from pipeline.written import meant, overriding
from pipeline.yaml12 import Block, Scalar, read

COMMAND_LINE = "command line"  # the origin of what is typed


@dataclass(frozen=True)
class Resolved:
    """Validated settings, the preset's name, and where each value came from (by dotted key)."""

    settings: Settings
    preset: str
    origins: Mapping[str, str]

    def flat(self) -> dict[str, Any]:
        """Every resolved value by dotted key."""
        return dict(flatten(self.settings.model_dump(mode="json")))


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield `(dotted key, value)` of all leaves."""
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def known_keys(model: type[pydantic.BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield every dotted key of a settings class, groups included."""
    for name, info in model.model_fields.items():
        yield f"{prefix}{name}"
        inner = info.annotation
        if isinstance(inner, type) and issubclass(inner, pydantic.BaseModel):
            yield from known_keys(inner, f"{prefix}{name}.")


def resolve(catalog: Catalog, preset: str | None, overrides: Sequence[str] = ()) -> Resolved:
    """Resolve the settings of a run.

    Args:
        preset: a name in the catalog's folder or a path to a YAML file; None for the default.
        overrides: `key=value` strings, each value read by the kind of its setting.

    Raises:
        UsageError: an unknown preset or key, an unreadable file, a wrong type, a value out of
            bounds, or settings that contradict each other.
    """
    name, layers = _preset_layers(catalog, preset or catalog.default_preset)
    layers += [_override(catalog.settings, text) for text in overrides]
    tree, origins = _merged(layers)
    try:
        settings = catalog.settings.model_validate(tree)
    except pydantic.ValidationError as error:
        raise UsageError(explained(catalog.settings, error, origins)) from error
    for key, _ in flatten(settings.model_dump(mode="json")):
        origins.setdefault(key, _group_origin(key, origins) or "default")
    return Resolved(settings, name, origins)


def as_of(catalog: Catalog, preset: str | None, origin: str) -> Settings | None:
    """The settings of a preset with the layers up to the one of this origin, which it extends or
    is; None where there is none, or it cannot stand alone."""
    _, layers = _preset_layers(catalog, preset or catalog.default_preset)
    origins = [name for name, _ in layers]
    if origin not in origins:
        return None
    tree, _ = _merged(layers[: origins.index(origin) + 1])
    try:
        return catalog.settings.model_validate(tree)
    except pydantic.ValidationError:
        return None


def preset_names(catalog: Catalog) -> list[str]:
    return sorted(path.stem for path in catalog.presets.glob("*.yaml"))


def _preset_layers(
    catalog: Catalog, preset: str, beside: Path | None = None, above: tuple[Path, ...] = ()
) -> tuple[str, list[tuple[str, dict]]]:
    """The layers of a preset, those it extends first.

    beside: the folder that a relative file is in; None is the current one. above: the files that
    extend this one.
    """
    path = Path(preset).expanduser()
    if path.suffix.lower() in (".yaml", ".yml"):
        path = (beside or Path()) / path
    else:
        names = preset_names(catalog)
        if preset not in names:
            raise UsageError(
                f"unknown preset '{preset}'{nearest(preset, names)} (known: {', '.join(names)}; "
                "or give a .yaml file)"
            )
        path = catalog.presets / f"{preset}.yaml"
    if (own := path.resolve()) in above:
        trail = " -> ".join(file.name for file in (*above[above.index(own) :], own))
        raise UsageError(f"presets extend each other in a circle ({trail}); name another preset")
    tree, origin = read(path), f"preset {path.stem}"
    base = _base(tree, origin)
    layers = [(origin, meant(catalog.settings, tree, origin))]
    if base is not None:
        further = _preset_layers(catalog, base, path.parent, (*above, own))[1]
        if origin in (name for name, _ in further):  # it bears the name of one that it extends
            layers = [(f"preset {own}", layer) for _, layer in layers]
        layers = further + layers
    return path.stem, layers


def _base(tree: Block, origin: str) -> str | None:
    """The preset that a file extends, taken out of it."""
    base = tree.pop("extends", Scalar(""))
    if not isinstance(base, Scalar):
        raise UsageError(f"{origin} extends a list or group; name one preset: extends: digits")
    return None if base.null else base.text


def _override(model: type[Settings], text: str) -> tuple[str, dict[str, Any]]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise UsageError(f"'{text}' is not a setting; write key=value, such as train.lr=0.001")
    block = overriding(model, key.strip(), value)
    return COMMAND_LINE, meant(model, block)


def _merged(layers: Sequence[tuple[str, Mapping]]) -> tuple[dict[str, Any], dict[str, str]]:
    """What layers say together, later ones over earlier ones, and where each value came from."""
    tree: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for origin, layer in layers:
        _merge(tree, layer, origin, origins)
    return tree, origins


def _merge(tree: dict, layer: Mapping, origin: str, origins: dict[str, str], at: str = "") -> None:
    for name, value in layer.items():
        key = f"{at}{name}"
        if isinstance(value, Mapping) and isinstance(tree.get(name, {}), dict):
            _merge(tree.setdefault(name, {}), value, origin, origins, f"{key}.")
        else:
            tree[name] = value
            origins[key] = origin


def _group_origin(key: str, origins: Mapping[str, str]) -> str | None:
    """Origin of the innermost group of `key` that was set as a whole."""
    while "." in key:
        key = key.rpartition(".")[0]
        if key in origins:
            return origins[key]
    return None


def of_node(catalog: Catalog, recipe: str, error: pydantic.ValidationError) -> UsageError:
    """What to say where a recipe made settings of a node that its stage refuses."""
    return UsageError(f"a node of recipe {recipe}: {explained(catalog.settings, error, {})}")


def explained(
    model: type[pydantic.BaseModel],
    error: pydantic.ValidationError,
    origins: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """One sentence for the first mistake pydantic found. origins: where settings came from."""
    problem = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in problem["loc"] if not str(part).startswith("function-"))
    if problem["type"] == "extra_forbidden":
        grouped = isinstance(problem["input"], Mapping)
        return f"unknown setting '{key}'{_suggestion(key, list(known_keys(model)), grouped)}"
    origin = origins.get(key, "")
    where = f" (from {origin})" if origin and origin != COMMAND_LINE else ""
    if problem["type"] == "value_error":
        message = str(problem["ctx"]["error"])
        return f"{key}: {message}{where}" if key else message
    if problem["type"] == "missing":
        return f"{key} is required; set it in the preset or as {key}=VALUE"
    given, message = problem["input"], problem["msg"]
    if problem["type"] in ("too_short", "too_long"):
        few = problem["type"] == "too_short"
        bound = problem["ctx"]["min_length" if few else "max_length"]
        return f"{key}={given!r}{where}: give at {'least' if few else 'most'} {bound}"
    return f"{key}={given!r}{where}: {message[:1].lower()}{message[1:]}"


SHOWN = 12  # keys of a group that are listed


def _suggestion(key: str, keys: Sequence[str], grouped: bool) -> str:
    """What else an unknown key may mean: a near one beside it, one of its name elsewhere, or
    else the keys that its group has. grouped: it was given as a group, not as a value."""
    group, _, name = key.rpartition(".")
    groups = {k.rpartition(".")[0] for k in keys}
    kind = [k for k in keys if (k in groups) == grouped]
    beside = [k for k in kind if k.rpartition(".")[0] == group]
    if near := nearest(name, [k.rpartition(".")[2] for k in beside], group and f"{group}."):
        return near
    if same := [k for k in kind if k.rpartition(".")[2] == name]:
        return f"; did you mean {' or '.join(map(repr, same[:3]))}?"
    if not group:
        return nearest(key, kind)
    known = [k.rpartition(".")[2] for k in keys if k.rpartition(".")[0] == group]
    if not known:
        return ""
    more = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
    return f"; {group} has {', '.join(known[:SHOWN])}{more}"
