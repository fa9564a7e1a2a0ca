"""Writes steps down, one after the other, and pads the weights that they are given."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kdgen.engine import steps
from kdgen.engine.calling import Convolution, answered
from kdgen.engine.padding import padded, spread
from kdgen.engine.refusal import Refused
from kdgen.engine.steps import NONE, Buffer, Step, Trace
from kdgen.fold.opaque import Opaque
from kdgen.nets.layers import GroupNorm
from kdgen.nets.resample import Double, Filter

LARGEST = 8  # side of a kernel that the engine has sums for


@dataclass(frozen=True)
class Image:
    """Buffer `at`: its channels are `parts` in a row, each padded for itself."""

    at: int
    parts: tuple[int, ...]
    height: int
    width: int


class Tape:
    """The steps of `net` so far, and the names of its parts."""

    def __init__(self, net: nn.Module, rows: int) -> None:
        self.names = {module: name for name, module in net.named_modules()}
        self.like = next(net.parameters())
        self.rows = rows
        self.buffers: list[Buffer] = []
        self.steps: list[Step] = []
        self.overwriting: list[steps.Call] = []

    def trace(self) -> Trace:
        """What was written.

        Raises `Refused` where torch would go on with an image that a part has overwritten.
        """
        for call in self.overwriting:
            later = self.steps[self.steps.index(call) + 1 :]
            if any(call.x in steps.read(step) for step in later):
                raise Refused(
                    f"engine: {call.name} writes into an image that is read again; expected it to "
                    "leave that alone. Leave it to torch."
                )
        return Trace(tuple(self.buffers), tuple(self.steps), self.rows)

    def image(self, parts: tuple[int, ...], height: int, width: int) -> Image:
        """A new one."""
        self.buffers.append(Buffer(height, width, parts))
        return Image(len(self.buffers) - 1, parts, height, width)

    def input(self, channels: int, height: int, width: int) -> Image:
        """The image that the network is given."""
        y = self.image((channels,), height, width)
        self.steps.append(steps.Input("input", y.at, channels))
        return y

    def output(self, x: Image) -> None:
        """What the network answers."""
        self.steps.append(steps.Output("output", x.at, x.parts[0]))

    def layer(
        self,
        conv: nn.Conv2d,
        x: Image,
        *,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        more: Image | None = None,
        residual: Image | None = None,
        parts: tuple[int, ...] = (),
        behind: int | None = None,
        doubled: bool = False,
        scale: float = 1.0,
    ) -> Image:
        """A convolution with its own weight (O, C, k, k) and bias, or these, bias (rows, O).

        `parts`: of the answer. `behind`: zeros below and right, unless as many as above and left.
        One that is opaque, or of a shape that only torch knows, is a call, and takes none of them,
        nor `more`; an opaque one adds its own bias by itself.
        """
        bias = own_bias(conv) if bias is None else bias
        if (isinstance(conv, Opaque) or unusual(conv)) and (more or parts or doubled):
            raise Refused(
                f"engine: {self.names[conv]} takes a skip, parts or a doubling, too; expected a "
                "convolution as it was made. Leave it to torch."
            )
        if isinstance(conv, Opaque):
            return self.finish(self.opaque(conv, x), self.names[conv], bias, residual, scale)
        weight = conv.weight if weight is None else weight
        if why := unusual(conv):
            y = self.call(Convolution(conv, weight), self.names[conv], why, x)
            return self.finish(y, self.names[conv], bias, residual, scale)
        parts = parts or (len(weight),)
        kernel, stride, before = _window(conv, self.names[conv])
        far = before + (before if behind is None else behind) - kernel
        height, width = ((side * (1 + doubled) + far) // stride + 1 for side in _size(x))
        y = self.image(parts, height, width)
        inputs = x.parts + (() if more is None else more.parts)
        self.steps.append(
            steps.Convolve(
                self.names[conv],
                x.at,
                y.at,
                spread(spread(weight, 0, parts), 1, inputs),
                spread(bias, 1, parts),
                _at(more),
                _at(residual),
                stride,
                before,
                doubled,
                scale,
            )
        )
        return y

    def normalise(
        self,
        norm: GroupNorm,
        x: Image,
        *,
        more: Image | None = None,
        gain: Tensor | None = None,
        offset: Tensor | None = None,
    ) -> Image:
        """Group norm with its own weight and bias, or these (rows, C); an opaque one is a call."""
        if isinstance(norm, Opaque):
            return self.opaque(norm, x)
        gain = norm.weight[None] if gain is None else gain
        offset = norm.bias[None] if offset is None else offset
        parts = x.parts + (() if more is None else more.parts)
        y = self.image(parts, x.height, x.width)
        self.steps.append(
            steps.Normalise(
                self.names[norm],
                x.at,
                y.at,
                spread(gain, 1, parts),
                spread(offset, 1, parts),
                norm.groups,
                x.parts[0],
                norm.eps,
                norm.act,
                _at(more),
                0 if more is None else more.parts[0],
            )
        )
        return y

    def attend(
        self,
        module: nn.Module,
        q: tuple[Image, int],
        k: tuple[Image, int],
        v: tuple[Image, int],
        heads: int,
        channels: int,
    ) -> Image:
        """Heads of so many channels each; every input is an image and where in its channels it
        begins."""
        image = q[0]
        y = self.image((channels,) * heads, image.height, image.width)
        self.steps.append(
            steps.Attend(
                f"{self.names[module]} attend",
                *(q[0].at, q[1]),
                *(k[0].at, k[1]),
                *(v[0].at, v[1]),
                y.at,
                heads,
                padded(channels),
                1 / math.sqrt(channels),
            )
        )
        return y

    def resample(self, module: Filter, x: Image, what: str = "") -> Image:
        """Half or twice the size."""
        taps = tuple(module.kernel[0, 0].double().sum(0).tolist())  # of one direction
        up, before = isinstance(module, Double), module.padding
        height, width = (
            2 * side if up else (side + 2 * before - len(taps)) // 2 + 1 for side in _size(x)
        )
        y = self.image(x.parts, height, width)
        name = f"{self.names[module]} {what}".strip()
        self.steps.append(steps.Resample(name, x.at, y.at, taps, up, before))
        return y

    def combine(
        self, name: str, x: Image, a: Tensor, more: Image | None = None, b: Tensor | None = None
    ) -> Image:
        """a·x + b·more, a and b (rows,)."""
        y = self.image(x.parts, x.height, x.width)
        b = a if b is None else b
        self.steps.append(steps.Combine(name, x.at, y.at, a, b, _at(more)))
        return y

    def opaque(self, part: Opaque, x: Image, what: str = "") -> Image:
        """By torch."""
        name = f"{self.names[part]} {what}".strip()
        return self.call(part.part, name, part.why, x, chained=part.chained)

    def call(
        self, module: nn.Module, name: str, why: str, x: Image, *, chained: bool = False
    ) -> Image:
        """What torch makes of the image, by a module that is one of the fold's copies."""
        size = (sum(x.parts), x.height, x.width)
        found = answered(module, chained, name, size, self.like)
        y = self.image((found.channels,), found.height, found.width)
        step = steps.Call(name, x.at, y.at, module, chained, why)
        self.steps.append(step)
        if found.overwrites:
            self.overwriting.append(step)
        return y

    def finish(
        self, x: Image, name: str, bias: Tensor, residual: Image | None, scale: float
    ) -> Image:
        """(x + bias[row] + residual)·scale, by the convolution that multiplies by 1."""
        if residual is None and scale == 1 and not bias.any():
            return x
        y = self.image(x.parts, x.height, x.width)
        ones = torch.eye(*x.parts).to(self.like)[:, :, None, None]
        weight = spread(spread(ones, 0, x.parts), 1, x.parts)
        told = f"{name} sum"
        self.steps.append(
            steps.Convolve(
                *(told, x.at, y.at, weight, spread(bias.expand(-1, *x.parts), 1, x.parts)),
                residual=_at(residual),
                scale=scale,
            )
        )
        return y

    def add(self, module: nn.Module, x: Image, more: Image, scale: float) -> Image:
        """(x + more)·scale."""
        factor = next(module.parameters()).new_tensor([scale])
        return self.combine(f"{self.names[module]} add", x, factor, more)


