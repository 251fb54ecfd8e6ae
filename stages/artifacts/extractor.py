"""The network whose features score samples, with the facts of what it was checked on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import StageError
from pipeline.stage import resolve
from stages.artifacts.described import DescribedArtifact
from stages.methods import table

if TYPE_CHECKING:
    from stages.encoders.embedded import FeatureNetwork

WEIGHTS = "extractor.safetensors"


EMBEDDED = "embedded"


@dataclass(frozen=True)
class Identity:
    """What a protocol says of an extractor."""

    name: str
    weights_hash: str
    resize: str
    dimension: int


class Extractor(DescribedArtifact):
    """An extractor: its weights if it was trained here, what it is, and its validation. Facts:
    name, weights_hash, resize, dimension, and validation, `{kind: [[strength, distance], ...]}` of
    degraded real images (stages.methods.degradation)."""

    facts = "extractor.json"

    @property
    def identity(self) -> Identity:
        return Identity(**{name: self.description[name] for name in Identity.__annotations__})

    def load(self, weights: str | None = None, device: str = "cpu") -> FeatureNetwork:
        """The network: images (B, C, H, W) in [-1, 1] -> Features.

        weights: where the weight file of one that was not trained here lies now.

        Raises StageError when that file holds other weights than those it was made with.
        """
        from safetensors.torch import load_file

        kind = self.settings["kind"]
        build = resolve(table.EXTRACTORS[kind])
        if kind == EMBEDDED:
            return build(load_file(self.path / WEIGHTS), device)
        network = build(kind, weights, device)
        if network.weights_hash != self.identity.weights_hash:
            raise StageError(
                f"the weights of {kind} are not those that this extractor was made with (SHA-256 "
                f"{self.identity.weights_hash[:12]}); set extractor.weights to these"
            )
        return network
