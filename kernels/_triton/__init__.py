"""Triton kernels, one file an op, imported on first use: nothing here needs triton to import."""

from __future__ import annotations

import importlib
import importlib.util
import os
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@cache
def installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter; it is settled when the first one is imported."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def unable(x: Tensor, *_: Any) -> str:
    """Why the Triton kernels cannot take float tensor `x`; "" when they can."""
    if why := unable_on(x.device):
        return why
    if x.dtype not in DTYPES:
        return f"x is {str(x.dtype)[6:]}; expected float32, float16 or bfloat16"
    return ""


def unable_on(device: torch.device) -> str:
    if not installed():
        return "triton is not installed"
    if device.type == "cuda" or (device.type == "cpu" and interpreted()):
        return ""
    return f"the tensor is on {device.type}; expected cuda (or cpu under TRITON_INTERPRET=1)"


def load(op: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{op}")


def blocks(count: int, most: int = 1024) -> int:
    """Elements a program takes: many in the interpreter, where each program costs milliseconds."""
    import triton

    limit = 1 << 16 if interpreted() else most
    return int(min(limit, max(64, triton.next_power_of_2(count))))
