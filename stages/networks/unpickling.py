"""Pickles of others, of which only what a reader names is ever made."""

from __future__ import annotations

import pickle
import pickletools
from collections.abc import Callable, Mapping
from typing import IO, Any

# What a file may ask for, by module and name.
Allowed = Mapping[tuple[str, str], Callable[..., Any]]


class RefusedError(ValueError):
    """A pickle asks for something that it may not have, which the message names."""


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream: IO[bytes], allowed: Allowed, encoding: str) -> None:
        super().__init__(stream, encoding=encoding)
        self._allowed = allowed

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._allowed:
            raise RefusedError(f"it asks for {module}.{name}, which is not allowed")
        return self._allowed[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise RefusedError("it refers to objects outside the file")


def load(stream: IO[bytes], allowed: Allowed, encoding: str = "ASCII") -> Any:
    """What a pickle holds, made of `allowed`, containers, numbers and text.

    Args:
        stream: can be read from its start again.
        encoding: of the text in pickles of Python 2.

    Raises:
        RefusedError: it asks for something else, or for memory out of proportion.
        ValueError: it is no pickle, or a damaged one.
    """
    try:
        _check_places(stream)
        stream.seek(0)
        return _Unpickler(stream, allowed, encoding).load()
    except RefusedError:
        raise
    except Exception as error:  # a damaged pickle raises nearly anything
        raise ValueError(f"it is no readable pickle ({error})") from error


def latin1(text: str, encoding: str = "latin1") -> bytes:
    """How old protocols keep bytes: `_codecs.encode`, of that encoding alone."""
    if encoding not in ("latin1", "latin-1"):
        raise RefusedError(f"it asks for the codec {encoding}, which is not allowed")
    return text.encode("latin1")


def arrays() -> dict[tuple[str, str], Callable[..., Any]]:
    """What NumPy's arrays and numbers are made of, in all of its versions."""
    import numpy as np
    from numpy import _core

    allowed: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): latin1,
    }
    for core in ("numpy.core", "numpy._core"):
        for name in ("_reconstruct", "scalar"):
            allowed[f"{core}.multiarray", name] = getattr(_core.multiarray, name)
        allowed[f"{core}.numeric", "_frombuffer"] = _core.numeric._frombuffer
    return allowed


def _check_places(stream: IO[bytes]) -> None:
    """Refuse places of the memo that no pickle can have filled: each takes memory up to itself."""
    for number, (code, argument, _) in enumerate(pickletools.genops(stream)):
        if code.name in ("PUT", "BINPUT", "LONG_BINPUT") and argument > number:
            raise RefusedError(f"it keeps an object at place {argument} though it has few")
