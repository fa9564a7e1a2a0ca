"""What a network knows besides the image: the time, the class, the augmentation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdgen.nets.config import UNetConfig
from kdgen.nets.layers import lecun_, linear

Parts = dict[str, tuple[int, tuple[int, ...]]]


class Waves(nn.Module):
    """time (B,) -> (B, 2·n): Vaswani et al. 2017's sinusoids, from 1 to 1e-4 radians a unit.

    `cos_first` is improved DDPM's (Nichol & Dhariwal 2021): the cosines first, and 1e-4 not
    reached.
    """

    def __init__(self, n: int, *, cos_first: bool) -> None:
        super().__init__()
        self.n, self.cos_first = n, cos_first

    def forward(self, time: Tensor) -> Tensor:
        j = torch.arange(self.n, device=time.device, dtype=time.dtype)
        last = self.n if self.cos_first else self.n - 1
        angle = time[:, None] * torch.exp(j * (-math.log(1e4) / last))
        pair = (angle.cos(), angle.sin()) if self.cos_first else (angle.sin(), angle.cos())
        return torch.cat(pair, dim=1)


class Fourier(nn.Module):
    """time (B,) -> (B, 2·n): [sin, cos] of n random frequencies. Tancik et al. 2020,
    arXiv:2006.10739."""

    frequencies: Tensor

    def __init__(self, n: int, scale: float) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(n) * scale)

    def forward(self, time: Tensor) -> Tensor:
        angle = time[:, None] * (2 * math.pi * self.frequencies.to(time.dtype))
        return torch.cat([angle.sin(), angle.cos()], dim=1)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Fourier:
        """A network in bfloat16 still knows its frequencies to 24 bits."""
        before = self.frequencies
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.frequencies.dtype.itemsize < before.dtype.itemsize:
            wide = max(torch.float32, self.frequencies.dtype, key=lambda dtype: dtype.itemsize)
            self.frequencies = before.to(self.frequencies.device, wide)
        return self


class OneHot(nn.Module):
    """A linear layer of the class's one-hot vector times `gain`: a row of weight (classes, width)
    and a bias. "No class" (-1) is the bias alone."""

    def __init__(self, classes: int, width: int, *, gain: float = 1.0, bias: bool = True) -> None:
        super().__init__()
        self.gain = gain
        self.weight = nn.Parameter(torch.empty(classes, width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, label: Tensor) -> Tensor:
        rows = F.embedding(label.clamp(min=0), self.weight)
        rows = rows * (self.gain * (label >= 0).to(rows.dtype))[:, None]
        return rows if self.bias is None else rows + self.bias


class Table(nn.Embedding):
    """A row for every class, and one more for "no class": unconditional samples and guidance."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__(classes + 1, width)

    def forward(self, label: Tensor) -> Tensor:
        return super().forward(torch.where(label < 0, self.num_embeddings - 1, label))


class Embedding(nn.Module):
    """Time, class and augmentation as one vector: waves, then two layers.

    The augmentation joins the waves, and so does the class where `labels` is "noise"; else the
    class joins behind the two layers.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.early = config.labels == "noise"
        narrow, wide = config.wave_width, config.emb_width
        self.waves = _waves(config)
        self.dense1 = linear(narrow, wide, config.init)
        self.dense2 = linear(wide, wide, config.init)
        self.label = _label(config) if config.classes else None
        self.augment = _augment(config) if config.augments else None

    def forward(self, time: Tensor, label: Tensor | None, augment: Tensor | None = None) -> Tensor:
        """time (B,), label (B,) int64 with -1 for no class, augment (B, augments) or None for an
        image as it is -> (B, emb_width) after SiLU."""
        # 999 needs more than bfloat16's 8 bits.
        time = time.to(torch.promote_types(time.dtype, torch.float32))
        emb = self.waves(time).to(self.dense1.weight.dtype)
        if self.augment is not None and augment is not None:
            emb = emb + self.augment(augment.to(emb.dtype))
        if self.label is not None and label is None:
            label = torch.full_like(time, -1, dtype=torch.int64)
        if self.label is not None and self.early:
            emb = emb + self.label(label)
        emb = self.dense2(F.silu(self.dense1(emb)))
        if self.label is not None and not self.early:
            emb = emb + self.label(label)
        return F.silu(emb)

    def parts(self) -> Parts:
        half = self.dense1.in_features // 2
        found: Parts = {name: (1, (half, half)) for name in ("dense1.weight", "augment.weight")}
        found["augment.weight"] = (0, (half, half))
        if isinstance(self.label, Table):
            found["label.weight"] = (0, (self.label.num_embeddings - 1, 1))
        elif self.early:
            found |= {"label.weight": (1, (half, half)), "label.bias": (0, (half, half))}
        return found


def _waves(config: UNetConfig) -> nn.Module:
    n = config.wave_width // 2
    if config.waves == "fourier":
        return Fourier(n, config.fourier_scale)
    return Waves(n, cos_first=config.waves == "cos_sin")


def _label(config: UNetConfig) -> nn.Module:
    if config.labels == "table":
        return Table(config.classes, config.emb_width)
    if config.labels == "noise":
        layer = OneHot(config.classes, config.wave_width, gain=math.sqrt(config.classes))
        nn.init.xavier_uniform_(layer.weight)
        return layer
    layer = OneHot(config.classes, config.emb_width, bias=config.labels == "dense")
    if config.labels == "dense":
        lecun_(layer.weight, config.classes)
    else:
        nn.init.normal_(layer.weight)
    return layer


def _augment(config: UNetConfig) -> nn.Linear:
    layer = linear(config.augments, config.wave_width, config.init, bias=False)
    if config.init == "kaiming":
        nn.init.zeros_(layer.weight)
    return layer
