"""Invariant contamination ratio (ICR): how much of a representation is view noise, not content.

Source: ICR, arXiv 2606.09718. Features h[i, v] of n images under V views each (augmentation and
diffusion noise) split into a part that identifies the image and a part that changes with the view:

    Sigma_xi = sum_iv (h_iv - m_i)(h_iv - m_i)^T / f,    f = n (V - 1)      within images
    B        = sum_i (m_i - m)(m_i - m)^T / (n - 1)                         between view means
    Sigma_s  = B - Sigma_xi / V                                             signal
    ICR      = 1 / (1 + mean lambda),   Sigma_s v = lambda Sigma_xi v

so that mean lambda = tr(Sigma_xi^-1 Sigma_s) / d, one Cholesky factor and no eigenvalues. ICR lies
in (0, 1]; 1 means that the features tell nothing about the image.

Ours, beyond the paper: the estimate is unbiased. A sample's inverse covariance is inflated by
f / (f - d - 1) (inverse Wishart), and the view means carry Sigma_xi / V:

    mean lambda_u = (f - d - 1) / f * tr(Sigma_xi^-1 B) / d - 1 / V

exactly unbiased for Gaussian view noise at tau = 0, before it is clipped at 0 as a whole (clipping
single eigenvalues first would bias it again). The naive form, kept beside it, takes B for Sigma_s.
"""

from __future__ import annotations

import math
import numbers
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from stages.methods import given

_REFUSED_CONDITION = 0.01 / torch.finfo(torch.float64).eps


class Traces(NamedTuple):
    """Total variances, in squared feature units: tr Sigma_s, tr Sigma_xi, tr B."""

    signal: float
    noise: float
    between: float


@dataclass(frozen=True)
class Contamination:
    """The ICR of one set of features; unpacks as (value, mean_snr, naive_value, traces).

    value        unbiased ICR, in (0, 1]
    mean_snr     unbiased mean lambda, clipped at 0; value = 1 / (1 + mean_snr)
    naive_value  ICR with B taken for Sigma_s and no correction, the paper's plug-in form
    traces       tr Sigma_s, tr Sigma_xi, tr B (after projection, where one was asked for)
    dimension    d that the ratio was taken in
    components   how many principal components the features were projected on; None without
    tau          what was added to Sigma_xi's diagonal, in squared feature units
    retained     share of the features' total variance that the projection kept (1 without one)
    guards       one sentence for each safeguard that acted; empty when none did
    """

    value: float
    mean_snr: float
    naive_value: float
    traces: Traces
    dimension: int
    components: int | None
    num_images: int
    num_views: int
    tau: float
    retained: float
    guards: tuple[str, ...]

    def __iter__(self) -> Iterator:
        return iter((self.value, self.mean_snr, self.naive_value, self.traces))


