"""The U-Net of DDPM (Ho et al. 2020, arXiv:2006.11239, appendix B), from 8×8 digits to 256×256
bedrooms."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdgen import kernels


@dataclass(frozen=True)
class UNetConfig:
    """`resolution` and `attention` in pixels; `mult` the width of each level in units of
    `width`."""

    resolution: int
    channels: int = 3
    out_channels: int | None = None  # None: like channels; "both" needs twice that
    width: int = 128
    mult: tuple[int, ...] = (1, 2, 2, 2)
    blocks: int = 2
    attention: tuple[int, ...] = (16,)
    dropout: float = 0.0
    classes: int = 0
    groups: int = 32  # at most: a group holds 4 channels or more, and groups divide them
    norm_eps: float = 1e-6  # DDPM's weights were trained with it; 1e-5 shifts their output

    def __post_init__(self) -> None:
        for name in ("mult", "attention"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON gives lists
        self._check()

    def _check(self) -> None:
        counts = (self.resolution, self.channels, self.blocks, self.groups, len(self.mult))
        if min(*counts, *self.mult) < 1 or self.classes < 0 or not 0 <= self.dropout < 1:
            raise ValueError(
                f"UNetConfig: {self}; expected sizes of at least 1, classes of at least 0 and "
                "dropout in [0, 1). Correct them."
            )
        shrink = 2 ** (len(self.mult) - 1)
        if self.resolution % shrink:
            raise ValueError(
                f"UNetConfig: resolution {self.resolution} with {len(self.mult)} levels; expected "
                f"a multiple of {shrink}. Use fewer levels or resize."
            )
        if self.width < 4 or self.width % 4:
            raise ValueError(
                f"UNetConfig: width is {self.width}; expected a multiple of 4. Round it."
            )


class GroupNorm(nn.Module):
    """Group norm with an optional per-channel add in front and SiLU behind, one fused op."""

    def __init__(self, channels: int, config: UNetConfig, *, act: bool = True) -> None:
        super().__init__()
        self.groups, self.eps, self.act = _groups(channels, config), config.norm_eps, act
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        """x (B, C, H, W), add (B, C)."""
        return kernels.group_norm_silu(
            x, self.weight, self.bias, self.groups, self.eps, add=add, act=self.act
        )


class Pointwise(nn.Conv2d):
    """1×1 convolution; when sampling on a CPU, an image's bits do not depend on its batch."""

    def forward(self, x: Tensor) -> Tensor:
        learns = torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)
        if learns or x.device.type != "cpu" or x.dtype != torch.float32:
            return super().forward(x)
        # oneDNN orders its sums by the size of the batch; one product for each image does not.
        n, _, height, width = x.shape
        weight, bias = self.weight.flatten(1).expand(n, -1, -1), self.bias
        assert bias is not None
        if x.is_contiguous():
            rows = torch.baddbmm(bias[:, None], weight, x.flatten(2))
            return rows.view(n, -1, height, width)
        pixels = x.permute(0, 2, 3, 1).flatten(1, 2)
        return torch.baddbmm(bias, pixels, weight.mT).mT.reshape(n, -1, height, width)


class ResBlock(nn.Module):
    """norm, conv, + time, norm, dropout, conv, + shortcut."""

    def __init__(self, c_in: int, c_out: int, config: UNetConfig) -> None:
        super().__init__()
        self.norm1 = GroupNorm(c_in, config)
        self.conv1 = _conv(c_in, c_out)
        self.time = _linear(4 * config.width, c_out)
        self.norm2 = GroupNorm(c_out, config)
        self.dropout = config.dropout
        self.conv2 = _zero(_conv(c_out, c_out))
        self.shortcut = _pointwise(c_in, c_out) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """emb (B, 4·width), after its SiLU."""
        h = self.conv1(self.norm1(x))
        h = self.norm2(h, add=self.time(emb))
        h = F.dropout(h, self.dropout, self.training)
        return self.shortcut(x) + self.conv2(h)  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Single-head self-attention over pixels, with a residual."""

    def __init__(self, channels: int, config: UNetConfig) -> None:
        super().__init__()
        self.norm = GroupNorm(channels, config, act=False)
        self.qkv = _pointwise(channels, 3 * channels)
        for part in self.qkv.weight.chunk(3):  # three layers in one: each has its own fan
            nn.init.xavier_uniform_(part)
        self.out = _zero(_pointwise(channels, channels))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).unsqueeze(1).chunk(3, dim=-1)
        h = F.scaled_dot_product_attention(q, k, v)  # (B, 1, H·W, C)
        h = h.squeeze(1).transpose(1, 2).reshape(x.shape)
        return x + self.out(h)  # type: ignore[no-any-return]


class Down(nn.Module):
    """Halve the size: 3×3, stride 2, padded right and below as TensorFlow's SAME does."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = _conv(channels, channels, stride=2, padding=0)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # type: ignore[no-any-return]


class Up(nn.Module):
    """Double the size: nearest neighbour, then 3×3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = _conv(channels, channels)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))  # type: ignore[no-any-return]


class Chain(nn.ModuleList):
    """Modules (x, emb) -> x, one after the other."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        for module in self:
            x = module(x, emb)
        return x


