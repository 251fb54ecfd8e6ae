"""What a quarter of an hour on one GPU is for: `python -m tests.bench.gpu --seconds 440 --out DIR`.

Phases in order of worth, each a JSON line in DIR/gpu.jsonl as soon as it is measured; a phase that
fails says why and the next one begins; none begins after the time is up. Needs torch 2.11 or newer,
and neither Ray nor MLflow. `--device cpu --tiny` runs all of it small. `--show FILE` prints the
lines beside their targets.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from stages.artifacts.teacher import TeacherFeatures
from stages.methods import maskalign, reg, repa
from stages.methods.density import LogitNormal, Mixture, min_snr
from stages.methods.draws import Draws
from stages.methods.path import VelocityDenoiser
from stages.methods.solvers import solve
from stages.methods.torchvision_shim import prepare_torchvision
from stages.nets.blocks import recompute
from stages.nets.compiled import compile_network
from stages.nets.precision import CUBLAS, REPEATS, products_in, repeatable
from stages.nets.sit import SiT
from stages.training.loop import Batches, Optimization, TrainState, train
from stages.training.saving import Saver
from tests.bench.training import TEACHER, Training, data, training_flops
from tests.nets.sizes import SIZES

Record = dict[str, Any]
PEAK = 989e12  # dense bfloat16 flops a second of an H100 SXM; --peak says another card's
PAPER_RATIO = 0.883  # MaskAlign's step over REG's (arXiv 2606.08788)
TARGETS = {  # of a record's value, by its name: least or most
    "training/B/compiled/maskalign_over_reg": ("at most", 0.88),
    "training/XL/compiled/maskalign_over_reg": ("at most", 0.88),
    "training/B/compiled/reg/utilisation": ("at least", 0.40),
    "sampling/XL/bfloat16_compiled_over_float32": ("at least", 6.0),
    "training/waits_a_step": ("at most", 0),
    "feeding/waiting_share": ("at most", 0.05),
    "correctness/float32": ("at most", 1e-4),
    "correctness/bfloat16": ("at most", 3e-2),
    "correctness/compiled": ("at most", 1e-4),
    "correctness/draws": ("at most", 1e-6),
    "resume/deterministic/resumed": ("at most", 0),
    "resume/deterministic/compiled/resumed": ("at most", 0),
    "scoring/host_gib": ("at most", 2),
    "scoring/gpu_gib": ("at most", 2),
}


@dataclass(frozen=True)
class Bench:
    """Where it runs, how large, and until when."""

    device: str
    tiny: bool
    deadline: float
    peak: float = PEAK

    @property
    def is_gpu(self) -> bool:
        return self.device == "cuda"

    def sizes(self) -> tuple[str, ...]:
        return ("tiny",) if self.tiny else ("B", "XL")

    def network(self, size: str, method: str = "sit", channels: int = 4) -> SiT:
        """A SiT of 256 tokens (tiny: 16), for a method of the bench; heads are not left at 0."""
        shape = {"width": 32, "depth": 4, "num_heads": 2} if size == "tiny" else SIZES[size]
        more: Record = {"alignment_depth": 4 if size in ("tiny", "B") else 8}
        if method != "sit":
            more |= {"class_token_dim": TEACHER, "teacher_dim": TEACHER}
        if method == "repa":
            del more["class_token_dim"]
        if method == "maskalign":
            more |= {"mix_layers": 2}
        torch.manual_seed(0)
        side = 8 if size == "tiny" else 32
        network = SiT(image_size=side, channels=channels, num_classes=1000, **shape, **more)
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.requires_grad and not parameter.any():
                    parameter.normal_(std=0.02)
        return network.to(self.device)

    def seconds(self, call: Callable[[], object], least: int = 3, most: float = 4.0) -> float:
        """Median seconds of a call, after one that warms up, over about `most` seconds."""
        call()
        self.wait()
        taken: list[float] = []
        begun = time.perf_counter()
        while len(taken) < least or time.perf_counter() - begun < (0.2 if self.tiny else most):
            start = time.perf_counter()
            call()
            self.wait()
            taken.append(time.perf_counter() - start)
        return median(taken)

    def in_turn(self, calls: Mapping[str, Callable[[], object]], rounds: int = 12) -> Record:
        """Median seconds of each call, the calls taking turns, after two of each that warm up."""
        taken: dict[str, list[float]] = {name: [] for name in calls}
        for number in range(2 + (2 if self.tiny else rounds)):
            for name, call in calls.items():
                self.wait()
                start = time.perf_counter()
                call()
                self.wait()
                if number >= 2:
                    taken[name].append(time.perf_counter() - start)
        return {name: median(seconds) for name, seconds in taken.items()}

    def compiled(self, network: torch.nn.Module) -> torch.nn.Module:
        """The network, compiled as trainings and samplings compile; small ones are only traced,
        which takes no compiler."""
        compile_network(network, backend="eager" if self.tiny else "inductor")
        return network

    def wait(self) -> None:
        if self.is_gpu:
            torch.cuda.synchronize()

    def memory(self) -> float:
        """GiB held now; the most from here on is counted anew."""
        if not self.is_gpu:
            return 0.0
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**30

    def most_memory(self) -> float:
        """GiB at most since `memory` was asked."""
        return torch.cuda.max_memory_allocated() / 2**30 if self.is_gpu else 0.0


def ceilings(bench: Bench) -> Iterator[tuple[str, float]]:
    """What the card gives at best: copies and a product in bfloat16."""
    n = 256 if bench.tiny else 8192
    a = torch.randn(n, n, device=bench.device, dtype=torch.bfloat16)
    yield "tflops_bfloat16", 2 * n**3 / bench.seconds(lambda: a @ a) / 1e12
    b = torch.empty_like(a)
    yield "copy_gb_a_second", 2 * a.numel() * 2 / bench.seconds(lambda: b.copy_(a)) / 1e9


def correctness(bench: Bench) -> Iterator[tuple[str, float]]:
    """One network on the CPU and on the device, in each precision; draws; attention's kernels."""
    size = bench.sizes()[0]
    network = bench.network(size).eval()
    side, count = network.image_size[0], 2
    x, t = torch.randn(count, 4, side, side), torch.tensor([0.3, 0.8])
    labels = torch.tensor([1, 2])
    there = [one.to(bench.device) for one in (x, t, labels)]
    with torch.no_grad():
        ours = network(*there).float().cpu()
        if bench.is_gpu:
            expected = bench.network(size).cpu().eval()(x, t, labels)
        else:
            expected = network.double()(x.double(), t.double(), labels).float()
            network.float()

        def apart(found: torch.Tensor) -> float:
            return float((found.float().cpu() - expected).norm() / expected.norm())

        yield "float32", apart(ours)
        with torch.autocast(bench.device, torch.bfloat16):
            yield "bfloat16", apart(network(*there))
        yield "compiled", apart(bench.compiled(network)(*there))
    rows = torch.arange(64)
    here, far = (Draws(0, r).noise((4, 8, 8)).cpu() for r in (rows, rows.to(bench.device)))
    yield "draws", float((here - far).abs().max())
    for tokens in (257, 193):
        q = torch.randn(2, 6, tokens, 64, device=bench.device)
        q = q.bfloat16() if bench.is_gpu else q
        kernel = "FLASH_ATTENTION" if bench.is_gpu else "MATH"
        backend = getattr(torch.nn.attention.SDPBackend, kernel)
        with torch.nn.attention.sdpa_kernel(backend):
            fast = F.scaled_dot_product_attention(q, q, q)
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            exact = F.scaled_dot_product_attention(*[q.float()] * 3)
        yield f"attention_{tokens}", float((fast.float() - exact).abs().max())


