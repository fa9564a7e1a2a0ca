"""The layers all blocks are made of, with the weights each family of networks begins with.

`init` is one of `config.INITS`. "xavier" (DDPM): uniform, fan_avg, the last layer of every branch
at zero. "xavier_small" (DDPM++): the same, but 1e-5 instead of zero. "kaiming" (ADM): uniform in
±1/√fan_in, biases too, branches end in zero. "lecun" (Flax, so Progressive Distillation): truncated
normal of variance 1/fan_in, branches end in zero.
"""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdgen import kernels
from kdgen.nets.config import UNetConfig

Conv = TypeVar("Conv", bound=nn.Conv2d)

SMALL = 1e-5
# Standard deviation of a standard normal cut at ±2.
_CUT_NORMAL = 0.87962566103423978


class GroupNorm(nn.Module):
    """Group norm with an optional per-channel add in front, an optional scale and shift (each (B,
    C)) behind, and SiLU: one fused op."""

    def __init__(
        self, channels: int, config: UNetConfig, *, act: bool = True, eps: float | None = None
    ) -> None:
        super().__init__()
        self.groups, self.act = groups(channels, config), act
        self.eps = config.norm_eps if eps is None else eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(
        self,
        x: Tensor,
        add: Tensor | None = None,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        more: Tensor | None = None,
    ) -> Tensor:
        """x (B, C, H, W), add (B, C) or (C,); (GN(x + add)·weight + bias)·(1 + scale) + shift.

        The channels of `more` (B, C2, H, W) stand behind those of x.
        """
        return kernels.group_norm_silu(
            x, self.weight, self.bias, self.groups, self.eps, scale, shift, add, self.act, more
        )


class Pointwise(nn.Conv2d):
    """1×1 convolution; when sampling on a CPU, an image's bits do not depend on its batch."""

    def forward(self, x: Tensor, more: Tensor | None = None) -> Tensor:
        """Of x and, behind it in the channels, `more`: the sum of two products, without a copy."""
        learns = torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)
        if learns or x.device.type != "cpu" or x.dtype != torch.float32:
            return super().forward(x) if more is None else self._of_two(x, more)
        assert self.bias is not None
        n, own, height, width = x.shape
        weight = self.weight.flatten(1).expand(n, -1, -1)
        bias = self.bias[:, None].expand(n, -1, height * width)
        planes = x.is_contiguous()
        y = _product(bias, weight[:, :, :own], x, planes)
        y = y if more is None else _product(y, weight[:, :, own:], more, planes)
        return y.view(n, -1, height, width)

    def _of_two(self, x: Tensor, more: Tensor) -> Tensor:
        own = x.shape[1]
        y = F.conv2d(x, self.weight[:, :own], self.bias)
        return y.add_(F.conv2d(more, self.weight[:, own:]))


def _product(start: Tensor, weight: Tensor, x: Tensor, planes: bool) -> Tensor:
    """start (n, C_out, pixels) + weight (n, C_out, C)·x (n, C, H, W), pixels innermost or channels.

    oneDNN orders its sums by the size of the batch; one product for each image does not.
    """
    if planes:
        return torch.baddbmm(start, weight, x.flatten(2))
    return torch.baddbmm(start.mT, x.permute(0, 2, 3, 1).flatten(1, 2), weight.mT).mT


def groups(channels: int, config: UNetConfig) -> int:
    """The most groups that the description allows and that divide the channels."""
    most = min(config.groups, max(1, channels // config.group_width))
    return max(g for g in range(1, most + 1) if channels % g == 0)


def conv(c_in: int, c_out: int, init: str, stride: int = 1, padding: int = 1) -> nn.Conv2d:
    """3×3."""
    layer = nn.Conv2d(c_in, c_out, 3, stride, padding)
    start(layer, init)
    return layer


def pointwise(c_in: int, c_out: int, init: str) -> Pointwise:
    """1×1."""
    layer = Pointwise(c_in, c_out, 1)
    start(layer, init)
    return layer


def linear(c_in: int, c_out: int, init: str, *, bias: bool = True) -> nn.Linear:
    """A dense layer, started as `init` says."""
    layer = nn.Linear(c_in, c_out, bias=bias)
    start(layer, init)
    return layer


@torch.no_grad()
def start(layer: nn.Conv2d | nn.Linear, init: str) -> None:
    """Initial weights; biases 0 but for torch's own."""
    if init == "kaiming":  # torch's own
        return
    if init == "lecun":
        lecun_(layer.weight, layer.weight[0].numel())
    else:
        nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def lecun_(weight: Tensor, fan_in: int) -> None:
    """A normal of variance 1/fan_in, cut at two standard deviations."""
    std = 1 / math.sqrt(fan_in) / _CUT_NORMAL
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


@torch.no_grad()
def last(layer: Conv, init: str) -> Conv:
    """The last layer of a branch: at zero, or nearly, so that the branch begins as nothing."""
    if init == "xavier_small":
        layer.weight.mul_(SMALL)
        return layer
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer
