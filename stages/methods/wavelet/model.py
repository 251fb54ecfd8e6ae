"""What a wavelet score is a function of: its settings, its layout, and the memory it needs."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from stages.methods.wavelet.basis import WaveletBasis, check_wavelet
from stages.methods.wavelet.hermite import PolynomialFeatures, num_features, polynomial_features
from stages.methods.wavelet.neighbours import FAMILIES, MISSING, groups, max_variables

PRINCIPAL, RESIDUAL = "principal", "residual"
COMPONENTS = 10  # leading principal coordinates
GIB = 2**30
SHARD_IMAGES = 512  # images whose coefficients are held at once
CHUNK_BYTES = 2**21  # features of one block of groups: they stay in the processor's cache
SOLVE_BYTES = 2**22  # Gram matrices of one block of groups while solving
SOLVE_ARRAYS = 10  # arrays of that size while solving
WORKING_BYTES = 2**28  # blocks of features and the allocator's slack


@dataclass(frozen=True)
class WaveletModel:
    """Settings of a wavelet score. Shape- and data-free; hashable.

    family: one of `FAMILIES` (stages.methods.wavelet.neighbours), or `principal`, which takes no
    wavelet, or `residual`, each in the file of its name (**ours**). degree: total polynomial
    degree, 1 to 3 in the paper, any here. wavelet: a PyWavelets name. levels: of the transform.
    couple_channels: look at the same place in the other channels too. allow_biorthogonal: accept
    a wavelet that is not orthonormal; family `full` only, since the others need the noise to be
    independent between coefficients. components: leading principal coordinates of `principal`;
    the others leave it alone. Raises ValueError for settings that cannot be.
    """

    family: str = "local"
    degree: int = 2
    wavelet: str = "db2"
    levels: int = 2
    couple_channels: bool = False
    allow_biorthogonal: bool = False
    components: int = COMPONENTS

    def __post_init__(self) -> None:
        known = (*FAMILIES, PRINCIPAL, RESIDUAL)
        if self.family not in known:
            near = difflib.get_close_matches(str(self.family), known, n=1) or ["local"]
            raise ValueError(
                f"family {self.family!r} is unknown: did you mean {near[0]!r}? "
                f"There are {', '.join(known)}."
            )
        if isinstance(self.degree, bool) or not isinstance(self.degree, int) or self.degree < 1:
            raise ValueError(f"degree must be a whole number of at least 1, got {self.degree!r}.")
        if isinstance(self.components, bool) or not isinstance(self.components, int):
            raise ValueError(f"components must be a whole number, got {self.components!r}.")
        if self.components < 1:
            raise ValueError(f"components must be at least 1, got {self.components}.")
        if self.components != COMPONENTS and self.family != PRINCIPAL:
            raise ValueError(
                f"components={self.components} needs family='principal', got {self.family!r}: only "
                "that one looks at leading principal coordinates."
            )
        if self.couple_channels and self.family == PRINCIPAL:
            raise ValueError(
                "couple_channels=True needs another family than 'principal', whose coordinates are "
                "of all channels together: leave it out."
            )
        if self.family == "full" and self.degree != 1:
            raise ValueError(
                f"family 'full' has degree 1 only, got degree={self.degree}: pass degree=1."
            )
        if self.allow_biorthogonal and self.family != "full":
            raise ValueError(
                "allow_biorthogonal needs family='full', degree=1: in a basis that is not "
                "orthonormal the noise is correlated between coefficients, and the closed forms "
                f"of family {self.family!r} do not hold."
            )
        check_wavelet(self.wavelet)

    def layout(self, shape: tuple[int, int, int]) -> Layout:
        """The layout for images of `shape` (C, H, W). Raises ValueError when the size does not
        fit the levels, or the wavelet is not orthonormal and this was not asked for."""
        return _layout(self, tuple(shape))

    def statistics_bytes(self, shape: tuple[int, int, int]) -> int:
        """Size of the additive statistics for images of `shape` (C, H, W)."""
        if self.family == PRINCIPAL:
            features, pixels = num_features(self.components, self.degree), math.prod(shape)
            return 8 * (features**2 + features * pixels + pixels**2)
        basis = WaveletBasis(self.wavelet, self.levels, *shape)
        variables = max_variables(basis, self.family, self.couple_channels)
        features = num_features(variables, self.degree, self._is_additive)
        if self.family == RESIDUAL:
            d = basis.num_coefficients
            return 8 * d * (features**2 + features * d + 2 * d)
        return 8 * self._num_groups(basis) * features**2

    def predict_bytes(self, shape: tuple[int, int, int], copies: int = 1) -> int:
        """Peak memory of collecting `copies` statistics, holding them, and fitting; float64.

        Leaves out the caller's images and Python with its libraries.
        """
        statistics = self.statistics_bytes(shape)
        if self.family == PRINCIPAL:  # the eigenvectors, and features of a shard and their sums
            features = num_features(self.components, self.degree)
            working = 3 * math.prod(shape) ** 2 + features * (SHARD_IMAGES + 12 * features)
            return copies * statistics + 8 * working + WORKING_BYTES
        basis = WaveletBasis(self.wavelet, self.levels, *shape)
        one_group = statistics // self._num_groups(basis)
        coefficients = 8 * basis.num_coefficients * SHARD_IMAGES * (self.degree + 6)
        solving = SOLVE_ARRAYS * max(SOLVE_BYTES, one_group)
        return copies * statistics + max(coefficients, solving) + WORKING_BYTES

    def check_memory(
        self,
        shape: tuple[int, int, int],
        max_bytes: int = 2 * GIB,
        copies: int = 1,
        limit: str = "max_bytes",
    ) -> None:
        """Raise ValueError, naming what would fit instead, when the prediction is too large.

        limit: what the message calls the bound.
        """
        needed = self.predict_bytes(shape, copies)
        if needed <= max_bytes:
            return
        fitting = [
            f"{other.describe()} ({other.predict_bytes(shape, copies) / GIB:.2f} GiB)"
            for other in self._smaller()
            if other.predict_bytes(shape, copies) <= max_bytes
        ]
        instead = "; ".join(fitting[:3]) or "only smaller images"
        raise ValueError(
            f"{self.describe()} on {'x'.join(map(str, shape))} images needs about "
            f"{needed / GIB:.2f} GiB, more than {limit} = {max_bytes / GIB:.2f} GiB. "
            f"What fits instead: {instead}; or raise {limit}"
        )

    def check_components(self, shape: tuple[int, int, int]) -> None:
        """Raise ValueError unless images of `shape` (C, H, W) have so many coordinates."""
        if self.components > math.prod(shape):
            raise ValueError(
                f"components={self.components} is above the {math.prod(shape)} pixels of the images"
                ": lower it."
            )

    def describe(self) -> str:
        if self.family == PRINCIPAL:
            return f"family='principal', degree={self.degree}, components={self.components}"
        coupled = ", couple_channels=True" if self.couple_channels else ""
        return f"family={self.family!r}, degree={self.degree}{coupled}"

    @property
    def _is_additive(self) -> bool:
        return self.family in ("additive", RESIDUAL)

    def _num_groups(self, basis: WaveletBasis) -> int:
        if self.family == "full":
            return 1 if self.couple_channels else basis.channels
        if self.family == "band-tied":
            details = basis.size_per_channel - basis.bands[0].height * basis.bands[0].width
            places = basis.size_per_channel - 2 * details // 3
            return places * (1 if self.couple_channels else basis.channels)
        return basis.num_coefficients

    def _smaller(self) -> list[WaveletModel]:
        """Lesser settings, the nearest first."""
        family = "local" if self.family == "full" else self.family
        plain = {"allow_biorthogonal": False, "components": COMPONENTS}
        fewer = [5] if self.family == PRINCIPAL and self.components > 5 else []
        lower = [
            replace(self, family=family, degree=n, **plain) for n in range(self.degree - 1, 0, -1)
        ]
        options = [
            *(replace(self, components=k) for k in fewer),
            *([replace(self, couple_channels=False)] if self.couple_channels else []),
            *lower,
            *(replace(other, couple_channels=False) for other in lower if self.couple_channels),
            *(
                replace(self, family=other, couple_channels=False, **plain)
                for other in ("local", "additive", "band-tied", "independent")
                if other != self.family
            ),
        ]
        return list(dict.fromkeys(options))


@dataclass(frozen=True, eq=False)
class Layout:
    """A model laid out on images of one shape.

    index: (g, m) flat coefficients of each group, 0 where there is none; present: (g, m) whether
    there is one; num_targets: the first so many of a group are predicted. order:
    (num_coefficients,) takes predictions flattened as (g, num_targets) to flat order. noise:
    covariance B B^T of the noise within a group at sigma 1, (m, m), or None for the identity.
    """

    basis: WaveletBasis
    features: PolynomialFeatures
    index: Tensor
    present: Tensor
    num_targets: int
    order: Tensor
    noise: Tensor | None

    @property
    def num_groups(self) -> int:
        return len(self.index)

    @property
    def noise_variance(self) -> Tensor:
        """Variance of the noise of each coefficient at sigma 1, (num_coefficients,)."""
        if self.noise is None:
            return torch.ones(self.basis.num_coefficients, dtype=torch.float64)
        return self.noise.diagonal().repeat(self.num_groups)

    def blocks(self, bytes_per_group: int, budget: int) -> list[slice]:
        """Slices of groups that keep `budget`, at least one group each."""
        step = max(1, budget // max(1, bytes_per_group))
        return [slice(i, min(i + step, self.num_groups)) for i in range(0, self.num_groups, step)]

    def gather(self, values: Tensor, block: slice) -> Tensor:
        """Rows of values (num_coefficients, ...) for the groups of a block: (g, m, ...), zero
        where a variable is missing."""
        index = self.index[block].to(values.device)
        present = self.present[block].to(values)
        return values[index] * present.reshape(*present.shape, *[1] * (values.ndim - 1))

    def scatter(self, predictions: Tensor) -> Tensor:
        """Predictions (g, num_targets, ...) to flat order (num_coefficients, ...)."""
        return predictions.flatten(0, 1)[self.order.to(predictions.device)]


@lru_cache(maxsize=32)
def _layout(model: WaveletModel, shape: tuple[int, int, int]) -> Layout:
    basis = WaveletBasis(model.wavelet, model.levels, *shape)
    noise = None
    if not basis.is_orthonormal:
        if not model.allow_biorthogonal:
            raise ValueError(
                f"wavelet {model.wavelet!r} is not orthonormal: use one that is, for example "
                "'db2' or 'sym4', or family='full', degree=1 with allow_biorthogonal=True."
            )
        noise = basis.gram()
        if model.couple_channels:
            noise = torch.kron(torch.eye(shape[0], dtype=noise.dtype), noise)
    index, num_targets = groups(basis, model.family, model.couple_channels)
    present = index != MISSING
    targets = index[:, :num_targets].flatten()
    order = torch.empty(basis.num_coefficients, dtype=torch.long)
    valid = targets != MISSING
    order[targets[valid]] = torch.arange(len(targets))[valid]
    features = polynomial_features(index.shape[1], model.degree, model._is_additive)
    index = index.clamp(min=0)
    return Layout(basis, features, index, present, num_targets, order, noise)
