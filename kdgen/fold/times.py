"""A network without its time embedding: what each block made of it becomes a bias, a gain, or a
table of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdgen.fold.layers import bias_of, blocks
from kdgen.fold.opaque import Opaque
from kdgen.nets.blocks import ResBlock
from kdgen.nets.unet import UNet

MOST_ROWS = 4096  # of a table: beyond, it outgrows the network that it is to speed up


class FixedTimes(nn.Module):
    """Stands where the embedding stood: (time, label) -> row (B,) int64 of the tables below it.

    With one row there are no tables, and nothing is looked up.
    """

    middles: Tensor

    def __init__(self, times: Tensor, classes: int) -> None:
        super().__init__()
        rising = times.sort().values
        middles = ((rising[1:] + rising[:-1]) / 2).double()
        # Bits of float64 as integers: casting the network to bfloat16, which cannot tell time 998
        # from 999, must not move a boundary.
        self.register_buffer("middles", middles.view(torch.int64), persistent=False)
        self.classes = classes
        self.rows = len(times) * (classes + 1 if classes else 1)

    def forward(self, time: Tensor, label: Tensor | None, augment: Tensor | None = None) -> Tensor:
        if augment is not None:
            raise ValueError(
                "FixedTimes: got augmentation labels; expected none, a folded network only makes "
                "plain images. Use the network as it was."
            )
        if self.rows == 1:
            return time
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


class Constant(nn.Module):
    """What a block adds to its channels whatever the row: `value` (C,), or None where a convolution
    or a norm has it already."""

    value: Tensor | None

    def __init__(self, value: Tensor | None = None) -> None:
        super().__init__()
        kept = None if value is None else nn.Parameter(value, requires_grad=False)
        self.register_parameter("value", kept)

    def forward(self, row: Tensor) -> Tensor | None:
        return self.value


def overgrown(times: Sequence[float], classes: int) -> str:
    """Why a table of these times, without a class and for each, is more than it is worth; "" where
    it is not."""
    rows = len(set(times)) * (classes + 1)
    return f"{rows:,} times and classes are more than {MOST_ROWS:,}" if rows > MOST_ROWS else ""


def fold_times(net: UNet, inputs: Tensor) -> int:
    """For these inputs of the embedding (times,); returns the number of blocks.

    With one time and no classes, additions go into the bias of the convolution in front, scales and
    shifts into the norm. Else they become tables, whose rows hold that bias too; where a table
    scales and shifts, the norm adds the bias. Images are taken to be plain: augmentation labels are
    refused. Raises ValueError where an opaque part would have to take what the time adds.
    """
    embedded = _embedded(net, inputs)
    found = blocks(net, ResBlock)
    for block in found:
        rows = block.time(embedded)
        if len(rows) == 1:
            _into_weights(block, rows[0])
        else:
            _into_table(block, rows)
    net.embedding = FixedTimes(inputs, net.classes).to(embedded.device)  # type: ignore[assignment]
    return len(found)


def delay_biases(net: UNet) -> int:
    """Lets the norm add the bias of the convolution in front of it, after `fold_times`; returns the
    number of blocks."""
    found = [b for b in blocks(net, ResBlock) if not isinstance(b.norm2, Opaque)]
    found = [b for b in found if not isinstance(b.conv1, Opaque) and b.conv1.bias is not None]
    found = [b for b in found if isinstance(b.time, Constant)]
    for block in found:
        block.time = Constant(block.conv1.bias)  # type: ignore[assignment]
        block.conv1.bias = None
    return len(found)


def _embedded(net: UNet, inputs: Tensor) -> Tensor:
    """(times · (classes + 1), 4·width) in float64; times rise, the last class row is "no class"."""
    device = net.conv_in.weight.device
    none = torch.full((1,), -1)
    labels = torch.cat([torch.arange(net.classes), none])
    rising = inputs.sort().values
    time = rising.repeat_interleave(len(labels)).to(device)
    result: Tensor = net.embedding(time, labels.repeat(len(rising)).to(device))
    return result


def _into_weights(block: ResBlock, row: Tensor) -> None:
    if block.scale_shift:
        _needed(block.norm2)
        scale, shift = row.chunk(2)
        block.norm2.weight.mul_(1 + scale)
        block.norm2.bias.mul_(1 + scale).add_(shift)
        block.scale_shift = False
    elif isinstance(block.conv1, Opaque):
        _needed(block.norm2)
        block.time = Constant(row)
        return
    else:
        bias_of(block.conv1).add_(row)
    block.time = Constant()  # type: ignore[assignment]


def _into_table(block: ResBlock, rows: Tensor) -> None:
    _needed(block.norm2)
    if isinstance(block.conv1, Opaque):
        block.time = Table(rows)
        return
    bias = bias_of(block.conv1)
    if block.scale_shift:
        block.offset = bias
    else:
        rows = rows + bias
    block.time = Table(rows)  # type: ignore[assignment]
    block.conv1.bias = None


def _needed(norm: nn.Module) -> None:
    if isinstance(norm, Opaque):
        raise ValueError(
            f"fold: {norm.name} {norm.why}; expected the norm as it was made, because it takes "
            "what the time adds, too. Undo the change, or sample it without folding."
        )
