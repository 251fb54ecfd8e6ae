"""A trained network at one checkpoint as the problem that a solver is given."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifact import open_artifact
from stages.artifacts.network import Guiding, as_denoiser
from stages.methods import drawn_at
from stages.settings.solvers import SolverOptions

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from pipeline.payload import Payload
    from stages.artifacts.network import TrainedModel, TrainedNetwork
    from stages.methods.path import Denoiser


MOST_SPANS = 4096  # of a GPU's work that a clock keeps before it adds them up


@dataclass(frozen=True)
class Calls:
    """How a network is called; results depend on it.

    precision: of its products, see `nets.precision`. compile: by its blocks. retained: whether an
    evaluation is gone through backwards several times.
    """

    precision: str = "float32"
    compile: bool = False
    retained: bool = False


PLAIN = Calls()


@dataclass
class Problem:
    """A model as solvers see it: states, and denoisers of blocks of samples.

    A state is an image, or an image with the class token that the network carries beside it, packed
    into one vector. precision: of the network's products.
    """

    network: Callable[..., Any]
    model: TrainedModel
    settings: SolverOptions
    guide: Callable[..., Any] | None = None
    precision: str = "float32"

    @cached_property
    def packing(self) -> Any:
        """How image and class token make one state; None without a token."""
        return self.model.packing

    @property
    def token_width(self) -> int:
        """Length of the class token beside the image, 0 for none."""
        return self.model.config.get("class_token_dim", 0)

    @property
    def coordinates(self) -> int | None:
        """The leading coordinates that are the image's; None for all."""
        return self.packing.image_coordinates if self.packing else None

    def noise(self, seed: int, indices: Tensor, step: int = drawn_at.INITIAL_NOISE) -> Tensor:
        """z ~ N(0, I) (B, ...) float64 of the samples `indices` (B,), for sampling by default."""
        from stages.methods.draws import Draws

        draws = Draws(seed, indices.to(self.settings.device), step)
        z = draws.noise(tuple(self.model.shape)).double()
        if self.packing is None:
            return z
        return self.packing.pack(z, draws.class_noise(self.token_width).double())

    @property
    def num_classes(self) -> int:
        """The classes that the network knows, 0 for none."""
        return self.model.known_classes

    def labels(self, indices: Tensor) -> Tensor:
        """Classes of the samples `indices`, (B,) long, in the shares that settings choose; 0 for
        networks that know none, which do without."""
        import torch

        counts = shares(self.model, self.settings.labels)
        # Powers of two, so that the blocks of a process share one list.
        taken = torch.from_numpy(_in_turn(counts, 1 << int(indices.max()).bit_length()))
        return taken[indices.cpu()].to(self.settings.device)

    def state_of(self, image: Tensor) -> Tensor:
        """An image (C, H, W) as a state, the class token being zero."""
        if self.packing is None:
            return image
        return self.packing.pack(image[None], image.new_zeros(1, self.token_width))[0]

    def images(self, state: Tensor) -> Tensor:
        """(B, C, H, W) of states."""
        return state if self.packing is None else self.packing.unpack(state)[0]

    def denoiser(self, labels: Tensor) -> Denoiser:
        """denoiser(y, s) of the samples with these labels (B,); one network call a block of them.

        The state is float64, the network float32 but for its products. Guidance calls the network
        on twice the samples. Raises ValueError for guidance of a network without classes.
        """
        options = self.settings
        guiding = Guiding(
            options.guidance,
            options.guidance_interval,
            options.guidance_channels,
            options.guidance_token,
        )

        def of(part: Tensor) -> Denoiser:
            return as_denoiser(self.model, self.network, part, self._timed, guiding, self.guide)

        parts = [of(part) for part in labels.split(self.settings.block_size)]
        return parts[0] if len(parts) == 1 else InBlocks(parts, self.settings.block_size)

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        from stages.nets.precision import products_in

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self._clock.running(), products_in(self.precision, self.settings.device):
                return call(*args, **kwargs)

        return timed

    @cached_property
    def _clock(self) -> Clock:
        return Clock(self.settings.device)

    @property
    def network_seconds(self) -> float:
        """What calls of the network took so far."""
        return self._clock.seconds()


