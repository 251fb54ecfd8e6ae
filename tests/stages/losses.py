"""Losses that go wrong at a chosen step, to put in the place of a method's."""

import dataclasses

from pipeline.stage import resolve
from stages.methods import sit

FAILS_AT = {"interrupt": None, "nan": None}


class InterruptedTrainingError(Exception):
    """Stands for a kill."""


def failing(place: str) -> type:
    """The loss at `place`; raises, or is multiplied by NaN, when so many updates were made."""
    loss = resolve(place)

    @dataclasses.dataclass(frozen=True)
    class Failing(loss):
        def __call__(self, network, batch):
            found = super().__call__(network, batch)
            if batch.draws.step == FAILS_AT["interrupt"]:
                raise InterruptedTrainingError
            if batch.draws.step == FAILS_AT["nan"]:
                bad = found.total * float("nan")
                return type(found)(bad, {"velocity": bad})
            return found

    return Failing


FailingLoss = failing(f"{sit.__name__}:Loss")
