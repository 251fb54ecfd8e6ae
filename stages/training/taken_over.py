"""Weights of a SiT, REPA or REG network from elsewhere for a training of another method.

Parts that the method adds and the file lacks (projector, class token, mixing blocks) keep their
fresh weights; mixing blocks begin as the identity, so that the first output is the file's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stages.settings.networks import differences

if TYPE_CHECKING:
    from torch import Tensor, nn

# The arguments of parts that may be added, each with how the names of its weights begin.
ADDED = {
    "class_token_dim": ("class_embedding.", "class_head."),
    "mix_layers": ("mixing.",),
    "teacher_dim": ("projector.",),
}
OF_PROJECTOR = ("projector_width", "alignment_depth")
# A class that attends cannot be taken out again; a projector only helps in training.
MAY_GO = "teacher_dim"


def check_fits(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Raise ValueError where a network of arguments `theirs` cannot become one of `ours`."""
    lost = [name for name in ADDED if theirs.get(name) and not ours.get(name) and name != MAY_GO]
    if lost:
        raise ValueError(
            f"the network to go on from has {lost[0]}={theirs[lost[0]]}, which this method's has "
            "not; choose a method with a class token (reg, maskalign)"
        )
    free = {name for name in ADDED if not theirs.get(name) or not ours.get(name)}
    free |= set(OF_PROJECTOR) if MAY_GO in free else set()
    kept = [{k: v for k, v in of.items() if k not in free} for of in (dict(ours), dict(theirs))]
    if other := differences(*kept):
        raise ValueError(f"the network to go on from has {', '.join(other)}; set train to be alike")


def take_over(
    network: nn.Module,
    state: Mapping[str, Tensor],
    ours: Mapping[str, Any],
    theirs: Mapping[str, Any],
) -> list[str]:
    """Give the network the weights of another; the arguments of what stays fresh.

    ours, theirs: keyword arguments of both. Raises ValueError where they do not fit.
    """
    check_fits(ours, theirs)
    fresh = [name for name in ADDED if ours.get(name) and not theirs.get(name)]
    left = [name for name in ADDED if theirs.get(name) and not ours.get(name)]
    gone = tuple(start for name in left for start in ADDED[name])
    kept = {k: v for k, v in state.items() if not (gone and k.startswith(gone))}
    if "class_token_dim" in fresh:
        # The class token's position is a row of zeros in front.
        patches = kept["positions"]
        kept["positions"] = patches.new_zeros(1 + len(patches), patches.shape[1])
        kept["positions"][1:] = patches
    given = network.load_state_dict(kept, strict=False)
    allowed = tuple(start for name in fresh for start in ADDED[name])
    missing = [name for name in given.missing_keys if not (allowed and name.startswith(allowed))]
    if missing or given.unexpected_keys:
        raise ValueError(f"the network to go on from lacks or adds {missing or given}")
    return fresh
