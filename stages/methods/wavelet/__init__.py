"""Wavelet score: diffusion scores in closed form from clean wavelet moments (arXiv 2606.08309).

With w = B x (B orthonormal, stages.methods.wavelet.basis) and x = x0 + sigma z, the score of each
coefficient is a polynomial of a neighbourhood, s_i(w) = beta_i . psi(y), y = (w - mean) / tau,
tau^2 = Var(w0) + sigma^2. Integration by parts gives the best one without knowing the density:

    (G + ridge P) (beta_i - prior_i) = -b_i - G prior_i,
    G = E[psi psi^T],  b_i = E[d psi / d w_i],

where the expectations over noisy w follow exactly from clean moments (`hermite`).
The denoiser is D = x + sigma^2 s, its risk is exact and needs no sampling:

    R_i = sigma^2 + sigma^4 (beta_i^T G beta_i + 2 b_i^T beta_i),

the training risk with training moments, the held-out risk with held-out moments.

The data are read twice: `first_pass` (mean and scale), then `second_pass` (additive statistics);
both are maps over shards of images whose results add up with `+`, so a distributed run and a
local one that add the same shards in the same order agree bit for bit. The statistics serve every
sigma and ridge. sigma is in the units of the images given.

**Ours**: the Hermite basis; moments about the clean scale; the ridge centred on the diagonal
Wiener score -(w - mean) / tau^2 with a free intercept; the ridge chosen by subtracting shards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from stages.methods import given
from stages.methods.wavelet.basis import WaveletBasis
from stages.methods.wavelet.denoiser import ScoreDenoiser
from stages.methods.wavelet.hermite import hermite
from stages.methods.wavelet.model import (
    CHUNK_BYTES,
    COMPONENTS,
    GIB,
    PRINCIPAL,
    RESIDUAL,
    Layout,
    WaveletModel,
)
from stages.methods.wavelet.moments import (
    ALIKE,
    CoefficientMoments,
    check_shape,
    checked_images,
    coefficient_moments,
    coefficient_products,
    hermite_moments,
    varies,
)
from stages.methods.wavelet.principal import PrincipalMoments, PrincipalStatistics
from stages.methods.wavelet.residual import ResidualStatistics
from stages.methods.wavelet.system import (
    NoisyMoments,
    change_reference,
    checked_level,
    checked_ridge,
    solve,
)

PENALTIES = ("scaled", "raw", "pixel")
CENTRES = ("wiener", "zero")

# Families whose statistics are others: they begin with the full Wiener score.
BEYOND = {PRINCIPAL: PrincipalStatistics, RESIDUAL: ResidualStatistics}


@dataclass(frozen=True, eq=False)
class WaveletStatistics:
    """Additive statistics of clean images: all that every sigma, ridge and fold needs.

    shape: (C, H, W). mean, scale: (num_coefficients,), the reference of the features. count:
    images seen. moments: (groups, p, p), the sum over images of psi(u) psi(u)^T with
    u = (w0 - mean) / scale, float64.

    `+` merges the statistics of two sets of images. About one reference it only adds, bit for bit
    repeatable; about two it first moves both, by polynomial algebra and to rounding, to the
    reference of all images together. `-` leaves a shard out and keeps the reference.
    """

    model: WaveletModel
    shape: tuple[int, int, int]
    mean: Tensor
    scale: Tensor
    count: int
    moments: Tensor

    @staticmethod
    def collect(
        images: Tensor,
        family: str = "local",
        degree: int = 2,
        wavelet: str = "db2",
        levels: int = 2,
        *,
        couple_channels: bool = False,
        allow_biorthogonal: bool = False,
        components: int = COMPONENTS,
        max_bytes: int = 2 * GIB,
    ) -> Statistics:
        """Both passes over images (B, C, H, W). components: leading principal coordinates that
        family `principal` looks at (see `principal`), which takes no wavelet.

        Raises ValueError for images or settings that cannot be, and, before any work, when the fit
        would need more than `max_bytes`.

        One image, or equal ones, are collected as a shard of more (at scale 1); `at` refuses what
        in the end does not vary."""
        model = WaveletModel(
            family, degree, wavelet, levels, couple_channels, allow_biorthogonal, components
        )
        images = checked_images(images)
        model.check_memory(tuple(images.shape[1:]), max_bytes)
        return second_pass(images, model, first_pass(images, model))

    @property
    def layout(self) -> Layout:
        return self.model.layout(self.shape)

    @property
    def bands(self) -> WaveletBasis:
        """The basis whose bands its coefficients are of."""
        return self.layout.basis

    def of(self, images: Tensor) -> WaveletStatistics:
        """Statistics of other images (held out, say) about the same reference."""
        images = checked_images(images)
        check_shape(images, self.shape)
        moments = hermite_moments(images, self.layout, self.mean, self.scale)
        return replace(self, count=len(images), moments=moments)

    def __add__(self, other: WaveletStatistics) -> WaveletStatistics:
        self.check_same_model(other)
        count = self.count + other.count
        if self._has_reference(other.mean, other.scale):
            return replace(self, count=count, moments=self.moments + other.moments)
        pooled = self.coefficient_moments() + other.coefficient_moments()
        one, two = (x.about(pooled.mean, pooled.scale) for x in (self, other))
        return replace(one, count=count, moments=one.moments + two.moments)

    def __sub__(self, other: WaveletStatistics) -> WaveletStatistics:
        """Leave a shard out. Raises ValueError when nothing would be left."""
        self.check_same_model(other)
        if other.count >= self.count:
            raise ValueError(
                f"cannot subtract statistics of {other.count} images from those of {self.count}: "
                "subtract a shard from the total that contains it."
            )
        moments = self.moments - other.about(self.mean, self.scale).moments
        return replace(self, count=self.count - other.count, moments=moments)

    def about(self, mean: Tensor, scale: Tensor) -> WaveletStatistics:
        """The same statistics about another reference, exact but for rounding."""
        if self._has_reference(mean, scale):
            return self
        if self._is_constant:  # its scale of 1 says nothing, and c might be huge
            once = coefficient_products(self.mean[None], self.layout, mean, scale)
            return replace(self, mean=mean, scale=scale, moments=self.count * once)
        c, d = self.scale / scale, (self.mean - mean) / scale
        moments = change_reference(self.layout, self.moments, c, d)
        return replace(self, mean=mean, scale=scale, moments=moments)

    def coefficient_moments(self) -> CoefficientMoments:
        """What `first_pass` gives for the same images."""
        layout, degree = self.layout, self.model.degree
        linear = 1 + degree * torch.arange(layout.num_targets, device=self.moments.device)
        first = layout.scatter(self.moments[:, linear, 0]) / self.count
        second = layout.scatter(self.moments[:, linear, linear]) / self.count
        squares = self.count * self.scale**2 * (second - first**2)
        return CoefficientMoments(self.count, self.mean + self.scale * first, squares)

    def at(
        self, sigma: float, ridge: float = 1e-2, *, penalty: str = "scaled", centre: str = "wiener"
    ) -> WaveletScore:
        """The fitted score at one noise level. Raises ValueError for sigma <= 0 or ridge < 0.

        penalty: `scaled` (default) on the coefficients of the normalised features; `raw` on those
        of w - mean, and `pixel`, ridge B B^T, which equals ridge regression on pixels (both
        degree 1; the same for an orthonormal wavelet). centre: what the ridge shrinks to,
        the diagonal `wiener` score or `zero`.
        """
        return self.at_ridges(sigma, [ridge], penalty=penalty, centre=centre)[0]

    def at_ridges(
        self,
        sigma: float,
        ridges: Sequence[float],
        *,
        penalty: str = "scaled",
        centre: str = "wiener",
    ) -> list[WaveletScore]:
        """`at` for several ridges, assembling the moments under noise once."""
        sigma, ridges = checked_level(sigma), [checked_ridge(ridge) for ridge in ridges]
        self._check_options(penalty, centre)
        if self._is_constant:
            raise ValueError(ALIKE.format(count=self.count))
        system = self.noisy(sigma)
        betas: list[list[Tensor]] = [[] for _ in ridges]
        for block in system.blocks:
            gram, slopes = system.assemble(block)
            weights = system.penalty(block, penalty)
            prior = system.wiener(block, gram) if centre == "wiener" else None
            for ridge, out in zip(ridges, betas, strict=True):
                out.append(solve(gram, slopes, weights, ridge, prior))
        return [
            WaveletScore(self, sigma, ridge, system.tau, torch.cat(out))
            for ridge, out in zip(ridges, betas, strict=True)
        ]

    def noisy(self, sigma: float) -> NoisyMoments:
        """The moments at noise level sigma."""
        return NoisyMoments(self.layout, self.scale, self.moments, self.count, sigma)

    def risks(self, scores: Sequence[WaveletScore]) -> Tensor:
        """Exact risks (scores, num_coefficients) on these images of scores of one sigma, for which
        the moments under noise are assembled once."""
        fitted = scores[0].statistics
        fitted.check_same_model(self)
        data = self.about(fitted.mean, fitted.scale)
        system = data.noisy(scores[0].sigma)
        risks: list[list[Tensor]] = [[] for _ in scores]
        for block in system.blocks:
            gram, slopes = system.assemble(block)
            for score, out in zip(scores, risks, strict=True):
                out.append(system.risk(gram, slopes, score.beta[block]))
        return torch.stack([data.layout.scatter(torch.cat(out)) for out in risks])

    def denoiser(self, ridge: float = 1e-2, reach: float | None = None) -> ScoreDenoiser:
        """A denoiser(y, s) over all levels, for the solvers; reach: see `ScoreDenoiser.of`."""
        return ScoreDenoiser.of(self, ridge, reach)

    def state(self) -> dict[str, Tensor]:
        """A plain dictionary of tensors, from which `from_state` makes the statistics again."""
        model = self.model
        settings = (*self.shape, model.degree, model.levels)
        flags = (model.couple_channels, model.allow_biorthogonal)
        return {
            "moments": self.moments,
            "mean": self.mean,
            "scale": self.scale,
            "settings": torch.tensor([self.count, *settings, *map(int, flags)]),
            "family": torch.tensor(list(model.family.encode()), dtype=torch.uint8),
            "wavelet": torch.tensor(list(model.wavelet.encode()), dtype=torch.uint8),
        }

    @staticmethod
    def from_state(state: dict[str, Tensor]) -> Statistics:
        """Inverse of `state`. Raises ValueError when an entry is missing or does not fit."""
        family = bytes(state["family"].tolist()).decode() if "family" in state else ""
        if family in BEYOND:
            return BEYOND[family].from_state(state)
        needed = {"moments", "mean", "scale", "settings", "family", "wavelet"}
        if needed - set(state):
            missing = ", ".join(sorted(needed - set(state)))
            raise ValueError(f"state lacks {missing}: it is not one of WaveletStatistics.state().")
        count, *shape, degree, levels, coupled, allowed = state["settings"].tolist()
        family, wavelet = (bytes(state[key].tolist()).decode() for key in ("family", "wavelet"))
        model = WaveletModel(family, degree, wavelet, levels, bool(coupled), bool(allowed))
        layout = model.layout(tuple(shape))
        expected = (layout.num_groups, len(layout.features), len(layout.features))
        if tuple(state["moments"].shape) != expected:
            raise ValueError(
                f"state: moments have shape {tuple(state['moments'].shape)}, but its settings ask "
                f"for {expected}: the state is damaged or of another version."
            )
        entries = (state[key] for key in ("mean", "scale"))
        return WaveletStatistics(model, tuple(shape), *entries, count, state["moments"])

    @property
    def _is_constant(self) -> bool:
        """Whether every image is the reference's mean but for rounding."""
        linear = 1 + self.model.degree * torch.arange(self.layout.num_targets)
        second = self.layout.scatter(self.moments[:, linear, linear]) / self.count
        return not varies(self.scale**2 * second, self.mean)

    def _has_reference(self, mean: Tensor, scale: Tensor) -> bool:
        return torch.equal(self.mean, mean) and torch.equal(self.scale, scale)

    def check_same_model(self, other: WaveletStatistics) -> None:
        """Raise ValueError unless both have the same model and shape."""
        if (self.model, self.shape) != (other.model, other.shape):
            raise ValueError(
                f"statistics of {self.model.describe()} on {self.shape} and of "
                f"{other.model.describe()} on {other.shape} do not go together: collect both alike."
            )

    def _check_options(self, penalty: str, centre: str) -> None:
        for name, value, known in (("penalty", penalty, PENALTIES), ("centre", centre, CENTRES)):
            if value not in known:
                raise ValueError(f"{name} {value!r} is unknown: use {' or '.join(known)}.")
        if penalty != "scaled" and self.model.degree != 1:
            raise ValueError(
                f"penalty {penalty!r} is defined at degree 1 only, this model has degree "
                f"{self.model.degree}: use penalty='scaled'."
            )
        if penalty == "pixel" and self.model.family != "full":
            raise ValueError(
                f"penalty 'pixel' needs family 'full', got {self.model.family!r}: use 'scaled'."
            )


