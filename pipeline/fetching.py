"""Data that are fetched when asked, and only then, and what to say while they are not there."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import UsageError, nearest
from pipeline.stage import Catalog, Settings, resolve

FOLDER = Path("data")


def folder_of(name: str) -> Path:
    """Where data lie that were fetched without another place named: `data/NAME` here."""
    return (FOLDER / name).absolute()


def fetch(catalog: Catalog, name: str, to: str | None) -> None:
    """Get the data of that name, or check those that are there, and say how to go on.

    Raises:
        UsageError: there are no data of that name, or they cannot be had.
    """
    known = catalog.fetches
    if name not in known:
        raise UsageError(
            f"unknown data '{name}'{nearest(name, known)} (known: {', '.join(known) or 'none'}); "
            "place other data by hand and set data.path to them"
        )
    folder = folder_of(name) if to is None else Path(to).expanduser().absolute()
    resolve(known[name].get)(name, folder, folder == folder_of(name))


def absent(catalog: Catalog, settings: Settings) -> str | None:
    """What to say where settings name a folder that `fetch` fills and has not; None elsewhere."""
    named = [value for _, value in settings if isinstance(value, str)]
    for name, data in catalog.fetches.items():
        folder = folder_of(name)
        if str(folder) in named and not folder.exists():
            return (
                f"{folder} is not there: get it with python -m pipeline fetch {name}, which "
                f"without a network takes {', '.join(data.files)} placed in it by hand"
            )
    return None
