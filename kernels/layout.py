"""The two memory layouts the fast kernels know: (N, C, …) and channels last, (N, …, C)."""

from __future__ import annotations

import torch
from torch import Tensor

CONTIGUOUS = torch.contiguous_format
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def of(x: Tensor) -> torch.memory_format:
    """The layout an op answers in: channels last when `x` has channels innermost."""
    last = CHANNELS_LAST.get(x.ndim)
    if last is None or x.is_contiguous():
        return CONTIGUOUS
    if x.is_contiguous(memory_format=last) or x.stride(1) == 1 < x.shape[1]:
        return last
    return CONTIGUOUS


def dense(x: Tensor, like: torch.memory_format) -> Tensor:
    """`x` itself when it already has that layout, else a copy that has."""
    return x if x.is_contiguous(memory_format=like) else x.contiguous(memory_format=like)


def empty(x: Tensor, like: torch.memory_format, channels: int | None = None) -> Tensor:
    """Like `x` in that layout; with another number of channels, where one is given."""
    if channels is None or channels == x.shape[1]:
        return torch.empty_like(x, memory_format=like)
    shape = (x.shape[0], channels, *x.shape[2:])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=like)


def joined(x: Tensor, more: Tensor | None) -> Tensor:
    """`more` behind `x` in the channels, in the layout of `x`; `x` itself when there is no more."""
    if more is None:
        return x
    form = of(x)
    return dense(torch.cat([dense(x, form), dense(more, form)], 1), form)


def parted(v: Tensor, like: torch.memory_format, own: int) -> tuple[Tensor, Tensor]:
    """Copies of the first `own` channels and of the rest: `joined` undone."""
    first, rest = v[:, :own], v[:, own:]
    return first.clone(memory_format=like), rest.clone(memory_format=like)


def empty_padded(x: Tensor, dtype: torch.dtype | None, channels: int | None) -> Tensor:
    """Uninitialised (N, channels, H, W), channels last; dtype and channels are x's by default."""
    n, c, h, w = x.shape
    return torch.empty(
        (n, c if channels is None else channels, h, w),
        dtype=x.dtype if dtype is None else dtype,
        device=x.device,
        memory_format=torch.channels_last,
    )


def rows(x: Tensor, like: torch.memory_format) -> tuple[Tensor, int]:
    """`x` with that layout, and how far its pixels are apart: its channels, or more where `x` is
    the first channels of a wider tensor, which need not be copied."""
    if like is torch.channels_last and x.stride(1) == 1:
        apart, (c, h, w) = x.stride(3), x.shape[1:]
        if apart > c > 0 and x.stride() == (h * w * apart, 1, w * apart, apart):
            return x, apart
    return dense(x, like), x.shape[1]


def channels_last(like: torch.memory_format) -> bool:
    return like is not CONTIGUOUS


def broadcast(value: Tensor, x: Tensor) -> Tensor:
    """(C,) or (N, C) beside `x` (N, C, …)."""
    return value.reshape(*value.shape, *([1] * (x.ndim - 2)))


def pixels(x: Tensor) -> Tensor:
    """`x` (N, C, …) as (N, pixels, C), channels innermost; a view where its strides allow it."""
    rows = x.flatten(2).mT
    return rows if rows.stride(2) == 1 else rows.contiguous()


def image(rows: Tensor, shape: torch.Size) -> Tensor:
    """The way back: (N, pixels, C) as (N, C, …) of this shape, a view."""
    return rows.mT.view(shape)
