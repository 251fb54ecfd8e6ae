"""The scores of an evaluation on disk: single sets, and means over sets that differ in their seed.

A mean over seeds has the error of its seeds; a single set has the error that one set of images
gives. Which of the two an error is stands in its score, and the two are never mixed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifact import Artifact

if TYPE_CHECKING:
    from stages.methods.protocol import Score

FILE = "scores.parquet"


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
        import pyarrow.parquet

        from stages.methods.protocol import Score

        rows = []
        for line in pyarrow.parquet.read_table(self.path / FILE).to_pylist():
            single, headline = line.pop("single"), line.pop("headline")
            if not (single if every_seed else headline):
                continue
            which = {name: line.pop(name) for name in WHICH}
            protocol = {
                name.removeprefix("protocol_"): line.pop(name)
                for name in list(line)
                if name.startswith("protocol_")
            }
            rows.append(Row(**which, score=Score.from_dict(line | {"protocol": protocol})))
        return rows


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
        same = {name: value for name, value in description.items() if name != "seed"}
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
    schema = pyarrow.schema([(name, _column_type(name, lines)) for name in lines[0]])
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(lines, schema), folder / FILE)


def _line(row: Row, **flags: bool) -> dict[str, Any]:
    score = row.score.to_dict()
    protocol = {f"protocol_{name}": value for name, value in score.pop("protocol").items()}
    return {name: getattr(row, name) for name in WHICH} | score | protocol | flags


def _column_type(name: str, lines: Sequence[dict[str, Any]]) -> Any:
    """By the column's values; numbers where all are missing."""
    import pyarrow

    if name in ("value", "error", "floor"):
        return pyarrow.float64()
    values: Iterator[Any] = (line[name] for line in lines if line[name] is not None)
    types = {bool: pyarrow.bool_(), str: pyarrow.string()}
    return types.get(type(next(values, 0)), pyarrow.int64())