@dataclass(frozen=True, eq=False)
class WaveletScore:
    """The score at one noise level. tau: (num_coefficients,); beta: (groups, targets, p).

    reach: beyond this many tau from its mean a coefficient enters the polynomials at the reach,
    and its own score goes on with the Wiener slope -1/tau^2. Infinite (the default) is the
    polynomial everywhere, to which alone the exact risk belongs.
    """

    statistics: WaveletStatistics = field(repr=False)
    sigma: float
    ridge: float
    tau: Tensor = field(repr=False)
    beta: Tensor = field(repr=False)
    reach: float = math.inf

    def score(self, y: Tensor) -> Tensor:
        """Estimate of grad log p_sigma at noisy images y (B, C, H, W), in y's float type."""
        y = given.tensor(y, "y")
        check_shape(y, self.statistics.shape)
        basis = self.statistics.layout.basis
        work = y if y.dtype in (torch.float32, torch.float64) else y.float()
        return basis.adjoint(self.coefficient_score(basis.analyse(work))).to(y.dtype)

    def denoise(self, y: Tensor) -> Tensor:
        """D(y) = y + sigma^2 score(y), the estimate of E[x0 | y]; y: (B, C, H, W)."""
        y = given.tensor(y, "y")
        return y + self.sigma**2 * self.score(y)

    def coefficient_score(self, w: Tensor) -> Tensor:
        """Score of each coefficient at noisy coefficients w (B, num_coefficients)."""
        layout, stats = self.statistics.layout, self.statistics
        y = ((w - stats.mean.to(w)) / self.tau.to(w)).T
        near = y if self.reach == math.inf else y.clamp(-self.reach, self.reach)
        single = hermite(near, stats.model.degree)
        bytes_per_group = len(layout.features) * len(w) * w.element_size()
        parts = [
            self.beta[block].to(w) @ layout.features.products(layout.gather(single, block))
            for block in layout.blocks(bytes_per_group, CHUNK_BYTES)
        ]
        score = layout.scatter(torch.cat(parts))
        if near is not y:
            score = score - (y - near) / self.tau.to(w)[:, None]
        return score.T

    def risk(self, data: Tensor | WaveletStatistics | None = None) -> float:
        """Exact mean squared error of `denoise`, mean over coefficients, under fresh noise.

        data: clean images (B, C, H, W), or their statistics, which serve many levels (best made by
        `WaveletStatistics.of`); None: the statistics this score was fitted to.
        """
        return float(self.coefficient_risk(data).mean())

    def coefficient_risk(self, data: Tensor | WaveletStatistics | None = None) -> Tensor:
        """The risk of each coefficient, (num_coefficients,), float64; see `risk`.

        For a basis that is not orthonormal the entries are coordinates of the risk in pixels:
        they have its sum, and no meaning one by one.
        """
        if data is None:
            data = self.statistics
        elif not isinstance(data, WaveletStatistics):
            data = self.statistics.of(data)
        return data.risks([self])[0]