METHODS = {"repa": repa.Loss, "reg": reg.Loss, "maskalign": maskalign.Loss}


def _trained(bench: Bench, size: str, method: str, batch: int) -> Training:
    network = bench.network(size, method)
    inputs = data(batch, 4 if size == "tiny" else 16, 4, bench.device)
    return Training(network, METHODS[method](), *inputs, bfloat16=bench.is_gpu)


def training(bench: Bench) -> Iterator[tuple[str, float]]:
    """Steps a second, flops utilisation and memory of each size, REG and MaskAlign in turn;
    compiled, and the smaller one as it is, too."""
    for size in bench.sizes():
        batch = {"tiny": 4, "B": 256, "XL": 64}[size]
        tokens = 17 if size == "tiny" else 257
        for how in ("compiled",) if size == "XL" else ("eager", "compiled"):
            sides: dict[str, Training] = {}
            for method in ("reg", "maskalign"):
                held = bench.memory()
                sides[method] = one = _trained(bench, size, method, batch)
                if how == "compiled":
                    bench.compiled(one.network)
                began = time.perf_counter()
                one.step()
                bench.wait()
                yield f"{size}/{how}/{method}/first_step_seconds", time.perf_counter() - began
                yield f"{size}/{how}/{method}/memory_gib", bench.most_memory() - held
            seconds = bench.in_turn({name: one.step for name, one in sides.items()})
            for method, one in sides.items():
                kept = tokens if method == "reg" else 1 + (tokens - 1) * 3 // 4
                flops = training_flops(one.network, kept, mixed_tokens=tokens) * batch
                name = f"{size}/{how}/{method}"
                yield f"{name}/steps_a_second", 1 / seconds[method]
                yield f"{name}/utilisation", flops / seconds[method] / bench.peak
            yield f"{size}/{how}/maskalign_over_reg", seconds["maskalign"] / seconds["reg"]


