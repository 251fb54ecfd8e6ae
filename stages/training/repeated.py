"""Kernels that repeat, where the settings of a stage ask for them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.errors import StageError


@contextmanager
def repeating(section: str, wanted: bool) -> Iterator[None]:
    """Within it, if wanted, kernels repeat; section: of the setting `deterministic`, for messages.

    Raises StageError where there are none such, or this process began without room for them.
    """
    from stages.nets.precision import CUBLAS, REPEATS, repeatable

    if not wanted:
        yield
        return
    if os.environ.get(CUBLAS) not in REPEATS:
        raise StageError(
            f"{section}.deterministic=true needs {CUBLAS}={REPEATS[0]} in the environment of every "
            f"process that trains, and this one has {os.environ.get(CUBLAS) or 'none'}; set it "
            f"where Ray is started, or set {section}.deterministic=false"
        )
    try:
        with repeatable(True):
            yield
    except RuntimeError as error:
        said = str(error).partition(", but")[0]
        if "does not have a deterministic" not in said:
            raise
        raise StageError(f"{section}.deterministic=true: {said}; set it to false") from error
