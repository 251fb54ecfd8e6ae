"""The scores that trials are judged by, as they are stored: with what each sample contributes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pipeline.errors import DamagedArtifactError
from pipeline.store import Store
from sweeps.record import TrialRecord
from sweeps.space import Space

if TYPE_CHECKING:
    from stages.methods.protocol import Score

Reader = Callable[[Space, TrialRecord], "tuple[Score, ...]"]


def scores_in(store: Store) -> Reader:
    """Reads the scores of the deciding metric, one a seed; none where a trial has not all of them,
    or its node stores none."""

    def read(space: Space, trial: TrialRecord) -> tuple[Score, ...]:
        metric = space.metrics[space.decides].metric or space.decides
        found = [_score(store, *where, metric) for where in trial.artifacts.get(space.decides, ())]
        return () if None in found else tuple(found)

    return read


def _score(store: Store, stage: str, key: str, metric: str) -> Score | None:
    from stages.artifacts.scores import OldScoresError, Scores

    try:
        artifact = store.open(stage, key)
        rows = artifact.load() if isinstance(artifact, Scores) else []
    except (DamagedArtifactError, OldScoresError):
        return None
    of_last = (row.score for row in rows if row.node == rows[-1].node)
    return next((score for score in of_last if score.metric == metric), None)
