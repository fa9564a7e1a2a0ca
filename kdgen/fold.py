"""Exact rewrites of a network that only ever sees a few noise times."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdgen.denoiser import TIMES, Denoiser
from kdgen.nets.blocks import ResBlock
from kdgen.nets.unet import UNet


class FixedTimes(nn.Module):
    """Stands where the embedding stood: (time, label) -> row (B,) int64 of the tables below it."""

    middles: Tensor

    def __init__(self, times: Tensor, classes: int) -> None:
        super().__init__()
        rising = times.sort().values
        middles = ((rising[1:] + rising[:-1]) / 2).double()
        # Bits of float64 as integers: casting the network to bfloat16, which cannot tell time 998
        # from 999, must not move a boundary.
        self.register_buffer("middles", middles.view(torch.int64), persistent=False)
        self.classes = classes

    def forward(self, time: Tensor, label: Tensor | None, augment: Tensor | None = None) -> Tensor:
        if augment is not None:
            raise ValueError(
                "FixedTimes: got augmentation labels; expected none, a folded network only makes "
                "plain images. Use the network as it was."
            )
        place = torch.bucketize(time.double().contiguous(), self.middles.view(torch.float64))
        if not self.classes:
            return place
        row = self.classes if label is None else torch.where(label < 0, self.classes, label)
        return place * (self.classes + 1) + row


class Table(nn.Module):
    """row (B,) -> (B, C) or (B, 2·C): what a block adds to its channels, or scales and shifts them
    by; one row a time and class."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = nn.Parameter(rows, requires_grad=False)

    def forward(self, row: Tensor) -> Tensor:
        return self.rows[row]


@torch.no_grad()
def tabulate(denoiser: Denoiser, times: Sequence[float]) -> Denoiser:
    """The same denoiser for these times (in (0, 1]) only, without its time embedding.

    Every block's projection of the embedding becomes a table, computed in float64. Where it is
    added to channels it takes over the bias of the convolution in front of it; where it scales and
    shifts, the norm adds that bias. Images are taken to be plain: augmentation labels are refused.
    Raises ValueError for networks other than `UNet`.
    """
    if not isinstance(denoiser.net, UNet):
        kind = type(denoiser.net).__name__
        raise ValueError(
            f"tabulate: the network is a {kind}; expected a UNet. Sample it without folding."
        )
    folded = denoiser.copy(net=copy.deepcopy(denoiser.net))
    net = folded.net
    assert isinstance(net, UNet)
    inputs = TIMES[denoiser.time](denoiser.schedule, torch.tensor(times, dtype=torch.float64))
    embedded = _embedded(net, inputs)
    for block in net.modules():
        if isinstance(block, ResBlock):
            _fold_block(block, embedded)
    net.embedding = FixedTimes(inputs, net.classes).to(embedded.device)  # type: ignore[assignment]
    return folded.eval().requires_grad_(False)


def _embedded(net: UNet, inputs: Tensor) -> Tensor:
    """(times · (classes + 1), 4·width) in float64; times rise, the last class row is "no class"."""
    embedding = copy.deepcopy(net.embedding).double()
    device = embedding.dense1.weight.device
    none = torch.full((1,), -1)
    labels = torch.cat([torch.arange(net.classes), none])
    rising = inputs.sort().values
    time = rising.repeat_interleave(len(labels)).to(device)
    result: Tensor = embedding(time, labels.repeat(len(rising)).to(device))
    return result


def _fold_block(block: ResBlock, embedded: Tensor) -> None:
    bias = block.conv1.bias
    assert isinstance(bias, Tensor)
    rows = copy.deepcopy(block.time).double()(embedded)
    if block.scale_shift:
        block.offset = bias
    else:
        rows += bias.double()
    block.time = Table(rows.to(bias.dtype))  # type: ignore[assignment]
    block.conv1.bias = None
