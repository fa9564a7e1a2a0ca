"""Attention in one pass over the keys: scores stay on the chip, softmax is taken as they come.

Milakov & Gimelshein 2018 (arXiv:1805.02867) for the running softmax, Dao et al. 2022
(arXiv:2205.14135) for tiling it and for a backward pass that computes the scores again. A program
owns its part of every output and sums in a fixed order: no atomics, the same bits every time.
"""
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,no-any-return"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import layout
from . import attention_cuts as cuts

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN2: tl.constexpr = tl.constexpr(0.6931471805599453)


@triton.jit
def _place(heads, blocks):
    """Which head of all images, image (64 bits), head of it, and block this program has."""
    pair = tl.program_id(0) // blocks
    return pair.to(tl.int64), (pair // heads).to(tl.int64), pair % heads, tl.program_id(0) % blocks


@triton.jit
def _rows(pointer, t, stride, N, d, D: tl.constexpr):
    """Tokens t (R,), channels d (W,) of one head: (R, W), zeros outside."""
    live = (t < N)[:, None] & (d < D)[None, :]
    return tl.load(pointer + t[:, None] * stride + d[None, :], mask=live, other=0.0)


@triton.jit
def _store(pointer, value, t, stride, N, d, D: tl.constexpr):
    live = (t < N)[:, None] & (d < D)[None, :]
    at = pointer + t[:, None] * stride + d[None, :]
    tl.store(at, value.to(pointer.dtype.element_ty), mask=live)


@triton.jit
def _product(
    a_ptr, a_tokens, a_stride, b_ptr, b_tokens, b_stride, N, D: tl.constexpr,
    BLOCK_D: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """a·bᵀ (tokens of a, tokens of b), SPLIT channels at a time: float32 has no tensor core."""
    total = tl.zeros((a_tokens.shape[0], b_tokens.shape[0]), tl.float32)
    for first in range(0, BLOCK_D, SPLIT):
        d = first + tl.arange(0, SPLIT)
        a = _rows(a_ptr, a_tokens, a_stride, N, d, D)
        b = _rows(b_ptr, b_tokens, b_stride, N, d, D)
        total = tl.dot(a, tl.trans(b), total, input_precision="ieee")
    return total


@triton.jit
def _delta(
    dout_ptr, dout_token, out_ptr, C, t, N, D: tl.constexpr, BLOCK_D: tl.constexpr,
    SPLIT: tl.constexpr,
):  # fmt: skip
    """Σ dout·out of each token."""
    total = tl.zeros((t.shape[0],), tl.float32)
    for first in range(0, BLOCK_D, SPLIT):
        d = first + tl.arange(0, SPLIT)
        dout = _rows(dout_ptr, t, dout_token, N, d, D).to(tl.float32)
        total += tl.sum(dout * _rows(out_ptr, t, C, N, d, D).to(tl.float32), 1)
    return total


@triton.jit
def forward_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr,
    q_image, q_token, k_image, k_token, v_image, v_token, N, heads, blocks, scale,
    D: tl.constexpr, BLOCK_D: tl.constexpr, SPLIT: tl.constexpr, BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr, RAGGED: tl.constexpr,
):  # fmt: skip
    """`scale` is for exp2: log₂e times the op's. RAGGED: the last block of keys is not full."""
    pair, image, head, block = _place(heads, blocks)
    t = block * BLOCK_Q + tl.arange(0, BLOCK_Q)
    d = tl.arange(0, BLOCK_D)
    C = heads * D
    q_ptr += image * q_image + head * D
    k_ptr += image * k_image + head * D
    v_ptr += image * v_image + head * D
    if SPLIT == BLOCK_D:
        q = _rows(q_ptr, t, q_token, N, d, D)
    peak = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    mass = tl.zeros((BLOCK_Q,), tl.float32)
    total = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    for first in range(0, N, BLOCK_K):
        j = first + tl.arange(0, BLOCK_K)
        if SPLIT == BLOCK_D:
            k = _rows(k_ptr, j, k_token, N, d, D)
            s = tl.dot(q, tl.trans(k), input_precision="ieee")
        else:
            s = _product(q_ptr, t, q_token, k_ptr, j, k_token, N, D, BLOCK_D, SPLIT)
        s *= scale
        if RAGGED:
            s = tl.where((j < N)[None, :], s, float("-inf"))
        top = tl.maximum(peak, tl.max(s, 1))
        p = tl.exp2(s - top[:, None])
        fade = tl.exp2(peak - top)
        mass = mass * fade + tl.sum(p, 1)
        v = _rows(v_ptr, j, v_token, N, d, D)
        total = tl.dot(p.to(v.dtype), v, total * fade[:, None], input_precision="ieee")
        peak = top
    _store(out_ptr + image * N * C + head * D, total / mass[:, None], t, C, N, d, D)
    tl.store(lse_ptr + pair * N + t, (peak + tl.log2(mass)) * LN2, mask=t < N)


@triton.jit
def backward_q_kernel(
    dout_ptr, q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, delta_ptr, dq_ptr,
    dout_image, dout_token, q_image, q_token, k_image, k_token, v_image, v_token,
    N, heads, blocks, scale,
    D: tl.constexpr, BLOCK_D: tl.constexpr, SPLIT: tl.constexpr, BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr, RAGGED: tl.constexpr,
):  # fmt: skip
    """The gradient of a block of queries; leaves Σ dout·out of each for `backward_kv_kernel`."""
    pair, image, head, block = _place(heads, blocks)
    t = block * BLOCK_Q + tl.arange(0, BLOCK_Q)
    d = tl.arange(0, BLOCK_D)
    C = heads * D
    dout_ptr += image * dout_image + head * D
    q_ptr += image * q_image + head * D
    k_ptr += image * k_image + head * D
    v_ptr += image * v_image + head * D
    here = image * N * C + head * D
    row = pair * N + t

    lse = tl.load(lse_ptr + row, mask=t < N, other=float("inf")) * LOG2E
    delta = _delta(dout_ptr, dout_token, out_ptr + here, C, t, N, D, BLOCK_D, SPLIT)
    tl.store(delta_ptr + row, delta, mask=t < N)
    if SPLIT == BLOCK_D:
        q = _rows(q_ptr, t, q_token, N, d, D)
        dout = _rows(dout_ptr, t, dout_token, N, d, D)
    dq = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    for first in range(0, N, BLOCK_K):
        j = first + tl.arange(0, BLOCK_K)
        k = _rows(k_ptr, j, k_token, N, d, D)
        if SPLIT == BLOCK_D:
            s = tl.dot(q, tl.trans(k), input_precision="ieee")
            v = _rows(v_ptr, j, v_token, N, d, D)
            dp = tl.dot(dout, tl.trans(v), input_precision="ieee")
        else:
            s = _product(q_ptr, t, q_token, k_ptr, j, k_token, N, D, BLOCK_D, SPLIT)
            dp = _product(dout_ptr, t, dout_token, v_ptr, j, v_token, N, D, BLOCK_D, SPLIT)
        p = tl.exp2(s * scale - lse[:, None])
        if RAGGED:  # a key that is not there has score 0, which may be far above the others
            p = tl.where((j < N)[None, :], p, 0.0)
        ds = p * (dp - delta[:, None])
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision="ieee")
    _store(dq_ptr + here, dq * (scale * LN2), t, C, N, d, D)


