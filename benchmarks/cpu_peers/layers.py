"""A few convolutions of the CIFAR-10 network, in the native engine and in torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

FP32, BF16, INT8 = 0, 2, 3  # the engine's names of what is multiplied
BATCH = 8
# ‖ours − torch in float64‖ over ‖torch‖: against gross errors; the tests ask for much less.
WORST = {FP32: 1e-4, BF16: 3e-2, INT8: 3e-2}
_NAMES = {FP32: "fp32", BF16: "bf16", INT8: "int8"}


@dataclass(frozen=True)
class Layer:
    """`channels` in, `out` of them out, `size` the side of the input."""

    channels: int
    out: int
    size: int
    form: str
    dtype: int
    kernel: int = 3

    @property
    def key(self) -> str:
        kind = f"{self.form} {_NAMES[self.dtype]}"
        sides = f"{self.kernel}x{self.kernel} {self.channels}-{self.out} at {self.size}"
        return f"{sides} {kind}"

    @property
    def buffers(self) -> int:
        """The dtype of the images: what is multiplied in int8 is rounded on the way."""
        return FP32 if self.dtype == INT8 else self.dtype

    @property
    def doubled(self) -> bool:
        return self.form.startswith("up_")

    @property
    def side(self) -> int:
        """Of the output."""
        return self.size * (2 if self.doubled else 1)

    @property
    def flops(self) -> float:
        """Of a direct convolution, all images."""
        return 2.0 * BATCH * self.side**2 * self.out * self.channels * self.kernel**2


LAYERS = (
    Layer(128, 128, 32, "winograd2", FP32),
    Layer(128, 128, 32, "winograd4", FP32),
    Layer(256, 256, 16, "winograd4", FP32),
    Layer(256, 256, 8, "winograd2", FP32),
    Layer(256, 256, 8, "up_winograd", FP32),
    Layer(128, 128, 16, "direct", FP32),
    Layer(512, 256, 16, "direct", FP32, kernel=1),
    Layer(128, 128, 32, "winograd2", BF16),
    Layer(256, 256, 16, "winograd4", BF16),
    Layer(512, 256, 16, "direct", BF16, kernel=1),
    Layer(128, 128, 32, "winograd2", INT8),
    Layer(256, 256, 8, "up_winograd", INT8),
    Layer(512, 256, 16, "direct", INT8, kernel=1),
)


class Pair:
    """The same layer twice: `ours` and `torchs` make one call each."""

    def __init__(self, program: Any, layer: Layer, threads: int) -> None:
        self.layer, self._threads, self._program = layer, threads, program
        r = torch.Generator().manual_seed(0)
        weight = torch.randn(layer.out, layer.channels, layer.kernel, layer.kernel, generator=r)
        self._weight = weight / weight[0].numel() ** 0.5
        self._bias = torch.randn(layer.out, generator=r)
        x = torch.randn(BATCH, layer.channels, layer.size, layer.size, generator=r)
        self._x = x.contiguous(memory_format=torch.channels_last)
        out = torch.empty(BATCH, layer.out, layer.side, layer.side)
        self._out = out.contiguous(memory_format=torch.channels_last)
        self._describe()
        dtype = torch.bfloat16 if layer.buffers == BF16 else torch.float32
        self._given = [
            t.to(dtype, memory_format=torch.channels_last) if t.dim() == 4 else t.to(dtype)
            for t in (self._x, self._weight, self._bias)
        ]

    def ours(self) -> Tensor:
        self._program.run(self._x.data_ptr(), 0, self._out.data_ptr(), BATCH, self._threads)
        return self._out

    @torch.inference_mode()
    def torchs(self) -> Tensor:
        return self._convolution(*self._given)

    def error(self) -> float:
        """Of ours, against torch in float64."""
        exact = self._convolution(*(t.double() for t in (self._x, self._weight, self._bias)))
        return ((self.ours().double() - exact).norm() / exact.norm()).item()

    def _convolution(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if self.layer.doubled:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return F.conv2d(x, weight, bias, padding=self.layer.kernel // 2)

    def _describe(self) -> None:
        """Image in, the layer, image out."""
        p, layer = self._program, self.layer
        x = p.buffer(layer.size, layer.size, layer.channels, layer.buffers)
        y = p.buffer(layer.side, layer.side, layer.out, layer.buffers)
        p.input(x, layer.channels)
        given = self._weight.data_ptr(), self._bias.data_ptr(), 1  # one row of biases for all
        window = layer.kernel, 1, layer.kernel // 2  # stride 1, zeros before the image
        p.convolve(layer.key, x, -1, -1, y, *given, *window, layer.form, layer.dtype, 1.0)
        p.output(y, layer.out)


def program(isa: str = "") -> Callable[[], Any] | str:
    """What makes an empty program of the engine, or why there is none. Without `isa`, of the
    instruction set in use: KDGEN_ISA chooses it."""
    from kdgen.kernels import native

    if native.module is None:
        return f"the native engine is not compiled ({native.why})"
    if not hasattr(native.module, "Program"):
        return "the native part that is compiled has no engine; build it again"
    make = native.module.Program
    return lambda: make(isa)
