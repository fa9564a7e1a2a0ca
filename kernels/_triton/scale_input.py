"""A network's input: scaled, cast, channels last, padded with zero channels."""
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,no-any-return"

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import layout
from . import blocks
from .chain_step import nearest_row


@triton.jit
def scale_input_kernel(
    x_ptr, c_ptr, step_ptr, y_ptr, c, steps, pixels, C, S,
    EACH: tl.constexpr, TABLE: tl.constexpr, LAST: tl.constexpr,
    CHANNELS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """WIDTH: the power of two from CHANNELS on."""
    pixel = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    k = tl.arange(0, WIDTH)
    live = (pixel < pixels)[:, None] & (k < CHANNELS)[None, :]
    image = pixel // S
    if LAST:
        at = pixel[:, None] * C + k[None, :]
    else:
        at = (image * C * S + pixel % S)[:, None] + k[None, :].to(tl.int64) * S
    x = tl.load(x_ptr + at, mask=live & (k < C)[None, :], other=0.0).to(tl.float32)
    if TABLE:
        v = x * tl.load(c_ptr + nearest_row(step_ptr, steps))
    elif EACH:
        v = x * tl.load(c_ptr + image, mask=pixel < pixels, other=0.0)[:, None]
    else:
        v = x * c
    v = tl.where((k < C)[None, :], v, 0.0)  # also where c is not finite
    to = pixel[:, None] * CHANNELS + k[None, :]
    tl.store(y_ptr + to, v.to(y_ptr.dtype.element_ty), mask=live)


def scale_input(
    x: Tensor,
    c: float | Tensor,
    step: Tensor | None,
    dtype: torch.dtype | None,
    channels: int | None,
) -> Tensor:
    form = layout.of(x)
    x = layout.dense(x, form)
    y = layout.empty_padded(x, dtype, channels)
    if y.numel():
        n, given, height, width = x.shape
        pixels = n * height * width
        wide = triton.next_power_of_2(y.shape[1])
        block = blocks(pixels, max(1, 1024 // wide))
        each = c.float().contiguous() if isinstance(c, Tensor) else x
        with torch.cuda.device_of(x):
            scale_input_kernel[(triton.cdiv(pixels, block),)](
                x,
                each,
                x if step is None else step,
                y,
                0.0 if isinstance(c, Tensor) else float(c),
                each.shape[0],
                pixels,
                given,
                math.prod(x.shape[2:]),
                EACH=isinstance(c, Tensor),
                TABLE=step is not None,
                LAST=layout.channels_last(form),
                CHANNELS=y.shape[1],
                WIDTH=wide,
                BLOCK=block,
            )
    return y
