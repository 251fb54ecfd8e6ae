"""Batch-mean inner products and Hutchinson's divergence, over chosen coordinates of a state."""

import torch
from torch import Tensor

from stages.methods.solvers.trajectories import Output, Step

Coordinates = int | slice | None
"""A number of leading coordinates of the flattened state, a slice of them, or all (None)."""


def chosen(x: Tensor, coordinates: Coordinates) -> Tensor:
    """The chosen coordinates of x (B, ...), flattened to (B, n), in float64."""
    where = slice(coordinates) if isinstance(coordinates, int) else coordinates
    return x.flatten(1)[:, where or slice(None)].double()


def mean_inner(a: Tensor, b: Tensor, coordinates: Coordinates = None) -> float:
    """E<a, b>: batch mean of the inner product over the chosen coordinates.

    Raises ValueError for a batch without samples.
    """
    if not len(a):
        raise ValueError("the batch holds no samples; give at least one to average over")
    return float((chosen(a, coordinates) * chosen(b, coordinates)).sum() / len(a))


def residual(step: Step) -> Tensor:
    """u = y - T(y), exactly zero where the step moves the batch by no more than rounding."""
    u = step.state - step.proposal
    rounding = 8 * torch.finfo(u.dtype).eps * step.state.norm()
    return u if u.norm() > rounding else torch.zeros_like(u)


def output_and_divergence(
    output: Output,
    y: Tensor,
    generator: torch.Generator,
    coordinates: Coordinates = None,
    num_probes: int = 1,
) -> tuple[Tensor, float]:
    """output(y) and Hutchinson's estimate of the batch mean of its divergence at y.

    Rademacher probes; reverse mode on the one evaluation that also gives the output. Freeze the
    network's parameters (requires_grad_(False)) to spare their share of the work. Raises ValueError
    where num_probes is below 1 or the output cannot be differentiated.
    """
    check_probes(num_probes)
    total = 0.0
    with torch.enable_grad():
        point = y.detach().requires_grad_()
        value = output(point)
        if not value.requires_grad:
            raise ValueError(
                "denoiser cannot be differentiated, which this correction needs; remove "
                "torch.no_grad or detach inside it, or use a calibrated correction"
            )
        for left in reversed(range(num_probes)):
            probe = _rademacher(y, coordinates, generator)
            (product,) = torch.autograd.grad(value, point, probe, retain_graph=left > 0)
            total += mean_inner(probe, product)
    return value.detach(), total / num_probes


def check_probes(num_probes: int) -> None:
    """Raise ValueError for fewer than one probe."""
    if num_probes < 1:
        raise ValueError(f"num_probes is {num_probes}; a divergence takes at least 1")


def _rademacher(y: Tensor, coordinates: Coordinates, generator: torch.Generator) -> Tensor:
    """+-1 on the chosen coordinates, 0 elsewhere."""
    signs = torch.randint(0, 2, y.shape, generator=generator, device=generator.device).to(y)
    # Contiguous whatever y is, so that its flattened form is a view.
    probe = torch.zeros_like(y, memory_format=torch.contiguous_format)
    where = slice(coordinates) if isinstance(coordinates, int) else coordinates or slice(None)
    probe.flatten(1)[:, where] = 2 * signs.flatten(1)[:, where] - 1
    return probe
