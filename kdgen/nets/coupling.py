"""An encoder that chooses each image's noise, so that the straight paths of a flow cross less."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from kdgen.nets.unet import UNet


class Coupling(nn.Module):
    """The distribution N(mean, e^logvar) of the noise that belongs to an image. Lee et al. 2023,
    arXiv:2301.12003.

    `net` is a network as `Denoiser` takes it, with twice the image's channels out; it is asked at
    time 1. `encoder` builds one.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return self.net.shape  # type: ignore[return-value]

    @property
    def classes(self) -> int:
        """Number of classes; 0 when unconditional."""
        return self.net.classes  # type: ignore[return-value]

    def forward(self, x0: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(mean, logvar) of x0 (B, C, H, W), both like x0 and float32 (or float64)."""
        wide = torch.promote_types(x0.dtype, torch.float32)
        raw = self.net(x0, torch.ones(len(x0), dtype=wide, device=x0.device), label).to(wide)
        expected = (len(x0), 2 * x0.shape[1], *x0.shape[2:])
        if raw.shape != expected:  # broadcasting would hide it
            raise ValueError(
                f"Coupling: the network gave {tuple(raw.shape)}; expected {expected}. Set its "
                f"out_channels to {expected[1]}."
            )
        mean, logvar = raw.chunk(2, dim=1)
        return mean, logvar

    def copy(self) -> Coupling:
        """An independent copy of the weights."""
        return Coupling(copy.deepcopy(self.net)).train(self.training)

    def config(self) -> dict[str, Any]:
        """JSON-able; `net` is the network's own."""
        return {"name": "coupling", "net": self.net.config()}  # type: ignore[operator]


def encoder(like: UNet, width: int = 32, mult: tuple[int, ...] = (2, 2, 2)) -> Coupling:
    """A small one in the style of the network `like`: unless told otherwise as Shao et al. 2023,
    arXiv:2305.10769, have it for CIFAR-10.

    It drops nothing, and has fewer levels where an image cannot be halved as often. It begins as
    the independent noise: the last layer of a U-Net starts at 0.
    """
    size = like.facts.resolution
    halvings = (size & -size).bit_length() - 1
    facts = replace(
        like.facts,
        width=width,
        mult=mult[: halvings + 1],
        blocks=2,
        out_channels=2 * like.facts.channels,
        dropout=0.0,
        augments=0,
        outputs=1,
        skip_gain=None,
    )
    return Coupling(UNet(facts)).to(next(like.parameters()))
