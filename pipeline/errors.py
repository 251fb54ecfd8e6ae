"""Errors that a person reads: one clear sentence that names the setting and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

DONE, NODE_FAILED, BAD_USAGE, INTERRUPTED = 0, 1, 2, 130


class PipelineError(Exception):
    """Something went wrong after work had begun. The command ends with `exit_code`."""

    exit_code = NODE_FAILED


class UsageError(PipelineError):
    """Bad usage or settings, found before any work."""

    exit_code = BAD_USAGE


class RayLostError(PipelineError):
    """Ray's own processes are gone; the state is kept and the run can go on with a new Ray."""


class StoreAwayError(PipelineError):
    """An object store did not answer for longer than anybody waits."""


class StoreFullError(PipelineError):
    """A disk has no room for what a store would put there."""


class DamagedArtifactError(PipelineError):
    """A stored artifact no longer matches its manifest.

    Attributes:
        where: its stage and key, where the error is raised by who reads it.
    """

    def __init__(self, message: str, where: tuple[str, str] | None = None) -> None:
        super().__init__(message)
        self.where = where


class EarlierArtifactError(DamagedArtifactError):
    """A stored artifact is whole, but of a layout or kind that this version does not read."""


class DamagedRecordError(PipelineError):
    """The stored record of a run cannot be read."""


class StageError(PipelineError):
    """A stage found something wrong with its data or settings and says so in one sentence."""


@contextmanager
def raised_as(kind: type[PipelineError], *caught: type[Exception]) -> Iterator[None]:
    """An error of `caught` (default: ValueError) leaves the block as `kind`, in the same words."""
    kinds = caught or (ValueError,)
    try:
        yield
    except kinds as error:
        raise kind(str(error)) from error


def printable(text: str) -> str:
    """Text of others as a terminal may show it: control characters are shown, not sent.

    Bytes that are no text (of file names) stay as Python holds them, but for control characters.
    """
    return "".join(c if c.isprintable() or c in "\n\t" else _shown(c) for c in text)


def _shown(character: str) -> str:
    if "\udca0" <= character <= "\udcff":
        return character
    return "" if character == "\r" else repr(character)[1:-1]


def nearest(word: str, options: Iterable[str], before: str = "") -> str:
    """`"; did you mean 'x'?"` for the option closest to `word`, `before` in front of it, or ""."""
    matches = difflib.get_close_matches(word, list(options), n=1, cutoff=0.5)
    return f"; did you mean '{before}{matches[0]}'?" if matches else ""
