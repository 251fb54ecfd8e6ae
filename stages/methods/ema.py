"""Weight averaging and the optimizer of the SiT family's training."""

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn


class EMA:
    """Exponential moving average of a network's weights.

    After update k = 0, 1, ...: average <- d average + (1-d) weights, d = decay; with `warm_up`
    (ours) min(decay, (1+k)/(10+k)), which forgets fresh weights sooner. The codes of SiT, REPA and
    REG hold d constant from the first update on. `network` is a frozen copy in eval mode, ready to
    sample from. Give it the bare network, not one wrapped for compilation or for many workers.
    From its first update on parameters may change their values, in place, and no more: it keeps
    which of them it averages.
    """

    def __init__(
        self, network: nn.Module, decay: float = 0.9999, num_updates: int = 0, warm_up: bool = True
    ):
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}; it must lie in [0, 1)")
        self.decay, self.warm_up = decay, warm_up
        self.num_updates = num_updates
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self._paired: _Pairs | None = None

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Take in the network's present weights; call it after each optimizer step."""
        decay = self.decay
        if self.warm_up:
            decay = min(decay, (1 + self.num_updates) / (10 + self.num_updates))
        # To walk through both networks takes longer than a small one's update.
        if self._paired is None or self._paired.of is not network:
            self._paired = _Pairs(self.network, network)
        pairs = self._paired
        torch._foreach_lerp_(pairs.average, pairs.weights, 1 - decay)
        for buffer, source in pairs.buffers:
            buffer.copy_(source)
        self.num_updates += 1


class _Pairs:
    """What training changes in a network, beside its average, in the same order: weights, and
    buffers as they are."""

    def __init__(self, average: nn.Module, network: nn.Module) -> None:
        pairs = zip(average.parameters(), network.parameters(), strict=True)
        pairs = [(_local(a), _local(p)) for a, p in pairs if p.requires_grad]
        self.of = network
        self.average, self.weights = [a for a, _ in pairs], [p for _, p in pairs]
        self.buffers = list(zip(average.buffers(), network.buffers(), strict=True))


def _local(parameter: Tensor) -> Tensor:
    """This process's part of a parameter that is spread over several."""
    return parameter.to_local() if hasattr(parameter, "to_local") else parameter


def adamw(
    parameters: Iterable[nn.Parameter],
    lr: float = 1e-4,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.0,
) -> torch.optim.AdamW:
    """Fused AdamW over the parameters that require gradients; the papers' settings by default."""
    trained = [p for p in parameters if p.requires_grad]
    return torch.optim.AdamW(trained, lr=lr, betas=betas, weight_decay=weight_decay, fused=True)
