"""In which precision a network's products are made, and whether they repeat bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

# How cuBLAS is to share its room so that it repeats: torch reads it once, at the first product of a
# process.
CUBLAS, REPEATS = "CUBLAS_WORKSPACE_CONFIG", (":4096:8", ":16:8")


@contextmanager
def products_in(precision: str, device: str) -> Iterator[None]:
    """Within it matrix products and convolutions of float32 are made in float32, tf32 (on a GPU) or
    bfloat16; the process's own choice comes back after."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = precision == "tf32"
    try:
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
            yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


@contextmanager
def repeatable(wanted: bool) -> Iterator[None]:
    """Within it, if wanted, a GPU gives the same bits for the same input every time: only kernels
    that add up in a fixed order are taken, and what is compiled is not tuned by measured times.
    Raises RuntimeError where an operation has no such kernel, and where the process began without
    `CUBLAS` among `REPEATS`. The process's choices come back."""
    if not wanted:
        yield
        return
    from torch._functorch import config as functorch
    from torch._inductor import config as inductor

    memory, before = torch.utils.deterministic, torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    filled, memory.fill_uninitialized_memory = memory.fill_uninitialized_memory, False
    # Settings of compilation hold for a thread: backward passes would be compiled in another one.
    with (
        inductor.patch(deterministic=True),
        functorch.patch(force_non_lazy_backward_lowering=True),
    ):
        torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before, warn_only=warned)
            memory.fill_uninitialized_memory = filled