@dataclass(frozen=True)
class ViewMoments:
    """What a shard of images adds to the ICR; shards merge by `+` or `merge`.

    All sums are taken about `reference` (d,), a fixed point near the data, so that a large common
    offset of the features costs no digits. Give every shard of one scan the same reference; where
    two differ, `+` moves the right one to the left one's.
    """

    num_images: int
    num_views: int
    reference: Tensor  # (d,)
    sum_mean: Tensor  # (d,)    sum_i (m_i - r)
    sum_outer: Tensor  # (d, d) sum_i (m_i - r)(m_i - r)^T
    sum_within: Tensor  # (d, d) sum_iv (h_iv - m_i)(h_iv - m_i)^T
    rounding: float  # the features' own rounding error, largest |h| times their dtype's epsilon

    @classmethod
    def collect(cls, features: Tensor, reference: Tensor | None = None) -> ViewMoments:
        """Sums over one shard; features (n, V, d), n >= 1, V >= 2, computed in float64 on the CPU.

        reference (d,) is the first image's first view unless given. Raises ValueError for another
        shape, fewer than two views, or values that are not finite.
        """
        features = given.tensor(features, "features").detach()
        _check_features(features)
        num_images, num_views, dimension = features.shape
        resolution = (
            torch.finfo(features.dtype).eps if features.is_floating_point() else 0.0
        )  # integers carry no rounding error
        features = features.to("cpu", torch.float64)
        if reference is None:
            reference = features[0, 0]
        reference = torch.as_tensor(reference).detach().to("cpu", torch.float64).clone()
        if reference.shape != (dimension,):
            raise ValueError(
                f"reference has shape {tuple(reference.shape)}; the features need ({dimension},)"
            )
        centred = features - reference
        means = centred.mean(dim=1)
        within = (centred - means[:, None]).reshape(-1, dimension)
        return cls(
            num_images=num_images,
            num_views=num_views,
            reference=reference,
            sum_mean=means.sum(dim=0),
            sum_outer=means.T @ means,
            sum_within=within.T @ within,
            rounding=resolution * features.abs().max().item(),
        )

    def about(self, reference: Tensor) -> ViewMoments:
        """The same images' sums about another reference (d,)."""
        shift = self.reference - reference
        cross = torch.outer(self.sum_mean, shift)
        return ViewMoments(
            num_images=self.num_images,
            num_views=self.num_views,
            reference=reference,
            sum_mean=self.sum_mean + self.num_images * shift,
            sum_outer=self.sum_outer
            + cross
            + cross.T
            + self.num_images * torch.outer(shift, shift),
            sum_within=self.sum_within,
            rounding=self.rounding,
        )

    def __add__(self, other: ViewMoments) -> ViewMoments:
        if self.num_views != other.num_views or self.reference.shape != other.reference.shape:
            raise ValueError(
                f"shards differ: {self.num_views} views of {len(self.reference)} features and "
                f"{other.num_views} views of {len(other.reference)}; collect both from one layer "
                "with the same views"
            )
        if not torch.equal(self.reference, other.reference):
            other = other.about(self.reference)
        return ViewMoments(
            num_images=self.num_images + other.num_images,
            num_views=self.num_views,
            reference=self.reference,
            sum_mean=self.sum_mean + other.sum_mean,
            sum_outer=self.sum_outer + other.sum_outer,
            sum_within=self.sum_within + other.sum_within,
            rounding=max(self.rounding, other.rounding),
        )

    @property
    def degrees(self) -> int:
        """f = n (V - 1), the degrees of freedom of Sigma_xi."""
        return self.num_images * (self.num_views - 1)

    def covariances(self) -> tuple[Tensor, Tensor]:
        """(B, Sigma_xi), both (d, d), in squared feature units."""
        spread = self.sum_outer - torch.outer(self.sum_mean, self.sum_mean) / self.num_images
        return spread / (self.num_images - 1), self.sum_within / self.degrees

    def icr(self, tau: float | None = None, components: int | None = None) -> Contamination:
        """The ratio of all images collected so far; arguments and errors as in `icr`."""
        problem = _prepare(self, tau, components)
        degrees, dimension = self.degrees, len(problem.between)
        naive_snr = problem.whitened_trace() / dimension
        shrink = (degrees - dimension - 1) / degrees
        mean_snr = shrink * naive_snr - 1 / self.num_views
        guards = problem.guards
        if mean_snr < 0:
            guards += (f"the mean ratio was estimated at {mean_snr:.3g} and clipped at 0",)
            mean_snr = 0.0
        between, noise = problem.between.trace().item(), problem.within.trace().item()
        return Contamination(
            value=1 / (1 + mean_snr),
            mean_snr=mean_snr,
            naive_value=1 / (1 + naive_snr),
            traces=Traces(between - noise / self.num_views, noise, between),
            dimension=dimension,
            components=components,
            num_images=self.num_images,
            num_views=self.num_views,
            tau=problem.tau,
            retained=problem.retained,
            guards=guards,
        )


def icr(features: Tensor, tau: float | None = None, components: int | None = None) -> Contamination:
    """Invariant contamination ratio of features (n, V, d): n images, V views each.

    tau: added to the diagonal of Sigma_xi, in squared feature units. Unset it is
    1e-6 tr(Sigma_xi) / d, or 1e-3 of the same when f = n (V - 1) is below 2 d. The ratio is
    invariant to invertible linear maps of the features at tau = 0.
    components: project first on that many principal components of all n V features (ours, an
    option for wide layers; the projection is fitted on the same features). Unset, none.

    Returns value, mean_snr, naive_value and traces, with the guards that acted. Warns when f is
    below 4 d. Raises ValueError for fewer than two views or images, f <= d + 1 (the estimate has
    no mean), features that are constant or do not vary between views, values that are not finite,
    and a singular Sigma_xi at tau = 0.
    """
    return ViewMoments.collect(features).icr(tau, components)


def merge(shards: Iterable[ViewMoments]) -> ViewMoments:
    """All shards' sums, added in the order given: the same order gives the same bits."""
    shards = list(shards)
    if not shards:
        raise ValueError("no shards to merge; collect at least one")
    return reduce(ViewMoments.__add__, shards)


@dataclass(frozen=True)
class _Problem:
    """B and Sigma_xi, projected where asked, and the inverse factor L^-1 of Sigma_xi + tau I."""

    between: Tensor  # (d, d)
    within: Tensor  # (d, d)
    inverse_factor: Tensor  # (d, d), lower triangular
    tau: float
    retained: float
    guards: tuple[str, ...]

    def whitened_trace(self) -> float:
        """tr((Sigma_xi + tau I)^-1 B)."""
        return ((self.inverse_factor @ self.between) * self.inverse_factor).sum().item()


