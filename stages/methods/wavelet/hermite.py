"""Polynomial features in normalised Hermite functions, and their exact moments under noise.

For one variable psi_n = He_n / sqrt(n!), for several the product psi_a(y) = prod_j psi_(a_j)(y_j).
Let u be a clean variable divided by its scale, z standard noise, and y = kappa u + rho z with
kappa^2 + rho^2 = 1. The addition formula

    psi_a(kappa u + rho z) = sum_(k<=a) sqrt(C(a, k)) kappa^(a-k) rho^k psi_(a-k)(u) psi_k(z)

and the orthonormality of psi_k(z) turn moments of clean data, Q_ab = E[psi_a(u) psi_b(u)], into
those of noisy data at every noise level, without sampling:

    G_ab = E[psi_a(y) psi_b(y)]
         = sum_k rho^(2k) sqrt(C(a, k) C(b, k)) kappa^(a-k) kappa^(b-k) Q_(a-k, b-k),
    E[d psi_a / d y_i] = sqrt(a_i) kappa^(a - e_i) Q_(a-e_i, 0).

Two steps beyond the paper (**ours**): the Hermite basis, whose Gram matrix G has a condition
number of 1e3 to 1e4 where raw monomials reach 1e9 to 1e14, and the clean scale u, which makes Q
independent of the noise level, so that one pass over the data serves every sigma.
"""

from __future__ import annotations

import math
from functools import cached_property, lru_cache
from itertools import combinations, pairwise, product

import torch
from torch import Tensor


def num_features(num_variables: int, degree: int, additive: bool = False) -> int:
    """Number of features of `num_variables` variables up to total `degree`, constant included."""
    if additive:
        return 1 + num_variables * degree
    return math.comb(num_variables + degree, degree)


def hermite(u: Tensor, degree: int) -> Tensor:
    """psi_1 .. psi_degree of each row of u (d, n): (d, degree, n)."""
    previous, current = torch.ones_like(u), u
    values = [u]
    for n in range(1, degree):
        following = (u * current - math.sqrt(n) * previous) / math.sqrt(n + 1)
        previous, current = current, following
        values.append(following)
    return torch.stack(values, dim=1)


def affine(c: Tensor, d: Tensor, degree: int) -> Tensor:
    """M (g, m, degree+1, degree+1) with psi_n(c x + d) = sum_k M[.., n, k] psi_k(x), for c and d
    (g, m), by the recursion of the polynomials and x psi_k = sqrt(k+1) psi_(k+1) + sqrt(k)
    psi_(k-1)."""
    root = torch.arange(1, degree + 1, dtype=c.dtype, device=c.device).sqrt()
    times_x = root.diag(1) + root.diag(-1)
    c, d = c[..., None], d[..., None]
    rows = [c.new_zeros(*c.shape[:-1], degree + 1)]
    rows[0][..., 0] = 1
    for n in range(degree):
        row = c * (rows[n] @ times_x) + d * rows[n]
        if n:
            row = row - root[n - 1] * rows[n - 1]
        rows.append(row / root[n])
    return torch.stack(rows, dim=-2)


def powers(x: Tensor, degree: int) -> Tensor:
    """x, x^2, .., x^degree of x (g, m): (g, m, degree)."""
    return torch.stack([x**n for n in range(1, degree + 1)], dim=-1)


