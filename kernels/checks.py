"""Argument checks. Every message names op, argument, what came and what is expected."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def floating(op: str, arg: str, x: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise ValueError(f"{op}: {arg} is a {type(x).__name__}; expected a tensor.")
    if x.dtype not in FLOATS:
        raise ValueError(
            f"{op}: {arg} has dtype {short(x.dtype)}; "
            f"expected {', '.join(short(d) for d in FLOATS)}."
        )


def rank(op: str, arg: str, x: Tensor, layout: str, least: int, most: int = 99) -> None:
    if not least <= x.ndim <= most:
        raise ValueError(f"{op}: {arg} has shape {tuple(x.shape)}; expected {layout}.")


def beside(op: str, arg: str, x: Tensor, like: Tensor, *shapes: Sequence[int]) -> None:
    """A float tensor of one of these shapes on `like`'s device."""
    floating(op, arg, x)
    if x.shape not in shapes:
        wanted = " or ".join(str(tuple(e)) for e in shapes)
        raise ValueError(f"{op}: {arg} has shape {tuple(x.shape)}; expected {wanted}.")
    if x.device != like.device:
        raise ValueError(f"{op}: {arg} is on {x.device}; expected {like.device}, as its partner.")


def dtype(op: str, arg: str, x: Tensor, expected: torch.dtype) -> None:
    if not isinstance(x, Tensor):
        raise ValueError(f"{op}: {arg} is a {type(x).__name__}; expected a tensor.")
    if x.dtype != expected:
        raise ValueError(f"{op}: {arg} has dtype {short(x.dtype)}; expected {short(expected)}.")


def scalar(op: str, arg: str, x: Tensor, like: Tensor) -> None:
    """A single int64 on `like`'s device."""
    dtype(op, arg, x, torch.int64)
    if x.ndim:
        raise ValueError(f"{op}: {arg} has shape {tuple(x.shape)}; expected ().")
    if x.device != like.device:
        raise ValueError(f"{op}: {arg} is on {x.device}; expected {like.device}, as its partner.")


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
