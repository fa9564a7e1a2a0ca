"""Sum of a branch and its shortcut with bias and scale, and the way back.

A tensor is walked as a matrix: pixels × channels when channels are innermost, else planes × pixels.
"""
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,no-any-return"

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import layout
from . import interpreted


@triton.jit
def _places(down, beside, ROWS, COLS, R: tl.constexpr, C: tl.constexpr):
    """Of a tile: offsets (R, C) in 64 bits, which of them exist, rows and columns."""
    row = down.to(tl.int64) * R + tl.arange(0, R)
    col = beside * C + tl.arange(0, C)
    live = (row < ROWS)[:, None] & (col < COLS)[None, :]
    return row[:, None] * COLS + col[None, :], live, row, col


@triton.jit
def forward_kernel(
    x_ptr, residual_ptr, bias_ptr, y_ptr, scale, ROWS, COLS, CHANNELS,
    BIAS: tl.constexpr, LAST: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    at, live, row, col = _places(tl.program_id(0), tl.program_id(1), ROWS, COLS, R, C)
    h = tl.load(x_ptr + at, mask=live, other=0.0).to(tl.float32)
    if BIAS:
        if LAST:
            bias = tl.load(bias_ptr + col, mask=col < COLS, other=0.0).to(tl.float32)[None, :]
        else:
            bias = tl.load(bias_ptr + row % CHANNELS).to(tl.float32)[:, None]
        h = h + bias
    y = (h + tl.load(residual_ptr + at, mask=live, other=0.0).to(tl.float32)) * scale
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=live)


@triton.jit
def backward_kernel(
    dy_ptr, dx_ptr, partial_ptr, scale, ROWS, COLS,
    SCALED: tl.constexpr, LAST: tl.constexpr, STEPS: tl.constexpr,
    R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """STEPS tiles below (LAST) or beside one another; their sums down the columns, or along the
    rows, go to `partial` (programs, COLS) or (ROWS, programs)."""
    total = tl.zeros((C,), tl.float32) if LAST else tl.zeros((R,), tl.float32)
    for k in tl.static_range(STEPS):
        down = tl.program_id(0) * STEPS + k if LAST else tl.program_id(0)
        beside = tl.program_id(1) if LAST else tl.program_id(1) * STEPS + k
        at, live, row, col = _places(down, beside, ROWS, COLS, R, C)
        dy = tl.load(dy_ptr + at, mask=live, other=0.0).to(tl.float32)
        if SCALED:
            tl.store(dx_ptr + at, (dy * scale).to(dx_ptr.dtype.element_ty), mask=live)
        total += tl.sum(dy, 0 if LAST else 1)
    if LAST:
        to = partial_ptr + tl.program_id(0).to(tl.int64) * COLS + col
        tl.store(to, total, mask=col < COLS)
    else:
        tl.store(partial_ptr + row * tl.num_programs(1) + tl.program_id(1), total, mask=row < ROWS)


class Tile(NamedTuple):
    """How a matrix is cut; depends on its columns only."""

    r: int
    c: int


STEPS = 8  # tiles whose sums a program of the backward pass joins


def tile(cols: int) -> Tile:
    """16 values a thread, four columns at least so that they are read as vectors."""
    if interpreted():  # each program costs milliseconds
        return Tile(64, triton.next_power_of_2(cols))
    c = min(512, max(4, triton.next_power_of_2(cols)))
    return Tile(max(1, 2048 // c), c)


def forward(x: Tensor, residual: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """As `reference` of the op."""
    form = layout.of(x)
    x, residual = layout.dense(x, form), layout.dense(residual, form)
    y = layout.empty(x, form)
    if x.numel():
        rows, cols = _matrix(x, form)
        t = tile(cols)
        with torch.cuda.device_of(x):
            forward_kernel[(triton.cdiv(rows, t.r), triton.cdiv(cols, t.c))](
                x,
                residual,
                x if bias is None else bias.contiguous(),
                y,
                float(scale),
                rows,
                cols,
                x.shape[1],
                BIAS=bias is not None,
                LAST=layout.channels_last(form),
                R=t.r,
                C=t.c,
            )
    return y


def backward(
    dy: Tensor, scale: float, form: torch.memory_format, wants_bias: bool
) -> tuple[Tensor, Tensor | None]:
    """As `backward_reference` of the op; dy itself where it is the gradient of x."""
    dy = layout.dense(dy, form)
    n, channels = dy.shape[:2]
    if not wants_bias or not dy.numel():
        dx = dy if scale == 1 else dy * scale
        return dx, dy.new_zeros(channels, dtype=torch.float32) if wants_bias else None
    dx = dy if scale == 1 else layout.empty(dy, form)
    last = layout.channels_last(form)
    rows, cols = _matrix(dy, form)
    t = tile(cols)
    down, beside = (STEPS, 1) if last else (1, STEPS)
    grid = triton.cdiv(rows, t.r * down), triton.cdiv(cols, t.c * beside)
    shape = (grid[0], cols) if last else (rows, grid[1])
    partial = dy.new_empty(shape, dtype=torch.float32)
    with torch.cuda.device_of(dy):
        backward_kernel[grid](
            dy,
            dx,
            partial,
            float(scale),
            rows,
            cols,
            SCALED=scale != 1,
            LAST=last,
            STEPS=STEPS,
            R=t.r,
            C=t.c,
        )
    # Reductions of torch's: the same order every time.
    sums = partial.sum(0) if last else partial.view(n, channels, -1).sum((0, 2))
    return dx, sums * scale


def _matrix(x: Tensor, form: torch.memory_format) -> tuple[int, int]:
    n, c = x.shape[:2]
    size = x.numel() // (n * c)
    return (n * size, c) if layout.channels_last(form) else (n * c, size)
