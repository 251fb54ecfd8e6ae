"""The scores of an evaluation on disk: single sets, and means over sets that differ in their seed.

A mean over seeds has the error of its seeds; a single set has the error that one set of images
gives. Which of the two an error is stands in its score, and the two are never mixed. Beside the
table stand what the samples of a set contribute to each score, and their labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifact import Artifact

if TYPE_CHECKING:
    from stages.methods.protocol import Influence, Score

FILE, INFLUENCE, STRATA = "scores.parquet", "influence.npy", "strata.npy"
FORMAT = b"3"


@dataclass(frozen=True)
class Row:
    """One score, and of which set of samples.

    node: the sample node; of a mean over seeds the first one. correction: of the solver's steps,
    "none" for the plain solver. time_density: that of the training, in words. seed: of the samples'
    noise; None for a mean over seeds.
    """

    node: str
    method: str
    solver: str
    correction: str
    grid: str
    nfe: int
    training_step: int
    time_density: str
    seed: int | None
    score: Score


WHICH = tuple(name for name in Row.__annotations__ if name != "score")


class Scores(Artifact):
    """Every score of every set, each with its error, its floor and its protocol."""

    def load(self, every_seed: bool = False) -> list[Row]:
        """Rows in the order of the abscissa.

        Sets that differ in nothing but the seed are one row, their mean with the error over seeds,
        unless `every_seed` asks for the single sets, each with the error that one set has.
        """
        from stages.methods.protocol import Score

        rows, table = [], self._table()
        influences = _Influences(self.path)
        for line in table.to_pylist():
            single, headline = line.pop("single"), line.pop("headline")
            if not (single if every_seed else headline):
                continue
            which = {name: line.pop(name) for name in WHICH}
            protocol = {
                name.removeprefix("protocol_"): line.pop(name)
                for name in list(line)
                if name.startswith("protocol_")
            }
            influence = influences.of(line)
            score = Score.from_dict(line | {"protocol": protocol})
            rows.append(Row(**which, score=replace(score, influence=influence)))
        return rows

    def _table(self) -> Any:
        """Raises OldScoresError for a table that another version wrote."""
        import pyarrow.parquet

        table = pyarrow.parquet.read_table(self.path / FILE)
        found = (table.schema.metadata or {}).get(b"format", b"2 or older")
        if found != FORMAT:
            raise OldScoresError(
                f"the scores are of format {found.decode()}, and this version reads "
                f"{FORMAT.decode()}, whose errors come from influence values; run the recipe again"
            )
        return table


class OldScoresError(ValueError):
    """Scores that another version stored."""


class _Influences:
    """The influence values of a table's lines, read when a score's are looked at."""

    def __init__(self, folder: Path) -> None:
        import numpy as np

        self._values = np.load(folder / INFLUENCE, mmap_mode="r")
        self._strata = np.load(folder / STRATA, mmap_mode="r")

    def of(self, line: dict[str, Any]) -> Influence | None:
        """Takes the columns of influence values out of a line."""
        from stages.methods.protocol import Influence

        at, stratum, n, samples, network = (line.pop(name) for name in PLACES)
        if at is None:
            return None
        return Influence(self._values[at, :n], self._strata[stratum, :n], samples, network)


PLACES = ("influence", "strata", "influence_length", "samples", "network")


def row_of(node: str, facts: Mapping[str, Any], score: Score) -> Row:
    """The row of one set; `facts` is the set's description."""
    return Row(node=node, score=score, **{name: facts[name] for name in WHICH if name != "node"})


