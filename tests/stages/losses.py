"""Losses that go wrong at a chosen step, to put in the place of a method's."""

import dataclasses

from stages.methods import sit

FAILS_AT = {"interrupt": None, "nan": None}


class InterruptedTrainingError(Exception):
    """Stands for a kill."""


@dataclasses.dataclass(frozen=True)
class FailingLoss(sit.Loss):
    """SiT's loss; raises, or is multiplied by NaN, when so many updates were made."""

    def __call__(self, network, batch):
        found = super().__call__(network, batch)
        if batch.draws.step == FAILS_AT["interrupt"]:
            raise InterruptedTrainingError
        if batch.draws.step == FAILS_AT["nan"]:
            bad = found.total * float("nan")
            return type(found)(bad, {"velocity": bad})
        return found
