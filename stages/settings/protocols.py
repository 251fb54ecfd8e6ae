"""Protocols that published scores were measured under, and what a user may state of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field, model_validator

from pipeline.stage import Place, Settings, unkeyed

CLEAN = "clean"
PUBLISHED_SAMPLES = 50_000


@dataclass(frozen=True)
class Published:
    """Of one protocol: the kind of its weight file, the metrics it has, and what it is where
    nothing else is stated. best_of: sets of which the one of the least distance counts."""

    extractor: str
    metrics: tuple[str, ...]
    best_of: int
    crop: str
    num_samples: int = PUBLISHED_SAMPLES
    classes: str = "random"
    rounding: str = "nearest"


PUBLISHED = {
    "adm": Published(
        "inception", ("fid", "sfid", "inception_score", "precision", "recall"), 1, crop="adm"
    ),
    "edm": Published("inception", ("fid",), 3, crop="unknown"),
    "fd-dinov2": Published("dinov2-large", ("fid",), 3, crop="unknown"),
}


class ProtocolOptions(Settings):
    """Under which protocol sets are scored."""

    protocol: Literal["clean", "adm", "edm", "fd-dinov2"] = Field(
        CLEAN,
        description="clean: against the data's own images. The others are the published ones, "
        "against a reference file: adm (FID, sFID, Inception score, precision, recall of the ADM "
        "suite), edm (FID of EDM and EDM2), fd-dinov2 (FD of EDM2)",
    )
    reference: Place | None = unkeyed(
        None,
        description="published protocols: file with the reference's statistics, .npz or EDM2's "
        ".pkl; its contents, not its place, enter keys",
    )
    weights: Place | None = unkeyed(
        None,
        description="published protocols: weight file, or the folder that holds it; unset is the "
        "folder weights; its contents, not its place, enter keys",
    )
    resizer: Literal["tf", "pytorch", "clean"] | None = Field(
        None,
        description="published protocols: what resized the images of a reference that holds mu "
        "and sigma alone; such files do not say, so it is asked",
    )
    rounding: Literal["nearest", "down"] | None = Field(
        None,
        description="published protocols: how samples became 8 bits; nearest as SiT, DiT, EDM and "
        "JiT, down as REPA, REG and ADM",
    )
    crop: Literal["adm", "lanczos", "none", "unknown"] | None = Field(
        None, description="published protocols: how the reference's images were cropped"
    )
    classes: Literal["random", "balanced"] | None = Field(
        None,
        description="published protocols: how samples' classes are drawn; "
        "unset is as published, random",
    )
    best_of: int | None = Field(
        None,
        ge=1,
        le=100,
        description="published protocols: sets of protocol_samples, in order, of which the one of "
        "the least distance counts; unset is the published rule, 3 for edm and fd-dinov2",
    )
    protocol_samples: int = Field(
        PUBLISHED_SAMPLES,
        ge=10,
        le=10**7,
        description="published protocols: samples of a set; a run samples as many of them as its "
        "protocol takes, whatever sample.num_samples and sample.sweep_samples say",
    )
    device: Literal["cpu", "cuda"] = Field(
        "cpu",
        description="where distances between sets are computed; of published protocols also where "
        "features are",
    )

    readers: int | None = unkeyed(
        None,
        ge=0,
        le=256,
        description="published protocols: threads of each task that read the next images "
        "meanwhile; 0 reads between passes; unset is that on a CPU, and on a GPU one for each "
        "core, shared by the machine's GPUs, 16 at most",
    )

    @property
    def rounding_stated(self) -> str:
        """How samples become 8 bits."""
        own = "nearest" if self.protocol == CLEAN else PUBLISHED[self.protocol].rounding
        return self.rounding or own

    @model_validator(mode="after")
    def _protocol_fits(self) -> ProtocolOptions:
        if self.protocol == CLEAN:
            for name in ProtocolOptions.model_fields.keys() - {"protocol", "device"}:
                value = getattr(self, name)
                if value != ProtocolOptions.model_fields[name].default:
                    raise ValueError(
                        f"{name}={value} and protocol=clean contradict each other: only published "
                        f"protocols read it; set protocol to one of {', '.join(PUBLISHED)}"
                    )
        return self
