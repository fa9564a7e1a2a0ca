"""The sampler step and the conversion to bytes, one element after another."""
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,no-any-return"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import layout
from . import blocks


@triton.jit
def _step(x_t_ptr, x0_ptr, at, image, live, a_ptr, b_ptr, a, b, clip,
          A_EACH: tl.constexpr, B_EACH: tl.constexpr, CLIP: tl.constexpr):  # fmt: skip
    """a·x_t + b·clamp(x0) in float32; comparisons are ordered so that NaN survives."""
    x_t = tl.load(x_t_ptr + at, mask=live, other=0.0).to(tl.float32)
    x0 = tl.load(x0_ptr + at, mask=live, other=0.0).to(tl.float32)
    if CLIP:
        x0 = tl.where(x0 < -clip, -clip, x0)
        x0 = tl.where(x0 > clip, clip, x0)
    keep = tl.load(a_ptr + image, mask=live, other=0.0) if A_EACH else a
    take = tl.load(b_ptr + image, mask=live, other=0.0) if B_EACH else b
    return keep * x_t + take * x0


@triton.jit
def ddim_update_kernel(
    x_t_ptr, x0_ptr, y_ptr, a_ptr, b_ptr, a, b, clip, total, per_image,
    A_EACH: tl.constexpr, B_EACH: tl.constexpr, CLIP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = at < total
    y = _step(x_t_ptr, x0_ptr, at, at // per_image, live, a_ptr, b_ptr, a, b, clip,
              A_EACH, B_EACH, CLIP)  # fmt: skip
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=live)


@triton.jit
def to_uint8_kernel(
    x_t_ptr, x0_ptr, y_ptr, a_ptr, b_ptr, a, b, clip, total, per_image, C, S,
    STEP: tl.constexpr, A_EACH: tl.constexpr, B_EACH: tl.constexpr, CLIP: tl.constexpr,
    LAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    to = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = to < total
    image = to // per_image
    if LAST:
        at = to
    else:
        inside = to % per_image
        at = image * per_image + (inside % C) * S + inside // C
    if STEP:
        v = _step(x_t_ptr, x0_ptr, at, image, live, a_ptr, b_ptr, a, b, clip,
                  A_EACH, B_EACH, CLIP)  # fmt: skip
    else:
        v = tl.load(x_t_ptr + at, mask=live, other=0.0).to(tl.float32)
    v = tl.where(v >= -1.0, v, -1.0)  # NaN too
    v = tl.where(v <= 1.0, v, 1.0)
    grey = ((v + 1.0) * 127.5 + 12582912.0) - 12582912.0  # 1.5·2²³: rounds half to even
    tl.store(y_ptr + to, grey.to(tl.uint8), mask=live)


def ddim_update(
    x_t: Tensor, x0: Tensor, a: float | Tensor, b: float | Tensor, clip: float | None
) -> Tensor:
    form = layout.of(x_t)
    x_t, x0 = layout.dense(x_t, form), layout.dense(x0, form)
    y = layout.empty(x_t, form)
    if total := x_t.numel():
        block = blocks(total)
        with torch.cuda.device_of(x_t):
            ddim_update_kernel[(triton.cdiv(total, block),)](
                x_t,
                x0,
                y,
                *_coefficients(a, b, x_t),
                clip or 0.0,
                total,
                total // x_t.shape[0],
                A_EACH=isinstance(a, Tensor),
                B_EACH=isinstance(b, Tensor),
                CLIP=clip is not None,
                BLOCK=block,
            )
    return y


def ddim_update_uint8(
    x_t: Tensor, x0: Tensor, a: float | Tensor, b: float | Tensor, clip: float | None
) -> Tensor:
    return _bytes(x_t, x0, a, b, clip)


def to_uint8(x: Tensor) -> Tensor:
    return _bytes(x, None, 1.0, 0.0, None)


def _bytes(
    x: Tensor, x0: Tensor | None, a: float | Tensor, b: float | Tensor, clip: float | None
) -> Tensor:
    form = layout.of(x)
    x = layout.dense(x, form)
    n, c, h, w = x.shape
    y = torch.empty((n, h, w, c), dtype=torch.uint8, device=x.device)
    if total := x.numel():
        block = blocks(total)
        with torch.cuda.device_of(x):
            to_uint8_kernel[(triton.cdiv(total, block),)](
                x,
                x if x0 is None else layout.dense(x0, form),
                y,
                *_coefficients(a, b, x),
                clip or 0.0,
                total,
                c * h * w,
                c,
                h * w,
                STEP=x0 is not None,
                A_EACH=isinstance(a, Tensor),
                B_EACH=isinstance(b, Tensor),
                CLIP=clip is not None,
                LAST=layout.channels_last(form),
                BLOCK=block,
            )
    return y


def _coefficients(
    a: float | Tensor, b: float | Tensor, x: Tensor
) -> tuple[Tensor, Tensor, float, float]:
    """Pointers and numbers; the one that is not used is a stand-in."""
    each = [v.float().contiguous() if isinstance(v, Tensor) else x for v in (a, b)]
    flat = [0.0 if isinstance(v, Tensor) else float(v) for v in (a, b)]
    return each[0], each[1], flat[0], flat[1]
