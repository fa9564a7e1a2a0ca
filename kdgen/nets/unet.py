"""The U-Net of DDPM (Ho et al. 2020, arXiv:2006.11239, appendix B) and of those that came after it,
from 8×8 digits to 256×256 bedrooms."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from kdgen.nets.blocks import Attention, Chain, ResBlock, rescaled
from kdgen.nets.config import UNetConfig
from kdgen.nets.embedding import Embedding
from kdgen.nets.layers import GroupNorm, conv, last
from kdgen.nets.resample import Down, Shrink, Up
from kdgen.nets.transfer import inherit


class UNet(nn.Module):
    """(x (B, C, R, R), time (B,), label (B,) int64 or None, augment (B, augments) or None) ->
    (B, outputs·out_channels, R, R), head after head."""

    folded = False  # whether `kdgen.fold` has rewritten it: its parts no longer follow its facts

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.facts = config
        self.shape = (config.channels, config.resolution, config.resolution)
        self.classes = config.classes
        self.embedding = Embedding(config)
        self.conv_in = conv(config.channels, config.width, config.init)
        self.encoder, widths = _encoder(config)
        self.pyramid, self.pyramid_scale = _pyramid(config), math.sqrt(0.5)
        deep = config.width * config.mult[-1]
        self.middle = Chain(
            [ResBlock(deep, deep, config), Attention(deep, config), ResBlock(deep, deep, config)]
        )
        self.decoder = _decoder(config, widths)
        shallow, out = config.width * config.mult[0], config.out_channels or config.channels
        self.norm_out = GroupNorm(shallow, config)
        self.conv_out = last(conv(shallow, out, config.init), config.init)
        self.heads = nn.ModuleList(Head(shallow, out, config) for _ in range(config.outputs - 1))
        # The layout of tensor cores and of the fused group norm; activations take the weights'.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        label: Tensor | None = None,
        augment: Tensor | None = None,
    ) -> Tensor:
        emb = self.embedding(time, label, augment)
        x, skips = self._encode(x.to(self.conv_in.weight.dtype), emb)
        x = self._decode(self.middle(x, emb), skips, emb, self.gains(time))
        y = self.conv_out(self.norm_out(x))
        if not self.heads:
            return y  # type: ignore[no-any-return]
        return torch.cat([y, *(head(x) for head in self.heads)], dim=1)

    def _encode(self, image: Tensor, emb: Tensor) -> tuple[Tensor, list[Tensor]]:
        x = self.conv_in(image)
        skips = [x]
        for k, chain in enumerate(self.encoder):
            x = chain(x, emb)
            if str(k) in self.pyramid:
                x = image = rescaled(x + self.pyramid[str(k)](image), self.pyramid_scale)
            skips.append(x)
        return x, skips

    def _decode(
        self, x: Tensor, skips: list[Tensor], emb: Tensor, gains: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        for chain in self.decoder:
            skip = skips.pop()
            if gains is not None:
                x, skip = x * gains[0].to(x.dtype), skip * gains[1].to(x.dtype)
            x = chain(x, emb, skip)
        return x

    def gains(self, time: Tensor) -> tuple[Tensor, Tensor] | None:
        """Of the decoder's and the encoder's half of a concatenation, (B, 1, 1, 1) each: 2p and
        2·(1 − p), p = phi + time·(1 − 2·phi). Shao et al. 2023, arXiv:2305.10769.

        Time is in [0, 1]; phi is the decoder's share of a concatenation at 0, and the encoder's
        at 1.
        """
        if (phi := self.facts.skip_gain) is None:
            return None
        time = time.to(torch.promote_types(time.dtype, torch.float32))
        p = (phi + time * (1 - 2 * phi)).view(-1, 1, 1, 1)
        return 2 * p, 2 - 2 * p

    def copy(self, **changes: Any) -> UNet:
        """The same weights under a changed `UNetConfig`, e.g. `dropout=0.0` or `width=64`.

        What is there in both networks keeps its weights; where it is narrower now, the first
        channels stay, where it is wider, the others are fresh. `transfer.inherit` says more.
        Raises ValueError for a folded network.
        """
        twin = UNet(replace(self.facts, **changes)).to(self.conv_in.weight)
        inherit(twin, self)
        return twin.train(self.training)

    def config(self) -> dict[str, Any]:
        return {"name": "unet", **asdict(self.facts)}


class Head(nn.Module):
    """One more image from the decoder's last features: norm, SiLU, 3×3. Shao et al. 2023."""

    def __init__(self, c_in: int, c_out: int, config: UNetConfig) -> None:
        super().__init__()
        self.norm = GroupNorm(c_in, config, eps=1e-6)
        self.conv = last(conv(c_in, c_out, "xavier_small"), "xavier_small")

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.norm(x))  # type: ignore[no-any-return]


def _encoder(config: UNetConfig) -> tuple[nn.ModuleList, list[int]]:
    """The chains, and the width of every skip connection (the stem's first)."""
    chains, width = nn.ModuleList(), config.width
    widths = [width]
    for level, mult in enumerate(config.mult):
        if level:
            chains.append(Chain([_smaller(width, config)]))
            widths.append(width)
        for _ in range(config.blocks):
            chain = Chain([ResBlock(width, config.width * mult, config)])
            width = config.width * mult
            if config.has_attention(level):
                chain.append(Attention(width, config))
            chains.append(chain)
            widths.append(width)
    return chains, widths


def _decoder(config: UNetConfig, widths: list[int]) -> nn.ModuleList:
    chains, width = nn.ModuleList(), widths[-1]
    widths = list(widths)
    for level in reversed(range(len(config.mult))):
        for k in range(config.blocks + 1):
            skip, c_in = widths.pop(), width
            width = config.width * config.mult[level]
            chain = Chain([ResBlock(c_in + skip, width, config, skip=skip)])
            attends = config.decoder_attention == "every" or k == config.blocks
            if attends and config.has_attention(level):
                chain.append(Attention(width, config))
            chains.append(chain)
        if level:
            chain.append(_larger(width, config))
    return chains


def _smaller(width: int, config: UNetConfig) -> nn.Module:
    if config.resample == "conv":
        return Down(width, config.init, config.down_padding)
    return ResBlock(width, width, config, resize="down")


def _larger(width: int, config: UNetConfig) -> nn.Module:
    if config.resample == "conv":
        return Up(width, config.init)
    return ResBlock(width, width, config, resize="up")


def _pyramid(config: UNetConfig) -> nn.ModuleDict:
    """By the place, in the encoder, of the chain that each joins."""
    found = nn.ModuleDict()
    c_in = config.channels
    for level in range(1, len(config.mult) if config.pyramid else 0):
        c_out = config.width * config.mult[level - 1]
        place = level * (config.blocks + 1) - 1
        found[str(place)] = Shrink(c_in, c_out, config.filter, config.init)
        c_in = c_out
    return found