def _prepare(moments: ViewMoments, tau: float | None, components: int | None) -> _Problem:
    if moments.num_images < 2:
        raise ValueError("features hold one image; the ratio compares images, give at least two")
    if tau is not None and not 0 <= tau < math.inf:
        raise ValueError(f"tau is {tau}; it must be at least 0 and finite, or None for the default")
    between, within = moments.covariances()
    _check_variation(between, within, moments.rounding)
    retained = 1.0
    if components is not None:
        between, within, retained = _project(moments, between, within, components)
    dimension, degrees = len(within), moments.degrees
    guards = _check_degrees(moments, dimension)
    share = 1e-3 if degrees < 2 * dimension else 1e-6
    if tau is None:
        tau = share * within.trace().item() / dimension
        if share == 1e-3:
            guards += (f"tau raised to 1e-3 tr/d: f = {degrees} is below 2 d = {2 * dimension}",)
    inverse_factor = _inverse_factor(within, tau)
    # tau tr((Sigma_xi + tau I)^-1) = sum tau / (lambda + tau): how many directions tau governs.
    governed = tau * inverse_factor.square().sum().item()
    if governed >= 0.5:
        guards += (
            f"singular within-view covariance: tau = {tau:.3g} stands in for the view noise in "
            f"about {governed:.0f} of {dimension} directions",
        )
    return _Problem(between, within, inverse_factor, tau, retained, guards)


def _check_features(features: Tensor) -> None:
    if features.ndim != 3 or 0 in features.shape:
        raise ValueError(
            f"features have shape {tuple(features.shape)}; give (images, views, dimension), none 0"
        )
    if features.shape[1] < 2:
        raise ValueError("features hold one view an image; ICR needs at least two views")
    if not torch.isfinite(features).all():
        raise ValueError("features hold values that are not finite; check the network's output")
    given.check_size(features, "features")


def _check_variation(between: Tensor, within: Tensor, rounding: float) -> None:
    floor = len(within) * (8 * rounding) ** 2
    if within.trace() > floor:
        return
    if between.trace() <= floor:
        raise ValueError(
            "features are constant over images and views; the layer carries nothing here, "
            "tap another layer"
        )
    raise ValueError(
        "features do not vary between the views of an image, so the ratio has no noise to compare "
        "with; use stronger views or a larger sigma"
    )


def _check_degrees(moments: ViewMoments, dimension: int) -> tuple[str, ...]:
    """Refuse f <= d + 1, where the inverse of Sigma_xi has no mean; warn below 4 d."""
    degrees = moments.degrees
    if degrees <= dimension + 1:
        raise ValueError(
            f"f = n (V - 1) = {degrees} degrees of freedom for d = {dimension} features; ICR needs "
            f"more than d + 1: give more images or views, or components below {degrees - 1}"
        )
    if degrees >= 4 * dimension:
        return ()
    message = f"few degrees of freedom: f = n (V - 1) = {degrees} is below 4 d = {4 * dimension}"
    warnings.warn(f"ICR from {message}; its spread is large", RuntimeWarning, stacklevel=5)
    return (message,)


def _project(
    moments: ViewMoments, between: Tensor, within: Tensor, components: int
) -> tuple[Tensor, Tensor, float]:
    """B and Sigma_xi on the leading principal axes of all features, and the variance they keep."""
    whole = isinstance(components, numbers.Integral) and not isinstance(components, bool)
    if not whole or not 1 <= components <= len(within):
        raise ValueError(
            f"components is {components}; the features allow 1 to {len(within)} in whole numbers "
            "(None: all)"
        )
    total = moments.sum_within + moments.num_views * (moments.num_images - 1) * between
    variances, axes = torch.linalg.eigh(total)
    leading = axes[:, -components:]
    retained = (variances[-components:].sum() / variances.sum()).item()
    return leading.T @ between @ leading, leading.T @ within @ leading, retained


def _inverse_factor(within: Tensor, tau: float) -> Tensor:
    """L^-1 with L L^T = Sigma_xi + tau I; ValueError where that is numerically singular."""
    identity = torch.eye(len(within), dtype=within.dtype)
    factor, failed = torch.linalg.cholesky_ex(within + tau * identity)
    if not failed:
        inverse = torch.linalg.solve_triangular(factor, identity, upper=False)
        condition = within.trace() * inverse.square().sum()
        if condition < _REFUSED_CONDITION:
            return inverse
    rank = int(torch.linalg.matrix_rank(within, hermitian=True))
    raise ValueError(
        f"the within-view covariance is singular (rank {rank} of {len(within)}) at tau = {tau:g}; "
        f"leave tau unset, raise it, or ask for at most {rank} components"
    )
