"""Grids of noise levels: 1-D float64 tensors that descend to 0 (EDM coordinates, s = t / (1 - t)).

`num_levels` counts the levels above 0, which is the number of solver steps; a grid has
num_levels + 1 entries, the last of them 0. A flow model starts at t = 0.999, s = 999, or at
t_start = 1, for which `path.AT_NOISE` stands (`path.py`).
"""

import math
from numbers import Integral

import torch
from torch import Tensor

from stages.methods import path

LEAST = 1e-100
"""The least level above 0."""

S_START = float(path.level_from_time(path.T_START))


def check(levels: Tensor) -> Tensor:
    """Return `levels` as float64 on the CPU, or say in one sentence what is wrong with them."""
    try:
        if not isinstance(levels, Tensor):
            levels = torch.as_tensor(levels, dtype=torch.float64)
        levels = levels.detach().to("cpu", torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError("levels holds other things than numbers; give a 1-D tensor") from None
    if levels.ndim != 1 or len(levels) < 2:
        raise ValueError(
            f"levels has shape {tuple(levels.shape)}; give a 1-D grid of at least two levels"
        )
    if not torch.isfinite(levels).all():
        raise ValueError("levels holds NaN or infinity; a flow model starts at t=0.999, s=999")
    rises = (levels[1:] >= levels[:-1]).nonzero()
    if len(rises):
        k = int(rises[0])
        raise ValueError(
            f"levels do not descend at index {k + 1} ({levels[k]:.6g} is followed by "
            f"{levels[k + 1]:.6g}); give them from noise to data"
        )
    if levels[-1] != 0:
        raise ValueError(f"levels end at {levels[-1]:.6g}; the last level must be 0")
    if levels[-2] < LEAST:
        raise ValueError(
            f"levels holds {levels[-2]:.6g}, whose ratios to other levels cannot be computed; let "
            f"the last level above 0 be {LEAST:g} or more"
        )
    return levels


def edm(num_levels: int, s_max: float = S_START, s_min: float = 0.002, rho: float = 7.0) -> Tensor:
    """Karras et al. 2022, eq. 5: s^(1/rho) equally spaced from s_max to s_min, then 0.

    Ours: s_max defaults to a flow model's start; EDM networks use 80.
    """
    _check_range(num_levels, s_max, s_min)
    if not 0 < rho < math.inf:
        raise ValueError(f"rho is {rho}; it must be above 0 and finite (7 is usual)")
    roots = torch.linspace(s_max ** (1 / rho), s_min ** (1 / rho), num_levels, dtype=torch.float64)
    return _from(roots**rho, s_max)


def log_snr(num_levels: int, s_max: float = S_START, s_min: float = 0.002) -> Tensor:
    """Uniform in log-SNR, -2 log s, from s_max to s_min, then 0."""
    _check_range(num_levels, s_max, s_min)
    logs = torch.linspace(math.log(s_max), math.log(s_min), num_levels, dtype=torch.float64)
    return _from(logs.exp(), s_max)


def uniform_t(num_levels: int, t_start: float = path.T_START) -> Tensor:
    """Equal steps in t from t_start down to 0."""
    _check_range(num_levels)
    return from_times(torch.linspace(t_start, 0, num_levels + 1, dtype=torch.float64), t_start)


def from_times(times: Tensor, t_start: float = path.T_START) -> Tensor:
    """Levels of any grid of times that descends to 0, such as `csflow.time_grid`.

    times: (num_levels + 1,), t from noise to data; a first time above t_start is set to t_start (1:
    to `path.AT_NOISE`), where s is finite. Raises ValueError as `check` does, and where more times
    than the first lie there, which would make equal levels.
    """
    times, t_start = torch.as_tensor(times).detach().to("cpu", torch.float64), path.start(t_start)
    if bool((times < 0).any() or (times > 1).any()):
        raise ValueError("times must lie in [0, 1], with t=1 noise and t=0 data")
    if times.ndim == 1 and len(above := times[1:][times[1:] >= t_start]):
        raise ValueError(
            f"{1 + len(above)} of the grid's {len(times)} times lie at or above t={t_start:g}, "
            "where a flow model starts; take fewer steps (a lower NFE), or a density with less "
            "weight at noise (a lower shift)"
        )
    return check(path.level_from_time(times.clamp(max=t_start)))


def _from(positive: Tensor, s_max: float) -> Tensor:
    """Append the level 0; the first level is s_max without rounding."""
    positive[0] = s_max
    return check(torch.cat([positive, positive.new_zeros(1)]))


def _check_range(num_levels: int, s_max: float = 1.0, s_min: float = 0.5) -> None:
    if not isinstance(num_levels, Integral) or num_levels < 1:
        raise ValueError(
            f"num_levels is {num_levels}; a grid needs a whole number of levels above 0, at least 1"
        )
    if not 0 < s_min < s_max < float("inf"):
        raise ValueError(
            f"s_min={s_min} and s_max={s_max} contradict each other; give 0 < s_min < s_max"
        )
