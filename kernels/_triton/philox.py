"""Philox4x32-10 words, uniforms and normals by address; the reference tells what each number is."""
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,no-any-return"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import blocks

DRAWS = {"philox_uint32": 0, "philox_uniform": 1, "philox_normal": 2}


@triton.jit
def _philox(c0, c1, c2, c3, k0, k1):
    for _ in tl.static_range(10):
        high0 = tl.umulhi(c0, tl.full(c0.shape, 0xD2511F53, tl.uint32))
        high1 = tl.umulhi(c2, tl.full(c2.shape, 0xCD9E8D57, tl.uint32))
        low0 = c0 * tl.full(c0.shape, 0xD2511F53, tl.uint32)
        low1 = c2 * tl.full(c2.shape, 0xCD9E8D57, tl.uint32)
        c0 = high1 ^ c1 ^ k0
        c2 = high0 ^ c3 ^ k1
        c1 = low1
        c3 = low0
        k0 = k0 + tl.full(k0.shape, 0x9E3779B9, tl.uint32)
        k1 = k1 + tl.full(k1.shape, 0xBB67AE85, tl.uint32)
    return c0, c1, c2, c3


@triton.jit
def _quarter_sine(x):
    """sin(x·π/2) for x in [0, 1], float64: Taylor to the 17th power, 1e-13 of its value."""
    t = x * 1.57079632679489662
    q = t * t
    p = q * 2.8114572543455206e-15 - 7.647163731819816e-13
    p = p * q + 1.6059043836821613e-10
    p = p * q - 2.505210838544172e-08
    p = p * q + 2.7557319223985893e-06
    p = p * q - 0.0001984126984126984
    p = p * q + 0.008333333333333333
    p = p * q - 0.16666666666666666
    return t + t * q * p


@triton.jit
def _normals(radius_word, angle_word):
    """Box and Muller 1958 in float64, rounded once."""
    u = (radius_word.to(tl.float64) + 0.5) * 2.3283064365386963e-10  # 2⁻³²
    radius = tl.sqrt(-2.0 * tl.log(u))
    part = ((angle_word & 0x3FFFFFFF).to(tl.float64) + 0.5) * 9.313225746154785e-10  # 2⁻³⁰
    near = _quarter_sine(part)
    far = _quarter_sine(1.0 - part)
    quadrant = (angle_word >> 30).to(tl.int32)
    odd = (quadrant & 1) == 1
    cosine = tl.where(odd, near, far)
    sine = tl.where(odd, far, near)
    cosine = tl.where(((quadrant + 1) & 2) == 2, -cosine, cosine)
    sine = tl.where((quadrant & 2) == 2, -sine, sine)
    return (radius * cosine).to(tl.float32), (radius * sine).to(tl.float32)


@triton.jit
def _uniform(word):
    k = (word >> 8).to(tl.float32) + 0.5
    return tl.minimum(k, 16777215.0) * 5.960464477539063e-08  # 2⁻²⁴; the last would round up to 1


# A seed or stream of 1 must not become a compile-time constant.
@triton.jit(do_not_specialize=["key0", "key1", "stream"])
def philox_kernel(
    index_ptr, out_ptr, key0, key1, stream, quads, size, total,
    DRAW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = at < total
    row = at // quads
    quad = at % quads
    index = tl.load(index_ptr + row, mask=live, other=0)
    zero = tl.zeros((BLOCK,), tl.uint32)
    w0, w1, w2, w3 = _philox(
        quad.to(tl.uint32),
        index.to(tl.uint32),
        (index >> 32).to(tl.uint32),
        zero + stream.to(tl.uint32),
        zero + key0.to(tl.uint32),
        zero + key1.to(tl.uint32),
    )
    if DRAW == 0:
        v0, v1, v2, v3 = w0.to(tl.int64), w1.to(tl.int64), w2.to(tl.int64), w3.to(tl.int64)
    elif DRAW == 1:
        v0, v1, v2, v3 = _uniform(w0), _uniform(w1), _uniform(w2), _uniform(w3)
    else:
        v0, v1 = _normals(w0, w1)
        v2, v3 = _normals(w2, w3)
    j = quad * 4
    to = out_ptr + row * size + j
    tl.store(to, v0, mask=live)
    tl.store(to + 1, v1, mask=live & (j + 1 < size))
    tl.store(to + 2, v2, mask=live & (j + 2 < size))
    tl.store(to + 3, v3, mask=live & (j + 3 < size))


def draw(op: str, seed: int, stream: int, index: Tensor, size: int) -> Tensor:
    dtype = torch.int64 if op == "philox_uint32" else torch.float32
    index = index.contiguous()
    out = torch.empty((index.shape[0], size), dtype=dtype, device=index.device)
    quads = -(-size // 4)
    if total := index.shape[0] * quads:
        block = blocks(total, 256)
        with torch.cuda.device_of(index):
            philox_kernel[(triton.cdiv(total, block),)](
                index,
                out,
                seed & 0xFFFFFFFF,
                seed >> 32,
                stream,
                quads,
                size,
                total,
                DRAW=DRAWS[op],
                BLOCK=block,
            )
    return out
