"""The family `principal`: the full Wiener score, and polynomials of leading principal coordinates
(**ours**; it goes beyond arXiv 2606.08309, with the same mathematics as stages.methods.wavelet).

With clean mean m and covariance V diag(scale^2) V^T, p = V^T (y - m) and y_j = p_j / tau_j,
tau_j^2 = scale_j^2 + sigma^2, the score of every coordinate i = 1 .. d is

    s_i = -y_i / tau_i + delta_i . psi(y_1 .. y_k),

psi the Hermite products of the k leading coordinates up to a total degree, which all d targets
share: so one Gram matrix G = E[psi psi^T] and one solve serve them all,

    (G + ridge P) delta_i = E[psi y_i] / tau_i - E[d psi / d p_i],

P leaving the intercept free: what the ridge shrinks to is the full Wiener filter. The moments
under noise follow exactly from clean ones (`hermite`): beside G, E[psi_a y_i] = kappa^a kappa_i
Q_(a, i) for i > k, whose noise is independent of the features. The risk is exact,

    R_i = sigma^2 + sigma^4 (E[s_i^2] + 2 E[d s_i / d p_i]).

A model of fewer coordinates or a lower degree is a part of the same statistics (`restricted`), so
that k, degree and ridge are all chosen by folds from one pass (`ridge.choose_principal`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stages.methods import given
from stages.methods.wavelet.denoiser import ScoreDenoiser
from stages.methods.wavelet.hermite import hermite, polynomial_features, powers
from stages.methods.wavelet.model import SHARD_IMAGES, WaveletModel
from stages.methods.wavelet.moments import ALIKE, SCALE_FLOOR, check_shape, checked_images, varies
from stages.methods.wavelet.system import checked_level, checked_ridge, solve

if TYPE_CHECKING:
    from stages.methods.wavelet.hermite import PolynomialFeatures

SAME_BASIS = (
    "statistics about two principal bases do not add up: make both about one first pass, by "
    "second_pass(images, model, first_pass(all images, model)), or by .of(images) of the first"
)


@dataclass(frozen=True, eq=False)
class PrincipalMoments:
    """Result of the first pass, mergeable by `+`: count, mean (d,) and summed products about the
    mean (d, d) of the pixels, float64."""

    count: int
    mean: Tensor
    products: Tensor

    @staticmethod
    def of(images: Tensor) -> PrincipalMoments:
        """Of a shard of images (B, C, H, W)."""
        x = checked_images(images).flatten(1).double()
        mean = x.mean(0)
        x = x - mean
        return PrincipalMoments(len(x), mean, x.T @ x)

    def __add__(self, other: PrincipalMoments) -> PrincipalMoments:
        """Pairwise update of Chan, Golub and LeVeque 1979."""
        count = self.count + other.count
        step = other.mean - self.mean
        between = torch.outer(step, step) * (self.count * other.count / count)
        mean = self.mean + step * (other.count / count)
        return PrincipalMoments(count, mean, self.products + other.products + between)

    @cached_property
    def basis(self) -> tuple[Tensor, Tensor]:
        """directions (d, d), the leading ones first, their largest entry positive; scale (d,), the
        clean standard deviation along each, at least a ten-thousandth of their root mean square,
        or 1 where nothing varies.

        It is kept, and travels with the moments: other machines' directions may be other ones.
        """
        variances, directions = torch.linalg.eigh(self.products / self.count)
        variances, directions = variances.flip(0).clamp(min=0), directions.flip(1)
        largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
        directions = (directions * torch.where(largest < 0, -1.0, 1.0)).contiguous()
        if not self._varies:
            return directions, torch.ones_like(variances)
        return directions, variances.clamp(min=float(variances.mean()) * SCALE_FLOOR**2).sqrt()

    def check_varies(self) -> None:
        """Raise ValueError when nothing varies, of which no score can be made; else settle the
        basis here, before the moments go to other machines."""
        if not self._varies:
            raise ValueError(ALIKE.format(count=self.count))
        _ = self.basis

    @property
    def _varies(self) -> bool:
        return varies(self.products.diagonal() / self.count, self.mean)


@dataclass(frozen=True, eq=False)
class PrincipalStatistics:
    """Additive statistics of clean images about one reference: all that every sigma, ridge and fold
    needs. What `WaveletStatistics.collect(images, "principal", degree, components=k)` returns.

    shape: (C, H, W). mean, scale: (d,); directions: (d, d), of the reference, as `PrincipalMoments`
    gives them. count: images seen. moments: (p, p), cross: (p, d), squares: (d,): the sums over
    images of psi(u) psi(u)^T, psi(u) u_i and u_i^2, u = directions^T (x0 - mean) / scale, float64.

    `+` merges the statistics of two sets of images about one reference, `-` leaves a shard out.
    """

    model: WaveletModel
    shape: tuple[int, int, int]
    mean: Tensor
    directions: Tensor
    scale: Tensor
    count: int
    moments: Tensor
    cross: Tensor
    squares: Tensor

    @staticmethod
    def collect(
        images: Tensor, model: WaveletModel, reference: PrincipalMoments | None = None
    ) -> PrincipalStatistics:
        """Of a shard of images (B, C, H, W) about a first pass, by default that of the images.

        Raises ValueError for images that cannot be, or of fewer pixels than components.
        """
        images = checked_images(images)
        reference = reference or PrincipalMoments.of(images)
        directions, scale = reference.basis
        model.check_components(tuple(images.shape[1:]))
        empty = PrincipalStatistics(
            model,
            tuple(images.shape[1:]),
            reference.mean,
            directions,
            scale,
            0,
            *(directions.new_zeros(size) for size in _sizes(model, len(scale))),
        )
        return empty.of(images)

    @property
    def features(self) -> PolynomialFeatures:
        return polynomial_features(self.model.components, self.model.degree)

    @property
    def bands(self) -> None:
        """Its coordinates are of no wavelet's bands."""
        return None

    def of(self, images: Tensor) -> PrincipalStatistics:
        """Statistics of other images (held out, say) about the same reference."""
        images = checked_images(images)
        check_shape(images, self.shape)
        moments, cross, squares = (
            torch.zeros_like(sums) for sums in (self.moments, self.cross, self.squares)
        )
        for shard in images.split(SHARD_IMAGES):
            u = (shard.double().flatten(1) - self.mean) @ self.directions / self.scale
            psi = self._psi(u)
            moments.addmm_(psi, psi.T)
            cross.addmm_(psi, u)
            squares += (u**2).sum(0)
        sums = {"moments": moments, "cross": cross, "squares": squares}
        return replace(self, count=len(images), **sums)

    def __add__(self, other: PrincipalStatistics) -> PrincipalStatistics:
        """Raises ValueError for another model, shape or reference."""
        self.check_same_model(other)
        return self._combined(other, 1)

    def __sub__(self, other: PrincipalStatistics) -> PrincipalStatistics:
        """Leave a shard out. Raises ValueError when nothing would be left."""
        self.check_same_model(other)
        if other.count >= self.count:
            raise ValueError(
                f"cannot subtract statistics of {other.count} images from those of {self.count}: "
                "subtract a shard from the total that contains it."
            )
        return self._combined(other, -1)

    def restricted(self, components: int, degree: int) -> PrincipalStatistics:
        """The statistics of a smaller model: fewer leading coordinates, a lower degree."""
        model = replace(self.model, components=components, degree=degree)
        if components > self.model.components or degree > self.model.degree:
            raise ValueError(
                f"statistics of {self.model.describe()} do not hold those of {model.describe()}: "
                "collect the larger model"
            )
        smaller = polynomial_features(components, degree)
        kept = torch.tensor([self.features.place[term] for term in smaller.terms])
        moments, cross = self.moments[kept][:, kept], self.cross[kept]
        return replace(self, model=model, moments=moments, cross=cross)

    def at(self, sigma: float, ridge: float = 1e-2) -> PrincipalScore:
        """The fitted score at one noise level. Raises ValueError for sigma <= 0 or ridge < 0."""
        return self.at_ridges(sigma, [ridge])[0]

    def at_ridges(self, sigma: float, ridges: Sequence[float]) -> list[PrincipalScore]:
        """`at` for several ridges, assembling the moments under noise once."""
        sigma, ridges = checked_level(sigma), [checked_ridge(ridge) for ridge in ridges]
        if not varies(self.scale**2 * self.squares / self.count, self.mean):
            raise ValueError(ALIKE.format(count=self.count))
        noisy = _Noisy.of(self, sigma)
        penalty = torch.ones_like(noisy.gram[:, :1]).T
        penalty[:, 0] = 0
        wanted = (noisy.slopes - noisy.beside / noisy.tau[:, None])[None]
        return [
            PrincipalScore(
                self, sigma, ridge, solve(noisy.gram[None], wanted, penalty, ridge, None)[0]
            )
            for ridge in ridges
        ]

    def denoiser(self, ridge: float = 1e-2, reach: float | None = None) -> ScoreDenoiser:
        """A denoiser(y, s) over all levels, for the solvers; reach: see `ScoreDenoiser.of`."""
        return ScoreDenoiser.of(self, ridge, reach)

    def risks(self, scores: Sequence[PrincipalScore]) -> Tensor:
        """Exact risks (scores, d) on these images of scores of one sigma, by principal coordinate.

        Raises ValueError for scores of another model, shape or reference.
        """
        fitted, sigma = scores[0].statistics, scores[0].sigma
        fitted.check_same_model(self)
        fitted._check_reference(self)
        noisy = _Noisy.of(self, sigma)
        tau = noisy.tau
        found = []
        for score in scores:
            delta = score.delta
            squared = ((delta @ noisy.gram) * delta).sum(1)
            squared += noisy.squares / tau**2 - 2 * (delta * noisy.beside).sum(1) / tau
            slope = (delta * noisy.slopes).sum(1) - 1 / tau**2
            found.append(sigma**2 + sigma**4 * (squared + 2 * slope))
        return torch.stack(found)

    def check_same_model(self, other: PrincipalStatistics) -> None:
        """Raise ValueError unless both have the same model and shape."""
        if (self.model, self.shape) != (other.model, other.shape):
            raise ValueError(
                f"statistics of {self.model.describe()} on {self.shape} and of "
                f"{other.model.describe()} on {other.shape} do not go together: collect both alike."
            )

    def state(self) -> dict[str, Tensor]:
        """A plain dictionary of tensors, from which `from_state` makes the statistics again."""
        model = self.model
        settings = (self.count, *self.shape, model.degree, model.components)
        names = ("mean", "directions", "scale", "moments", "cross", "squares")
        return {name: getattr(self, name).contiguous() for name in names} | {
            "settings": torch.tensor(settings),
            "family": torch.tensor(list(model.family.encode()), dtype=torch.uint8),
        }

    @staticmethod
    def from_state(state: dict[str, Tensor]) -> PrincipalStatistics:
        """Inverse of `state`. Raises ValueError when an entry is missing or does not fit."""
        names = ("mean", "directions", "scale", "moments", "cross", "squares")
        if missing := ", ".join(sorted({*names, "settings"} - set(state))):
            raise ValueError(f"state lacks {missing}: it is none of PrincipalStatistics.state().")
        count, *shape, degree, components = state["settings"].tolist()
        model = WaveletModel("principal", degree, components=components)
        expected = _sizes(model, math.prod(shape))
        found = tuple(tuple(state[name].shape) for name in ("moments", "cross", "squares"))
        if found != expected:
            raise ValueError(
                f"state: moments, cross and squares have shapes {found}, but its settings ask for "
                f"{expected}: the state is damaged or of another version."
            )
        mean, directions, scale, *sums = (state[name] for name in names)
        return PrincipalStatistics(model, tuple(shape), mean, directions, scale, count, *sums)

    def _psi(self, y: Tensor) -> Tensor:
        """Features (p, B) of normalised coordinates y (B, d)."""
        single = hermite(y[:, : self.model.components].T.contiguous(), self.model.degree)
        return self.features.products(single[None])[0]

    def _combined(self, other: PrincipalStatistics, sign: int) -> PrincipalStatistics:
        self._check_reference(other)
        sums = {
            name: getattr(self, name) + sign * getattr(other, name)
            for name in ("moments", "cross", "squares")
        }
        return replace(self, count=self.count + sign * other.count, **sums)

    def _check_reference(self, other: PrincipalStatistics) -> None:
        names = ("mean", "scale", "directions")
        if not all(torch.equal(getattr(self, name), getattr(other, name)) for name in names):
            raise ValueError(SAME_BASIS)


