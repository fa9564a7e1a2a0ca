"""Writes steps down, one after the other, and pads the weights that they are given."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn

from kdgen.engine import steps
from kdgen.engine.padding import padded, spread
from kdgen.engine.refusal import Refused
from kdgen.engine.steps import NONE, Buffer, Step, Trace
from kdgen.nets.layers import GroupNorm
from kdgen.nets.resample import Double, Filter


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
        self.rows = rows
        self.buffers: list[Buffer] = []
        self.steps: list[Step] = []

    def trace(self) -> Trace:
        """What was written."""
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
        """
        weight = conv.weight if weight is None else weight
        bias = own_bias(conv) if bias is None else bias
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
        """Group norm with its own weight and bias, or these (rows, C)."""
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

    def add(self, module: nn.Module, x: Image, more: Image, scale: float) -> Image:
        """(x + more)·scale."""
        factor = next(module.parameters()).new_tensor([scale])
        return self.combine(f"{self.names[module]} add", x, factor, more)


def own_bias(conv: nn.Conv2d) -> Tensor:
    """(1, O); zeros where there is none."""
    return conv.weight.new_zeros(1, len(conv.weight)) if conv.bias is None else conv.bias[None]


def _window(conv: nn.Conv2d, name: str) -> tuple[int, int, int]:
    """Kernel, stride and the zeros in front, alike in both directions."""
    facts = (conv.kernel_size, conv.stride, conv.padding)
    if not isinstance(conv, nn.Conv2d):
        raise Refused(
            f"engine: {name} is a {type(conv).__name__}; expected a Conv2d: the engine doubles by "
            "itself. Leave out the fold 'up'."
        )
    if any(isinstance(fact, str) or len(set(fact)) != 1 for fact in facts):
        raise Refused(
            f"engine: {name} has kernel, stride and padding {facts}; expected squares. Leave it to "
            "torch."
        )
    kernel, stride, padding = (int(fact[0]) for fact in facts)
    return kernel, stride, padding


def _size(x: Image) -> tuple[int, int]:
    return x.height, x.width


def _at(x: Image | None) -> int:
    return NONE if x is None else x.at
