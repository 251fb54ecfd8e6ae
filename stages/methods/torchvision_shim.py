"""Lets torchvision be imported beside a torch build that its compiled operators do not fit.

torchvision registers Python implementations of two of its compiled operators at import. With a
CUDA build of torchvision beside a CPU build of torch the compiled part does not load, the two
operators have no schema, and ``import torchvision`` (hence timm and clean-fid) fails. Nothing here
calls them, so declaring their schemas first is enough. Where the builds match, nothing is changed.
"""

from __future__ import annotations

import importlib
import importlib.util
import threading

import torch

__all__ = ["prepare_torchvision"]

SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
OPERATORS = ("nms", "qnms")
_lock = threading.Lock()


def prepare_torchvision() -> None:
    """Import torchvision, declaring the schemas of the operators that its build did not bring."""
    with _lock:
        try:
            importlib.import_module("torchvision")
        except RuntimeError as error:
            if "torchvision::" not in str(error):
                raise
            for name in OPERATORS:
                if not hasattr(torch.ops.torchvision, name):
                    torch.library.define(f"torchvision::{name}", SCHEMA)
            importlib.import_module("torchvision")