class Clock:
    """Adds up what parts of the work took on a device, which nobody waits for meanwhile."""

    def __init__(self, device: str) -> None:
        self._on_gpu = device == "cuda"
        self._seconds = 0.0
        self._spans: list[tuple[Any, Any]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Counts what happens within."""
        if not self._on_gpu:
            begun = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - begun
            return
        import torch

        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        yield
        end.record()
        self._spans.append((begin, end))
        if len(self._spans) >= MOST_SPANS:
            self.seconds()

    def seconds(self) -> float:
        """Of all so far; waits for the device."""
        if self._spans:
            self._spans[-1][1].synchronize()
            taken = sum(begin.elapsed_time(end) for begin, end in self._spans)
            self._seconds, self._spans = self._seconds + taken / 1000, []
        return self._seconds


@dataclass(frozen=True)
class InBlocks:
    """A denoiser of many samples that calls one denoiser for each block of them."""

    parts: list[Denoiser]
    block_size: int

    def __call__(self, y: Tensor, s: float) -> Tensor:
        import torch

        blocks = zip(self.parts, y.split(self.block_size), strict=True)
        return torch.cat([part(block, s) for part, block in blocks])


def problem(
    trained: TrainedNetwork, settings: SolverOptions, step: int | None, calls: Calls = PLAIN
) -> tuple[Problem, int]:
    """The model at a checkpoint (None: the last), and that step.

    A network stays loaded in a worker process for the next shard or node that asks for it.
    """
    model = trained.load()
    step = model.steps[-1] if step is None else step
    network, guide = warm_network(trained.path, step, settings.device, calls.compile), None
    if model.guide is not None and settings.guidance != 1:
        guide = warm_guide(trained.path, settings.device, calls.compile)
    if calls.compile:
        from stages.nets.compiled import retain

        retain(calls.retained)  # also of networks that were warm
    return Problem(network, model, settings, guide, calls.precision), step


@lru_cache(maxsize=2)
def warm_network(
    folder: Path | Payload, step: int, device: str, compiled: bool = False
) -> nn.Module:
    """A frozen network, kept in this process."""
    network = open_artifact(folder).load().network(step, device)
    return _compiled(network) if compiled else network


def _compiled(network: nn.Module) -> nn.Module:
    from stages.nets.compiled import compile_network

    compile_network(network)
    return network


def shares(model: TrainedModel, labels: str) -> tuple[int, ...]:
    """The numbers in whose proportion a model's samples take labels; one number for a network that
    knows no classes, equal ones where nobody knows how many images it saw of each."""
    num_classes = model.known_classes
    if not num_classes:
        return (1,)
    counted = len(model.class_counts) == num_classes and sum(model.class_counts)
    if labels == "reference" and counted:
        return model.class_counts
    return (1,) * num_classes


@lru_cache(maxsize=4)
def _in_turn(counts: tuple[int, ...], n: int) -> np.ndarray:
    """Labels of the first n samples, which do not depend on n."""
    from stages.methods.strata import in_turn

    return in_turn(counts, n)


@lru_cache(maxsize=1)
def warm_guide(folder: Path | Payload, device: str, compiled: bool = False) -> nn.Module:
    """The network that guidance leads away from, kept in this process."""
    guide = open_artifact(folder).load().guide.network(device=device)
    return _compiled(guide) if compiled else guide


def stream(seed: int, purpose: str, index: int, device: str = "cpu") -> Any:
    """A generator of its own for each purpose and block, apart from the sampling noise."""
    import numpy as np
    import torch

    words = np.random.SeedSequence([seed, index, *purpose.encode()]).generate_state(2)
    return torch.Generator(device).manual_seed(int(words[0]) << 31 | int(words[1]))
