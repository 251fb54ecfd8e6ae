"""The node of a network trained elsewhere, which recipes run instead of training one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipeline.errors import UsageError
from pipeline.graph import Node
from stages.recipes.nodes import data_node, train_node, train_nodes
from stages.training import checkpoint
from stages.training.checkpoint import CheckpointSettings

if TYPE_CHECKING:
    from stages.bench import Bench

GIVEN = "checkpoint/given"


def given_node(bench: Bench, with_data: bool = True) -> Node | None:
    """`checkpoint/given`, the network at `networks.path`; None where one is trained.

    with_data: whether the preset's data set is read, which the network then has to fit. Raises
    UsageError where it does not, or the file does not say enough.
    """
    options = bench.networks
    if options.path is None:
        return None
    facts = options.facts() or {}
    named = f"networks.path={options.path}"
    if with_data:
        check_given(bench, facts, named)
    else:
        check_guided(bench, facts, named)
    settings = CheckpointSettings(**options.model_dump())
    tags = {"method": str(facts.get("method", options.format or "given"))}
    return Node(
        GIVEN,
        checkpoint.STAGE,
        settings,
        {"data": data_node(bench)} if with_data else {},
        bench.resources.checkpoint,
        tags,
    )


def check_given(bench: Bench, facts: Mapping[str, Any], named: str) -> None:
    """Raise UsageError for a network whose images have another shape than the data's, as far as
    both are known, and as `check_guided` does."""
    size, channels = bench.network_shape
    if (shape := facts.get("shape")) and size is not None:
        wanted = (shape[0] if channels is None else channels, size, size)
        if tuple(shape) != wanted:
            raise UsageError(
                f"{named} is a network of {' x '.join(map(str, shape))} (channels, height, width), "
                f"and the data are {' x '.join(map(str, wanted))}; set data to what it was trained "
                "on"
            )
    check_guided(bench, facts, named)


def check_guided(bench: Bench, facts: Mapping[str, Any], named: str) -> None:
    """Raise UsageError for guidance of a network that has nothing to be guided away from."""
    scale = bench.sample.guidance
    if bench.networks.guide is not None or scale == 1:
        return
    if not facts.get("num_classes", 1):
        raise UsageError(
            f"sample.guidance={scale:g}: {named} knows no classes, which guidance needs; set "
            "sample.guidance=1"
        )
    if not facts.get("null_class", True):
        raise UsageError(
            f"sample.guidance={scale:g}: {named} knows no input without a class; set "
            "networks.guide to a network without classes, or sample.guidance=1"
        )


def sees_images_alone(facts: Mapping[str, Any]) -> bool:
    """Whether a network has a denoiser of images alone, without a class token beside."""
    network = facts.get("config")
    return not (isinstance(network, dict) and network.get("class_token_dim"))


def model_node(bench: Bench) -> Node:
    """The network that recipes run: the one given, or the recipe's own training."""
    return given_node(bench) or train_node(bench)


def model_nodes(bench: Bench) -> list[Node]:
    """The network that recipes run, or all trainings."""
    given = given_node(bench)
    return train_nodes(bench) if given is None else [given]