KINDS = {  # of a step's kernels, by parts of their names; "rest" is of no kind
    "products": ("nvjet", "gemm", "cutlass", "splitK", "aten::mm", "aten::addmm", "aten::bmm"),
    "attention": ("sdpa", "flash", "fmha", "cudnn::fusion", "attention"),
    "blocks": ("triton",),
}
FULL = "Command Buffer Full"  # no kernel: the host is far ahead


def kernels(bench: Bench) -> Iterator[tuple[str, float]]:
    """Where the time of a compiled step of REG goes: milliseconds of each kind of kernels, and the
    arithmetic of blocks and projector over the time of products and attention."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    size, batch, steps = bench.sizes()[0], 4 if bench.tiny else 256, 3
    one = _trained(bench, size, "reg", batch)
    bench.compiled(one.network)
    seconds = bench.seconds(one.step, most=1.0)
    traced = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * bench.is_gpu
    with profile(activities=traced) as found:
        for _ in range(steps):
            one.step()
        bench.wait()
    spent = dict.fromkeys((*KINDS, "rest"), 0.0)
    for event in found.events():
        if (event.device_type == DeviceType.CPU) == bench.is_gpu or event.name == FULL:
            continue
        ours = [kind for kind, names in KINDS.items() if any(n in event.name for n in names)]
        time_us = event.device_time if bench.is_gpu else event.self_cpu_time_total
        spent[ours[0] if ours else "rest"] += time_us / 1e3 / steps
    for kind, milliseconds in spent.items():
        yield f"{size}/{kind}_ms", milliseconds
    yield f"{size}/step_ms", seconds * 1e3
    tokens = one.network.num_patches + 1
    flops = training_flops(one.network, tokens, mixed_tokens=tokens) * batch
    busy = spent["products"] + spent["attention"]
    yield f"{size}/tflops_while_at_arithmetic", flops / busy / 1e9


def host(bench: Bench) -> Iterator[tuple[str, float]]:
    """REG's steps a second on a small network, compiled, of more and more images: where they stay
    the same the host is the limit."""
    shape = SIZES["S"] if not bench.tiny else {"width": 32, "depth": 2, "num_heads": 2}
    more = {"class_token_dim": TEACHER, "teacher_dim": TEACHER, "projector_width": 1024}
    for batch in (2, 4) if bench.tiny else (128, 256):
        network = SiT(32, channels=1, num_classes=62, alignment_depth=2, **shape, **more)
        bench.compiled(network.to(bench.device))
        one = Training(network, reg.Loss(), *data(batch, 16, 1, bench.device), bench.is_gpu)
        yield f"{batch}/steps_a_second", 1 / bench.seconds(one.step, most=2.0)


class _Latents:
    """A mapped file of latents, as the loop reads images."""

    def __init__(self, path: Path, count: int, shape: Sequence[int]) -> None:
        values = np.random.default_rng(0).standard_normal((count, *shape), np.float32)
        np.save(path, values.astype(np.float16))
        self.rows = np.load(path, mmap_mode="r")

    def __len__(self) -> int:
        return len(self.rows)

    def raw(self, which: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.rows[which.numpy()])

    def finish(self, raw: torch.Tensor, draws: Draws | None = None) -> torch.Tensor:
        return raw.float()


def feeding(bench: Bench) -> Iterator[tuple[str, float]]:
    """REG through the training loop, its latents and its teacher's features read from disk: the
    share of the time in which the device had nothing to do, and how long a save holds it up."""
    size, steps = bench.sizes()[0], 6 if bench.tiny else 30
    batch, count, readers = (4, 16, 1) if bench.tiny else (256, 1024, 8)
    patches, side = (16, 8) if bench.tiny else (256, 32)
    network = bench.network(size, "reg")
    precision = "bfloat16" if bench.is_gpu else "float32"
    state = TrainState(network, Optimization(lr=1e-4, precision=precision))
    bench.compiled(network)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        images = _Latents(place / "latents.npy", count, (4, side, side))
        patch = _Latents(place / "patches.npy", count, (patches, TEACHER)).rows
        teacher = TeacherFeatures(patch, np.array(patch[:, 0]))
        labels = torch.arange(count) % 1000
        read = (images, labels, batch, 0, bench.device, teacher)
        with Batches(*read, readers=readers, end=2 * steps) as batches:
            for _ in train(state, reg.Loss(), batches, steps // 2):
                pass
            bench.wait()
            waited, began = batches.waited, time.perf_counter()
            for _ in train(state, reg.Loss(), batches, steps + steps // 2):
                pass
            bench.wait()
            seconds = time.perf_counter() - began
            yield "steps_a_second", steps / seconds
            yield "waiting_share", (batches.waited - waited) / seconds
            with Saver(place, lambda: None) as saver:
                for again in ("first", "next"):  # the first takes pinned memory
                    bench.wait()
                    began = time.perf_counter()
                    saver.state(state.step, state.tensors(), {})
                    yield f"{again}_save_holds_up_seconds", time.perf_counter() - began
                    saver.wait()
                    yield f"{again}_save_written_seconds", time.perf_counter() - began


def waits(bench: Bench) -> Iterator[tuple[str, float]]:
    """How often a step of each method waits for the device, t drawn as CSFlow draws it: it raises
    where one does."""
    drawn = Mixture(min_snr(), LogitNormal(), 0.4)  # constant between knots, over a smooth one
    for method in METHODS:
        one = _trained(bench, bench.sizes()[0], method, 4)
        one.loss = METHODS[method](time_density=drawn)
        one.step()
        bench.wait()
        if bench.is_gpu:
            torch.cuda.set_sync_debug_mode("error")
        try:
            one.step()
        except RuntimeError:
            yield "waits_a_step", 1.0
            raise
        finally:
            if bench.is_gpu:
                torch.cuda.set_sync_debug_mode("default")
    yield "waits_a_step", 0.0


def sampling(bench: Bench) -> Iterator[tuple[str, float]]:
    """Images a second of 10 steps of DPM-Solver++ 2M in each precision, compiled and not."""
    size, count = bench.sizes()[-1], 4 if bench.tiny else 64
    network = bench.network(size).eval().requires_grad_(False)
    side = 8 if size == "tiny" else 32
    levels = torch.cat([torch.logspace(2, -2, 10, dtype=torch.float64), torch.zeros(1)])
    noise = levels[0].item() * torch.randn(count, 4, side, side, device=bench.device)
    labels = torch.arange(count, device=bench.device) % 1000
    denoiser = VelocityDenoiser(network, {"labels": labels}, dtype=torch.float32)
    rates = {}
    for how in ("eager", "compiled"):
        if how == "compiled":
            bench.compiled(network)
        for precision in ("float32", "tf32", "bfloat16"):

            @torch.no_grad()
            def draw(precision=precision) -> None:
                with products_in(precision, bench.device):
                    solve(denoiser, noise, levels, "dpmpp2m")

            rates[precision, how] = count / bench.seconds(draw, least=2)
            yield f"{size}/{precision}/{how}/images_a_second", rates[precision, how]
    best, plain = rates["bfloat16", "compiled"], rates["float32", "eager"]
    yield f"{size}/bfloat16_compiled_over_float32", best / plain


def features(bench: Bench) -> Iterator[tuple[str, float]]:
    """Images a second of the extractors' networks, freshly initialised."""
    prepare_torchvision()
    import timm
    import torchvision

    count = 2 if bench.tiny else 128
    nets = {
        "inception": (torchvision.models.inception_v3(weights=None, init_weights=False), 299),
        "dinov2-base": (timm.create_model("vit_base_patch14_dinov2", img_size=224), 224),
    }
    for name, (network, side) in nets.items():
        network = network.eval().to(bench.device)
        images = torch.randn(count, 3, side, side, device=bench.device)

        @torch.no_grad()
        def embed(network=network, images=images) -> None:
            network(images)

        yield f"{name}/images_a_second", count / bench.seconds(embed, least=1)


