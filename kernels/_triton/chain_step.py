"""One step of a chain, its row of coefficients read on the device."""
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,no-any-return"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import layout
from . import blocks


@triton.jit
def nearest_row(step_ptr, steps):
    """The step, or the end of the table that it is beyond."""
    step = tl.load(step_ptr)
    step = tl.where(step < 0, 0, step)
    return tl.where(step > steps - 1, steps - 1, step)


@triton.jit
def chain_step_kernel(
    x_t_ptr, raw_ptr, table_ptr, step_ptr, y_ptr, steps, clip, total, C, S, raw_channels,
    CLIP: tl.constexpr, WIDE: tl.constexpr, BYTES: tl.constexpr, LAST: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    to = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = to < total
    at = to
    if BYTES and not LAST:
        inside = to % (C * S)
        at = to - inside + (inside % C) * S + inside // C
    raw_at = at
    if WIDE:
        raw_at = at // C * raw_channels + at % C
    row = table_ptr + nearest_row(step_ptr, steps) * 4
    p, q, a, b = tl.load(row), tl.load(row + 1), tl.load(row + 2), tl.load(row + 3)
    x_t = tl.load(x_t_ptr + at, mask=live, other=0.0).to(tl.float32)
    x0 = p * x_t + q * tl.load(raw_ptr + raw_at, mask=live, other=0.0).to(tl.float32)
    if CLIP:
        x0 = tl.where(x0 < -clip, -clip, x0)  # ordered so that NaN survives
        x0 = tl.where(x0 > clip, clip, x0)
    v = a * x_t + b * x0
    if BYTES:
        v = tl.where(v >= -1.0, v, -1.0)  # NaN too
        v = tl.where(v <= 1.0, v, 1.0)
        grey = ((v + 1.0) * 127.5 + 12582912.0) - 12582912.0  # 1.5·2²³: rounds half to even
        tl.store(y_ptr + to, grey.to(tl.uint8), mask=live)
    else:
        tl.store(y_ptr + to, v.to(y_ptr.dtype.element_ty), mask=live)


def chain_step(x_t: Tensor, raw: Tensor, table: Tensor, step: Tensor, clip: float | None) -> Tensor:
    return _run(x_t, raw, table, step, clip, layout.empty(x_t, layout.of(x_t)))


def chain_step_uint8(
    x_t: Tensor, raw: Tensor, table: Tensor, step: Tensor, clip: float | None
) -> Tensor:
    n, c, h, w = x_t.shape
    y = torch.empty((n, h, w, c), dtype=torch.uint8, device=x_t.device)
    return _run(x_t, raw, table, step, clip, y)


def _run(
    x_t: Tensor, raw: Tensor, table: Tensor, step: Tensor, clip: float | None, y: Tensor
) -> Tensor:
    form = layout.of(x_t)
    x_t, (raw, apart) = layout.dense(x_t, form), layout.rows(raw, form)
    if total := x_t.numel():
        n, c = x_t.shape[:2]
        block = blocks(total)
        with torch.cuda.device_of(x_t):
            chain_step_kernel[(triton.cdiv(total, block),)](
                x_t,
                raw,
                table.float().contiguous(),
                step,
                y,
                table.shape[0],
                0.0 if clip is None else float(clip),
                total,
                c,
                total // (n * c),
                apart,
                CLIP=clip is not None,
                WIDE=apart != c,
                BYTES=y.dtype is torch.uint8,
                LAST=layout.channels_last(form),
                BLOCK=block,
            )
    return y