def _sizes(model: WaveletModel, d: int) -> tuple[tuple[int, ...], ...]:
    """Shapes of moments, cross and squares."""
    p = len(polynomial_features(model.components, model.degree))
    return (p, p), (p, d), (d,)


@dataclass(frozen=True, eq=False)
class _Noisy:
    """Moments at one noise level. tau: (d,). gram: (p, p), E[psi psi^T]. slopes: (d, p),
    E[d psi / d p_i]. beside: (d, p), E[psi y_i]. squares: (d,), E[y_i^2]."""

    tau: Tensor
    gram: Tensor
    slopes: Tensor
    beside: Tensor
    squares: Tensor

    @staticmethod
    def of(statistics: PrincipalStatistics, sigma: float) -> _Noisy:
        features, k = statistics.features, statistics.model.components
        tau = (statistics.scale**2 + sigma**2).sqrt()
        kappa, rho2 = statistics.scale / tau, sigma**2 / tau**2
        degree = statistics.model.degree

        def products(values: Tensor) -> Tensor:
            """values^a of every feature, (1, p)."""
            return features.products(powers(values[None, :k], degree)[..., None])[..., 0]

        each = products(kappa)
        scaled = statistics.moments[None] / statistics.count * each[:, :, None] * each[:, None, :]
        gram = features.noisy_gram(scaled, products(rho2))[0]
        beside = (statistics.cross / statistics.count * each[0][:, None] * kappa).T.contiguous()
        beside[:k] = gram[1 + degree * torch.arange(k)]
        slopes = torch.zeros_like(beside)
        target, feature, lower, root = features.derivatives(k)
        slopes[target, feature] = root * scaled[0, lower, 0] / tau[target]
        squares = kappa**2 * statistics.squares / statistics.count + rho2
        return _Noisy(tau, gram, slopes, beside, squares)