def scoring(bench: Bench) -> Iterator[tuple[str, float]]:
    """Seconds of scores of 50,000 samples against 10,000 images, of 2,048 features in files, and
    the memory that they take beyond these."""
    from tests.bench import scoring as sets

    counts, dimension = ((400, 300), 16) if bench.tiny else ((50_000, 10_000), 2048)
    with tempfile.TemporaryDirectory() as folder:
        x, y = (
            sets.written(Path(folder), str(count), count, dimension, seed)
            for seed, count in enumerate(counts)
        )
        host = there = 0.0
        for name, call in sets.phases(x, y, bench.device).items():
            seconds, *taken = sets.measured(call, bench.device)
            yield f"{name}/seconds", seconds
            host, there = max(host, taken[0]), max(there, taken[1])
        yield "host_gib", host / 1024
        yield "gpu_gib", there / 1024


def decoding(bench: Bench) -> Iterator[tuple[str, float]]:
    """Images a second of an autoencoder of Stable Diffusion's size, freshly initialised."""
    prepare_torchvision()
    from diffusers import AutoencoderKL

    widths = (32, 32) if bench.tiny else (128, 256, 512, 512)
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * len(widths)}
    kinds["up_block_types"] = ("UpDecoderBlock2D",) * len(widths)
    network = AutoencoderKL(block_out_channels=widths, latent_channels=4, **kinds).eval()
    network, count = network.to(bench.device), 2 if bench.tiny else 16
    latents = torch.randn(count, 4, *(8, 8) if bench.tiny else (32, 32), device=bench.device)

    @torch.no_grad()
    def decode() -> None:
        with torch.autocast(bench.device, torch.bfloat16, enabled=bench.is_gpu):
            network.decode(latents)

    yield "images_a_second", count / bench.seconds(decode, least=1)