class Embedding(nn.Module):
    """Time, and class where there are classes, as one vector: Vaswani et al. 2017's sinusoids, then
    two layers."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        wide = 4 * config.width
        self.frequencies, self.classes = config.width // 2, config.classes
        self.dense1, self.dense2 = _linear(config.width, wide), _linear(wide, wide)
        # One row more than classes: "no class", for unconditional samples and guidance.
        self.label = nn.Embedding(config.classes + 1, wide) if config.classes else None

    def forward(self, time: Tensor, label: Tensor | None) -> Tensor:
        """time (B,), label (B,) int64 with -1 for no class -> (B, 4·width) after SiLU."""
        # 999 needs more than bfloat16's 8 bits.
        time = time.to(torch.promote_types(time.dtype, torch.float32))
        j = torch.arange(self.frequencies, device=time.device, dtype=time.dtype)
        angle = time[:, None] * torch.exp(j * (-math.log(1e4) / (self.frequencies - 1)))
        waves = torch.cat([angle.sin(), angle.cos()], dim=1).to(self.dense1.weight.dtype)
        emb = self.dense2(F.silu(self.dense1(waves)))
        if self.label is not None:
            emb = emb + self.label(self._rows(time, label))
        return F.silu(emb)

    def _rows(self, time: Tensor, label: Tensor | None) -> Tensor:
        if label is None:
            return torch.full_like(time, self.classes, dtype=torch.int64)
        return torch.where(label < 0, self.classes, label)


class UNet(nn.Module):
    """(x (B, C, R, R), time (B,), label (B,) int64 or None) -> (B, out_channels, R, R)."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.facts = config
        self.shape = (config.channels, config.resolution, config.resolution)
        self.classes = config.classes
        self.embedding = Embedding(config)
        self.conv_in = _conv(config.channels, config.width)
        self.encoder, widths = _encoder(config)
        deep = config.width * config.mult[-1]
        self.middle = Chain(
            [ResBlock(deep, deep, config), Attention(deep, config), ResBlock(deep, deep, config)]
        )
        self.decoder = _decoder(config, widths)
        self.norm_out = GroupNorm(config.width * config.mult[0], config)
        self.conv_out = _zero(
            _conv(config.width * config.mult[0], config.out_channels or config.channels)
        )
        # The layout of tensor cores and of the fused group norm; activations take the weights'.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        emb = self.embedding(time, label)
        x = self.conv_in(x.to(self.conv_in.weight.dtype))
        skips = [x]
        for chain in self.encoder:
            x = chain(x, emb)
            skips.append(x)
        x = self.middle(x, emb)
        for chain in self.decoder:
            x = chain(torch.cat([x, skips.pop()], dim=1), emb)
        return self.conv_out(self.norm_out(x))  # type: ignore[no-any-return]

    def copy(self, **changes: Any) -> UNet:
        """The same weights under a changed `UNetConfig`, e.g. `dropout=0.0`."""
        twin = UNet(replace(self.facts, **changes)).to(self.conv_in.weight)
        twin.load_state_dict(self.state_dict())
        return twin.train(self.training)

    def config(self) -> dict[str, Any]:
        return {"name": "unet", **asdict(self.facts)}


def _encoder(config: UNetConfig) -> tuple[nn.ModuleList, list[int]]:
    """The chains, and the width of every skip connection (the stem's first)."""
    chains, width, size = nn.ModuleList(), config.width, config.resolution
    widths = [width]
    for level, mult in enumerate(config.mult):
        if level:
            chains.append(Chain([Down(width)]))
            widths.append(width)
            size //= 2
        for _ in range(config.blocks):
            chains.append(_block(width, config.width * mult, size, config))
            width = config.width * mult
            widths.append(width)
    return chains, widths


def _decoder(config: UNetConfig, widths: list[int]) -> nn.ModuleList:
    chains, width = nn.ModuleList(), widths[-1]
    widths = list(widths)
    for level in reversed(range(len(config.mult))):
        size = config.resolution >> level
        for _ in range(config.blocks + 1):
            chain = _block(width + widths.pop(), config.width * config.mult[level], size, config)
            chains.append(chain)
            width = config.width * config.mult[level]
        if level:
            chain.append(Up(width))
    return chains


def _block(c_in: int, c_out: int, size: int, config: UNetConfig) -> Chain:
    chain = Chain([ResBlock(c_in, c_out, config)])
    if size in config.attention:
        chain.append(Attention(c_out, config))
    return chain


def _groups(channels: int, config: UNetConfig) -> int:
    return max(g for g in range(1, min(config.groups, channels // 4) + 1) if channels % g == 0)


def _conv(c_in: int, c_out: int, stride: int = 1, padding: int = 1) -> nn.Conv2d:
    conv = nn.Conv2d(c_in, c_out, 3, stride, padding)
    _init(conv)
    return conv


def _pointwise(c_in: int, c_out: int) -> Pointwise:
    conv = Pointwise(c_in, c_out, 1)
    _init(conv)
    return conv


def _linear(c_in: int, c_out: int) -> nn.Linear:
    linear = nn.Linear(c_in, c_out)
    _init(linear)
    return linear


def _init(layer: nn.Conv2d | nn.Linear) -> None:
    """DDPM's variance scaling: uniform, fan_avg, scale 1; biases 0."""
    assert layer.bias is not None
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)


def _zero(conv: nn.Conv2d) -> nn.Conv2d:
    """Start at 0, so that every residual branch begins as the identity."""
    nn.init.zeros_(conv.weight)
    return conv
