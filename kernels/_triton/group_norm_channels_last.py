"""Group norm with channels innermost: one program an image and a slab of neighbouring groups.

A slab is wide enough that every row of it is a run of 32 bytes or more, read 16 at a time. Where
the slab of one image fits the registers it is read once and written once (`held`); else it is cut
into chunks that are read twice (`walked`), the second time out of a cache.

The channels may come from two tensors: those from CX on are the second one's. A group may have
channels of both.

No image feels its batch. Held or walked, and in chunks of which size, follows from the image's
shape. How many programs share the walk follows from the batch, but all of them run one compiled
kernel over the same chunks: `phase` tells which half of it (1 measures, 2 applies, 3 is both).
"""
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,no-any-return"

from __future__ import annotations

import triton
import triton.language as tl

from .group_norm_parts import load_or, reciprocal_deviation, silu, silu_slope

MEASURE, APPLY, BOTH = 1, 2, 3


# ---- tiles (places, lanes) ------------------------------------------------------------------


@triton.jit
def _lanes(slab, C, WIDTH: tl.constexpr, GROUPS: tl.constexpr, LANES: tl.constexpr,
           KINDS: tl.constexpr):  # fmt: skip
    """Channels (LANES,), which of them exist, and which belong to which group (KINDS, LANES)."""
    lane = tl.arange(0, LANES)
    c = slab * (GROUPS * WIDTH) + lane
    inside = (lane < GROUPS * WIDTH) & (c < C)
    return c, inside, (lane // WIDTH)[None, :] == tl.arange(0, KINDS)[:, None]


@triton.jit
def _walk(slabs, chunks, shares):
    """Whose walk it is, and this program's share of it: chunks first … last - 1."""
    share, row = tl.program_id(0) % shares, tl.program_id(0) // shares
    each = (chunks + shares - 1) // shares
    first = share * each
    last = tl.minimum(first + each, chunks)
    return (row // slabs).to(tl.int64), row % slabs, share, first, last


@triton.jit
def _per_group(v, member):
    """Sums (KINDS,) of the lanes (LANES,) of each group."""
    return tl.sum(tl.where(member, v[None, :], 0.0), 1)


@triton.jit
def _per_lane(v, member):
    """What each lane's group has."""
    return tl.sum(tl.where(member, v[:, None], 0.0), 0)


@triton.jit
def _only(v, live, FULL: tl.constexpr):
    if FULL:
        return v
    return tl.where(live, v, 0.0)


@triton.jit
def _load(x_ptr, more_ptr, image, s, c, live, S, C, CX, MORE: tl.constexpr, FULL: tl.constexpr):
    """float32; `image` is 64 bits wide, offsets inside an image are 32."""
    x = x_ptr + image * (S * CX)
    at = s[:, None] * CX + c[None, :]
    if MORE:
        more = more_ptr + image * (S * (C - CX))
        beside = s[:, None] * (C - CX) + (c - CX)[None, :]
        own = tl.load(x + at, mask=live & (c < CX)[None, :], other=0.0)
        return tl.load(more + beside, mask=live & (c >= CX)[None, :], other=own).to(tl.float32)
    if FULL:
        return tl.load(x + at).to(tl.float32)
    return tl.load(x + at, mask=live, other=0.0).to(tl.float32)


@triton.jit
def _store(v, x_ptr, more_ptr, image, s, c, live, S, C, CX, MORE: tl.constexpr,
           FULL: tl.constexpr):  # fmt: skip
    x = x_ptr + image * (S * CX)
    at = s[:, None] * CX + c[None, :]
    v = v.to(x_ptr.dtype.element_ty)
    if MORE:
        more = more_ptr + image * (S * (C - CX))
        beside = s[:, None] * (C - CX) + (c - CX)[None, :]
        tl.store(x + at, v, mask=live & (c < CX)[None, :])
        tl.store(more + beside, v, mask=live & (c >= CX)[None, :])
    elif FULL:
        tl.store(x + at, v)
    else:
        tl.store(x + at, v, mask=live)


# ---- forward --------------------------------------------------------------------------------


@triton.jit
def _moments(h, live, member, count, FULL: tl.constexpr):
    """A first mean of each group, h without it, the rest of the mean, and Σ (h - mean)².

    Without the rest a constant far from 0 has a spread, and 1/√eps lifts it.
    """
    rough = _per_group(tl.sum(_only(h, live, FULL), 0), member) / count
    d = _only(h - _per_lane(rough, member)[None, :], live, FULL)
    rest = _per_group(tl.sum(d, 0), member) / count
    spread = _per_group(tl.sum(d * d, 0), member) - rest * rest * count
    return rough, d, rest, tl.where(spread < 0.0, 0.0, spread)


@triton.jit
def _affine(weight_ptr, bias_ptr, scale_ptr, shift_ptr, image, c, inside, C,
            HAS_SCALE: tl.constexpr, HAS_SHIFT: tl.constexpr):  # fmt: skip
    """z = xhat·gain + offset."""
    lift = 1.0 + load_or(scale_ptr, image * C + c, inside, HAS_SCALE)
    gain = tl.load(weight_ptr + c, mask=inside, other=0.0).to(tl.float32) * lift
    offset = tl.load(bias_ptr + c, mask=inside, other=0.0).to(tl.float32) * lift
    return gain, offset + load_or(shift_ptr, image * C + c, inside, HAS_SHIFT)


@triton.jit
def held_forward_kernel(
    x_ptr, more_ptr, weight_ptr, bias_ptr, scale_ptr, shift_ptr, add_ptr, y_ptr, mean_ptr, rstd_ptr,
    S, C, CX, G, slabs, add_stride, eps,
    WIDTH: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_SHIFT: tl.constexpr, HAS_ADD: tl.constexpr,
    ACT: tl.constexpr, MORE: tl.constexpr, GROUPS: tl.constexpr, LANES: tl.constexpr,
    KINDS: tl.constexpr, PLACES: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    image, slab = (tl.program_id(0) // slabs).to(tl.int64), tl.program_id(0) % slabs
    c, inside, member = _lanes(slab, C, WIDTH, GROUPS, LANES, KINDS)
    s = tl.arange(0, PLACES)
    live = (s < S)[:, None] & inside[None, :]
    h = _load(x_ptr, more_ptr, image, s, c, live, S, C, CX, MORE, FULL)
    if HAS_ADD:
        h += load_or(add_ptr, image * add_stride + c, inside, HAS_ADD)[None, :]

    count = S * WIDTH * 1.0
    rough, d, rest, spread = _moments(h, live, member, count, FULL)
    rstd = reciprocal_deviation(spread, count, eps)
    group = slab * GROUPS + tl.arange(0, KINDS)
    real = (tl.arange(0, KINDS) < GROUPS) & (group < G)
    tl.store(mean_ptr + image * G + group, rough + rest, mask=real)
    tl.store(rstd_ptr + image * G + group, rstd, mask=real)

    gain, offset = _affine(weight_ptr, bias_ptr, scale_ptr, shift_ptr, image, c, inside, C,
                           HAS_SCALE, HAS_SHIFT)  # fmt: skip
    gain *= _per_lane(rstd, member)
    z = (d - _per_lane(rest, member)[None, :]) * gain[None, :] + offset[None, :]
    z = silu(z) if ACT else z
    _store(z, y_ptr, y_ptr, image, s, c, live, S, C, C, False, FULL)


@triton.jit
def _joined(parts, kind, chunks, S, WIDTH: tl.constexpr, PLACES: tl.constexpr,
            KINDS: tl.constexpr, CHUNKS: tl.constexpr):  # fmt: skip
    """Mean and spread of each group over all chunks: Chan, Golub and LeVeque 1983."""
    k = tl.arange(0, CHUNKS)[None, :]
    at = parts + k * (2 * KINDS) + kind[:, None]
    mean = tl.load(at, mask=(k < chunks) & (kind >= 0)[:, None], other=0.0)
    spread = tl.load(at + KINDS, mask=(k < chunks) & (kind >= 0)[:, None], other=0.0)
    n = tl.where(k < chunks, tl.minimum(S - k * PLACES, PLACES), 0) * (WIDTH * 1.0)
    count = S * WIDTH * 1.0
    rough = tl.sum(mean * n, 1) / count
    gap = tl.where(k < chunks, mean - rough[:, None], 0.0)
    rest = tl.sum(gap * n, 1) / count
    total = tl.sum(spread, 1) + tl.sum(gap * gap * n, 1) - rest * rest * count
    return rough + rest, tl.where(total < 0.0, 0.0, total)


# Of a size that happens to be 1 Triton would make a kernel of its own, with bits of its own.
@triton.jit(do_not_specialize=["phase", "chunks", "shares"])
def walked_forward_kernel(
    x_ptr, more_ptr, weight_ptr, bias_ptr, scale_ptr, shift_ptr, add_ptr, y_ptr, mean_ptr, rstd_ptr,
    parts_ptr, S, C, CX, G, slabs, add_stride, eps, phase, chunks, shares,
    WIDTH: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_SHIFT: tl.constexpr, HAS_ADD: tl.constexpr,
    ACT: tl.constexpr, MORE: tl.constexpr, GROUPS: tl.constexpr, LANES: tl.constexpr,
    KINDS: tl.constexpr, PLACES: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    image, slab, share, first, last = _walk(slabs, chunks, shares)
    c, inside, member = _lanes(slab, C, WIDTH, GROUPS, LANES, KINDS)
    kind = tl.arange(0, KINDS)
    parts = parts_ptr + (image * slabs + slab) * chunks * (2 * KINDS)
    add = load_or(add_ptr, image * add_stride + c, inside, HAS_ADD)

    if phase != 2:
        for k in range(first, last):
            s = k * PLACES + tl.arange(0, PLACES)
            live = (s < S)[:, None] & inside[None, :]
            h = _load(x_ptr, more_ptr, image, s, c, live, S, C, CX, MORE, False) + add[None, :]
            count = tl.minimum(S - k * PLACES, PLACES) * WIDTH * 1.0
            rough, _, rest, spread = _moments(h, live, member, count, False)
            tl.store(parts + k * (2 * KINDS) + kind, rough + rest)
            tl.store(parts + k * (2 * KINDS) + KINDS + kind, spread)
        tl.debug_barrier()  # other threads of this program read what these wrote

    if phase != 1:
        mean, spread = _joined(parts, kind, chunks, S, WIDTH, PLACES, KINDS, CHUNKS)
        rstd = reciprocal_deviation(spread, S * WIDTH * 1.0, eps)
        group = slab * GROUPS + kind
        real = (kind < GROUPS) & (group < G) & (share == 0)
        tl.store(mean_ptr + image * G + group, mean, mask=real)
        tl.store(rstd_ptr + image * G + group, rstd, mask=real)
        gain, offset = _affine(weight_ptr, bias_ptr, scale_ptr, shift_ptr, image, c, inside, C,
                               HAS_SCALE, HAS_SHIFT)  # fmt: skip
        gain *= _per_lane(rstd, member)
        middle = _per_lane(mean, member)
        for k in range(first, last):
            s = k * PLACES + tl.arange(0, PLACES)
            live = (s < S)[:, None] & inside[None, :]
            h = _load(x_ptr, more_ptr, image, s, c, live, S, C, CX, MORE, False) + add[None, :]
            z = (h - middle[None, :]) * gain[None, :] + offset[None, :]
            z = silu(z) if ACT else z
            _store(z, y_ptr, y_ptr, image, s, c, live, S, C, C, False, False)


# ---- backward -------------------------------------------------------------------------------


@triton.jit
def _slope(x, dy, live, add, mean, rstd, gain, offset, ACT: tl.constexpr, FULL: tl.constexpr):
    """xhat and dz, the gradient before the affine; 0 where nothing lives."""
    xhat = _only(((x + add[None, :]) - mean[None, :]) * rstd[None, :], live, FULL)
    if ACT:
        dy = dy * silu_slope(xhat * gain[None, :] + offset[None, :])
    return xhat, dy


@triton.jit
def _level_and_tilt(s1, s2, gain, member, count):
    """Of each lane's group: dx = (dz·gain - level - xhat·tilt)·rstd."""
    level = _per_lane(_per_group(gain * s1, member), member) / count
    return level, _per_lane(_per_group(gain * s2, member), member) / count


@triton.jit
def _keep_sums(s1_ptr, s2_ptr, dadd_ptr, at, mask, s1, s2, s3, gain, rstd, level, tilt, S,
               HAS_ADD: tl.constexpr):  # fmt: skip
    tl.store(s1_ptr + at, s1, mask=mask)
    tl.store(s2_ptr + at, s2, mask=mask)
    if HAS_ADD:
        tl.store(dadd_ptr + at, (gain * s1 - (level * (S * 1.0) + tilt * s3)) * rstd, mask=mask)


@triton.jit
def _statistics(mean_ptr, rstd_ptr, image, slab, G, member, GROUPS: tl.constexpr,
                KINDS: tl.constexpr):  # fmt: skip
    """Each lane's."""
    kind = tl.arange(0, KINDS)
    group = slab * GROUPS + kind
    real = (kind < GROUPS) & (group < G)
    mean = tl.load(mean_ptr + image * G + group, mask=real, other=0.0)
    rstd = tl.load(rstd_ptr + image * G + group, mask=real, other=0.0)
    return _per_lane(mean, member), _per_lane(rstd, member)


@triton.jit
def held_backward_kernel(
    dy_ptr, x_ptr, more_ptr, weight_ptr, bias_ptr, mean_ptr, rstd_ptr, scale_ptr, shift_ptr,
    add_ptr, dx_ptr, dmore_ptr, s1_ptr, s2_ptr, dadd_ptr,
    S, C, CX, G, slabs, add_stride,
    WIDTH: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_SHIFT: tl.constexpr, HAS_ADD: tl.constexpr,
    ACT: tl.constexpr, MORE: tl.constexpr, GROUPS: tl.constexpr, LANES: tl.constexpr,
    KINDS: tl.constexpr, PLACES: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    image, slab = (tl.program_id(0) // slabs).to(tl.int64), tl.program_id(0) % slabs
    c, inside, member = _lanes(slab, C, WIDTH, GROUPS, LANES, KINDS)
    s = tl.arange(0, PLACES)
    live = (s < S)[:, None] & inside[None, :]
    x = _load(x_ptr, more_ptr, image, s, c, live, S, C, CX, MORE, FULL)
    dy = _load(dy_ptr, dy_ptr, image, s, c, live, S, C, C, False, FULL)
    add = load_or(add_ptr, image * add_stride + c, inside, HAS_ADD)
    mean, rstd = _statistics(mean_ptr, rstd_ptr, image, slab, G, member, GROUPS, KINDS)
    gain, offset = _affine(weight_ptr, bias_ptr, scale_ptr, shift_ptr, image, c, inside, C,
                           HAS_SCALE, HAS_SHIFT)  # fmt: skip
    xhat, dz = _slope(x, dy, live, add, mean, rstd, gain, offset, ACT, FULL)
    s1, s2, s3 = tl.sum(dz, 0), tl.sum(dz * xhat, 0), tl.sum(xhat, 0)
    level, tilt = _level_and_tilt(s1, s2, gain, member, S * WIDTH * 1.0)
    _keep_sums(s1_ptr, s2_ptr, dadd_ptr, image * C + c, inside, s1, s2, s3, gain, rstd, level, tilt,
               S, HAS_ADD)  # fmt: skip
    dx = (gain[None, :] * dz - level[None, :] - tilt[None, :] * xhat) * rstd[None, :]
    _store(dx, dx_ptr, dmore_ptr, image, s, c, live, S, C, CX, MORE, FULL)


@triton.jit
def _sum_of(parts, lane, chunks, LANES: tl.constexpr):
    """Over the chunks, eight rows of (LANES,) at a time."""
    total = tl.zeros((LANES,), tl.float32)
    for k0 in range(0, chunks, 8):
        k = k0 + tl.arange(0, 8)
        at = parts + k[:, None] * (3 * LANES) + lane[None, :]
        total += tl.sum(
            tl.load(at, mask=(k < chunks)[:, None] & (lane >= 0)[None, :], other=0.0), 0
        )
    return total


@triton.jit(do_not_specialize=["phase", "chunks", "shares"])
def walked_backward_kernel(
    dy_ptr, x_ptr, more_ptr, weight_ptr, bias_ptr, mean_ptr, rstd_ptr, scale_ptr, shift_ptr,
    add_ptr, dx_ptr, dmore_ptr, s1_ptr, s2_ptr, dadd_ptr, parts_ptr,
    S, C, CX, G, slabs, add_stride, phase, chunks, shares,
    WIDTH: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_SHIFT: tl.constexpr, HAS_ADD: tl.constexpr,
    ACT: tl.constexpr, MORE: tl.constexpr, GROUPS: tl.constexpr, LANES: tl.constexpr,
    KINDS: tl.constexpr, PLACES: tl.constexpr,
):  # fmt: skip
    image, slab, share, first, last = _walk(slabs, chunks, shares)
    c, inside, member = _lanes(slab, C, WIDTH, GROUPS, LANES, KINDS)
    lane = tl.arange(0, LANES)
    parts = parts_ptr + (image * slabs + slab) * chunks * (3 * LANES)
    add = load_or(add_ptr, image * add_stride + c, inside, HAS_ADD)
    mean, rstd = _statistics(mean_ptr, rstd_ptr, image, slab, G, member, GROUPS, KINDS)
    gain, offset = _affine(weight_ptr, bias_ptr, scale_ptr, shift_ptr, image, c, inside, C,
                           HAS_SCALE, HAS_SHIFT)  # fmt: skip

    if phase != 2:
        for k in range(first, last):
            s = k * PLACES + tl.arange(0, PLACES)
            live = (s < S)[:, None] & inside[None, :]
            x = _load(x_ptr, more_ptr, image, s, c, live, S, C, CX, MORE, False)
            dy = _load(dy_ptr, dy_ptr, image, s, c, live, S, C, C, False, False)
            xhat, dz = _slope(x, dy, live, add, mean, rstd, gain, offset, ACT, False)
            to = parts + k * (3 * LANES) + lane
            tl.store(to, tl.sum(dz, 0))
            tl.store(to + LANES, tl.sum(dz * xhat, 0))
            tl.store(to + 2 * LANES, tl.sum(xhat, 0))
        tl.debug_barrier()

    if phase != 1:
        s1 = _sum_of(parts, lane, chunks, LANES)
        s2 = _sum_of(parts + LANES, lane, chunks, LANES)
        s3 = _sum_of(parts + 2 * LANES, lane, chunks, LANES)
        level, tilt = _level_and_tilt(s1, s2, gain, member, S * WIDTH * 1.0)
        _keep_sums(s1_ptr, s2_ptr, dadd_ptr, image * C + c, inside & (share == 0), s1, s2, s3, gain,
                   rstd, level, tilt, S, HAS_ADD)  # fmt: skip
        for k in range(first, last):
            s = k * PLACES + tl.arange(0, PLACES)
            live = (s < S)[:, None] & inside[None, :]
            x = _load(x_ptr, more_ptr, image, s, c, live, S, C, CX, MORE, False)
            dy = _load(dy_ptr, dy_ptr, image, s, c, live, S, C, C, False, False)
            xhat, dz = _slope(x, dy, live, add, mean, rstd, gain, offset, ACT, False)
            dx = (gain[None, :] * dz - level[None, :] - tilt[None, :] * xhat) * rstd[None, :]
            _store(dx, dx_ptr, dmore_ptr, image, s, c, live, S, C, CX, MORE, False)
