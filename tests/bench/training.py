"""Training and sampling speed of the SiT family: `python -m tests.bench.training`.

Prints each measured ratio beside its target. The counterparts are built here from the published
descriptions: separate modules, an optimizer and an average that loop over parameters, an
alignment that loops over samples and normalises both sides, and a projector that runs at
inference too. Both sides take turns, and a ratio is that of medians of CPU time per step, so
that other work on the machine moves it little. The teacher's features are given to both.

With a GPU (`--device cuda`): steps a second and model-flops utilisation of REG and MaskAlign at
B/2 and XL/2, compiled and not.
"""

import argparse
import copy
import math
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.methods import maskalign, reg
from stages.methods.draws import Draws
from stages.methods.ema import EMA, adamw
from stages.methods.losses import Batch, patch_targets
from stages.nets.sit import SiT
from tests.nets.sizes import SIZES

TEACHER = 768


class PlainBlock(nn.Module):
    """A SiT block as its paper describes it."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
        )
        self.adaln = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def attention(self, x: Tensor) -> Tensor:
        B, T, width = x.shape
        qkv = self.qkv(x).reshape(B, T, 3, self.num_heads, width // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(B, T, width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaln(c).chunk(6, dim=1)
        h = self.norm1(x) * (1 + scale1.unsqueeze(1)) + shift1.unsqueeze(1)
        x = x + gate1.unsqueeze(1) * self.attention(h)
        h = self.norm2(x) * (1 + scale2.unsqueeze(1)) + shift2.unsqueeze(1)
        return x + gate2.unsqueeze(1) * self.mlp(h)


class PlainREG(nn.Module):
    """SiT with REG's class token and REPA's projector, as described; the projector always runs."""

    def __init__(self, grid: int, channels: int, width: int, depth: int, heads: int, hidden: int):
        super().__init__()
        self.embed = nn.Conv2d(channels, width, 2, 2)
        self.positions = nn.Parameter(torch.randn(1, grid * grid + 1, width), requires_grad=False)
        self.time = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(11, width)
        self.class_in = nn.Sequential(nn.Linear(TEACHER, width), nn.LayerNorm(width, eps=1e-6))
        self.blocks = nn.ModuleList(PlainBlock(width, heads) for _ in range(depth))
        self.projector = nn.Sequential(
            nn.Linear(width, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, TEACHER),
        )
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.adaln = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.out = nn.Linear(width, 4 * channels)
        self.class_out = nn.Linear(width, TEACHER)
        self.grid, self.channels = grid, channels

    def forward(self, x: Tensor, t: Tensor, labels: Tensor, cls: Tensor):
        frequencies = torch.exp(-math.log(10_000) * torch.arange(128, device=x.device) / 128)
        angles = t[:, None] * frequencies[None]
        c = self.time(torch.cat([angles.cos(), angles.sin()], dim=-1)) + self.label(labels)
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_in(cls).unsqueeze(1), tokens], dim=1) + self.positions
        for i, block in enumerate(self.blocks):
            tokens = block(tokens, c)
            if i == 3:
                B, T, width = tokens.shape
                projection = self.projector(tokens.reshape(-1, width)).reshape(B, T, -1)
        shift, scale = self.adaln(c).chunk(2, dim=1)
        tokens = self.norm(tokens) * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)
        out, cls = self.out(tokens[:, 1:]), self.class_out(tokens[:, 0])
        out = out.reshape(len(x), self.grid, self.grid, 2, 2, self.channels)
        out = torch.einsum("nhwpqc->nchpwq", out)
        return out.reshape(len(x), self.channels, 2 * self.grid, 2 * self.grid), cls, projection


class PlainTraining:
    """REG's training step without fused updates, with both sides normalised sample by sample."""

    def __init__(self, network: PlainREG, images: Tensor, features: Tensor, labels: Tensor):
        self.network, self.images, self.features, self.labels = network, images, features, labels
        self.average = copy.deepcopy(network).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            network.parameters(), lr=1e-4, weight_decay=0.0, foreach=False
        )

    def step(self) -> None:
        x0, cls = self.images, self.features[:, 0]
        t = torch.rand(len(x0), device=x0.device)
        eps, eps_cls = torch.randn_like(x0), torch.randn_like(cls)
        tx, tc = t.view(-1, 1, 1, 1), t.view(-1, 1)
        labels = torch.where(torch.rand(len(x0), device=x0.device) < 0.1, 10, self.labels)
        x, c = (1 - tx) * x0 + tx * eps, (1 - tc) * cls + tc * eps_cls
        v, v_cls, projection = self.network(x, t, labels, c)
        alignment = 0.0
        for target, projected in zip(self.features, projection, strict=True):
            target = F.normalize(target, dim=-1)
            alignment = alignment - (target * F.normalize(projected, dim=-1)).sum(-1).mean()
        loss = ((v - (eps - x0)) ** 2).mean() + 0.03 * ((v_cls - (eps_cls - cls)) ** 2).mean()
        (loss + 0.5 * alignment / len(x0)).backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            for average, parameter in zip(
                self.average.parameters(), self.network.parameters(), strict=True
            ):
                average.mul_(0.9999).add_(parameter, alpha=1 - 0.9999)


