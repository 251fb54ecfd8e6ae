"""The GPUs that this machine's driver and CUDA_VISIBLE_DEVICES leave us; no torch needed."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Sequence

VARIABLE = "CUDA_VISIBLE_DEVICES"
LEAST_FEEDERS, MOST_FEEDERS = 8, 16  # of a GPU, where there are so many cores


def local_gpus() -> int:
    """How many GPUs a Ray that we start here may hand out."""
    return len(visible(os.environ.get(VARIABLE), installed()))


def feeders(asked: int | None, device: str) -> int:
    """How many threads prepare what a task computes with: those asked for, or for a GPU one on each
    core of this machine, which its GPUs share, 16 at most; none for a CPU, since there is a task on
    each."""
    if asked is not None:
        return asked
    if device == "cpu":
        return 0
    cores = len(os.sched_getaffinity(0))
    share = min(MOST_FEEDERS, cores // max(1, len(installed())))
    return max(min(LEAST_FEEDERS, cores), share)


def visible(listed: str | None, uuids: Sequence[str]) -> list[str]:
    """The entries of CUDA_VISIBLE_DEVICES that CUDA would take, in their order.

    As CUDA reads it (CUDA C++ Programming Guide, environment variables; `torch.cuda` does the
    same): numbers, or UUIDs that may be cut short; the first entry that names no GPU ends the
    list, so that "", -1, NoDevFiles or none mean no GPU; a GPU that is named twice empties it.

    Args:
        listed: the variable's text; None where it is not set.
        uuids: of the GPUs there are, by number.
    """
    if listed is None:
        return [str(number) for number in range(len(uuids))]
    taken: list[str] = []
    for entry in listed.split(","):
        name = _named(entry.strip(), uuids)
        if name is None:
            break
        if name in taken:
            return []
        taken.append(name)
    return taken


def _named(entry: str, uuids: Sequence[str]) -> str | None:
    """The one GPU, or part of a GPU (MIG), that an entry names."""
    if entry.startswith("MIG-"):
        # The driver lists whole GPUs only; of old a part's name held that of its GPU.
        return entry if uuids else None
    if entry.startswith("GPU-"):
        return entry if sum(uuid.startswith(entry) for uuid in uuids) == 1 else None
    number = re.match(r"\+?\d+", entry)  # what follows the digits is passed over, as strtol does
    return str(int(number[0])) if number and int(number[0]) < len(uuids) else None


def installed() -> list[str]:
    """UUIDs of the GPUs that the NVIDIA driver shows, by number; empty where there is no driver."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        if nvml.nvmlInit_v2() != 0:
            return []
    except (OSError, AttributeError):
        return []
    try:
        count = ctypes.c_uint(0)
        if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
            return []
        return [_uuid(nvml, number) for number in range(count.value)]
    finally:
        nvml.nvmlShutdown()


def _uuid(nvml: ctypes.CDLL, number: int) -> str:
    device, text = ctypes.c_void_p(), ctypes.create_string_buffer(96)
    nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(number), ctypes.byref(device))
    nvml.nvmlDeviceGetUUID(device, text, ctypes.c_uint(len(text)))
    return text.value.decode(errors="replace")