class PolynomialFeatures:
    """All exponents a of `num_variables` variables with |a| <= degree; additive: no cross terms.

    The order of the features is: the constant, then psi_1..psi_degree of each variable in turn,
    then products of two variables, of three, and so on. The set is closed downward (with a, every
    k <= a), which the moments under noise need.
    """

    def __init__(self, num_variables: int, degree: int, additive: bool = False) -> None:
        self.num_variables, self.degree, self.additive = num_variables, degree, additive
        blocks = [[()], [((v, n),) for v in range(num_variables) for n in range(1, degree + 1)]]
        for order in range(2, 1 if additive else min(degree, num_variables) + 1):
            blocks.append(_cross_terms(num_variables, degree, order))
        self.terms = [term for block in blocks for term in block]
        self.place = {term: index for index, term in enumerate(self.terms)}
        self._blocks = []
        start = 1
        for shorter, block in pairwise(blocks[1:]):
            parents = torch.tensor([self.place[term[:-1]] - start for term in block])
            last = torch.tensor([v * degree + n - 1 for *_, (v, n) in block])
            self._blocks.append((parents, last))
            start += len(shorter)
        self._shifts = self._all_shifts()

    def __len__(self) -> int:
        return len(self.terms)

    def products(self, single: Tensor) -> Tensor:
        """Products over variables. single: (g, m, degree, n), entry [.., j, r-1, :] belonging to
        the r-th power or polynomial of variable j; returns (g, num_features, n)."""
        single = single.flatten(1, 2)
        blocks = [torch.ones_like(single[:, :1]), single]
        for parents, last in self._blocks:
            parents, last = parents.to(single.device), last.to(single.device)
            blocks.append(blocks[-1].index_select(1, parents) * single.index_select(1, last))
        return torch.cat(blocks, dim=1)

    def noisy_gram(self, scaled: Tensor, rho2: Tensor) -> Tensor:
        """G of the module's formula, (g, p, p).

        scaled: kappa^a kappa^b Q_ab, (g, p, p). rho2: rho^(2 k) for every feature, (g, p).
        """
        source, target, shift, weight = (x.to(scaled.device) for x in self._shifts)
        entries = scaled.flatten(1)
        moved = entries.index_select(1, source)
        moved *= rho2.index_select(1, shift)
        moved *= weight.to(scaled)
        gram = entries.index_add(1, target, moved).unflatten(1, scaled.shape[1:])
        top = self._top.to(scaled.device)
        gram[:, top, top] += rho2[:, top]
        return gram

    def substitution(self, single: Tensor) -> Tensor:
        """T (g, p, p) with psi(c x + d) = T psi(x); single: (g, m, degree+1, degree+1), what
        `affine` gives for c and d."""
        row, column, factors = (x.to(single.device) for x in self._substitutions)
        values = single.flatten(1)[:, factors].prod(-1)
        matrix = single.new_zeros(len(single), len(self), len(self))
        matrix[:, row, column] = values
        return matrix

    @cached_property
    def _substitutions(self) -> tuple[Tensor, Tensor, Tensor]:
        """Every pair b <= a: place of a, place of b, and the flat places of the factors
        M[v, a_v, b_v], filled up with M[0, 0, 0] = 1."""
        side = self.degree + 1
        rows = []
        for a, term in enumerate(self.terms):
            for part in product(*(range(n + 1) for _, n in term)):
                lower = tuple((v, q) for (v, _), q in zip(term, part, strict=True) if q)
                factors = [(v * side + n) * side + q for (v, n), q in zip(term, part, strict=True)]
                fill = [0] * (self.degree - len(factors))
                rows.append((a, self.place[lower], factors + fill))
        return tuple(torch.tensor(column) for column in zip(*rows, strict=True))

    def derivatives(self, num_targets: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(target, feature, feature less one, sqrt(a_i)) of every non-zero d psi_a / d y_i, for
        the first `num_targets` variables i."""
        rows = []
        for index, term in enumerate(self.terms):
            for v, n in term:
                if v < num_targets:
                    rows.append((v, index, self.place[_minus(term, ((v, 1),))], math.sqrt(n)))
        target, feature, lower, root = zip(*rows, strict=True)
        indices = (torch.tensor(x) for x in (target, feature, lower))
        return *indices, torch.tensor(root, dtype=torch.float64)

    def _all_shifts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The terms of G with 0 < |k| < degree, one entry for each (a, b, k): flat place of
        (a-k, b-k), flat place of (a, b), place of k, and sqrt(C(a, k) C(b, k)). The k of full
        degree meet only a = b = k: they are kept as `_top`."""
        total = [sum(n for _, n in term) for term in self.terms]
        self._top = torch.tensor([i for i, n in enumerate(total) if n == self.degree])
        above: dict[int, list[tuple[int, int, float]]] = {}  # k: a, a - k, sqrt(C(a, k))
        for a, term in enumerate(self.terms) if self.degree > 1 else ():
            for part in product(*(range(n + 1) for _, n in term)):
                if 0 < sum(part) < self.degree:
                    lower = tuple((v, q) for (v, _), q in zip(term, part, strict=True) if q)
                    ways = math.prod(math.comb(n, q) for (_, n), q in zip(term, part, strict=True))
                    row = (a, self.place[_minus(term, lower)], math.sqrt(ways))
                    above.setdefault(self.place[lower], []).append(row)
        entries = [(torch.empty(0, dtype=torch.long),) * 3 + (torch.empty(0, dtype=torch.float64),)]
        for k, rows in above.items():
            a, rest, root = zip(*rows, strict=True)
            a, rest = torch.tensor(a), torch.tensor(rest)
            root = torch.tensor(root, dtype=torch.float64)
            source = (rest[:, None] * len(self.terms) + rest).flatten()
            target = (a[:, None] * len(self.terms) + a).flatten()
            weight = (root[:, None] * root).flatten()
            entries.append((source, target, torch.full_like(source, k), weight))
        return tuple(torch.cat(column) for column in zip(*entries, strict=True))


@lru_cache(maxsize=32)
def polynomial_features(
    num_variables: int, degree: int, additive: bool = False
) -> PolynomialFeatures:
    """The feature set, built once per process."""
    return PolynomialFeatures(num_variables, degree, additive)


def _cross_terms(num_variables: int, degree: int, order: int) -> list[tuple]:
    exponents = [n for n in product(range(1, degree + 1), repeat=order) if sum(n) <= degree]
    return [
        tuple(zip(variables, n, strict=True))
        for variables in combinations(range(num_variables), order)
        for n in exponents
    ]


def _minus(term: tuple, lower: tuple) -> tuple:
    less = dict(lower)
    return tuple((v, n - less.get(v, 0)) for v, n in term if n > less.get(v, 0))
