"""Attention: how many queries and keys a program looks at together, by how many warps."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from kdgen.kernels._triton import attention as launch
from kdgen.kernels._triton import attention_cuts as cuts
from tools.tuning import Tunable

BATCH = 264  # two waves of 132 multiprocessors
# Tokens, channels of a head, heads: the layers of the published networks.
CALLS = ((256, 256, 1), (64, 256, 1), (16, 256, 1), (1024, 64, 6), (256, 64, 9), (64, 64, 12))
DTYPES = (torch.bfloat16, torch.float32)


def tunables(device: torch.device) -> Iterator[Tunable]:
    room = cuts.shared(device)
    for dtype, (tokens, width, heads) in itertools.product(DTYPES, CALLS):
        whole = cuts.whole(tokens, width, dtype.itemsize, room)
        backward = ("backward_whole",) if whole else ("backward_q", "backward_kv")
        for which in ("forward", *backward):
            kernel, call, rule = cuts.known(which, tokens, width, dtype, room)
            others = (c for c in _candidates(which, rule, tokens, dtype) if c != rule)
            run = _lazily(which, tokens, width, heads, dtype, device)
            yield Tunable(kernel, call, rule._asdict(), tuple(c._asdict() for c in others), run)


def _candidates(which: str, rule: cuts.Cut, tokens: int, dtype: torch.dtype) -> Iterator[cuts.Cut]:
    if which == "backward_whole":
        for warps in (2, 4, 8):
            yield rule._replace(warps=warps)
        return
    most = max(16, cuts.power(tokens))
    sizes = [s for s in (16, 32, 64, 128) if s <= most]
    if dtype is not torch.float32:
        sizes = [s for s in sizes if s >= min(32, most)]
    for block_q, block_k, warps, stages in itertools.product(sizes, sizes, (4, 8), (1, 2, 3)):
        yield rule._replace(block_q=block_q, block_k=block_k, warps=warps, stages=stages)


def _lazily(
    which: str, tokens: int, width: int, heads: int, dtype: torch.dtype, device: torch.device
) -> Callable[[], Tensor]:
    """Makes the tensors on the first call only: not all calls' at once."""
    made: list[tuple[Tensor, ...]] = []

    def make() -> tuple[Tensor, ...]:
        qkv = torch.randn(BATCH, tokens, 3 * heads * width, device=device, dtype=dtype)
        q, k, v = qkv.mT.chunk(3, 1)
        return (q, k, v, *launch.forward(q, k, v, heads, width**-0.5))

    def run() -> Tensor:
        if not made:
            made.append(make())
        q, k, v, out, lse = made[0]
        if which == "forward":
            return launch.forward(q, k, v, heads, width**-0.5)[0]
        dq, dk, _ = launch.backward(out, q, k, v, out, lse, heads, width**-0.5)
        return dk if which == "backward_kv" else dq

    return run
