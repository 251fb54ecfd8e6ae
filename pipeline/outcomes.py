"""How a node ended whose task Ray has let go of, lost, cut off or killed."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from pipeline.worker import FAILED, Outcome

MEMORY_TRIES = 3


def outcome_of(reference: Any, limit: float | None, check: Callable[[], object]) -> Outcome:
    """What a task that has ended gave, or why it gave nothing.

    Args:
        limit: seconds that it might take, if any.
        check: raises where Ray itself is gone.
    """
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.TaskCancelledError:
        return Outcome(FAILED, error=f"ran longer than {limit:g} s")
    except ray.exceptions.OutOfMemoryError as error:
        return Outcome(FAILED, error=out_of_memory(str(error)))
    except ray.exceptions.RayError as error:
        check()
        reason = str(error).strip().splitlines()[0]
        return Outcome(FAILED, error=f"its worker was lost: {reason}")


def out_of_memory(text: str) -> str:
    """What Ray's memory monitor says of a task that it has killed, in one sentence."""
    machine = re.search(r"was ([\d.]+)GB used / ([\d.]+)GB limit", text)
    own = re.search(r"actual memory used=([\d.]+)GB", text)
    held = f", its own process {own[1]} GB" if own else ""
    facts = f" ({machine[1]} of {machine[2]} GB were in use{held})" if machine else ""
    return (
        f"killed {MEMORY_TRIES} times because the machine ran out of memory{facts}; lower --jobs "
        "or what the node holds at once, such as its batch size, or use a machine with more memory"
    )
