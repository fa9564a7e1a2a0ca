"""Residual block, self-attention, and a chain of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from kdgen import kernels
from kdgen.nets.config import UNetConfig
from kdgen.nets.dropout import Dropout
from kdgen.nets.embedding import Parts
from kdgen.nets.layers import GroupNorm, conv, last, linear, pointwise
from kdgen.nets.resample import Double, Halve


class ResBlock(nn.Module):
    """norm, resize, conv, + time, norm, dropout, conv, + shortcut.

    `skip` of the c_in channels come from the encoder, behind the others and as a tensor of their
    own: the two are never joined. Such a block does not resize.
    """

    offset: Tensor | None

    def __init__(
        self, c_in: int, c_out: int, config: UNetConfig, resize: str = "", skip: int = 0
    ) -> None:
        super().__init__()
        self.sides, self.scale_shift = (c_in - skip, skip), config.scale_shift
        self.skip_scale = config.skip_scale
        self.norm1 = GroupNorm(c_in, config)
        self.resize = _resize(c_in, config, resize)
        self.conv1 = conv(c_in, c_out, config.init)
        self.time = linear(config.emb_width, (1 + config.scale_shift) * c_out, config.init)
        self.register_parameter("offset", None)  # conv1's bias, once the block is folded
        self.norm2 = GroupNorm(c_out, config)
        self.dropout = Dropout(config.dropout)
        self.conv2 = last(conv(c_out, c_out, config.init), config.init)
        projected = c_in != c_out or skip or (resize and config.resample == "projected")
        self.shortcut = pointwise(c_in, c_out, config.init) if projected else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor, skip: Tensor | None = None) -> Tensor:
        """emb (B, emb_width), after its SiLU; skip (B, skip, H, W) where the block has one."""
        h = self.conv1(self.resize(self.norm1(x, more=skip)))
        h = self.conv2(self.dropout(self._timed(h, self.time(emb))))
        past = self.shortcut(self.resize(x)) if skip is None else self.shortcut(x, skip)
        return joined(past, h, self.skip_scale)

    def _timed(self, h: Tensor, time: Tensor) -> Tensor:
        """The second norm; `time` (B, C), or a scale and a shift of C channels each."""
        if not self.scale_shift:
            return self.norm2(h, add=time)  # type: ignore[no-any-return]
        scale, shift = time.chunk(2, dim=1)
        return self.norm2(h, add=self.offset, scale=scale, shift=shift)  # type: ignore[no-any-return]

    def parts(self) -> Parts:
        found: Parts = {
            "norm1.weight": (0, self.sides),
            "norm1.bias": (0, self.sides),
            "conv1.weight": (1, self.sides),
            "shortcut.weight": (1, self.sides),
        }
        if self.scale_shift:
            both = (self.conv1.out_channels, self.conv1.out_channels)
            found |= {"time.weight": (0, both), "time.bias": (0, both)}
        return found


class Attention(nn.Module):
    """Self-attention over pixels, with a residual.

    The 3·C channels of `qkv` are ordered (q/k/v, head, channel); `packed` converts other orders.
    """

    def __init__(self, channels: int, config: UNetConfig) -> None:
        super().__init__()
        self.channels, self.skip_scale = channels, config.skip_scale
        self.heads = channels // (config.head_width or channels)
        self.norm = GroupNorm(channels, config, act=False)
        self.qkv = pointwise(channels, 3 * channels, config.init)
        self._start(config.init)
        self.out = last(pointwise(channels, channels, config.init), config.init)

    def _start(self, init: str) -> None:
        if init == "xavier":
            for part in self.qkv.weight.chunk(3):  # three layers in one: each has its own fan
                nn.init.xavier_uniform_(part)
        if init == "xavier_small":
            with torch.no_grad():
                self.qkv.weight.mul_(math.sqrt(0.2))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, 1)
        return joined(x, self.out(kernels.attention(q, k, v, self.heads)), self.skip_scale)

    def parts(self) -> Parts:
        thirds = (self.channels,) * 3
        return {"qkv.weight": (0, thirds), "qkv.bias": (0, thirds)}


def packed(rows: Tensor, heads: int) -> Tensor:
    """A qkv weight or bias whose rows are ordered (head, channel, q/k/v), as the released DDPM++
    and ADM networks of Karras et al. 2022 have them, in the order of `Attention`."""
    apart: Tensor = rows.unflatten(0, (heads, -1, 3))
    return apart.movedim(2, 0).flatten(0, 2).contiguous()


class Chain(nn.ModuleList):
    """Modules (x, emb) -> x, one after the other; a decoder's first one also takes a skip."""

    def forward(self, x: Tensor, emb: Tensor, skip: Tensor | None = None) -> Tensor:
        first, *rest = self
        x = first(x, emb) if skip is None else first(x, emb, skip)
        for module in rest:
            x = module(x, emb)
        return x


# float32 values from which one pass on a CPU costs less than the fused op's call; below, torch's
# two passes stay in cache. Both round alike, so an image's bits do not depend on its batch.
FUSED_FROM = 2**20


def joined(x: Tensor, branch: Tensor, scale: float) -> Tensor:
    """(x + branch)·scale."""
    cached = x.device.type == "cpu" and x.dtype is torch.float32 and x.numel() < FUSED_FROM
    if scale == 1 or cached or x.dtype != branch.dtype:  # the last: autocast around a lone block
        return rescaled(x + branch, scale)
    return kernels.bias_residual(x, branch, None, scale)


def rescaled(x: Tensor, factor: float) -> Tensor:
    """x·factor, in place: for a sum just made."""
    return x if factor == 1 else x.mul_(factor)


def _resize(channels: int, config: UNetConfig, way: str) -> nn.Module:
    if not way:
        return nn.Identity()
    return {"down": Halve, "up": Double}[way](channels, config.filter)
