"""Scores that carry how they were measured, and refuse to be compared with others.

A score is a number, the protocol it was measured under, and an error of a stated kind. None of the
three can be left out, and arithmetic between scores checks all three.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "ERROR_KINDS",
    "Influence",
    "Protocol",
    "ProtocolError",
    "Score",
    "over_seeds",
    "same_measurement",
]

ERROR_KINDS = ("seeds", "influence", "jackknife", "none")


class ProtocolError(ValueError):
    """Scores of different protocols, metrics or kinds of error were put together."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a score was measured; two scores compare only where all of it agrees.

    ``name`` is what people quote, such as "digits-embedded-1500"; ``extractor_hash`` the sha256 of
    its weights; ``resize`` how images reach the extractor's size; ``reference`` data set and split,
    with a digest of the images where other data may have the same name;
    ``num_reference`` is None where the reference's file does not say. ``details`` what else a
    metric's value depends on, such as "k=5", where there is anything. Of published protocols,
    where they are stated: ``rounding`` to 8 bits, ``crop`` of the reference's images, ``classes``
    how they were drawn, and ``best_of`` how many sets the least distance is of.
    """

    name: str
    extractor: str
    extractor_hash: str
    resize: str
    reference: str
    num_reference: int | None
    num_samples: int
    details: str = ""
    rounding: str = ""
    crop: str = ""
    classes: str = ""
    best_of: int = 1

    def __post_init__(self) -> None:
        for key in ("name", "extractor", "extractor_hash", "resize", "reference"):
            value = getattr(self, key)
            if not isinstance(value, str) or not value.strip():
                raise ValueError(
                    f"protocol {key} is {value!r}; a score cannot exist without it: say it in words"
                )
        for key in ("num_reference", "num_samples", "best_of"):
            value = getattr(self, key)
            if key == "num_reference" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(
                    f"protocol {key} is {value!r}; give the number of images, at least 1"
                )

    @property
    def rules(self) -> str:
        """Rounding, crop, classes and the minimum rule in words; empty where none is stated."""
        rules = [
            f"{name} {getattr(self, name)}"
            for name in ("rounding", "crop", "classes")
            if getattr(self, name)
        ]
        if self.best_of > 1:
            rules.append(f"the least of {self.best_of} sets")
        return ", ".join(rules)

    def differs(self, other: Protocol) -> str:
        """What differs, in words; empty where the protocols agree."""
        return "; ".join(
            f"{one.name} {getattr(self, one.name)!r} against {getattr(other, one.name)!r}"
            for one in fields(self)
            if getattr(self, one.name) != getattr(other, one.name)
        )


@dataclass(frozen=True, eq=False)
class Influence:
    """What each sample of one set contributes to a score; see `influence`.

    psi: (n,) float32. strata: (n,) labels in fixed shares; equal ones for none. samples: what the
    samples were made from, noise and labels alike: two sets for which it agrees are paired, sample
    by sample, whatever network or solver made them. network: whose samples they are; "" where
    nobody knows.
    """

    psi: np.ndarray
    strata: np.ndarray
    samples: str
    network: str = ""


@dataclass(frozen=True, kw_only=True)
class Score:
    """One measured number. ``metric`` is its name in every run, such as "fid" or "precision".

    ``error_kind`` says where ``error`` (one standard error) comes from: "seeds" (training or
    sampling repeated ``num_seeds`` times), "influence" or "jackknife" (one set of samples; the
    reference is fixed), or "none", with error None. ``floor`` is the value that real images score
    at the same sizes. ``caution`` is empty or a sentence on why not to trust the number.
    ``at_most`` is the upper bound at 95 % of a share of which nothing was seen, whose error is 0.
    ``influence`` is no part of what two scores are compared by.
    """

    metric: str
    value: float
    protocol: Protocol
    error: float | None
    error_kind: str
    num_seeds: int = 1
    floor: float | None = None
    caution: str = ""
    at_most: float | None = None
    influence: Influence | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.protocol, Protocol):
            raise ValueError(
                f"score {self.metric!r} has the protocol {self.protocol!r}; a score cannot exist "
                "without a Protocol, which names extractor, reference and N"
            )
        if not self.metric or not math.isfinite(self.value):
            raise ValueError(
                f"score {self.metric!r} is {self.value}; give it a name and a finite value"
            )
        if self.error_kind not in ERROR_KINDS:
            raise ValueError(
                f"error_kind is {self.error_kind!r}; choose one of {', '.join(ERROR_KINDS)}"
            )
        if (self.error is None) != (self.error_kind == "none"):
            raise ValueError(
                f"score {self.metric!r} has error {self.error} of kind {self.error_kind!r}; an "
                'error needs its kind, and "none" goes with None'
            )
        if self.error is not None and not (math.isfinite(self.error) and self.error >= 0):
            raise ValueError(f"score {self.metric!r} has error {self.error}; it must be >= 0")
        if (self.error_kind == "seeds") != (self.num_seeds > 1):
            raise ValueError(
                f"score {self.metric!r} has {self.num_seeds} seeds and an error of kind "
                f'{self.error_kind!r}; "seeds" needs several, and several seeds need "seeds"'
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON or a table, without the influence; from_dict reads them back."""
        values = asdict(replace(self, influence=None))
        del values["influence"]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Score:
        """Raises ValueError where the protocol or another field is missing or unknown."""
        values = dict(values)
        protocol = values.pop("protocol", None)
        try:
            return cls(protocol=Protocol(**(protocol or {})), **values)
        except TypeError as error:
            raise ValueError(
                f"stored score {values.get('metric')!r} is incomplete or has fields of another "
                f"version: {error}"
            ) from None

    def __str__(self) -> str:
        error = "" if self.error is None else f" ± {self.error:.2g} ({self._error_words()})"
        caution = f" [{self.caution}]" if self.caution else ""
        return (
            f"{self.metric} {self.value:.4g}{error}, {self.protocol.name}, "
            f"N={self.protocol.num_samples}{caution}"
        )

    def _error_words(self) -> str:
        return f"{self.num_seeds} seeds" if self.error_kind == "seeds" else self.error_kind


def over_seeds(scores: Sequence[Score]) -> Score:
    """One score out of those of several seeds: their mean, and its error from their spread.

    The errors of the single scores are dropped, not mixed in. Raises ProtocolError where metric or
    protocol differ or a score already is over seeds, ValueError for fewer than two.
    """
    if len(scores) < 2:
        raise ValueError(f"{len(scores)} score given; an error over seeds needs at least two")
    same_measurement(scores)
    if any(score.error_kind == "seeds" for score in scores):
        raise ProtocolError(f"{scores[0].metric} has scores that are already means over seeds")
    values = [score.value for score in scores]
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    floors = {score.floor for score in scores}
    return Score(
        metric=scores[0].metric,
        value=mean,
        protocol=scores[0].protocol,
        error=math.sqrt(variance / len(values)),
        error_kind="seeds",
        num_seeds=len(values),
        floor=floors.pop() if len(floors) == 1 else None,
        caution=next((score.caution for score in scores if score.caution), ""),
    )


def same_measurement(scores: Sequence[Score]) -> None:
    """Raise ProtocolError where metric or protocol differ."""
    first = scores[0]
    for other in scores[1:]:
        if other.metric != first.metric:
            raise ProtocolError(f"{first.metric} and {other.metric} are different metrics")
        if differing := first.protocol.differs(other.protocol):
            raise ProtocolError(
                f"these {first.metric} scores were measured differently and cannot be compared: "
                f"{differing}; score both under one protocol"
            )
