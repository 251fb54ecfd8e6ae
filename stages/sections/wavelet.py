"""Wavelet scores in the report: risks beside baselines and networks, maps, curves and filters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stages.page import Section


def sections(inputs: Mapping[str, Any]) -> list[Section]:
    """The sections of a run that measured risks."""
    return []