def resume(bench: Bench) -> Iterator[tuple[str, float]]:
    """Four steps twice, and two, a save, a load and two more: how far the weights are apart; as
    trainings run by default, and with `train.deterministic`, then compiled, too. And its cost."""
    size = bench.sizes()[0]

    def run(compiled: bool, steps: Sequence[int], state: Record | None = None) -> Training:
        torch.manual_seed(1)
        one = _trained(bench, size, "reg", 4)
        if state is not None:
            one.network.load_state_dict(state["network"])
            one.optimizer.load_state_dict(state["optimizer"])
        if compiled:
            bench.compiled(one.network)
        for step in steps:
            one.batch = replace(one.batch, draws=one.batch.draws.at(step))
            one.step()
        return one

    def apart(one: Training, other: Training) -> float:
        pairs = zip(one.network.parameters(), other.network.parameters(), strict=True)
        return max(float((a - b).detach().abs().max()) for a, b in pairs)

    ways = {"default": (False, False), "deterministic": (True, False)}
    ways["deterministic/compiled"] = True, True
    for name, (deterministic, compiled) in ways.items():
        with repeatable(deterministic):
            whole = run(compiled, range(4))
            yield f"{name}/repeated", apart(whole, run(compiled, range(4)))
            half = run(compiled, range(2))
            state = {"network": half.network.state_dict(), "optimizer": half.optimizer.state_dict()}
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "state.pt"
                torch.save(state, path)
                kept = torch.load(path, map_location=bench.device, weights_only=True)
            yield f"{name}/resumed", apart(whole, run(compiled, range(2, 4), kept))
    del whole, half, state, kept
    for deterministic in (False, True):
        one = _trained(bench, size, "reg", 4 if bench.tiny else 256)
        with repeatable(deterministic):
            bench.compiled(one.network)
            rate = 1 / bench.seconds(one.step, most=2.0)
        name = "deterministic" if deterministic else "default"
        yield f"{name}/compiled_steps_a_second", rate


