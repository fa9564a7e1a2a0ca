"""Group norm: how many groups a program takes, how many places at once, by how many warps."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from kdgen.kernels._triton import group_norm_cuts as cuts
from kdgen.kernels._triton import group_norm_silu as launch
from tools.tuning import Tunable

BATCH = 264  # two waves of 132 multiprocessors


class Call(NamedTuple):
    places: int
    own: int  # channels of x
    more: int  # and behind them
    groups: int


# Layers of the published networks.
CALLS = (
    Call(1024, 128, 0, 32),
    Call(1024, 256, 0, 32),
    Call(1024, 256, 128, 32),
    Call(256, 256, 0, 32),
    Call(256, 256, 256, 32),
    Call(64, 256, 256, 32),
    Call(16, 256, 256, 32),
    Call(4096, 192, 0, 32),
    Call(4096, 192, 192, 32),
    Call(1024, 384, 0, 32),
    Call(256, 576, 0, 32),
    Call(64, 768, 0, 32),
)
DTYPES = (torch.bfloat16, torch.float32)
MOST = {"forward": 32768, "backward": 16384}  # values a program looks at together


def tunables(device: torch.device) -> Iterator[Tunable]:
    for dtype, call, which in itertools.product(DTYPES, CALLS, ("forward", "backward")):
        yield _tunable(which, call, dtype, device)


def _tunable(which: str, call: Call, dtype: torch.dtype, device: torch.device) -> Tunable:
    channels = call.own + call.more
    kernel, key, rule = cuts.known(which, call.places, channels, call.groups, True, dtype)
    found = _candidates(which, call.places, channels // call.groups, call.groups)
    others = tuple(c._asdict() for c in found if c != rule)
    run = _lazily(partial(_run, which, call, dtype, device))
    return Tunable(kernel, key, rule._asdict(), others, run)


def _candidates(which: str, size: int, width: int, groups: int) -> Iterator[cuts.Cut]:
    slabs = [s for s in (1, 2, 4, 8, 16) if s <= groups and 8 <= s * width <= 128]
    for slab, places, warps in itertools.product(slabs, _powers(size), (2, 4, 8, 16)):
        values = places * cuts.lanes(slab, width)
        if 8 <= values // (32 * warps) <= 64 and values <= MOST[which]:
            yield cuts.Cut(slab, places, warps)


def _powers(size: int) -> Iterator[int]:
    places = cuts.power(size)
    while places >= min(64, cuts.power(size)):
        yield places
        places //= 2


def _lazily(make: Callable[[], Callable[[], Tensor]]) -> Callable[[], Tensor]:
    """Makes the tensors on the first call only: not all calls' at once."""
    made: list[Callable[[], Tensor]] = []

    def run() -> Tensor:
        if not made:
            made.append(make())
        return made[0]()

    return run


def _run(which: str, call: Call, dtype: torch.dtype, device: torch.device) -> Callable[[], Tensor]:
    def images(channels: int) -> Tensor:
        x = torch.randn(BATCH, channels, call.places, 1, device=device, dtype=dtype)
        return x.to(memory_format=torch.channels_last)

    x, behind = images(call.own), images(call.more) if call.more else None
    weight = torch.randn(call.own + call.more, device=device)
    rest = (None, None, None, True, behind)
    y, statistics = launch.forward(x, weight, weight, call.groups, 1e-6, *rest)
    if which == "forward":
        return lambda: launch.forward(x, weight, weight, call.groups, 1e-6, *rest)[0]
    return lambda: launch.backward(y, x, weight, weight, statistics, call.groups, *rest)[0]
