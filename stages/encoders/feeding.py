"""A network on a device that is fed without pause.

What it sees next is brought there from pinned memory while it computes, and what it gives stays
there until the end: the host waits for nothing but to be no more than two batches ahead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

__all__ = ["fed", "grouped", "pinned"]

AHEAD = 2  # batches that a device has before it and not yet done


def pinned(x: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU's in memory that a GPU copies from by itself; as it is for a CPU."""
    return x.pin_memory() if device.type == "cuda" and not x.is_cuda else x


def grouped(pieces: Iterable[Tensor], size: int) -> Iterator[list[Tensor]]:
    """Pieces (b, ...) together until they are at least so many rows; fewer at the end."""
    held: list[Tensor] = []
    for piece in pieces:
        held.append(piece)
        if sum(map(len, held)) >= size:
            yield held
            held = []
    if held:
        yield held


def fed(batches: Iterable[Sequence[Tensor]], device: torch.device) -> Iterator[Tensor]:
    """Each batch, of one piece or several, as one tensor on the device, in order. On a GPU the next
    one is copied while what was made of the last one before it is still being computed."""
    if device.type != "cuda":
        for batch in batches:
            yield _joined(batch).to(device, non_blocking=True)
        return
    copying, using = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    done: deque[torch.cuda.Event] = deque()
    coming: tuple[Tensor, torch.cuda.Event] | None = None

    def arrived(found: Tensor, event: torch.cuda.Event) -> Tensor:
        using.wait_event(event)
        found.record_stream(using)
        return found

    for batch in batches:
        with torch.cuda.stream(copying):
            found = _joined([piece.to(device, non_blocking=True) for piece in batch])
            following = found, copying.record_event()
        if coming is not None:
            yield arrived(*coming)
            done.append(using.record_event())
            if len(done) > AHEAD:
                done.popleft().synchronize()
        coming = following
    if coming is not None:
        yield arrived(*coming)


def _joined(pieces: Sequence[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(list(pieces))