def mean_over_seeds(rows: Sequence[Row], facts: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """Rows of sets that differ in the seed alone become their mean; others stay as they are.

    facts: the description of every set, by node. Sets that do not differ at all stay apart.
    """
    from stages.methods.protocol import over_seeds

    groups: dict[str, list[str]] = {}
    for node, description in facts.items():
        same = {k: value for k, value in description.items() if k not in ("seed", "network")}
        groups.setdefault(repr(sorted(same.items())), []).append(node)
    averaged: list[Row] = []
    for nodes in groups.values():
        of = [[row for row in rows if row.node == node] for node in nodes]
        seeds = {facts[node]["seed"] for node in nodes}
        if len(nodes) == 1 or len(seeds) < len(nodes):
            averaged += [row for part in of for row in part]
            continue
        for together in zip(*of, strict=True):
            mean = over_seeds([row.score for row in together])
            averaged.append(replace(together[0], seed=None, score=mean))
    return averaged


def headline(rows: Sequence[Row]) -> dict[str, float]:
    """The scores of the last set, with error, seeds, floor and N of the Fréchet distance."""
    scores = {row.score.metric: row.score for row in rows if row.node == rows[-1].node}
    fid = scores["fid"]
    return {name: score.value for name, score in scores.items()} | {
        "fid_standard_error": fid.error,
        "fid_seeds": fid.num_seeds,
        "fid_floor": fid.floor,
        "fid_num_samples": fid.protocol.num_samples,
    }


def write(folder: Path, singles: Sequence[Row], headlines: Sequence[Row]) -> None:
    """Store the rows of single sets, and those that stand for the evaluation (means, and single
    sets that are in no mean)."""
    import pyarrow
    import pyarrow.parquet

    known = {id(row) for row in singles}
    shown = {id(row) for row in headlines}
    lines = [_line(row, single=True, headline=id(row) in shown) for row in singles]
    lines += [_line(row, single=False, headline=True) for row in headlines if id(row) not in known]
    places = _write_influences(folder, [row.score.influence for row in singles])
    nowhere = dict.fromkeys(PLACES)
    lines = [line | (places[i] if i < len(places) else nowhere) for i, line in enumerate(lines)]
    schema = pyarrow.schema([(name, _column_type(name, lines)) for name in lines[0]])
    table = pyarrow.Table.from_pylist(lines, schema.with_metadata({b"format": FORMAT}))
    pyarrow.parquet.write_table(table, folder / FILE)


def _write_influences(folder: Path, influences: Sequence[Influence | None]) -> list[dict[str, Any]]:
    """Write the distinct values and labels, one row each, filled up with NaN and -1; returns where
    each stands."""
    import numpy as np

    known = [one for one in influences if one is not None]
    values = list({id(one.psi): one.psi for one in known}.values())
    strata = list({one.strata.tobytes(): one.strata for one in known}.values())
    widest = max((len(psi) for psi in values), default=0)
    at = {id(psi): row for row, psi in enumerate(values)}
    labels_at = {of.tobytes(): row for row, of in enumerate(strata)}
    stored = np.full((len(values), widest), np.nan, np.float32)
    labels = np.full((len(strata), widest), -1, np.int64)
    for rows, found in ((stored, values), (labels, strata)):
        for row, one in zip(rows, found, strict=True):
            row[: len(one)] = one
    np.save(folder / INFLUENCE, stored)
    np.save(folder / STRATA, labels)

    def place(one: Influence | None) -> dict[str, Any]:
        if one is None:
            return dict.fromkeys(PLACES)
        where = (at[id(one.psi)], labels_at[one.strata.tobytes()], len(one.psi))
        return dict(zip(PLACES, (*where, one.samples, one.network), strict=True))

    return [place(one) for one in influences]


def _line(row: Row, **flags: bool) -> dict[str, Any]:
    score = row.score.to_dict()
    protocol = {f"protocol_{name}": value for name, value in score.pop("protocol").items()}
    return {name: getattr(row, name) for name in WHICH} | score | protocol | flags


def _column_type(name: str, lines: Sequence[dict[str, Any]]) -> Any:
    """By the column's values; numbers where all are missing."""
    import pyarrow

    if name in ("value", "error", "floor", "at_most"):
        return pyarrow.float64()
    values: Iterator[Any] = (line[name] for line in lines if line[name] is not None)
    if name in ("samples", "network"):
        return pyarrow.string()
    types = {bool: pyarrow.bool_(), str: pyarrow.string()}
    return types.get(type(next(values, 0)), pyarrow.int64())
