"""Random numbers with an address: value j of an image depends on (seed, stream, index, j) only.

Philox4x32-10 (Salmon et al. 2011, doi:10.1145/2063384.2063405): counter (j // 4, index low, index
high, stream), key (seed low, seed high); word j % 4 of the block is value j. So image k is the same
whatever the batch, the device and the order, and a restart needs no generator state.

Normals take words in pairs by Box & Muller 1958 in float64, rounded once: u = (word + ½)/2³² gives
the radius √(-2 ln u), the next word the angle, whose quadrant is its top two bits. Both sine and
cosine are taken as a sine inside [0, π/2], so no backend loses digits in a range reduction.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import _triton, checks, cuda, library, native
from .dispatch import Backend, Example, Op, requested

MASK = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10


def words_reference(seed: int, stream: int, index: Tensor, size: int) -> Tensor:
    """(n, size) int64 holding 32-bit words."""
    n, quads = index.shape[0], -(-size // 4)
    quad = torch.arange(quads, device=index.device).expand(n, quads)
    low = (index & MASK)[:, None].expand(n, quads)
    high = ((index >> 32) & MASK)[:, None].expand(n, quads)
    counter = (quad, low, high, torch.full_like(quad, stream))
    block = torch.stack(rounds(counter, (seed & MASK, seed >> 32)), -1)  # (n, quads, 4)
    return block.reshape(n, quads * 4)[:, :size].contiguous()


def rounds(counter: tuple[Tensor, ...], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Ten Philox rounds on int64 tensors that hold 32-bit words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        # int64 products wrap modulo 2^64, which keeps all 64 bits of a 32×32-bit product.
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c2 = ((p1 >> 32) & MASK) ^ c1 ^ k0, ((p0 >> 32) & MASK) ^ c3 ^ k1
        c1, c3 = p1 & MASK, p0 & MASK
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return c0, c1, c2, c3


def uniform_reference(seed: int, stream: int, index: Tensor, size: int) -> Tensor:
    """(n, size) float32 strictly inside (0, 1): (word // 2⁸ + ½)·2⁻²⁴."""
    words = words_reference(seed, stream, index, size)
    # Rounded down at the very top: (2²⁴ - ½)·2⁻²⁴ is not a float32 and would round to 1.
    return (((words >> 8).double() + 0.5) * 2**-24).clamp(max=1 - 2**-24).float()


def normal_reference(seed: int, stream: int, index: Tensor, size: int) -> Tensor:
    """(n, size) float32 from N(0, 1)."""
    words = words_reference(seed, stream, index, -(-size // 2) * 2)
    radius_word, angle_word = words[:, 0::2], words[:, 1::2]
    radius = (-2 * ((radius_word.double() + 0.5) * 2**-32).log()).sqrt()
    part = ((angle_word & 0x3FFFFFFF).double() + 0.5) * 2**-30  # of a quarter turn, in (0, 1)
    near, far = (part * (math.pi / 2)).sin(), ((1 - part) * (math.pi / 2)).sin()
    quadrant = angle_word >> 30
    odd = quadrant & 1 == 1
    cosine = torch.where(odd, near, far) * torch.where((quadrant + 1) & 2 == 2, -1.0, 1.0)
    sine = torch.where(odd, far, near) * torch.where(quadrant & 2 == 2, -1.0, 1.0)
    both = torch.stack((radius * cosine, radius * sine), -1)  # (n, size / 2, 2)
    return both.float().flatten(1)[:, :size].contiguous()


def check(op: str, seed: int, stream: int, index: Tensor, size: int) -> None:
    checks.dtype(op, "index", index, torch.int64)
    checks.rank(op, "index", index, "(n,)", 1, 1)
    for arg, value, limit in (("seed", seed, 64), ("stream", stream, 32), ("size", size, 34)):
        if not 0 <= value < 2**limit:
            raise ValueError(f"{op}: {arg} is {value}; expected 0 <= {arg} < 2**{limit}.")


def examples(dtype: torch.dtype, device: torch.device) -> list[Example]:
    """Ragged sizes, indices beyond 32 bits, seeds beyond 63."""
    index = torch.tensor([0, 1, 2**32 + 7, 123_456_789_012], device=device)
    return [
        Example("image", (0, 1, index[:2], 192)),
        Example("ragged", (2**64 - 3, 2**32 - 1, index, 7)),
        Example("one", (42, 0, index[2:3], 1)),
    ]


def _op(name: str, dtype: torch.dtype, reference: Any) -> Op[[int, int, Tensor, int], Tensor]:
    def run(seed: int, stream: int, index: Tensor, size: int, backend: str) -> Tensor:
        args = (seed % 2**64, stream, index, size)  # the schema's integers are signed
        y: Tensor = op.pick(args, backend).run(*args)
        return y

    def fake(seed: int, stream: int, index: Tensor, size: int, backend: str) -> Tensor:
        return index.new_empty((index.shape[0], size), dtype=dtype)

    def call(seed: int, stream: int, index: Tensor, size: int) -> Tensor:
        seed, stream = int(seed), int(stream)
        check(name, seed, stream, index, size)
        if library.plain(index):
            return run(seed, stream, index, size, requested(name))
        signed = seed - 2**64 if seed >= 2**63 else seed
        registered = getattr(torch.ops.kdgen, name)
        y: Tensor = registered(signed, stream, index, size, library.requested(name))
        return y

    library.define(
        f"{name}(int seed, int stream, Tensor index, SymInt size, str backend) -> Tensor", run, fake
    )
    op = Op(
        name,
        call,
        reference,
        (
            Backend("native", partial(native.draw, name), native.unable_to_draw, ("cpu",)),
            Backend(
                "triton",
                lambda *args: _triton.load("philox").draw(name, *args),
                lambda _seed, _stream, index, _size: _triton.unable_on(index.device),
                ("cuda",),
            ),
            Backend("cuda", partial(cuda.draw, name), cuda.unable_to_draw, ("cuda",)),
            Backend("reference", reference, lambda *_: ""),
        ),
        examples,
    )
    return op


philox_uint32 = _op("philox_uint32", torch.int64, words_reference)
philox_uniform = _op("philox_uniform", torch.float32, uniform_reference)
philox_normal = _op("philox_normal", torch.float32, normal_reference)