@triton.jit
def backward_kv_kernel(
    dout_ptr, q_ptr, k_ptr, v_ptr, lse_ptr, delta_ptr, dk_ptr, dv_ptr,
    dout_image, dout_token, q_image, q_token, k_image, k_token, v_image, v_token,
    N, heads, blocks, scale,
    D: tl.constexpr, BLOCK_D: tl.constexpr, SPLIT: tl.constexpr, BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The gradients of a block of keys and values; scores are (keys, queries) here."""
    pair, image, head, block = _place(heads, blocks)
    j = block * BLOCK_K + tl.arange(0, BLOCK_K)
    d = tl.arange(0, BLOCK_D)
    C = heads * D
    dout_ptr += image * dout_image + head * D
    q_ptr += image * q_image + head * D
    k_ptr += image * k_image + head * D
    v_ptr += image * v_image + head * D
    here = image * N * C + head * D
    row = pair * N

    if SPLIT == BLOCK_D:
        k = _rows(k_ptr, j, k_token, N, d, D)
        v = _rows(v_ptr, j, v_token, N, d, D)
    dk = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    dv = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    for first in range(0, N, BLOCK_Q):
        t = first + tl.arange(0, BLOCK_Q)
        q = _rows(q_ptr, t, q_token, N, d, D)
        dout = _rows(dout_ptr, t, dout_token, N, d, D)
        lse = tl.load(lse_ptr + row + t, mask=t < N, other=float("inf")) * LOG2E
        delta = tl.load(delta_ptr + row + t, mask=t < N, other=0.0)
        if SPLIT == BLOCK_D:
            s = tl.dot(k, tl.trans(q), input_precision="ieee")
        else:
            s = _product(k_ptr, j, k_token, q_ptr, t, q_token, N, D, BLOCK_D, SPLIT)
        p = tl.exp2(s * scale - lse[None, :])
        dv = tl.dot(p.to(dout.dtype), dout, dv, input_precision="ieee")
        if SPLIT == BLOCK_D:
            dp = tl.dot(v, tl.trans(dout), input_precision="ieee")
        else:
            dp = _product(v_ptr, j, v_token, dout_ptr, t, dout_token, N, D, BLOCK_D, SPLIT)
        ds = p * (dp - delta[None, :])
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision="ieee")
    _store(dk_ptr + here, dk * (scale * LN2), j, C, N, d, D)
    _store(dv_ptr + here, dv, j, C, N, d, D)


@triton.jit
def backward_whole_kernel(
    dout_ptr, q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, dq_ptr, dk_ptr, dv_ptr,
    dout_image, dout_token, q_image, q_token, k_image, k_token, v_image, v_token,
    N, heads, blocks, scale,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_Q: tl.constexpr, RAGGED: tl.constexpr,
):  # fmt: skip
    """All three gradients of one head of one small image, every input read once.

    Never float32 (`cuts.whole`), for which every product would need input_precision="ieee".
    """
    pair, image, head, _ = _place(heads, blocks)  # the only block
    t = tl.arange(0, BLOCK_Q)
    d = tl.arange(0, BLOCK_D)
    C = heads * D
    here = image * N * C + head * D
    dout = _rows(dout_ptr + image * dout_image + head * D, t, dout_token, N, d, D)
    q = _rows(q_ptr + image * q_image + head * D, t, q_token, N, d, D)
    k = _rows(k_ptr + image * k_image + head * D, t, k_token, N, d, D)
    v = _rows(v_ptr + image * v_image + head * D, t, v_token, N, d, D)
    lse = tl.load(lse_ptr + pair * N + t, mask=t < N, other=float("inf")) * LOG2E
    out = _rows(out_ptr + here, t, C, N, d, D)
    delta = tl.sum(dout.to(tl.float32) * out.to(tl.float32), 1)

    p = tl.exp2(tl.dot(k, tl.trans(q)) * scale - lse[None, :])  # (keys, queries)
    if RAGGED:
        p = tl.where((t < N)[:, None], p, 0.0)
    _store(dv_ptr + here, tl.dot(p.to(dout.dtype), dout), t, C, N, d, D)
    ds = (p * (tl.dot(v, tl.trans(dout)) - delta[None, :])).to(q.dtype)
    _store(dk_ptr + here, tl.dot(ds, q) * (scale * LN2), t, C, N, d, D)
    _store(dq_ptr + here, tl.dot(tl.trans(ds), k) * (scale * LN2), t, C, N, d, D)


KERNELS = {
    "forward": forward_kernel,
    "backward_q": backward_q_kernel,
    "backward_kv": backward_kv_kernel,
    "backward_whole": backward_whole_kernel,
}


def forward(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float) -> tuple[Tensor, Tensor]:
    """As `forward_reference` of the op."""
    views = [layout.pixels(x) for x in (q, k, v)]
    n, tokens, channels = views[0].shape
    out = q.new_empty((n, tokens, channels))
    lse = q.new_empty((n, heads, tokens), dtype=torch.float32)
    if out.numel():
        sizes = (*_strides(views), tokens, heads)
        with torch.cuda.device_of(q):
            _launch("forward", [*views, out, lse], sizes, scale, out, heads)
    return layout.image(out, q.shape), lse


def backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    heads: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `backward_reference` of the op."""
    inputs = [layout.pixels(x) for x in (dout, q, k, v)]
    rows = layout.pixels(out).contiguous()
    _, tokens, channels = rows.shape
    dq, dk, dv = (torch.empty_like(rows) for _ in range(3))
    sizes = (*_strides(inputs), tokens, heads)
    if rows.numel():
        with torch.cuda.device_of(q):
            room = cuts.shared(q.device)
            if cuts.whole(tokens, channels // heads, q.element_size(), room):
                given = [*inputs, rows, logsumexp, dq, dk, dv]
                _launch("backward_whole", given, sizes, scale, rows, heads)
            else:
                delta = torch.empty_like(logsumexp)
                given = [*inputs, rows, logsumexp, delta, dq]
                _launch("backward_q", given, sizes, scale, rows, heads)
                given = [*inputs, logsumexp, delta, dk, dv]
                _launch("backward_kv", given, sizes, scale, rows, heads)
    return layout.image(dq, q.shape), layout.image(dk, q.shape), layout.image(dv, q.shape)


def _launch(
    which: str, tensors: list[Tensor], sizes: tuple[int, ...], scale: float, x: Tensor, heads: int
) -> None:
    """One kernel over all heads of `x` (N, tokens, channels)."""
    n, tokens, channels = x.shape
    width = channels // heads
    cut = cuts.chosen(which, tokens, width, x.dtype, x.device)
    blocks = triton.cdiv(tokens, cut.block_k if which == "backward_kv" else cut.block_q)
    kernel = KERNELS[which]
    known = {k: v for k, v in cuts.constants(cut, tokens, width).items() if k in kernel.arg_names}
    kernel[(n * heads * blocks,)](
        *tensors, *sizes, blocks, scale * LOG2E.value,
        num_warps=cut.warps, num_stages=cut.stages, **known,
    )  # fmt: skip


def _strides(views: list[Tensor]) -> list[int]:
    """Of an image and of a token, of each (N, tokens, channels)."""
    return [s for x in views for s in x.stride()[:2]]
