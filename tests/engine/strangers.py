"""Networks with a part of somebody's own, one for every place where there may be one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdgen import engine, fold, nets
from kdgen.denoiser import Denoiser
from kdgen.schedules import Flow

Lively = Callable[..., nn.Module]

with_engine = pytest.mark.usefixtures("compiled")


def folded(made: Denoiser, times: tuple[float, ...] = (1.0,)) -> fold.Folded:
    return fold.fold(made, times, folds=engine.FOLDS)


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


class Mixer(nn.Module):
    """For a chain: channels in groups, and each pixel by itself."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.near = nn.Conv2d(channels, channels, 3, padding=1, groups=4)
        self.far = nn.Linear(channels, channels)

    def forward(self, x: Tensor, emb: Tensor | None) -> Tensor:
        seen = self.far(self.near(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return x + torch.tanh(seen)  # type: ignore[no-any-return]


class Rescaled(nn.Module):
    """For the place of a norm; takes what such a norm is given."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor, add: Tensor | None = None, **rest: Tensor | None) -> Tensor:
        x = x if add is None else x + add.view(-1, x.shape[1], 1, 1)
        assert all(v is None for v in rest.values())
        size = x.square().mean((1, 2, 3), keepdim=True) + 0.1
        return torch.relu(x * size.rsqrt() * self.gain)


@dataclass(frozen=True)
class Stranger:
    """`change` puts the part in; `named` is where it is told to be; `facts` of the network."""

    name: str
    named: str
    change: Callable[[Any], None]
    facts: dict[str, Any] = field(default_factory=dict)
    once: bool = False  # only where a network has one time and no classes

    def denoiser(self, lively: Lively, **facts: Any) -> Denoiser:
        shape = {"channels": 3, "width": 20, "mult": (1, 2), "blocks": 1, "attention": (4,)}
        net = nets.UNet(nets.UNetConfig(8, **(shape | self.facts | facts)))
        self.change(net)
        return Denoiser(lively(net), Flow(), "velocity", "raw").eval()


def put(path: str, make: Callable[[], nn.Module]) -> Callable[[nn.Module], None]:
    """In the place of what is there."""

    def change(net: nn.Module) -> None:
        owner, _, last = path.rpartition(".")
        setattr(net.get_submodule(owner), last, make())

    return change


def conv(c_in: int, c_out: int, kernel: Any = 3, **facts: Any) -> Callable[[], nn.Module]:
    return lambda: nn.Conv2d(c_in, c_out, kernel, **({"padding": 1} | facts))


# Channels are no multiples of 16, so that there are zeros beside them.
BLOCK = {"resample": "block"}
STRANGERS = [
    Stranger("encoder", "encoder.0.1", lambda net: net.encoder[0].append(Mixer(20))),
    Stranger("middle", "middle.1", put("middle.1", lambda: Mixer(40))),
    Stranger("decoder", "decoder.0.2", lambda net: net.decoder[0].append(Mixer(40))),
    Stranger("block", "middle.0", put("middle.0", lambda: Mixer(40))),
    Stranger("groups", "middle.0.conv1", put("middle.0.conv1", conv(40, 40, groups=2))),
    Stranger("skip", "decoder.0.0.conv1", put("decoder.0.0.conv1", conv(80, 40, groups=2))),
    Stranger(
        "dilation", "middle.2.conv2", put("middle.2.conv2", conv(40, 40, 3, dilation=2, padding=2))
    ),
    Stranger(
        "circle", "middle.0.conv2", put("middle.0.conv2", conv(40, 40, padding_mode="circular"))
    ),
    Stranger("unbiased", "middle.0.conv1", put("middle.0.conv1", conv(40, 40, bias=False))),
    Stranger(
        "oblong", "middle.0.conv1", put("middle.0.conv1", conv(40, 40, (1, 3), padding=(0, 1)))
    ),
    Stranger("same", "middle.0.conv2", put("middle.0.conv2", conv(40, 40, 3, padding="same"))),
    Stranger("large", "middle.0.conv2", put("middle.0.conv2", conv(40, 40, 9, padding=4))),
    Stranger("norm1", "middle.0.norm1", put("middle.0.norm1", lambda: Rescaled(40))),
    Stranger("norm2", "middle.0.norm2", put("middle.0.norm2", lambda: Rescaled(40)), once=True),
    Stranger("attention", "middle.1.norm", put("middle.1.norm", lambda: Rescaled(40))),
    Stranger("qkv", "middle.1", put("middle.1.qkv", conv(40, 120, 3))),
    Stranger("last norm", "norm_out", put("norm_out", lambda: Rescaled(20))),
    Stranger("act", "middle.0.dropout", put("middle.0.dropout", nn.GELU)),
    Stranger(
        "shortcut", "encoder.2.0.shortcut", put("encoder.2.0.shortcut", conv(20, 40, groups=4))
    ),
    Stranger(
        "filter", "encoder.1.0.resize", put("encoder.1.0.resize", lambda: nn.MaxPool2d(2)), BLOCK
    ),
    Stranger(
        "doubling", "decoder.1.2.conv1", put("decoder.1.2.conv1", conv(40, 40, groups=2)), BLOCK
    ),
    Stranger(
        "down",
        "encoder.1.0",
        put("encoder.1.0.conv", conv(20, 20, 3, stride=2, padding=0, groups=2)),
    ),
    Stranger(
        "down oblong",
        "encoder.1.0",
        put("encoder.1.0.conv", conv(20, 20, (3, 2), stride=2, padding=0)),
    ),
    Stranger(
        "pool",
        "pyramid.1.halve",
        put("pyramid.1.halve", lambda: nn.MaxPool2d(2)),
        {"pyramid": True},
    ),
    Stranger("up", "decoder.1.2", put("decoder.1.2.conv", conv(40, 40, groups=2))),
    Stranger("up wide", "decoder.1.2", put("decoder.1.2.conv", conv(40, 40, 5, padding=2))),
    Stranger("first", "conv_in", put("conv_in", conv(3, 20, padding_mode="reflect"))),
    Stranger("first oblong", "conv_in", put("conv_in", conv(3, 20, (3, 1), padding=(1, 0)))),
    Stranger("last", "conv_out", put("conv_out", conv(20, 3, padding_mode="reflect"))),
    Stranger("last oblong", "conv_out", put("conv_out", conv(20, 3, (3, 1), padding=(1, 0)))),
    Stranger(
        "pyramid",
        "pyramid.1.conv",
        put("pyramid.1.conv", conv(3, 20, padding_mode="circular")),
        {"pyramid": True},
    ),
]