def own_bias(conv: nn.Conv2d) -> Tensor:
    """(1, O); zeros where there is none, and one for all where an opaque one adds it by itself."""
    if isinstance(conv, Opaque):
        return torch.zeros(1, 1)
    return conv.weight.new_zeros(1, len(conv.weight)) if conv.bias is None else conv.bias[None]


def _window(conv: nn.Conv2d, name: str) -> tuple[int, int, int]:
    """Kernel, stride and the zeros in front, alike in both directions."""
    if not isinstance(conv, nn.Conv2d):
        raise Refused(
            f"engine: {name} is a {type(conv).__name__}; expected a Conv2d: the engine doubles by "
            "itself. Leave out the fold 'up'."
        )
    kernel, stride, padding = (int(fact[0]) for fact in _facts(conv))
    return kernel, stride, padding


def unusual(conv: nn.Conv2d) -> str:
    """What the convolution is, where the engine has no step for it."""
    if not isinstance(conv, nn.Conv2d):
        return ""
    facts = _facts(conv)
    squares = all(not isinstance(fact, str) and len(set(fact)) == 1 for fact in facts)
    if squares and conv.kernel_size[0] <= LARGEST:
        return ""
    return f"is a convolution with kernel, stride and padding {facts}"


def _facts(conv: nn.Conv2d) -> tuple[Any, ...]:
    return conv.kernel_size, conv.stride, conv.padding


def _size(x: Image) -> tuple[int, int]:
    return x.height, x.width


def _at(x: Image | None) -> int:
    return NONE if x is None else x.at
