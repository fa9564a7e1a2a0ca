"""Group norm with the places of a channel side by side: one program an image and a few groups.

Where its tile fits the registers it is read once and written once (`ONCE`); else the program walks
it twice, the second time out of the cache.
"""
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,no-any-return"

from __future__ import annotations

import triton
import triton.language as tl

from .group_norm_parts import load_or, reciprocal_deviation, silu, silu_slope


@triton.jit
def _tile_offsets(s, c, S):
    """Offsets inside one image of channels c (K, D) and places s (P,): (K, D, P), in 32 bits."""
    return s[None, None, :] + c[:, :, None] * S


@triton.jit
def _chunk_moments(h, live, count):
    """Mean and sum of squares about it of each group in a tile (K, D, P)."""
    rough = tl.sum(tl.sum(tl.where(live, h, 0.0), 2), 1) / count
    # What rounding left over; without it a constant far from 0 has a spread, and 1/√eps lifts it.
    rest = tl.where(live, h - rough[:, None, None], 0.0)
    mean = rough + tl.sum(tl.sum(rest, 2), 1) / count
    d = tl.where(live, h - mean[:, None, None], 0.0)
    return mean, tl.sum(tl.sum(d * d, 2), 1)


@triton.jit
def forward_kernel(
    x_ptr, weight_ptr, bias_ptr, scale_ptr, shift_ptr, add_ptr, y_ptr, mean_ptr, rstd_ptr,
    S, C, G, slabs, add_stride, eps,
    WIDTH: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_SHIFT: tl.constexpr, HAS_ADD: tl.constexpr,
    ACT: tl.constexpr, PLACES: tl.constexpr, SLAB: tl.constexpr,
    BLOCK_D: tl.constexpr, ONCE: tl.constexpr,
):  # fmt: skip
    image = (tl.program_id(0) // slabs).to(tl.int64)
    group = (tl.program_id(0) % slabs) * SLAB + tl.arange(0, SLAB)
    d = tl.arange(0, BLOCK_D)
    c = group[:, None] * WIDTH + d[None, :]
    inside = (group < G)[:, None] & (d < WIDTH)[None, :]
    start = image * C * S
    add = load_or(add_ptr, image * add_stride + c, inside, HAS_ADD)

    s = tl.arange(0, PLACES)
    if ONCE:
        live = (s < S)[None, None, :] & inside[:, :, None]
        at = _tile_offsets(s, c, S)
        h = tl.load(x_ptr + start + at, mask=live, other=0.0).to(tl.float32) + add[:, :, None]
        mean, spread = _chunk_moments(h, live, S * WIDTH * 1.0)
    else:
        mean = tl.zeros((SLAB,), tl.float32)
        spread = tl.zeros((SLAB,), tl.float32)
        for s0 in range(0, S, PLACES):
            live = (s0 + s < S)[None, None, :] & inside[:, :, None]
            at = _tile_offsets(s0 + s, c, S)
            h = tl.load(x_ptr + start + at, mask=live, other=0.0).to(tl.float32) + add[:, :, None]
            more = tl.minimum(S - s0, PLACES) * WIDTH * 1.0
            seen = s0 * WIDTH * 1.0
            chunk_mean, chunk_spread = _chunk_moments(h, live, more)
            gap = chunk_mean - mean  # Chan, Golub and LeVeque 1983
            mean += gap * (more / (seen + more))
            spread += chunk_spread + gap * gap * (seen * (more / (seen + more)))

    rstd = reciprocal_deviation(spread, S * WIDTH * 1.0, eps)
    tl.store(mean_ptr + image * G + group, mean, mask=group < G)
    tl.store(rstd_ptr + image * G + group, rstd, mask=group < G)
    lift = 1.0 + load_or(scale_ptr, image * C + c, inside, HAS_SCALE)
    weight = tl.load(weight_ptr + c, mask=inside, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + c, mask=inside, other=0.0).to(tl.float32)
    gain = weight * lift * rstd[:, None]
    offset = bias * lift + load_or(shift_ptr, image * C + c, inside, HAS_SHIFT)

    if ONCE:
        z = (h - mean[:, None, None]) * gain[:, :, None] + offset[:, :, None]
        z = silu(z) if ACT else z
        tl.store(y_ptr + start + at, z.to(y_ptr.dtype.element_ty), mask=live)
    else:
        for s0 in range(0, S, PLACES):
            live = (s0 + s < S)[None, None, :] & inside[:, :, None]
            at = _tile_offsets(s0 + s, c, S)
            h = tl.load(x_ptr + start + at, mask=live, other=0.0).to(tl.float32) + add[:, :, None]
            z = (h - mean[:, None, None]) * gain[:, :, None] + offset[:, :, None]
            z = silu(z) if ACT else z
            tl.store(y_ptr + start + at, z.to(y_ptr.dtype.element_ty), mask=live)


@triton.jit
def _slope(x_ptr, dy_ptr, start, at, live, add, mean, rstd, gain, offset, ACT: tl.constexpr):
    """xhat and dz, the gradient before the affine, of one tile; 0 where nothing lives."""
    h = tl.load(x_ptr + start + at, mask=live, other=0.0).to(tl.float32) + add[:, :, None]
    xhat = tl.where(live, (h - mean[:, None, None]) * rstd[:, None, None], 0.0)
    dz = tl.load(dy_ptr + start + at, mask=live, other=0.0).to(tl.float32)
    if ACT:
        dz = dz * silu_slope(xhat * gain[:, :, None] + offset[:, :, None])
    return xhat, dz


@triton.jit
def backward_kernel(
    dy_ptr, x_ptr, weight_ptr, bias_ptr, mean_ptr, rstd_ptr, scale_ptr, shift_ptr, add_ptr,
    dx_ptr, s1_ptr, s2_ptr, dadd_ptr,
    S, C, G, slabs, add_stride,
    WIDTH: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_SHIFT: tl.constexpr, HAS_ADD: tl.constexpr,
    ACT: tl.constexpr, PLACES: tl.constexpr, SLAB: tl.constexpr,
    BLOCK_D: tl.constexpr, ONCE: tl.constexpr,
):  # fmt: skip
    image = (tl.program_id(0) // slabs).to(tl.int64)
    group = (tl.program_id(0) % slabs) * SLAB + tl.arange(0, SLAB)
    d = tl.arange(0, BLOCK_D)
    c = group[:, None] * WIDTH + d[None, :]
    inside = (group < G)[:, None] & (d < WIDTH)[None, :]
    start = image * C * S
    add = load_or(add_ptr, image * add_stride + c, inside, HAS_ADD)
    mean = tl.load(mean_ptr + image * G + group, mask=group < G, other=0.0)
    rstd = tl.load(rstd_ptr + image * G + group, mask=group < G, other=0.0)
    lift = 1.0 + load_or(scale_ptr, image * C + c, inside, HAS_SCALE)
    gain = tl.load(weight_ptr + c, mask=inside, other=0.0).to(tl.float32) * lift
    offset = tl.load(bias_ptr + c, mask=inside, other=0.0).to(tl.float32) * lift
    offset += load_or(shift_ptr, image * C + c, inside, HAS_SHIFT)

    s = tl.arange(0, PLACES)
    if ONCE:
        live = (s < S)[None, None, :] & inside[:, :, None]
        at = _tile_offsets(s, c, S)
        xhat, dz = _slope(x_ptr, dy_ptr, start, at, live, add, mean, rstd, gain, offset, ACT)
        s1, s2, s3 = tl.sum(dz, 2), tl.sum(dz * xhat, 2), tl.sum(xhat, 2)
    else:
        s1 = tl.zeros((SLAB, BLOCK_D), tl.float32)
        s2 = tl.zeros((SLAB, BLOCK_D), tl.float32)
        s3 = tl.zeros((SLAB, BLOCK_D), tl.float32)
        for s0 in range(0, S, PLACES):
            live = (s0 + s < S)[None, None, :] & inside[:, :, None]
            at = _tile_offsets(s0 + s, c, S)
            xhat, dz = _slope(x_ptr, dy_ptr, start, at, live, add, mean, rstd, gain, offset, ACT)
            s1 += tl.sum(dz, 2)
            s2 += tl.sum(dz * xhat, 2)
            s3 += tl.sum(xhat, 2)

    count = S * WIDTH * 1.0
    level = tl.sum(tl.where(inside, gain * s1, 0.0), 1) / count
    tilt = tl.sum(tl.where(inside, gain * s2, 0.0), 1) / count
    tl.store(s1_ptr + image * C + c, s1, mask=inside)
    tl.store(s2_ptr + image * C + c, s2, mask=inside)
    if HAS_ADD:
        dadd = gain * s1 - (level[:, None] * (S * 1.0) + tilt[:, None] * s3)
        dadd *= rstd[:, None]
        tl.store(dadd_ptr + image * C + c, dadd, mask=inside)

    if ONCE:
        dx = gain[:, :, None] * dz - level[:, None, None] - tilt[:, None, None] * xhat
        dx *= rstd[:, None, None]
        tl.store(dx_ptr + start + at, dx.to(dx_ptr.dtype.element_ty), mask=live)
    else:
        for s0 in range(0, S, PLACES):
            live = (s0 + s < S)[None, None, :] & inside[:, :, None]
            at = _tile_offsets(s0 + s, c, S)
            xhat, dz = _slope(x_ptr, dy_ptr, start, at, live, add, mean, rstd, gain, offset, ACT)
            dx = gain[:, :, None] * dz - level[:, None, None] - tilt[:, None, None] * xhat
            dx *= rstd[:, None, None]
            tl.store(dx_ptr + start + at, dx.to(dx_ptr.dtype.element_ty), mask=live)
