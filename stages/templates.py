"""What recipes that make nodes from others' settings share: finding those, and naming by seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from stages import evaluate

if TYPE_CHECKING:
    from pipeline.graph import Node
    from stages.bench import Bench


# Network evaluations, as in lists of settings; the bounds are those of a sample node's nfe.
NFE = Annotated[int, Field(ge=1, le=10_000)]


def seed_suffix(bench: Bench, seed: int) -> str:
    """What the names of nodes of a seed end with; nothing for the run's own."""
    return "" if seed == bench.seed else f"-seed{seed}"


def reference_of(bench: Bench, nodes: Sequence[Node]) -> Node:
    """The samples of the recipe's own training that trajectory_rms refers to."""
    name = f"sample/{bench.train.method}-reference"
    return next(node for node in nodes if node.name == name)


def over_nfe(nodes: Sequence[Node]) -> Node:
    """The first scores over NFE."""
    return next(
        node for node in nodes if node.stage is evaluate.STAGE and node.settings.abscissa == "nfe"
    )
