"""What a training keeps is written behind it: it goes on as soon as a copy is taken.

On a GPU the copy goes to pinned memory, in the order of the device's work; nobody waits for it but
the thread that writes. A sharded training waits, too, while its tensors are gathered one by one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stages.artifacts.network import checkpoint_name
from stages.training import resume


class Saver:
    """Writes states and weights into a folder, one after another in the order they were given.

    A training waits only where what it gave before of the same kind is not written yet. What went
    wrong is raised by the next call, or at the end; nothing is written after it. To be used in a
    with-statement, which ends when all is written.

    Args:
        push: makes what is in the folder safe; called after each state.
    """

    def __init__(self, folder: Path, push: Callable[[], None]) -> None:
        self._folder, self._push = folder, push
        self._pool = ThreadPoolExecutor(1, "saver")
        self._copies = {"state": Copy(), "weights": Copy()}
        self._going: dict[str, Future[None]] = {}
        self._failed = False

    def state(self, step: int, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Save the resumable state after `step`; see `resume.save`."""
        text = json.dumps(record, sort_keys=True)  # at once: its lists grow

        def write(held: Mapping[str, Tensor]) -> None:
            resume.write(self._folder, step, held, text)
            self._push()

        self._begin("state", tensors, write)

    def weights(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Keep the weights after `step` for the artifact, with their checksum beside them."""
        from safetensors.torch import save_file

        def write(held: Mapping[str, Tensor]) -> None:
            path = self._folder / checkpoint_name(step)
            path.parent.mkdir(exist_ok=True)
            resume.write_atomically(path, lambda p: save_file(dict(held), p))
            resume.seal(path)

        self._begin("weights", tensors, write)

    def wait(self) -> None:
        """Until all that was given is written. Raises what went wrong."""
        while self._going:
            self._going.popitem()[1].result()

    def _begin(
        self, kind: str, tensors: Mapping[str, Tensor], write: Callable[[Mapping], None]
    ) -> None:
        done = [other for other, one in self._going.items() if one.done()]
        for other in dict.fromkeys([*done, kind]):  # what went wrong is said now
            if other in self._going:
                self._going.pop(other).result()
        copy = self._copies[kind]
        copy.take(tensors)

        def work() -> None:
            if not self._failed:
                self._failed = True
                write(copy.held())
                self._failed = False

        self._going[kind] = self._pool.submit(work)

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, *error: Any) -> None:
        self._pool.shutdown()
        if error[0] is None:
            self.wait()


class Copy:
    """A copy of tensors in the machine's memory, into which the next one is taken again."""

    def __init__(self) -> None:
        self._tensors: dict[str, Tensor] = {}
        self._done: torch.cuda.Event | None = None

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Begin to copy; what is done to the tensors afterwards does not change the copy."""
        self._tensors = {name: self._place(name, tensor) for name, tensor in tensors.items()}
        on_gpu = False
        for name, tensor in tensors.items():
            self._tensors[name].copy_(tensor.detach(), non_blocking=True)
            on_gpu = on_gpu or tensor.is_cuda
        if on_gpu:
            self._done = torch.cuda.Event()
            self._done.record()

    def held(self) -> Mapping[str, Tensor]:
        """The copy, once it is whole."""
        if self._done is not None:
            self._done.synchronize()
        return self._tensors

    def _place(self, name: str, tensor: Tensor) -> Tensor:
        known = self._tensors.get(name)
        if known is not None and (known.shape, known.dtype) == (tensor.shape, tensor.dtype):
            return known
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
