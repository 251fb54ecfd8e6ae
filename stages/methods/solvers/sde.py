"""The stochastic sampler that the SiT family's papers report with.

Euler-Maruyama on SiT's reverse SDE dx = (v - w/2 score) dt + sqrt(w) dW, from t=1 to 0 (Ma et
al. 2024), with the diffusion w = 2 sigma = 2t. With score = -(x + (1-t) v)/t the drift is

    d = x + (2 - t) v.

Like the solvers it takes a denoiser(y, s), so that guidance in an interval of t, class tokens
beside the image and every kind of network come through the adapters of `path`.
"""

from itertools import pairwise

import torch
from torch import Tensor

from stages.methods import path
from stages.methods.draws import Draws
from stages.methods.solvers.trajectories import Finite, check_state, checked

LEAST = 1e-6
"""The least last time: the velocity there is a difference divided by it."""


def time_grid(num_steps: int = 250, last_time: float = 0.04) -> Tensor:
    """linspace(1, last_time, num_steps), then 0: (num_steps + 1,) float64."""
    if num_steps < 2:
        raise ValueError(f"num_steps is {num_steps}; the sampler takes at least 2")
    if not LEAST <= last_time < 1:
        raise ValueError(f"last_time is {last_time}; it must lie between {LEAST:g} and 1")
    times = torch.linspace(1, last_time, num_steps, dtype=torch.float64)
    return torch.cat([times, times.new_zeros(1)])


@torch.no_grad()
def sample(
    denoiser: path.Denoiser,
    x: Tensor,
    draws: Draws,
    num_steps: int = 250,
    last_time: float = 0.04,
    t_start: float = path.T_START,
) -> Tensor:
    """x at t=1, (B, ...) from N(0, I) -> x at t=0; `num_steps` network evaluations.

    draws: sample i's noise depends on its seed and index only; steps 1 to num_steps - 1 of it
    are used, so that the initial state may be `draws.at(0).noise(shape)`.
    last_time: where the last step, which adds no noise, begins.

    t_start: where the network is evaluated in place of 1: 0.999 by default (ours); 1, as the
    papers' codes do, is `path.AT_NOISE`, where y = x / (1-t) is finite.
    """
    finite = Finite()
    check_state(denoiser, x, "x", finite)
    times, t_start = time_grid(num_steps, last_time).tolist(), path.start(t_start)
    for step, (t, t_next) in enumerate(pairwise(times), start=1):
        t_network = min(t, t_start)
        clean = checked(denoiser, step - 1, num_steps, finite)(*path.to_edm(x, t_network))
        v = path.velocity_from_clean(x, clean, t_network)
        x = x + (x + (2 - t) * v) * (t_next - t)
        if step < num_steps:
            xi = draws.at(step).noise(x.shape[1:])
            x = x + (2 * t * (t - t_next)) ** 0.5 * xi.to(x)
    finite.tell()
    return x
