"""What follows a network call: x0 = clamp(p·x + q·raw), then a·x + b·x0, in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from kdgen import kernels


def update(x: Tensor, raw: Tensor, rows: Tensor, place: Tensor, clip: float | None) -> Tensor:
    """x (B, C, H, W) float32, raw like x in any dtype, rows (steps, 4) of (p, q, a, b), place a
    0-dim int64 tensor: which of them."""
    p, q, a, b = rows.index_select(0, place.view(1))[0].unbind()
    x0 = p * x + q * raw.float()
    return a * x + b * (x0 if clip is None else x0.clamp(-clip, clip))


def update_uint8(x: Tensor, raw: Tensor, rows: Tensor, place: Tensor, clip: float | None) -> Tensor:
    """The same, to uint8 (B, H, W, C)."""
    return kernels.to_uint8(update(x, raw, rows, place, clip))


def sized(x: Tensor, sizes: Tensor, place: Tensor, dtype: torch.dtype) -> Tensor:
    """sizes[place]·x in `dtype`."""
    return (x * sizes.index_select(0, place.view(1)).view(1, 1, 1, 1)).to(dtype)
