"""The training loop of every method: it yields what happened at each step, the caller logs.

The same loop runs in one process and, under an initialised process group, in many: each takes its
share of the global batch, and every draw depends on seed, step and the sample's place in it. So
neither the number of processes nor of parts that gradients are added up from changes a result by
more than rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor, distributed, nn

from stages.artifacts.reading import Ahead
from stages.methods import drawn_at
from stages.methods.draws import Draws
from stages.methods.ema import EMA, adamw
from stages.methods.losses import Batch, LossTerms
from stages.training import sharding

Loss = Callable[[nn.Module, Batch], LossTerms]


@dataclass(frozen=True)
class Optimization:
    """How weights are updated. lr is reached linearly over warmup_steps, then constant, or falls to
    0 at decay_steps along a half cosine.

    clip: largest norm of the gradient, or None. precision: float32, or bfloat16 (autocast).
    accumulate: parts of a process's share of the batch, whose gradients are added up.
    """

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    warmup_steps: int = 0
    clip: float | None = 1.0
    ema_decay: float = 0.9999
    ema_warm_up: bool = True
    precision: str = "float32"
    accumulate: int = 1
    decay_steps: int | None = None

    def lr_at(self, step: int) -> float:
        """Learning rate of the update that follows `step` earlier ones."""
        lr = self.lr * min(1.0, (step + 1) / max(1, self.warmup_steps))
        if self.decay_steps is None or step < self.warmup_steps:
            return lr
        length = max(1, self.decay_steps - self.warmup_steps)
        return lr * (1 + math.cos(math.pi * (step - self.warmup_steps) / length)) / 2


@dataclass(frozen=True)
class Step:
    """What one update did: scalars still on their device, so that nobody waits for it.

    step: updates made so far. losses: this process's terms, weighted by its share of the batch, so
    that their mean over the processes is the batch's. gradient_norm: before clipping.
    """

    step: int
    losses: Mapping[str, Tensor]
    gradient_norm: Tensor


class TrainState:
    """All that training changes: network, its EMA, the optimizer, and the number of steps made.

    shard_on: the device on which each process of the group keeps its part of all of them, see
    `sharding`; None where each has the whole, on the network's own device.
    """

    def __init__(
        self,
        network: nn.Module,
        optimization: Optimization,
        shard_on: torch.device | str | None = None,
    ) -> None:
        self.network = network
        self.optimization = optimization
        self.ema = EMA(network, optimization.ema_decay, warm_up=optimization.ema_warm_up)
        if shard_on is not None:
            for one in (self.network, self.ema.network):
                sharding.shard(one, shard_on)
        self.optimizer = adamw(
            network.parameters(), optimization.lr, optimization.betas, optimization.weight_decay
        )
        self.step = 0

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs, by name, each tensor whole; of a sharded training in
        the first process alone, and all are to call it."""
        state_tensors = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        state_tensors |= {f"ema.{k}": v for k, v in self.ema.network.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            state_tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
        return self._whole(state_tensors)

    def weights(self) -> dict[str, Tensor]:
        """The average's weights, as `tensors`."""
        return self._whole(self.ema.network.state_dict())

    def _whole(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        return sharding.whole(values) if sharding.is_sharded(self.network) else values

    def restore(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Continue from what `tensors()` returned after `step` steps."""

        def below(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        for prefix, network in (("network.", self.network), ("ema.", self.ema.network)):
            network.load_state_dict(sharding.parts(below(prefix), network.state_dict()))
        self.ema.num_updates = self.step = step
        states: dict[int, dict[str, Tensor]] = {}
        groups = self.optimizer.state_dict()["param_groups"]
        trained = self.optimizer.param_groups[0]["params"]
        for key, value in below("optimizer.").items():
            index, _, name = key.partition(".")
            states.setdefault(int(index), {})[name] = sharding.part(value, trained[int(index)])
        self.optimizer.load_state_dict({"state": states, "param_groups": groups})


class Stored(Protocol):
    """Images that are read as they lie on disk, by threads, and finished on a device."""

    def __len__(self) -> int: ...

    def raw(self, which: Tensor) -> Tensor:
        """What is stored of the images `which` (B,); safe in several threads at once."""

    def finish(self, raw: Tensor, draws: Draws) -> Tensor:
        """(B, C, H, W) of it, on its device: pixels in [-1, 1], or latents drawn from their
        posterior."""


class Teacher(Protocol):
    """A teacher's features of the training images. images: those that it looks at, or None where
    its features are stored."""

    images: Any

    def raw(self, indices: Tensor) -> Sequence[Tensor]:
        """What is stored of these images (B,), as `Stored.raw`."""

    def finish(self, raw: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Patch targets (B, N, Z) of unit length and class features (B, Z), on the device of what
        `raw` gave."""


@dataclass(frozen=True)
class _Raw:
    """A batch as it was read. taught: of the teacher, unless it looks at the images."""

    images: Tensor
    labels: Tensor | None
    places: Tensor
    step: int
    taught: Sequence[Tensor] | None

    def on(self, move: Callable[[Tensor], Tensor]) -> _Raw:
        """With every tensor moved."""
        return _Raw(
            move(self.images),
            None if self.labels is None else move(self.labels),
            move(self.places),
            self.step,
            None if self.taught is None else [move(part) for part in self.taught],
        )


class Batches:
    """The batch of any step, for this process, in an order that depends on the seed alone.

    Every epoch is a fresh permutation of the images; batches run on over its end, so none is
    short. labels: (n,) long, or None. first_step: added to every step, where a training continues
    another. readers: threads that read the next batches meanwhile, see `Ahead`; of no batch from
    step `end` on. For a GPU they read into pinned memory, and what is stored is finished there.

    To be closed, or used in a with-statement, which ends the threads.
    """

    def __init__(
        self,
        images: Stored,
        labels: Tensor | None,
        batch_size: int,
        seed: int,
        device: torch.device | str = "cpu",
        teacher: Teacher | None = None,
        first_step: int = 0,
        readers: int = 0,
        end: int | None = None,
    ) -> None:
        self.images, self.labels, self.teacher = images, labels, teacher
        self.batch_size, self.seed, self.first_step = batch_size, seed, first_step
        self.device, self.readers = torch.device(device), readers
        self._ahead = Ahead(self._read, readers, end)

    def __call__(self, step: int) -> Batch:
        """The batch of the update that follows `step` earlier ones, on the device."""
        raw = self._ahead(step, self._has_work())
        if self.device.type != "cpu":
            raw = raw.on(lambda part: part.to(self.device, non_blocking=True))
        targets, tokens = None, None
        if self.teacher is not None:
            shown = [raw.images] if raw.taught is None else raw.taught
            targets, tokens = self.teacher.finish(shown)
        draws = Draws(self.seed, raw.places, raw.step)
        images = self.images.finish(raw.images, draws)
        return Batch(images, raw.labels, draws, targets, tokens)

    @property
    def waited(self) -> float:
        """Seconds so far in which this process had nothing to train on, and its device no work."""
        return self._ahead.waited

    @property
    def share(self) -> float:
        """This process's part of the batch times the number of processes: 1 for equal parts."""
        return len(self._places()) * _rank_and_world()[1] / self.batch_size

    def close(self) -> None:
        """End the readers."""
        self._ahead.close()

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def _has_work(self) -> Callable[[], bool]:
        """Whether the device is still at what it was given before this call."""
        if self.device.type != "cuda":
            return lambda: False
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.device))
        return lambda: not event.query()

    def _places(self) -> Tensor:
        """The samples of the global batch that are this process's."""
        rank, world = _rank_and_world()
        return torch.arange(self.batch_size * rank // world, self.batch_size * (rank + 1) // world)

    def _read(self, step: int) -> _Raw:
        step, places = step + self.first_step, self._places()
        chosen = self.indices(step * self.batch_size + places)
        labels = None if self.labels is None else self.labels[chosen]
        stored = self.teacher is not None and self.teacher.images is not self.images
        taught = self.teacher.raw(chosen) if stored else None
        raw = _Raw(self.images.raw(chosen), labels, places, step, taught)
        return raw.on(Tensor.pin_memory) if self.device.type == "cuda" else raw

    def indices(self, positions: Tensor) -> Tensor:
        """Which images stand at these positions of the endless stream of epochs."""
        n = len(self.images)
        chosen = torch.empty_like(positions)
        for epoch in (positions // n).unique().tolist():
            inside = positions // n == epoch
            chosen[inside] = _permutation(self.seed, epoch, n)[positions[inside] % n]
        return chosen


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, n: int) -> Tensor:
    """A permutation of 0..n-1. Its draws stand at negative steps, which no update has."""
    return Draws(seed, torch.arange(n), step=drawn_at.of_epoch(epoch)).time().argsort(stable=True)


def train(
    state: TrainState, loss: Loss, batches: Callable[[int], Batch], steps: int, share: float = 1.0
) -> Iterator[Step]:
    """Update `state` until it has made `steps` steps, yielding after each.

    share: of the batch, see `Batches.share`.
    """
    how = state.optimization
    model = _replicated(state.network, how.accumulate)
    trained = [p for p in state.network.parameters() if p.requires_grad]
    while state.step < steps:
        for group in state.optimizer.param_groups:
            group["lr"] = how.lr_at(state.step)
        losses = backward(model, loss, batches(state.step), how, share)
        norm = nn.utils.clip_grad_norm_(trained, math.inf if how.clip is None else how.clip)
        norm = sharding.together(norm)
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        state.ema.update(state.network)
        state.step += 1
        yield Step(state.step, losses, norm.detach())


def backward(
    model: nn.Module, loss: Loss, batch: Batch, how: Optimization, share: float = 1.0
) -> dict[str, Tensor]:
    """Add up the gradients of the batch's parts; the last one averages them over the processes.

    Returns the means of the loss's terms over this process's samples, times `share`.
    """
    size = len(batch.images)
    parts = min(how.accumulate, size)
    means: dict[str, Tensor] = {}
    for first, last in pairwise(size * part // parts for part in range(parts + 1)):
        weight = share * (last - first) / size
        with _reduced(model, last == size):
            with _autocast(how.precision, batch.images.device):
                terms = loss(model, batch if parts == 1 else batch[first:last])
            (terms.total * weight).backward()
        for name, term in terms.terms.items():
            means[name] = means.get(name, 0.0) + weight * term.detach()
    return means


def mean_over_processes(values: Tensor) -> Tensor:
    """The mean of a tensor over all processes of the group; the tensor itself without one."""
    if _rank_and_world()[1] == 1:
        return values
    distributed.all_reduce(values)
    return values / distributed.get_world_size()


def largest_over_processes(value: float, device: torch.device | str) -> float:
    """The largest of a number over all processes of the group."""
    if _rank_and_world()[1] == 1:
        return value
    largest = torch.tensor(value, device=device, dtype=torch.float32)
    distributed.all_reduce(largest, distributed.ReduceOp.MAX)
    return largest.item()


def said_by_first(answer: bool, device: torch.device | str) -> bool:
    """The answer of the first process of the group, in all of them."""
    if _rank_and_world()[1] == 1:
        return answer
    said = torch.tensor([int(answer)], device=device)
    distributed.broadcast(said, 0)
    return bool(said.item())


Saved = tuple[int, dict[str, Tensor], dict[str, Any]]


def saved_by_first(read: Callable[[], Saved | None], device: torch.device | str) -> Saved | None:
    """Step, tensors and record that the first process of the group reads, in all of them: the
    others may be on machines that lack them. Their tensors come through `device`."""
    rank, world = _rank_and_world()
    saved = read() if rank == 0 else None
    if world == 1:
        return saved
    device = torch.device(device)
    said = [saved and (saved[0], _shapes(saved[1]), saved[2])]
    distributed.broadcast_object_list(said, 0, device=device)
    if said[0] is None:
        return None
    step, shapes, record = said[0]
    tensors: dict[str, Tensor] = {}
    for name, (shape, dtype) in shapes.items():
        mine = (
            saved[1][name].to(device) if saved else torch.empty(shape, dtype=dtype, device=device)
        )
        if mine.numel():
            distributed.broadcast(mine.contiguous().reshape(-1).view(torch.uint8), 0)
        tensors[name] = mine.cpu()
    return step, tensors, record


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[Any, torch.dtype]]:
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}


def _rank_and_world() -> tuple[int, int]:
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def _replicated(network: nn.Module, accumulate: int) -> nn.Module:
    """The network whose gradients are averaged over the group's processes.

    Its graph is the same at every step, with parameters that a loss leaves alone (maps of a
    published network) among them; in several parts the first one, which is not reduced, would be
    taken for all, so that those parameters are sought in each. Buffers are constants.
    """
    if _rank_and_world()[1] == 1 or sharding.is_sharded(network):
        return network
    return nn.parallel.DistributedDataParallel(
        network,
        forward_sync_buffers=False,
        gradient_as_bucket_view=True,
        static_graph=accumulate == 1,
        find_unused_parameters=accumulate > 1,
    )


def _reduced(model: nn.Module, reduced: bool) -> Any:
    """Where gradients stay each process's own unless they are to be reduced. A sharded network's
    are reduced in every part: kept until the last, each process would hold all of them."""
    apart = isinstance(model, nn.parallel.DistributedDataParallel) and not reduced
    return model.no_sync() if apart else nullcontext()


def _autocast(precision: str, device: torch.device) -> Any:
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)
