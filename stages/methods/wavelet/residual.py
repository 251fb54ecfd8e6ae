"""The family `residual`: the full Wiener score, and local polynomials of what it leaves (**ours**).

In an orthonormal wavelet basis w has the clean covariance C of all coefficients. With the Wiener
score W(w) = -(C + sigma^2 I)^-1 (w - mean) the score of every coefficient i is

    s_i = W_i + delta_i . psi(y_N(i)),

psi the features of family `additive`: Hermite polynomials of each coefficient of the 3x3 square
N(i), y = (w - mean) / tau. The best delta solves

    (G + ridge P) delta_i = -E[d psi / d w_i] - E[psi W_i],

P leaving the intercept free. W_i looks at every coefficient, so that clean moments of the features
with all of them are kept: with Q_(a, j) = E[psi_a(u) u_j],

    E[psi_a y_j] = kappa^a kappa_j Q_(a, j) + rho_j^2 sqrt(a_j) kappa^(a - e_j) Q_(a - e_j, 0),

the second part, of the noise that both share, for j in N(i) alone. The risk is exact, as in
stages.methods.wavelet. Cross terms are left out: they would take moments a hundred times as large.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from stages.methods import given
from stages.methods.wavelet.basis import WaveletBasis
from stages.methods.wavelet.denoiser import ScoreDenoiser
from stages.methods.wavelet.hermite import hermite
from stages.methods.wavelet.model import CHUNK_BYTES, SHARD_IMAGES, Layout, WaveletModel
from stages.methods.wavelet.moments import ALIKE, SCALE_FLOOR, check_shape, checked_images, varies
from stages.methods.wavelet.principal import PrincipalMoments
from stages.methods.wavelet.system import NoisyMoments, checked_level, checked_ridge, solve

SUMS = ("moments", "cross", "products")
STATE = ("mean", "covariance", *SUMS)


@dataclass(frozen=True, eq=False)
class ResidualStatistics:
    """Additive statistics of clean images about one reference; as `PrincipalStatistics`.

    mean: (d,), covariance: (d, d), of the wavelet coefficients of the reference's images. moments:
    (d, p, p), cross: (d, p, d), products: (d, d): the sums over images of psi(u) psi(u)^T, of
    psi(u) u^T and of (w - mean)(w - mean)^T, u = (w - mean) / scale, float64.
    """

    model: WaveletModel
    shape: tuple[int, int, int]
    mean: Tensor
    covariance: Tensor
    count: int
    moments: Tensor
    cross: Tensor
    products: Tensor

    @staticmethod
    def collect(
        images: Tensor, model: WaveletModel, reference: PrincipalMoments | None = None
    ) -> ResidualStatistics:
        """Of a shard of images (B, C, H, W) about a first pass, by default that of the images."""
        images = checked_images(images)
        reference = reference or PrincipalMoments.of(images)
        shape = tuple(images.shape[1:])
        layout = model.layout(shape)

        def analysed(rows: Tensor) -> Tensor:
            return layout.basis.analyse(rows.reshape(-1, *shape))

        covariance = analysed(analysed(reference.products / reference.count).T.contiguous())
        sums = (covariance.new_zeros(size) for size in _sizes(layout))
        mean = analysed(reference.mean)[0]
        return ResidualStatistics(model, shape, mean, covariance, 0, *sums).of(images)

    @property
    def layout(self) -> Layout:
        return self.model.layout(self.shape)

    @property
    def bands(self) -> WaveletBasis:
        """The basis whose bands its coefficients are of."""
        return self.layout.basis

    @cached_property
    def scale(self) -> Tensor:
        """(d,) clean standard deviations of the reference, floored as those of other families."""
        variance = self.covariance.diagonal().clamp(min=0)
        if not varies(variance, self.mean):
            return torch.ones_like(variance)
        return variance.clamp(min=float(variance.mean()) * SCALE_FLOOR**2).sqrt()

    def of(self, images: Tensor) -> ResidualStatistics:
        """Statistics of other images (held out, say) about the same reference."""
        images = checked_images(images)
        check_shape(images, self.shape)
        layout, features = self.layout, self.layout.features
        moments, cross, products = (torch.zeros_like(getattr(self, name)) for name in SUMS)
        for shard in images.split(SHARD_IMAGES):
            centred = layout.basis.analyse(shard.double()) - self.mean
            products.addmm_(centred.T, centred)
            u = centred / self.scale
            single = hermite(u.T.contiguous(), features.degree)
            for block in layout.blocks(8 * len(features) * len(u), CHUNK_BYTES):
                psi = features.products(layout.gather(single, block))
                moments[block].baddbmm_(psi, psi.mT)
                cross[block] += psi @ u
        return replace(self, count=len(images), moments=moments, cross=cross, products=products)

    def __add__(self, other: ResidualStatistics) -> ResidualStatistics:
        """Raises ValueError for another model, shape or reference."""
        return self._combined(other, 1)

    def __sub__(self, other: ResidualStatistics) -> ResidualStatistics:
        """Leave a shard out. Raises ValueError when nothing would be left."""
        if other.count >= self.count:
            raise ValueError(
                f"cannot subtract statistics of {other.count} images from those of {self.count}: "
                "subtract a shard from the total that contains it."
            )
        return self._combined(other, -1)

    def at(self, sigma: float, ridge: float = 1e-2) -> ResidualScore:
        """The fitted score at one noise level. Raises ValueError for sigma <= 0 or ridge < 0."""
        return self.at_ridges(sigma, [ridge])[0]

    def at_ridges(self, sigma: float, ridges: Sequence[float]) -> list[ResidualScore]:
        """`at` for several ridges, assembling the moments under noise once."""
        sigma, ridges = checked_level(sigma), [checked_ridge(ridge) for ridge in ridges]
        if not varies(self.products.diagonal() / self.count, self.mean):
            raise ValueError(ALIKE.format(count=self.count))
        precision = self._precision(sigma)
        gram, slopes = self._noisy(sigma, precision)
        penalty = torch.ones_like(slopes)
        penalty[:, 0] = 0
        return [
            ResidualScore(
                self,
                sigma,
                ridge,
                precision,
                solve(gram, slopes[:, None], penalty, ridge, None)[:, 0],
            )
            for ridge in ridges
        ]

    def risks(self, scores: Sequence[ResidualScore]) -> Tensor:
        """Exact risks (scores, d) on these images of scores of one sigma."""
        fitted, sigma, precision = scores[0].statistics, scores[0].sigma, scores[0].precision
        fitted._check(self)
        gram, slopes = self._noisy(sigma, precision)
        noisy = self.products / self.count
        noisy.diagonal().add_(sigma**2)
        wiener = ((precision @ noisy) * precision).sum(1) - 2 * precision.diagonal()
        found = []
        for score in scores:
            inner = ((score.delta[:, None] @ gram)[:, 0] + 2 * slopes) * score.delta
            found.append(
                sigma**2 + sigma**4 * (wiener + self.layout.scatter(inner.sum(1)[:, None]))
            )
        return torch.stack(found)

    def denoiser(self, ridge: float = 1e-2, reach: float | None = None) -> ScoreDenoiser:
        """A denoiser(y, s) over all levels, for the solvers; reach: see `ScoreDenoiser.of`."""
        return ScoreDenoiser.of(self, ridge, reach)

    def state(self) -> dict[str, Tensor]:
        """A plain dictionary of tensors, from which `from_state` makes the statistics again."""
        model = self.model
        settings = (self.count, *self.shape, model.degree, model.levels, model.couple_channels)
        return {name: getattr(self, name).contiguous() for name in STATE} | {
            "settings": torch.tensor([int(value) for value in settings]),
            "family": torch.tensor(list(model.family.encode()), dtype=torch.uint8),
            "wavelet": torch.tensor(list(model.wavelet.encode()), dtype=torch.uint8),
        }

    @staticmethod
    def from_state(state: dict[str, Tensor]) -> ResidualStatistics:
        """Inverse of `state`. Raises ValueError when an entry is missing or does not fit."""
        if missing := ", ".join(sorted({*STATE, "settings", "wavelet"} - set(state))):
            raise ValueError(f"state lacks {missing}: it is none of ResidualStatistics.state().")
        count, *shape, degree, levels, coupled = state["settings"].tolist()
        wavelet = bytes(state["wavelet"].tolist()).decode()
        model = WaveletModel("residual", degree, wavelet, levels, bool(coupled))
        expected = _sizes(model.layout(tuple(shape)))
        if (found := tuple(tuple(state[name].shape) for name in SUMS)) != expected:
            raise ValueError(
                f"state: moments, cross and products have shapes {found}, but its settings ask for "
                f"{expected}: the state is damaged or of another version."
            )
        mean, covariance, *sums = (state[name] for name in STATE)
        return ResidualStatistics(model, tuple(shape), mean, covariance, count, *sums)

    def _precision(self, sigma: float) -> Tensor:
        """(C + sigma^2 I)^-1 of the reference."""
        noisy = self.covariance.clone()
        noisy.diagonal().add_(sigma**2)
        return torch.cholesky_inverse(torch.linalg.cholesky(noisy))

    def _noisy(self, sigma: float, precision: Tensor) -> tuple[Tensor, Tensor]:
        """G (d, p, p) and E[d psi / d w_i] + E[psi W_i], (d, p), group by group."""
        layout, scale = self.layout, self.scale
        system = NoisyMoments(layout, scale, self.moments, self.count, sigma)
        kappa, rho2, tau = system.kappa, system.rho2, system.tau
        pulls = precision[layout.index[:, 0]] * tau  # of each target: W_i = -pulls . y
        variable, feature, lower, root = layout.features.derivatives(layout.index.shape[1])
        grams, slopes = [], []
        for block in system.blocks:
            gram, slope = system.assemble(block)
            each = system._products(kappa, block)
            weights = pulls[block] * kappa
            beside = each * (self.cross[block] @ weights[..., None])[..., 0] / self.count
            clean = each * self.moments[block][:, :, 0] / self.count
            shared = pulls[block].gather(1, layout.index[block]) * layout.present[block]
            shared = (shared * layout.gather(rho2, block))[:, variable] * root * clean[:, lower]
            beside.index_add_(1, feature, shared)
            grams.append(gram)
            slopes.append(slope[:, 0] - beside)
        return torch.cat(grams), torch.cat(slopes)

    def _combined(self, other: ResidualStatistics, sign: int) -> ResidualStatistics:
        self._check(other)
        sums = {name: getattr(self, name) + sign * getattr(other, name) for name in SUMS}
        return replace(self, count=self.count + sign * other.count, **sums)

    def _check(self, other: ResidualStatistics) -> None:
        """Raise ValueError unless both have the same model, shape and reference."""
        if (self.model, self.shape) != (other.model, other.shape):
            raise ValueError(
                f"statistics of {self.model.describe()} on {self.shape} and of "
                f"{other.model.describe()} on {other.shape} do not go together: collect both alike."
            )
        if not all(torch.equal(getattr(self, n), getattr(other, n)) for n in STATE[:2]):
            raise ValueError(
                "statistics about two covariances do not add up: make both about one first pass, "
                "by second_pass(images, model, first_pass(all images, model)), or by .of(images)"
            )


def _sizes(layout: Layout) -> tuple[tuple[int, ...], ...]:
    """Shapes of moments, cross and products."""
    d, p = layout.num_groups, len(layout.features)
    return (d, p, p), (d, p, d), (d, d)


@dataclass(frozen=True, eq=False)
class ResidualScore:
    """The score at one noise level. precision: (d, d) of the Wiener score; delta: (d, p).

    reach: beyond this many tau from its mean a coefficient enters the polynomials at the reach; the
    Wiener score goes on. Infinite is the polynomial everywhere, to which the exact risk belongs.
    """

    statistics: ResidualStatistics = field(repr=False)
    sigma: float
    ridge: float
    precision: Tensor = field(repr=False)
    delta: Tensor = field(repr=False)
    reach: float = math.inf

    @property
    def tau(self) -> Tensor:
        """(d,) standard deviation of each noisy coefficient."""
        return (self.statistics.scale**2 + self.sigma**2).sqrt()

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
        """Score of each coefficient at noisy coefficients w (B, d)."""
        layout = self.statistics.layout
        centred = w - self.statistics.mean.to(w)
        y = (centred / self.tau.to(w)).T
        near = y if self.reach == math.inf else y.clamp(-self.reach, self.reach)
        single = hermite(near, layout.features.degree)
        parts = [
            self.delta[block, None].to(w) @ layout.features.products(layout.gather(single, block))
            for block in layout.blocks(
                len(layout.features) * len(w) * w.element_size(), CHUNK_BYTES
            )
        ]
        return layout.scatter(torch.cat(parts)).T - centred @ self.precision.to(w)

    def risk(self, data: Tensor | ResidualStatistics | None = None) -> float:
        """Exact mean squared error of `denoise`, mean over coefficients, under fresh noise; data as
        of `PrincipalScore.risk`."""
        return float(self.coefficient_risk(data).mean())

    def coefficient_risk(self, data: Tensor | ResidualStatistics | None = None) -> Tensor:
        """The risk of each coefficient, (d,), float64; see `risk`."""
        if data is None:
            data = self.statistics
        elif not isinstance(data, ResidualStatistics):
            data = self.statistics.of(data)
        return data.risks([self])[0]
