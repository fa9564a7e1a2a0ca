"""Triton kernels, one file an op, imported on first use: nothing here needs triton to import."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
from functools import cache
from types import ModuleType, TracebackType
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


# Texts of RuntimeErrors by which triton and the driver say that a kernel cannot be built or loaded.
_TOOLS = (
    "PassManager::run failed",
    "Failed to find C compiler",
    "Cannot find ptxas",
    "active drivers",
    "no kernel image is available",
    "unsupported toolchain",
    "device kernel image is invalid",
)


def unusable(error: Exception) -> str:
    """Why a kernel could not be compiled or launched, if that is what `error` says; "" otherwise.

    Whatever the running kernel did wrong (an illegal address) and memory that ran out are no such
    errors.
    """
    import triton

    text = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
    if isinstance(error, triton.errors.TritonError):
        return text
    if type(error) is RuntimeError and any(part in str(error) for part in _TOOLS):
        return text
    # A compiler that is not there, or no place for what it makes; ours do no such thing.
    outside = isinstance(error, OSError | ImportError | subprocess.SubprocessError | AssertionError)
    return text if outside and _within_triton(error.__traceback__) else ""


def _within_triton(trace: TracebackType | None) -> bool:
    while trace is not None:
        if trace.tb_frame.f_globals.get("__name__", "").partition(".")[0] == "triton":
            return True
        trace = trace.tb_next
    return False


def load(op: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{op}")


def blocks(count: int, most: int = 1024) -> int:
    """Elements a program takes: many in the interpreter, where each program costs milliseconds."""
    import triton

    limit = 1 << 16 if interpreted() else most
    return int(min(limit, max(64, triton.next_power_of_2(count))))
