"""How much a step's correction can gain: SteinDiff's Theorem 4.8 (arXiv 2606.07835).

A step proposes T = y - u; its error to the step's target is e = T - target. The best multiple of u,
added to it, leaves

    (1 - rho) E|e|^2,   rho = E<u, e>^2 / (E|u|^2 E|e|^2),

so that rho is the share of the step's mean squared error that a gamma can take away. The corollary:
rho falls to 0 as steps shrink. Two targets, as in stein.py: literal (the clean image x0, the
paper's) and matched (**ours**: the same path's next point). With a perfect denoiser a DDIM step has
rho 0 for the matched target, whatever its length: D - x0 is orthogonal to y.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stages.methods import grids


@dataclass(frozen=True)
class Rectified:
    """Per step, (num_steps,) float64; mean squares are sums over coordinates.

    rho: the share of the error that the best gamma takes away. plain: E|e|^2 of the solver's own
    step. predicted: (1 - rho) E|e|^2. measured: with gammas that were found on other images; None
    where there are no others. influence: (columns, blocks), what each block contributes to plain,
    predicted and measured of all steps together, see `influence.py`.
    """

    rho: Tensor
    plain: Tensor
    predicted: Tensor
    measured: Tensor | None
    influence: Tensor

    @property
    def share(self) -> float:
        """Of the error of all steps together that their gammas take away."""
        return 1 - (self.predicted.sum() / self.plain.sum()).item()

    def rows(self) -> dict[str, list[float]]:
        """As plain data."""
        columns = {"rho": self.rho, "plain": self.plain, "predicted": self.predicted}
        if self.measured is not None:
            columns["measured"] = self.measured
        return {name: column.tolist() for name, column in columns.items()}


def rectified(products: Tensor, counts: Tensor, levels: Tensor, target: str) -> Rectified:
    """What gammas gain, from sums over blocks of images.

    products: (blocks, num_steps, 3), sums of <u, y - x0>, |u|^2 and |y - x0|^2 as
    `stein.residual_products` gives them; a block may be one image. counts: (blocks,) images of
    each. target: "matched" or "literal". Measured is the mean over blocks of the error with the
    gammas of all others. Gammas add nothing to what a block contributes, to first order, since
    they are where the error is least.
    """
    if target not in ("matched", "literal"):
        raise ValueError(f"target is '{target}'; it must be 'matched' or 'literal'")
    levels = grids.check(levels)
    share = 1 - levels[1:] / levels[:-1] if target == "matched" else torch.ones(len(levels) - 1)
    blocks = _moments(products, share.to(products))
    total, count = blocks.sum(0), counts.sum()
    inner, square, error = total.unbind(-1)
    rho = (inner.square() / (square * error).clamp_min(1e-300)).clamp(0, 1)
    columns = [blocks[..., 2], _left(blocks, total)]
    if len(products) > 1:
        columns.append(_left(blocks, total - blocks))
    left = [column.sum(0) / count for column in columns]
    of_steps = torch.stack([column.sum(1) for column in columns])
    means = of_steps.sum(1, keepdim=True) / count
    influence = (of_steps - means * counts) * (len(products) / count)
    return Rectified(rho, left[0], left[1], left[2] if len(left) > 2 else None, influence)


def _left(blocks: Tensor, found_on: Tensor) -> Tensor:
    """Squared errors (blocks, num_steps) with the best gammas of other moments."""
    # y - gamma u is T + (1 - gamma) u: what is added to T.
    added = -found_on[..., 0] / found_on[..., 1].clamp_min(1e-300)
    inner, square, error = blocks.unbind(-1)
    return error + 2 * added * inner + added.square() * square


def _moments(products: Tensor, share: Tensor) -> Tensor:
    """Sums of <u, e>, |u|^2, |e|^2, where e = share (y - x0) - u."""
    along, square, distance = products.unbind(-1)
    inner = share * along - square
    error = square - 2 * share * along + share.square() * distance
    return torch.stack([inner, square, error], dim=-1)