def first_pass(images: Tensor, model: WaveletModel) -> CoefficientMoments | PrincipalMoments:
    """Map over a shard of images (B, C, H, W): mean and spread, which `+` merges."""
    if model.family in BEYOND:
        return PrincipalMoments.of(images)
    return coefficient_moments(images, model)


def second_pass(
    images: Tensor, model: WaveletModel, reference: CoefficientMoments | PrincipalMoments
) -> Statistics:
    """Map over a shard of images (B, C, H, W): additive statistics about the first pass's merged
    result."""
    if model.family in BEYOND:
        return BEYOND[model.family].collect(images, model, reference)
    images = checked_images(images)
    shape = tuple(images.shape[1:])
    layout, mean, scale = model.layout(shape), reference.mean, reference.scale
    moments = hermite_moments(images, layout, mean, scale)
    return WaveletStatistics(model, shape, mean, scale, len(images), moments)


def merge(shards: Sequence[WaveletStatistics]) -> WaveletStatistics:
    """The sum in the order given: sort shards by their number to repeat a result bit for bit."""
    if not shards:
        raise ValueError("shards is empty: give at least one WaveletStatistics.")
    total = shards[0]
    for shard in shards[1:]:
        total = total + shard
    return total


Statistics = WaveletStatistics | PrincipalStatistics | ResidualStatistics