class Training:
    """The project's own step: any loss, fused updates, bfloat16 on request."""

    def __init__(self, network: SiT, loss, images, features, labels, bfloat16: bool = False):
        self.network, self.loss, self.bfloat16 = network, loss, bfloat16
        rows = torch.arange(len(images), device=images.device)
        targets = patch_targets(features[:, 1:], network.grid)
        self.batch = Batch(images, labels, Draws(0, rows), targets, features[:, 0].contiguous())
        self.average, self.optimizer = EMA(network), adamw(network.parameters())
        self.run = network

    def step(self) -> None:
        device = self.batch.images.device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.bfloat16):
            loss = self.loss(self.run, self.batch)
        loss.total.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update(self.network)


def data(batch: int, grid: int, channels: int, device: str = "cpu"):
    """Images, teacher features with the class token first, and labels, all random."""
    images = torch.randn(batch, channels, 2 * grid, 2 * grid, device=device)
    features = torch.randn(batch, 1 + grid * grid, TEACHER, device=device)
    return images, features, torch.arange(batch, device=device) % 10


def take_turns(sides: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Median CPU seconds a call of each side, the sides taking turns."""
    spent: dict[str, list[float]] = {name: [] for name in sides}
    for step in sides.values():
        step()
    for _ in range(rounds):
        for name, step in sides.items():
            start = time.process_time()
            step()
            spent[name].append(time.process_time() - start)
    return {name: median(seconds) for name, seconds in spent.items()}


def small_sit(depth: int, hidden: int, mix_layers: int = 0) -> SiT:
    """Width 192 on 64 tokens of 3 channels, for CPU measurements."""
    return SiT(
        image_size=16,
        channels=3,
        width=192,
        depth=depth,
        num_heads=3,
        num_classes=10,
        class_token_dim=TEACHER,
        mix_layers=mix_layers,
        teacher_dim=TEACHER,
        projector_width=hidden,
    )


def reg_step(rounds: int) -> list[tuple[str, float, float]]:
    """A REG step against its plain counterpart: depth 6, projector 512, batch 64."""
    inputs = data(64, 8, 3)
    ours = Training(small_sit(6, 512), reg.Loss(), *inputs)
    plain = PlainTraining(PlainREG(8, 3, 192, 6, 3, 512), *inputs)
    sides = {"plain": plain.step, "ours": ours.step}
    if bfloat16_wins():
        low = Training(small_sit(6, 512), reg.Loss(), *inputs, bfloat16=True)
        sides["ours in bfloat16"] = low.step
    else:
        print("bfloat16 is slower than float32 on this CPU: not used")
    seconds = take_turns(sides, rounds)
    show("REG step, ms", seconds)
    shared = products_share(plain.step)
    print(f"products and attention, which both have, are {shared:.2f} of the plain step")
    best = min(seconds["ours"], seconds.get("ours in bfloat16", math.inf))
    return [("REG step / plain REG step", best / seconds["plain"], 0.8)]


def products_share(step: Callable[[], None]) -> float:
    """The share of a step's CPU time in matrix products and attention: in one precision no other
    step of the same network takes less."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step()
    spent = {row.key: row.self_cpu_time_total for row in profile.key_averages()}
    products = ("aten::mm", "aten::addmm", "aten::bmm", "aten::_scaled_dot_product")
    return sum(spent[key] for key in spent if key.startswith(products)) / sum(spent.values())


def bfloat16_wins() -> bool:
    """Whether this CPU multiplies a block's matrices faster in bfloat16 than in float32."""
    sides = {}
    for dtype in (torch.float32, torch.bfloat16):
        x, weight = torch.randn(512, 192).to(dtype), torch.randn(768, 192).to(dtype)
        sides[str(dtype)] = lambda x=x, weight=weight: F.linear(x, weight)
    seconds = take_turns(sides, rounds=3)
    return seconds["torch.bfloat16"] < seconds["torch.float32"]


def sampling(rounds: int) -> list[tuple[str, float, float]]:
    """One evaluation without the projector against one with it: projector 2048, batch 64."""
    network = small_sit(6, 2048).eval()
    images, features, labels = data(64, 8, 3)
    t = torch.rand(64)

    def evaluate(align: bool) -> Callable[[], None]:
        @torch.no_grad()
        def call():
            network(images, t, labels, features[:, 0], align=align)

        return call

    seconds = take_turns({"with": evaluate(True), "without": evaluate(False)}, rounds)
    show("sampling, ms an evaluation, projector", seconds)
    return [("sampling without / with the projector", seconds["without"] / seconds["with"], 0.5)]


def masked_step(rounds: int) -> list[tuple[str, float, float]]:
    """A MaskAlign step against a REG step: depth 12, projector 2048, batch 64."""
    inputs = data(64, 8, 3)
    sides = {
        "REG": Training(small_sit(12, 2048), reg.Loss(), *inputs).step,
        "MaskAlign": Training(small_sit(12, 2048, mix_layers=2), maskalign.Loss(), *inputs).step,
    }
    seconds = take_turns(sides, rounds)
    show("step at depth 12, ms", seconds)
    return [("MaskAlign step / REG step", seconds["MaskAlign"] / seconds["REG"], 0.88)]


def show(title: str, seconds: dict[str, float]) -> None:
    print(f"{title}: " + ", ".join(f"{name} {1e3 * s:.0f}" for name, s in seconds.items()))


def training_flops(network: SiT, num_tokens: int, mixed_tokens: int) -> float:
    """Floating-point operations a sample: 6 per weight and token, 12 T^2 width for attention.

    num_tokens: in the blocks and the projector. mixed_tokens: in the mixing blocks.
    """
    width = network.positions.shape[1]

    def weights(module: nn.Module) -> int:
        return sum(p.numel() for name, p in module.named_parameters() if "modulation" not in name)

    def blocks(modules: nn.ModuleList, tokens: int) -> float:
        return 6 * weights(modules) * tokens + 12 * len(modules) * tokens**2 * width

    return (
        blocks(network.blocks, num_tokens)
        + blocks(network.mixing, mixed_tokens)
        + 6 * weights(network.projector) * num_tokens
    )


def gpu(peak_flops: float, batch: int = 64, rounds: int = 20) -> None:
    """Steps a second and model-flops utilisation on a GPU, latents 32x32x4, bfloat16."""
    inputs = data(batch, 16, 4, "cuda")
    sides = {"REG": (reg.Loss(), 0, 257), "MaskAlign": (maskalign.Loss(), 2, 193)}
    for size in ("B", "XL"):
        for compiled in (False, True):
            rates = {}
            for name, (loss, mix_layers, num_tokens) in sides.items():
                network = SiT(
                    **SIZES[size],
                    class_token_dim=TEACHER,
                    teacher_dim=TEACHER,
                    mix_layers=mix_layers,
                    alignment_depth=4 if size == "B" else 8,
                ).cuda()
                training = Training(network, loss, *inputs, bfloat16=True)
                if compiled:
                    training.run = torch.compile(network)
                rates[name] = steps_per_second(training.step, rounds)
                flops = training_flops(network, num_tokens, mixed_tokens=257) * batch
                print(
                    f"{name} {size}/2 {'compiled' if compiled else 'eager'}: "
                    f"{rates[name]:.2f} steps/s at batch {batch}, "
                    f"utilisation {flops * rates[name] / peak_flops:.1%}"
                )
                del training, network
            ratio = rates["REG"] / rates["MaskAlign"]
            print(f"  MaskAlign step / REG step: {ratio:.3f} (the paper: 0.883)")


def steps_per_second(step: Callable[[], None], rounds: int) -> float:
    for _ in range(5):
        step()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(rounds):
        step()
    torch.cuda.synchronize()
    return rounds / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="measured steps of each side")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--peak", type=float, default=989e12, help="GPU's bfloat16 flops a second")
    options = parser.parse_args()
    torch.manual_seed(0)
    if options.device == "cuda":
        gpu(options.peak)
        return
    torch.set_num_threads(1)
    results = []
    for measure in (reg_step, sampling, masked_step):
        results += measure(options.rounds)
    for name, value, target in results:
        verdict = "met" if value <= target else "missed"
        print(f"{name}: {value:.3f} (target {target}: {verdict})")


if __name__ == "__main__":
    main()