@dataclass(frozen=True, eq=False)
class PrincipalScore:
    """The score at one noise level. delta: (d, p), what is added to the Wiener score.

    reach: beyond this many tau from the mean a coordinate enters the polynomials at the reach; the
    Wiener score goes on. Infinite is the polynomial everywhere, to which the exact risk belongs.
    """

    statistics: PrincipalStatistics = field(repr=False)
    sigma: float
    ridge: float
    delta: Tensor = field(repr=False)
    reach: float = math.inf

    def score(self, y: Tensor) -> Tensor:
        """Estimate of grad log p_sigma at noisy images y (B, C, H, W), in y's float type."""
        y, stats = given.tensor(y, "y"), self.statistics
        check_shape(y, stats.shape)
        work = y if y.dtype in (torch.float32, torch.float64) else y.float()
        directions, tau = stats.directions.to(work), self.tau.to(work)
        p = (work.flatten(1) - stats.mean.to(work)) @ directions / tau
        near = p if self.reach == math.inf else p.clamp(-self.reach, self.reach)
        score = (self.delta.to(work) @ stats._psi(near)).T - p / tau
        return (score @ directions.T).reshape(y.shape).to(y.dtype)

    def denoise(self, y: Tensor) -> Tensor:
        """D(y) = y + sigma^2 score(y), the estimate of E[x0 | y]; y: (B, C, H, W)."""
        y = given.tensor(y, "y")
        return y + self.sigma**2 * self.score(y)

    @property
    def tau(self) -> Tensor:
        """(d,) standard deviation of each noisy principal coordinate."""
        return (self.statistics.scale**2 + self.sigma**2).sqrt()

    def risk(self, data: Tensor | PrincipalStatistics | None = None) -> float:
        """Exact mean squared error of `denoise`, mean over pixels, under fresh noise.

        data: clean images (B, C, H, W), or their statistics by `PrincipalStatistics.of`; None: the
        statistics this score was fitted to.
        """
        return float(self.coefficient_risk(data).mean())

    def coefficient_risk(self, data: Tensor | PrincipalStatistics | None = None) -> Tensor:
        """The risk of each principal coordinate, (d,), float64; see `risk`."""
        if data is None:
            data = self.statistics
        elif not isinstance(data, PrincipalStatistics):
            data = self.statistics.of(data)
        return data.risks([self])[0]
