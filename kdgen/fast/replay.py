"""A program made one that a device repeats by itself, or the reason why it runs step by step.

A short chain is captured whole. A long one is captured as one move, which is then replayed for all
of them, and the landing: the state, the place in the tables and fresh noise are its inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from kdgen.fast.walk import Program, Walk
from kdgen.graph import Captured

# Kernels in one graph. A graph of so many takes about 0.1 s and 10 MB to set up, and beyond that
# launching a move at a time costs nothing that could be seen: a move is longer than its launch.
MOST_NODES = 4096
KERNELS_A_LAYER = 2  # launched for a layer of a network, roughly: itself, and what is around it


class Capture(Protocol):
    """`graph.capture`."""

    def __call__(
        self, call: Callable[..., Tensor], *examples: Tensor, pool: Any = None
    ) -> Captured: ...


@dataclass(frozen=True)
class Replay:
    """A program, and in words how it runs."""

    run: Program
    how: str


def nodes(net: nn.Module) -> int:
    """About so many kernels is one network call."""
    return KERNELS_A_LAYER * sum(1 for m in net.modules() if not any(m.children()))


def captured(
    program: Program, capture: Capture, z: Tensor, label: Tensor | None, index: Tensor
) -> Replay:
    """The program as graphs for inputs like these. Raises graph.CaptureError."""
    if isinstance(program, Walk):
        each = nodes(program.denoiser.net)
        count = each * len(program.chain.evaluations)
        if count > MOST_NODES and len(program.chain.moves) > 2:
            return _step_by_step(program, capture, z, label, index, each)
        how = f"the whole chain is one graph of about {count:,} kernels"
    else:
        how = "the whole sampler is one graph"
    return Replay(_whole(program, capture, z, label, index), how)


def _whole(
    program: Program, capture: Capture, z: Tensor, label: Tensor | None, index: Tensor
) -> Program:
    def call(z: Tensor, index: Tensor, *labels: Tensor) -> Tensor:
        return program(z, labels[0] if labels else None, index)

    replay = capture(call, z, index, *_given(label))

    def run(z: Tensor, label: Tensor | None, index: Tensor) -> Tensor:
        images: Tensor = replay(z, index, *_given(label))
        return images

    return run


def _step_by_step(
    walk: Walk,
    capture: Capture,
    z: Tensor,
    label: Tensor | None,
    index: Tensor,
    each: int,
) -> Replay:
    moves = len(walk.chain.moves)
    fresh = walk.noise(0, index)
    conditional = label is not None

    def step(x: Tensor, place: Tensor, *more: Tensor) -> Tensor:
        given = more[0] if conditional else None
        return walk.step(x, given, more[-1] if fresh is not None else None, place)

    def land(x: Tensor, *labels: Tensor) -> Tensor:
        return walk.land(x, labels[0] if labels else None)

    x = walk.begin(z)
    one = capture(step, x, walk.places[0], *_given(label), *_given(fresh))
    last = capture(land, x, *_given(label), pool=one.pool)

    def run(z: Tensor, label: Tensor | None, index: Tensor) -> Tensor:
        x = walk.begin(z)
        for k in range(moves - 1):
            x = one(x, walk.places[k], *_given(label), *_given(walk.noise(k, index)))
        images: Tensor = last(x, *_given(label))
        return images

    calls = len(walk.chain.moves[0])
    return Replay(
        run,
        f"one graph of about {each * calls:,} kernels is replayed for {moves - 1} moves, another "
        "lands",
    )


def _given(tensor: Tensor | None) -> tuple[Tensor, ...]:
    return () if tensor is None else (tensor,)