def recomputed(bench: Bench) -> Iterator[tuple[str, float]]:
    """REG compiled, with and without activation checkpointing: steps a second and memory."""
    size, batch = bench.sizes()[-1], 4 if bench.tiny else 64
    for name in ("kept", "recomputed"):
        held = bench.memory()
        one = _trained(bench, size, "reg", batch)
        if name == "recomputed":
            recompute(one.network)
        bench.compiled(one.network)
        yield f"{size}/{name}/steps_a_second", 1 / bench.seconds(one.step, most=1.0)
        yield f"{size}/{name}/memory_gib", bench.most_memory() - held
        del one  # before the next one's memory is counted


def stages(bench: Bench) -> Iterator[tuple[str, float]]:
    """Every node of the smoke preset on the device, in this process."""
    from pipeline.plan import Request
    from pipeline.store import Store
    from stages.catalog import CATALOG
    from tests.inline import run_all

    preset = "smoke-gpu" if bench.is_gpu else "smoke"
    recipe = ("wavelet", "wavelet.in_full=true") if bench.tiny else ("full",)
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        request = Request(recipe[0], preset, recipe[1:])
        yield "nodes", len(run_all(CATALOG, Store(folder), request))
        yield "seconds", time.perf_counter() - begun


def nccl(bench: Bench) -> Iterator[tuple[str, float]]:
    """A group of one process: that its collectives work here, and how far weights are from those
    of a plain training where they are sharded over it (FSDP2)."""
    import torch.distributed as dist

    def trained(shard_on: str | None) -> list[torch.Tensor]:
        network = bench.network(bench.sizes()[0], "reg")
        state = TrainState(network, Optimization(lr=1e-4), shard_on=shard_on)
        batch = _trained(bench, bench.sizes()[0], "reg", 4).batch
        for _ in train(state, reg.Loss(), lambda step: batch, 2):
            pass
        return [value.cpu() for value in state.tensors().values()]

    with tempfile.TemporaryDirectory() as folder:
        backend = "nccl" if bench.is_gpu else "gloo"
        place = f"file://{folder}/group"
        dist.init_process_group(backend, init_method=place, rank=0, world_size=1)
        try:
            ones = torch.ones(8, device=bench.device)
            dist.all_reduce(ones)
            yield "sum", float(ones.sum())
            pairs = zip(trained(None), trained(bench.device), strict=True)
            yield (
                "sharded",
                max(float((a - b).abs().max()) for a, b in pairs if b.is_floating_point()),
            )
        finally:
            dist.destroy_process_group()


