"""What a network does to an image: buffers, and steps that write one each.

A `Trace` says what is computed, and knows nothing of who does it and how exactly; `choice` makes a
`Plan` of it. Numbers of buffers are places in `Trace.buffers`, and NONE is no buffer.

Where a step has `rows`, it has a row for every time and class, and an image is told its row; with a
single row, that one serves all images.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from kdgen.engine.padding import padded

NONE = -1


@dataclass(frozen=True)
class Buffer:
    """Of one image, pixel by pixel. The channels are `parts`, one behind the other, and behind each
    of them zeros up to the next multiple of LANES."""

    height: int
    width: int
    parts: tuple[int, ...]

    @property
    def channels(self) -> int:
        """With the zeros."""
        return sum(map(padded, self.parts))

    @property
    def own(self) -> int:
        """Channels without the zeros."""
        return sum(self.parts)

    @property
    def values(self) -> int:
        """Numbers of one image."""
        return self.height * self.width * self.channels


@dataclass(frozen=True)
class Input:
    """y[..., :channels] = the image, 0 beyond."""

    name: str
    y: int
    channels: int


@dataclass(frozen=True)
class Output:
    """The answer = x[..., :channels]."""

    name: str
    x: int
    channels: int


@dataclass(frozen=True, eq=False)
class Convolve:
    """y = (conv(x and, behind it in the channels, more) + bias[row] + residual)·scale.

    weight (channels of y, channels of x and more, kernel, kernel), bias (rows, channels of y).
    `before`: zeros above and left; there are as many below and right as the size of y asks for.
    `doubled`: x is seen at twice its size, by nearest neighbour.
    """

    name: str
    x: int
    y: int
    weight: Tensor
    bias: Tensor
    more: int = NONE
    residual: int = NONE
    stride: int = 1
    before: int = 0
    doubled: bool = False
    scale: float = 1.0

    @property
    def kernel(self) -> int:
        """Pixels of a side."""
        return self.weight.shape[-1]


@dataclass(frozen=True, eq=False)
class Normalise:
    """y = act(GN(x and more)·gain[row] + offset[row]), act being SiLU or nothing.

    `groups` groups of the channels that count: `own` of x, `others` of more. gain and offset
    (rows, channels of y), the channels of more behind those of x.
    """

    name: str
    x: int
    y: int
    gain: Tensor
    offset: Tensor
    groups: int
    own: int
    eps: float
    act: bool
    more: int = NONE
    others: int = 0


@dataclass(frozen=True)
class Attend:
    """y = softmax(q·kᵀ·scale)·v over pixels, head by head.

    Head h of q is channels q_at + h·width … of buffer q, and so on; of y, h·width ….
    """

    name: str
    q: int
    q_at: int
    k: int
    k_at: int
    v: int
    v_at: int
    y: int
    heads: int
    width: int
    scale: float


@dataclass(frozen=True)
class Resample:
    """A separable filter with zeros around the image, each channel for itself.

    Down: y[i] = Σ taps[k]·x[2i + k − before]. Up: y[j] = 2·Σ taps[k]·x[(j + before − k)/2], over
    those k for which that is whole.
    """

    name: str
    x: int
    y: int
    taps: tuple[float, ...]
    up: bool
    before: int


@dataclass(frozen=True, eq=False)
class Combine:
    """y = a[row]·x + b[row]·more; a and b (rows,)."""

    name: str
    x: int
    y: int
    a: Tensor
    b: Tensor
    more: int = NONE


@dataclass(frozen=True, eq=False)
class Call:
    """y = module(x) by torch, image by image; in float32, whatever the buffers are.

    In a chain (`chained`) the module is handed None for the embedding of the time. `why`: what it
    is, that the engine does not know.
    """

    name: str
    x: int
    y: int
    module: nn.Module
    chained: bool
    why: str

    def answer(self, x: Tensor) -> Tensor:
        """x and what comes of it (n, C, H, W)."""
        return self.module(x, None) if self.chained else self.module(x)  # type: ignore[no-any-return]


Step = Input | Output | Convolve | Normalise | Attend | Resample | Combine | Call


_READ = ("x", "more", "residual", "q", "k", "v")


def read(step: Step) -> set[int]:
    """The buffers that it reads."""
    return {getattr(step, name, NONE) for name in _READ} - {NONE}


@dataclass(frozen=True, eq=False)
class Trace:
    """A network for images of one size: its steps in order. Each buffer is written once, whole."""

    buffers: tuple[Buffer, ...]
    steps: tuple[Step, ...]
    rows: int

    @property
    def input(self) -> Input:
        """The step that brings the image."""
        return next(s for s in self.steps if isinstance(s, Input))

    @property
    def output(self) -> Output:
        """The step that takes the answer away."""
        return next(s for s in self.steps if isinstance(s, Output))
