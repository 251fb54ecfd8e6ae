"""The training loop of every method: it yields what happened at each step, the caller logs.

The same loop runs in one process and, under an initialised process group, in many: each takes its
share of the global batch, and every draw depends on seed, step and the sample's place in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, distributed, nn

from stages.methods.draws import Draws
from stages.methods.ema import EMA, adamw
from stages.methods.losses import Batch, LossTerms

Loss = Callable[[nn.Module, Batch], LossTerms]


@dataclass(frozen=True)
class Optimization:
    """How weights are updated. lr is reached linearly over warmup_steps, then constant.

    clip: largest norm of the gradient, or None. precision: float32, or bfloat16 (autocast).
    """

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    warmup_steps: int = 0
    clip: float | None = 1.0
    ema_decay: float = 0.9999
    precision: str = "float32"

    def lr_at(self, step: int) -> float:
        """Learning rate of the update that follows `step` earlier ones."""
        return self.lr * min(1.0, (step + 1) / max(1, self.warmup_steps))


@dataclass(frozen=True)
class Step:
    """What one update did: scalars still on their device, so that nobody waits for it.

    step: updates made so far. losses: this process's terms. gradient_norm: before clipping.
    """

    step: int
    losses: Mapping[str, Tensor]
    gradient_norm: Tensor


class TrainState:
    """All that training changes: network, its EMA, the optimizer, and the number of steps made."""

    def __init__(self, network: nn.Module, optimization: Optimization) -> None:
        self.network = network
        self.optimization = optimization
        self.ema = EMA(network, optimization.ema_decay)
        self.optimizer = adamw(
            network.parameters(),
            optimization.lr,
            optimization.betas,
            optimization.weight_decay,
        )
        self.step = 0

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs, by name."""
        found = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        found |= {f"ema.{k}": v for k, v in self.ema.network.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            found |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
        return found

    def restore(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Continue from what `tensors()` returned after `step` steps."""

        def below(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        self.network.load_state_dict(below("network."))
        self.ema.network.load_state_dict(below("ema."))
        self.ema.num_updates = self.step = step
        states: dict[int, dict[str, Tensor]] = {}
        for key, value in below("optimizer.").items():
            index, _, name = key.partition(".")
            states.setdefault(int(index), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": states, "param_groups": groups})


class Batches:
    """The batch of any step, for this process, in an order that depends on the seed alone.

    Every epoch is a fresh permutation of the images; batches run on over its end, so none is
    short. images: `images[indices]` -> (B, C, H, W) in [-1, 1]; labels: (n,) long.
    """

    def __init__(
        self,
        images: Any,
        labels: Tensor | None,
        batch_size: int,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.images, self.labels = images, labels
        self.batch_size, self.seed, self.device = batch_size, seed, device

    def __call__(self, step: int) -> Batch:
        """The batch of the update that follows `step` earlier ones."""
        rank, world = _rank_and_world()
        share = self.batch_size // world
        places = torch.arange(rank * share, (rank + 1) * share)
        chosen = self.indices(step * self.batch_size + places)
        labels = None if self.labels is None else self.labels[chosen].to(self.device)
        images = self.images[chosen].to(self.device, non_blocking=True)
        return Batch(images, labels, Draws(self.seed, places.to(self.device), step))

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
    return Draws(seed, torch.arange(n), step=-1 - epoch).time().argsort(stable=True)


def train(state: TrainState, loss: Loss, batches: Batches, steps: int) -> Iterator[Step]:
    """Update `state` until it has made `steps` steps, yielding after each."""
    how = state.optimization
    model = _replicated(state.network)
    device = next(state.network.parameters()).device
    trained = [p for p in state.network.parameters() if p.requires_grad]
    while state.step < steps:
        for group in state.optimizer.param_groups:
            group["lr"] = how.lr_at(state.step)
        with _autocast(how.precision, device):
            found = loss(model, batches(state.step))
        found.total.backward()
        norm = nn.utils.clip_grad_norm_(trained, math.inf if how.clip is None else how.clip)
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        state.ema.update(state.network)
        state.step += 1
        losses = {name: term.detach() for name, term in found.terms.items()}
        yield Step(state.step, losses, norm.detach())


def mean_over_processes(values: Tensor) -> Tensor:
    """The mean of a tensor over all processes of the group; the tensor itself without one."""
    if _rank_and_world()[1] == 1:
        return values
    distributed.all_reduce(values)
    return values / distributed.get_world_size()


def _rank_and_world() -> tuple[int, int]:
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def _replicated(network: nn.Module) -> nn.Module:
    """The network whose gradients are averaged over the group's processes."""
    if _rank_and_world()[1] == 1:
        return network
    return nn.parallel.DistributedDataParallel(network)


def _autocast(precision: str, device: torch.device) -> Any:
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)
