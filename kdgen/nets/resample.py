"""Half and double size, as layers of their own (DDPM) and inside other layers (the rest)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdgen.nets.layers import conv


class Down(nn.Module):
    """Halve the size: 3×3, stride 2, padded "after" (right and below, as TensorFlow's SAME does) or
    "around"."""

    def __init__(self, channels: int, init: str = "xavier", padding: str = "after") -> None:
        super().__init__()
        self.after = padding == "after"
        self.conv = conv(channels, channels, init, stride=2, padding=int(not self.after))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.after else x)  # type: ignore[no-any-return]


class Up(nn.Module):
    """Double the size: nearest neighbour, then 3×3."""

    def __init__(self, channels: int, init: str = "xavier") -> None:
        super().__init__()
        self.conv = conv(channels, channels, init)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))  # type: ignore[no-any-return]


class Filter(nn.Module):
    """A separable low-pass `taps`, of even length, with every channel for itself.

    (1, 1) is the mean of 2×2 pixels, and nearest neighbour; (1, 3, 3, 1) is NCSN++'s (Song et al.
    2021, arXiv:2011.13456, appendix H).
    """

    kernel: Tensor

    def __init__(self, channels: int, taps: tuple[int, ...]) -> None:
        super().__init__()
        self.box = taps == (1, 1)
        self.channels, self.padding = channels, (len(taps) - 1) // 2
        row = torch.tensor(taps, dtype=torch.get_default_dtype())
        kernel = row.outer(row) / row.sum().square()
        kernel = kernel.expand(channels, 1, -1, -1).clone()
        self.register_buffer("kernel", kernel, persistent=False)


class Halve(Filter):
    """Half the size; a box filter is the mean of 2×2."""

    def forward(self, x: Tensor) -> Tensor:
        if self.box:
            return F.avg_pool2d(x, 2)
        return F.conv2d(x, self.kernel, stride=2, padding=self.padding, groups=self.channels)


class Double(Filter):
    """Twice the size; a box filter repeats its nearest neighbour."""

    def forward(self, x: Tensor) -> Tensor:
        if self.box:
            return F.interpolate(x, scale_factor=2.0, mode="nearest")
        return F.conv_transpose2d(
            x, 4 * self.kernel, stride=2, padding=self.padding, groups=self.channels
        )


class Shrink(nn.Module):
    """3×3 and then half the size, for the input pyramid; the filter sees what the convolution makes
    of the zeros around the image."""

    def __init__(self, c_in: int, c_out: int, taps: tuple[int, ...], init: str) -> None:
        super().__init__()
        self.halve = Halve(c_out, taps)
        self.conv = conv(c_in, c_out, init, padding=1 + self.halve.padding)
        self.halve.padding = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.halve(self.conv(x))  # type: ignore[no-any-return]
