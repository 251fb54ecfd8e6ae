"""Whether two sets of arrays show the same things in the same order."""

from __future__ import annotations

import torch
from torch import Tensor

ALIKE = 0.02  # cosines this near to the largest count as it: of images that are nearly the same


def strangers(ours: Tensor, theirs: Tensor) -> Tensor:
    """(n,) bool, True where row i of `ours` is not the most like row i of `theirs`.

    ours, theirs: (n, ...), two measurements of n things, such as stored latents and those that
    an autoencoder gives of pictures. Alike is the cosine once each set's own mean is taken off, so
    that neither one scale nor one shift of a set counts.
    """
    ours, theirs = (_centred(x) for x in (ours, theirs))
    cosines = ours @ theirs.T
    own = cosines.diagonal()
    return (own < cosines.amax(1) - ALIKE) | (own < cosines.amax(0) - ALIKE)


def misfit(ours: Tensor, theirs: Tensor) -> float:
    """Root mean square of ours - theirs, over that of theirs about their mean."""
    spread = (theirs - theirs.mean(0)).double().square().mean()
    error = (ours - theirs).double().square().mean()
    return float((error / spread.clamp_min(torch.finfo(torch.float64).tiny)).sqrt())


def _centred(x: Tensor) -> Tensor:
    x = (x - x.mean(0)).double().flatten(1)
    return x / x.norm(dim=1, keepdim=True).clamp_min(1e-12)
