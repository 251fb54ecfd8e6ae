"""The stage `train`: a velocity network by a method of the SiT family, with EMA checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from pipeline.stage import Input, Stage, Workers, unkeyed
from stages.artifacts.data import Data
from stages.artifacts.network import TrainedNetwork
from stages.artifacts.spectrum import Spectrum
from stages.artifacts.teacher import Teacher
from stages.methods import table
from stages.settings import densities, methods
from stages.settings.densities import DensitySettings
from stages.settings.networks import TRANSFORMERS, NetworkSettings
from stages.settings.scans import LiveOptions, ScannedOptions

if TYPE_CHECKING:
    from pipeline.graph import Node
    from stages.settings.losses import LossOptions


class TrainOptions(methods.MethodOptions):
    """Network, optimizer, length and checkpoints of a training."""

    network: NetworkSettings = Field(NetworkSettings(), description="the network's size")
    density: DensitySettings | None = Field(
        None,
        description="where t is drawn; unset is uniform, and JiT's logit-normal for method=jit",
    )
    conditional: bool = Field(
        True, description="tell the network the images' classes; false trains without labels"
    )
    label_dropout: float = Field(
        0.1, ge=0, le=1, description="probability of training on the null class"
    )
    limit: int | None = Field(
        None, ge=2, description="training images used, the first ones; unset takes all"
    )
    lr: float = Field(5e-3, gt=0, le=10, description="learning rate of AdamW after the warm-up")
    betas: tuple[float, float] = Field((0.9, 0.95), description="AdamW's moment decays, in [0, 1)")
    weight_decay: float = Field(0.0, ge=0, le=10, description="AdamW's weight decay")
    warmup_steps: int = Field(20, ge=0, description="steps over which lr rises linearly")
    clip: float | None = Field(1.0, gt=0, description="largest norm of the gradient")
    batch_size: int = Field(64, ge=1, le=2**20, description="images a step, over all workers")
    steps: int = Field(1200, ge=1, le=10**8, description="optimizer steps")
    ema: float = Field(0.998, ge=0, lt=1, description="decay of the weights' moving average")
    ema_warm_up: bool = Field(
        True,
        description="let the decay grow to ema, as min(ema, (1+k)/(10+k)) after k updates; false "
        "holds it constant from the first update on, as the papers' codes do",
    )
    num_checkpoints: int = Field(
        4, ge=1, le=1000, description="checkpoints at equal distances, where none are listed"
    )
    checkpoint_steps: tuple[int, ...] = Field(
        (), description="steps whose EMA weights are kept; unset spaces num_checkpoints equally"
    )
    log_every: int = Field(25, ge=1, description="steps a point of the loss curves averages over")
    accumulate: int = Field(
        1,
        ge=1,
        le=2**20,
        description="parts of a worker's images that go through the network one after the other; "
        "their gradients add up to those of the whole",
    )
    readers: int | None = unkeyed(
        None,
        ge=0,
        le=256,
        description="threads of each worker that read the next batches while it trains; 0 reads "
        "between steps; unset is that on a CPU for small sets of plain arrays, else one for each "
        "of the worker's cores, at most 8",
    )
    activation_checkpointing: bool = unkeyed(
        False,
        description="keep of every block its inputs alone and compute it again, to the same "
        "numbers, for its gradient: about a third more time for a fraction of the memory",
    )
    save_every: int = unkeyed(200, ge=1, description="steps between resumable states")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="of the network's products; weights stay in float32"
    )
    compile: bool = Field(
        False, description="compile the network by its blocks (worth it on a GPU)"
    )
    deterministic: bool = Field(
        False,
        description="on a GPU: only kernels that add up in a fixed order, so that a training "
        "repeats, and goes on after an interruption, bit for bit; slower",
    )
    device: Literal["cpu", "cuda"] = Field("cpu", description="where training runs")
    num_workers: int | tuple[int, int] = Field(
        0,
        description="Ray Train workers; 0 trains in the node's own process; [min, max] takes as "
        "many as the cluster has and follows it",
    )
    shard: bool = Field(
        False,
        description="spread weights, gradients, optimizer and average over the workers, for "
        "networks beyond one GPU (sit and jit); each block comes together while it is computed",
    )
    max_failures: int = unkeyed(
        3,
        ge=-1,
        le=1000,
        description="with workers: how often they are started anew after one was lost, going on "
        "from the last state; -1 is without end",
    )

    @property
    def loss_options(self) -> LossOptions:
        """The chosen method's own settings, on this network."""
        return super().loss_options.on(self.network.kind)

    @property
    def drawn(self) -> DensitySettings:
        """Where t is drawn."""
        return self.density or self.loss_options.own_density()

    @property
    def kept_steps(self) -> tuple[int, ...]:
        """The steps whose EMA weights are kept, ascending; the last step is always one."""
        if self.checkpoint_steps:
            return tuple(sorted({*self.checkpoint_steps, self.steps}))
        parts = range(1, self.num_checkpoints + 1)
        return tuple(sorted({max(1, self.steps * i // self.num_checkpoints) for i in parts}))

    @model_validator(mode="after")
    def _fits_together(self) -> TrainOptions:
        beyond = [s for s in self.checkpoint_steps if not 1 <= s <= self.steps]
        if beyond:
            raise ValueError(
                f"checkpoint_steps has {beyond[0]}, which is not within steps={self.steps}; "
                "raise steps, or leave that checkpoint out"
            )
        if self.warmup_steps > self.steps:
            raise ValueError(
                f"warmup_steps={self.warmup_steps} is above steps={self.steps}; lower warmup_steps"
            )
        if self.log_every > self.steps:
            raise ValueError(
                f"log_every={self.log_every} is above steps={self.steps}, so the curves would be "
                f"empty; lower log_every"
            )
        self._check_workers()
        self._check_network()
        self._check_shard()
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas={self.betas} must both lie in [0, 1)")
        return self

    def _check_network(self) -> None:
        ours = self.loss_options.trains_denoiser
        if ours != (self.network.kind in table.DENOISERS):
            kind = {"jit": "jit"}.get(self.method, "unet") if ours else "sit"
            gives = "velocities" if ours else "denoised images"
            raise ValueError(
                f"method={self.method} and network.kind={self.network.kind} contradict each other: "
                f"that network gives {gives}; set network.kind={kind}"
            )
        self.loss_options.check(self)

    def _check_workers(self) -> None:
        low, high = self.worker_range
        if not 0 <= low <= high <= 4096 or (high != low and not low):
            raise ValueError(
                f"num_workers={self.num_workers} must be 0 to 4096, or [min, max] with "
                "1 <= min <= max <= 4096"
            )
        if self.batch_size < high:
            raise ValueError(
                f"batch_size={self.batch_size} is below num_workers={high}; raise batch_size"
            )
        if high and low == high and self.batch_size % high:
            least = self.batch_size // high * high
            raise ValueError(
                f"batch_size={self.batch_size} is not divisible by num_workers={high}; "
                f"try {least} or {least + high}"
            )

    def _check_shard(self) -> None:
        if not self.shard:
            return
        if self.worker_range[0] < 2:
            raise ValueError(
                f"shard=true and num_workers={self.num_workers} contradict each other: weights are "
                "spread over two workers or more; set num_workers=2, say, or shard=false"
            )
        if self.network.kind not in TRANSFORMERS:
            raise ValueError(
                f"shard=true and network.kind={self.network.kind} contradict each other: only "
                f"{' and '.join(TRANSFORMERS)} are spread; set shard=false"
            )

    @property
    def repeats_on_gpu(self) -> bool:
        """Whether kernels are to be chosen so that it repeats; on a CPU every training does."""
        return self.deterministic and self.device == "cuda"

    @property
    def worker_range(self) -> tuple[int, int]:
        """Fewest and most workers."""
        fixed = isinstance(self.num_workers, int)
        return (self.num_workers, self.num_workers) if fixed else self.num_workers


class TrainSettings(TrainOptions):
    """The stage's settings."""

    seed: int = Field(0, ge=0, description="of initial weights, order of images, and all draws")
    live: LiveOptions | None = Field(
        None, description="measure the ICR during training; scan.live sets it"
    )
    scanned: tuple[ScannedOptions, ...] = unkeyed(
        (),
        description="scans of this network that are to come: those that cannot be made are refused "
        "before the first step",
    )
    limit_setting: str = unkeyed(
        "train.limit", description="the setting that limit was given in, for messages"
    )
    start_step: int | None = Field(
        None, ge=1, description="with a start: its checkpoint to continue; unset is the last"
    )

    @model_validator(mode="after")
    def _is_watched_whole(self) -> TrainSettings:
        if self.shard and self.live is not None:
            raise ValueError(
                "shard=true and scan.live contradict each other: the network that is watched lies "
                "in parts on the workers; leave scan.live unset, or set shard=false"
            )
        return self

    def keyed(self) -> dict[str, Any]:
        """As the base's, the settings of other methods left out."""
        others = methods.OWN.keys() - {self.method}
        others |= {"live"} if self.live is None else set()
        others |= set() if self.shard else {"shard"}
        others |= set() if self.repeats_on_gpu else {"deterministic"}
        return {name: value for name, value in super().keyed().items() if name not in others}


def _needs(settings: TrainSettings) -> list[str]:
    spectrum = ["spectrum"] if densities.needs_spectrum(settings.drawn.kind) else []
    teacher = ["teacher"] if settings.loss_options.uses_teacher else []
    return spectrum + teacher + (["start"] if settings.start_step is not None else [])


def _workers(settings: TrainSettings) -> Workers | None:
    """The fewest Ray Train workers; each reserves a CPU, or a GPU alone."""
    count = settings.worker_range[0]
    on_gpus = settings.device == "cuda"
    reserved = {"cpus": 0 if on_gpus else count, "gpus": count if on_gpus else 0}
    return Workers(count, **reserved, setting="num_workers") if count else None


def _metrics(node: Node) -> tuple[str, ...]:
    settings = node.settings
    watched = settings.live is not None and not settings.loss_options.uses_class_token
    terms = (f"loss/{term}" for term in settings.loss_options.terms)
    return (*terms, "gradient_norm", *(["icr"] if watched else []))


STAGE = Stage(
    name="train",
    settings=TrainSettings,
    output=TrainedNetwork,
    run="stages.training.run:run",
    inputs={
        "data": Input(Data),
        "start": Input(TrainedNetwork, optional=True),
        "spectrum": Input(Spectrum, optional=True),
        "teacher": Input(Teacher, optional=True),
        "pixels": Input(Data, optional=True),  # that an online teacher looks at, of latents
    },
    sources=lambda settings: [
        table.LOSSES[settings.method],
        settings.loss_options.mathematics,
        table.TRAINED[settings.network.kind],
        *densities.sources(settings.drawn, settings.drawn.kind, settings.drawn.base),
        *([] if settings.live is None else [table.WATCH]),
    ],
    needs=_needs,
    workers=_workers,
    estimate="stages.training.expected:train",
    metrics=_metrics,
    curve_steps=lambda node: node.settings.steps,
)
