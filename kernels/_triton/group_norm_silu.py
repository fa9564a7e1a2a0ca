"""Group norm with affine, scale and shift and SiLU: one program an image and a slab of groups.

A slab holds at least 32 channels when channels are innermost, so that rows are read in runs of 64
bytes or more. Where its tile fits the registers it is read once and written once; else the program
walks it twice, the second time out of the cache.
"""
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,no-any-return"

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import layout


@triton.jit
def _tile_offsets(s, c, S, C, LAST: tl.constexpr):
    """Offsets inside one image of channels c (K, D) and places s (P,): (K, D, P), in 32 bits."""
    if LAST:
        return s[None, None, :] * C + c[:, :, None]
    return s[None, None, :] + c[:, :, None] * S


@triton.jit
def _or(pointer, offset, mask, HAS: tl.constexpr):
    """Loads as float32; zeros where the input is absent."""
    if HAS:
        return tl.load(pointer + offset, mask=mask, other=0.0).to(tl.float32)
    return tl.zeros(offset.shape, tl.float32)


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
    ACT: tl.constexpr, LAST: tl.constexpr, PLACES: tl.constexpr, SLAB: tl.constexpr,
    BLOCK_D: tl.constexpr, ONCE: tl.constexpr,
):  # fmt: skip
    image = (tl.program_id(0) // slabs).to(tl.int64)
    group = (tl.program_id(0) % slabs) * SLAB + tl.arange(0, SLAB)
    d = tl.arange(0, BLOCK_D)
    c = group[:, None] * WIDTH + d[None, :]
    inside = (group < G)[:, None] & (d < WIDTH)[None, :]
    start = image * C * S
    add = _or(add_ptr, image * add_stride + c, inside, HAS_ADD)

    s = tl.arange(0, PLACES)
    if ONCE:
        live = (s < S)[None, None, :] & inside[:, :, None]
        at = _tile_offsets(s, c, S, C, LAST)
        h = tl.load(x_ptr + start + at, mask=live, other=0.0).to(tl.float32) + add[:, :, None]
        mean, spread = _chunk_moments(h, live, S * WIDTH * 1.0)
    else:
        mean = tl.zeros((SLAB,), tl.float32)
        spread = tl.zeros((SLAB,), tl.float32)
        for s0 in range(0, S, PLACES):
            live = (s0 + s < S)[None, None, :] & inside[:, :, None]
            at = _tile_offsets(s0 + s, c, S, C, LAST)
            h = tl.load(x_ptr + start + at, mask=live, other=0.0).to(tl.float32) + add[:, :, None]
            more = tl.minimum(S - s0, PLACES) * WIDTH * 1.0
            seen = s0 * WIDTH * 1.0
            chunk_mean, chunk_spread = _chunk_moments(h, live, more)
            gap = chunk_mean - mean  # Chan, Golub and LeVeque 1983
            mean += gap * (more / (seen + more))
            spread += chunk_spread + gap * gap * (seen * (more / (seen + more)))

    rstd = tl.div_rn(1.0, tl.sqrt_rn(spread / (S * WIDTH * 1.0) + eps))
    tl.store(mean_ptr + image * G + group, mean, mask=group < G)
    tl.store(rstd_ptr + image * G + group, rstd, mask=group < G)
    lift = 1.0 + _or(scale_ptr, image * C + c, inside, HAS_SCALE)
    weight = tl.load(weight_ptr + c, mask=inside, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + c, mask=inside, other=0.0).to(tl.float32)
    gain = weight * lift * rstd[:, None]
    offset = bias * lift + _or(shift_ptr, image * C + c, inside, HAS_SHIFT)

    if ONCE:
        z = (h - mean[:, None, None]) * gain[:, :, None] + offset[:, :, None]
        z = z / (1.0 + tl.exp(-z)) if ACT else z
        tl.store(y_ptr + start + at, z.to(y_ptr.dtype.element_ty), mask=live)
    else:
        for s0 in range(0, S, PLACES):
            live = (s0 + s < S)[None, None, :] & inside[:, :, None]
            at = _tile_offsets(s0 + s, c, S, C, LAST)
            h = tl.load(x_ptr + start + at, mask=live, other=0.0).to(tl.float32) + add[:, :, None]
            z = (h - mean[:, None, None]) * gain[:, :, None] + offset[:, :, None]
            z = z / (1.0 + tl.exp(-z)) if ACT else z
            tl.store(y_ptr + start + at, z.to(y_ptr.dtype.element_ty), mask=live)


@triton.jit
def _slope(x_ptr, dy_ptr, start, at, live, add, mean, rstd, gain, offset, ACT: tl.constexpr):
    """xhat and dz, the gradient before the affine, of one tile; 0 where nothing lives."""
    h = tl.load(x_ptr + start + at, mask=live, other=0.0).to(tl.float32) + add[:, :, None]
    xhat = tl.where(live, (h - mean[:, None, None]) * rstd[:, None, None], 0.0)
    dz = tl.load(dy_ptr + start + at, mask=live, other=0.0).to(tl.float32)
    if ACT:
        z = xhat * gain[:, :, None] + offset[:, :, None]
        sigma = 1.0 / (1.0 + tl.exp(-z))
        dz = dz * (sigma * (1.0 + z * (1.0 - sigma)))
    return xhat, dz


@triton.jit
def backward_kernel(
    dy_ptr, x_ptr, weight_ptr, bias_ptr, mean_ptr, rstd_ptr, scale_ptr, shift_ptr, add_ptr,
    dx_ptr, s1_ptr, s2_ptr, dadd_ptr,
    S, C, G, slabs, add_stride,
    WIDTH: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_SHIFT: tl.constexpr, HAS_ADD: tl.constexpr,
    ACT: tl.constexpr, LAST: tl.constexpr, PLACES: tl.constexpr, SLAB: tl.constexpr,
    BLOCK_D: tl.constexpr, ONCE: tl.constexpr,
):  # fmt: skip
    image = (tl.program_id(0) // slabs).to(tl.int64)
    group = (tl.program_id(0) % slabs) * SLAB + tl.arange(0, SLAB)
    d = tl.arange(0, BLOCK_D)
    c = group[:, None] * WIDTH + d[None, :]
    inside = (group < G)[:, None] & (d < WIDTH)[None, :]
    start = image * C * S
    add = _or(add_ptr, image * add_stride + c, inside, HAS_ADD)
    mean = tl.load(mean_ptr + image * G + group, mask=group < G, other=0.0)
    rstd = tl.load(rstd_ptr + image * G + group, mask=group < G, other=0.0)
    lift = 1.0 + _or(scale_ptr, image * C + c, inside, HAS_SCALE)
    gain = tl.load(weight_ptr + c, mask=inside, other=0.0).to(tl.float32) * lift
    offset = tl.load(bias_ptr + c, mask=inside, other=0.0).to(tl.float32) * lift
    offset += _or(shift_ptr, image * C + c, inside, HAS_SHIFT)

    s = tl.arange(0, PLACES)
    if ONCE:
        live = (s < S)[None, None, :] & inside[:, :, None]
        at = _tile_offsets(s, c, S, C, LAST)
        xhat, dz = _slope(x_ptr, dy_ptr, start, at, live, add, mean, rstd, gain, offset, ACT)
        s1, s2, s3 = tl.sum(dz, 2), tl.sum(dz * xhat, 2), tl.sum(xhat, 2)
    else:
        s1 = tl.zeros((SLAB, BLOCK_D), tl.float32)
        s2 = tl.zeros((SLAB, BLOCK_D), tl.float32)
        s3 = tl.zeros((SLAB, BLOCK_D), tl.float32)
        for s0 in range(0, S, PLACES):
            live = (s0 + s < S)[None, None, :] & inside[:, :, None]
            at = _tile_offsets(s0 + s, c, S, C, LAST)
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
            at = _tile_offsets(s0 + s, c, S, C, LAST)
            xhat, dz = _slope(x_ptr, dy_ptr, start, at, live, add, mean, rstd, gain, offset, ACT)
            dx = gain[:, :, None] * dz - level[:, None, None] - tilt[:, None, None] * xhat
            dx *= rstd[:, None, None]
            tl.store(dx_ptr + start + at, dx.to(dx_ptr.dtype.element_ty), mask=live)


class Tile(NamedTuple):
    """How one call is cut; depends on an image's shape only, so an image never feels its batch."""

    places: int
    slab: int
    block_d: int
    once: bool
    warps: int


# Values of a tile that stay in the registers of 8 warps; more would spill (tools/aot_check.py).
LARGEST = {"forward": 16384, "backward": 4096}


def tile(kernel: str, size: int, width: int, groups: int, last: bool) -> Tile:
    block_d = triton.next_power_of_2(width)
    slab, all_groups = 1, triton.next_power_of_2(groups)
    small = max(1, 2048 // max(1, triton.next_power_of_2(size)))  # channels worth a program
    while slab < all_groups and slab * width < max(small, 32 if last else 1):
        slab *= 2
    channels = slab * block_d
    places = min(triton.next_power_of_2(size), max(1, LARGEST[kernel] // channels))
    warps = 8 if places * channels > 2048 else 4
    return Tile(places, slab, block_d, size <= places, warps)


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    scale: Tensor | None,
    shift: Tensor | None,
    add: Tensor | None,
    act: bool,
) -> tuple[Tensor, Tensor]:
    """As `forward_reference` of the op."""
    form = layout.of(x)
    x = layout.dense(x, form)
    n = x.shape[0]
    y = layout.empty(x, form)
    statistics = x.new_empty((2, n, groups), dtype=torch.float32)
    if not x.numel():
        return y, statistics.fill_(float("nan"))
    inputs = [_flat(v) for v in (weight, bias, scale, shift, add)]
    grid, sizes, options = _launch("forward", x, groups, scale, shift, add, act, form)
    with _on(x):
        forward_kernel[grid](
            x,
            *(x if v is None else v for v in inputs),
            y,
            *statistics.unbind(),
            *sizes,
            eps,
            **options,
        )
    return y, statistics


def backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    statistics: Tensor,
    groups: int,
    scale: Tensor | None,
    shift: Tensor | None,
    add: Tensor | None,
    act: bool,
) -> tuple[Tensor, ...]:
    """As `backward_reference` of the op."""
    form = layout.of(x)
    x, dy = layout.dense(x, form), layout.dense(dy, form)
    dx = layout.empty(x, form)
    s1, s2, dadd = x.new_zeros((3, *x.shape[:2]), dtype=torch.float32).unbind()
    inputs = [_flat(v) for v in (weight, bias, scale, shift, add)]
    if x.numel():
        grid, sizes, options = _launch("backward", x, groups, scale, shift, add, act, form)
        weight, bias, *extras = (x if v is None else v for v in inputs)
        with _on(x):
            backward_kernel[grid](
                dy,
                x,
                weight,
                bias,
                *statistics.unbind(),
                *extras,
                dx,
                s1,
                s2,
                dadd,
                *sizes,
                **options,
            )
    lift: Any = 1 if scale is None else 1 + scale.float()
    return (
        dx,
        (s2 * lift).sum(0),  # a reduction of torch's: the same order every time
        (s1 * lift).sum(0),
        dx.new_empty(0) if scale is None else weight.float() * s2 + bias.float() * s1,
        dx.new_empty(0) if shift is None else s1.clone(),
        dx.new_empty(0) if add is None else dadd.sum(0) if add.ndim == 1 else dadd.clone(),
    )


def _launch(
    kernel: str,
    x: Tensor,
    groups: int,
    scale: Tensor | None,
    shift: Tensor | None,
    add: Tensor | None,
    act: bool,
    form: torch.memory_format,
) -> tuple[tuple[int], tuple[int, ...], dict[str, Any]]:
    n, c = x.shape[:2]
    size, last = math.prod(x.shape[2:]), layout.channels_last(form)
    t = tile(kernel, size, c // groups, groups, last)
    slabs = -(-groups // t.slab)
    add_stride = c if add is not None and add.ndim == 2 else 0
    options = {
        "WIDTH": c // groups,
        "HAS_SCALE": scale is not None,
        "HAS_SHIFT": shift is not None,
        "HAS_ADD": add is not None,
        "ACT": act,
        "LAST": last,
        "PLACES": t.places,
        "SLAB": t.slab,
        "BLOCK_D": t.block_d,
        "ONCE": t.once,
        "num_warps": t.warps,
    }
    return (n * slabs,), (size, c, groups, slabs, add_stride), options


def _flat(v: Tensor | None) -> Tensor | None:
    return None if v is None else v.contiguous()


def _on(x: Tensor) -> Any:
    return torch.cuda.device_of(x)
