"""An artifact with plain facts of what it holds and of how that was made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from pipeline.artifact import Artifact


class DescribedArtifact(Artifact):
    """An artifact whose facts stand in the JSON file `facts`; each kind says which they are."""

    facts: ClassVar[str]

    @cached_property
    def description(self) -> dict[str, Any]:
        """The plain facts."""
        return json.loads((self.path / self.facts).read_text(encoding="utf-8"))

    @classmethod
    def describe(cls, folder: Path, facts: Mapping[str, Any]) -> None:
        """Write the facts into the folder of a payload."""
        (folder / cls.facts).write_text(
            json.dumps(facts, indent=1, sort_keys=True), encoding="utf-8"
        )