PHASES = (
    *(ceilings, correctness, waits, training, sampling, feeding, resume, recomputed, kernels),
    *(host, nccl, features, scoring, decoding, stages),
)


def run(bench: Bench, out: Path, only: Sequence[str] = ()) -> list[Record]:
    """Every phase (or only some) that there is time for; its records, also written as they come."""
    records: list[Record] = []
    with out.open("a", encoding="utf-8") as stream:

        def write(name: str, **said: Any) -> None:
            record = {"name": name, **said}
            records.append(record)
            stream.write(json.dumps(record) + "\n")
            stream.flush()

        card = torch.cuda.get_device_name() if bench.is_gpu else "cpu"
        write("device", text=f"{card}, torch {torch.__version__}")
        for phase in PHASES:
            if only and phase.__name__ not in only:
                continue
            if time.monotonic() > bench.deadline:
                write(phase.__name__, error="no time was left")
                continue
            prefix = "training" if phase is waits else phase.__name__
            try:
                for name, value in phase(bench):
                    write(f"{prefix}/{name}", value=value)
                    if time.monotonic() > bench.deadline:
                        write(phase.__name__, error="ended early: the time was up")
                        break
            except Exception as error:
                last = traceback.extract_tb(error.__traceback__)[-1]
                where = f"{Path(last.filename).name}:{last.lineno}"
                write(phase.__name__, error=f"{type(error).__name__}: {error} ({where})")
            if bench.is_gpu:
                torch.cuda.empty_cache()
    return records


def shown(records: Sequence[Record]) -> str:
    """Records as a table beside their targets."""
    lines = ["| measured | value | target | |", "|---|---|---|---|"]
    for record in records:
        name = record["name"]
        if "value" not in record:
            lines.append(f"| {name} | {record.get('text', record.get('error'))} | | |")
            continue
        side, target = TARGETS.get(name, ("", None))
        value = record["value"]
        verdict = ""
        if target is not None:
            verdict = (
                "met" if (value <= target if side == "at most" else value >= target) else "MISSED"
            )
        aim = f"{side} {target:g}" if target is not None else ""
        lines.append(f"| {name} | {value:.4g} | {aim} | {verdict} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=440, help="when no phase begins any more")
    parser.add_argument("--out", type=Path, default=Path("."), help="folder of gpu.jsonl")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="everything small")
    parser.add_argument("--peak", type=float, default=PEAK, help="bfloat16 flops a second")
    names = [phase.__name__ for phase in PHASES]
    parser.add_argument("--only", nargs="+", choices=names, default=(), help="these phases alone")
    parser.add_argument("--show", type=Path, metavar="FILE", help="print what was measured before")
    options = parser.parse_args()
    if options.show:
        lines = options.show.read_text(encoding="utf-8").splitlines()
        print(shown([json.loads(line) for line in lines]))
        return
    os.environ.setdefault(CUBLAS, REPEATS[0])  # before any product
    deadline = time.monotonic() + options.seconds
    options.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(options.device, options.tiny, deadline, options.peak)
    print(shown(run(bench, options.out / "gpu.jsonl", options.only)))


if __name__ == "__main__":
    main()
