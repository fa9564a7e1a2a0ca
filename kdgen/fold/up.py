"""Nearest neighbour and 3×3 as one transposed convolution: 4 taps a pixel instead of 9.

Behind a doubling, the 9 taps of a pixel see 4 pixels of the small image. Their sums are a kernel of
4×4 with stride 2. Zeros around the small image are zeros around the large one, so borders agree.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdgen.fold.layers import blocks
from kdgen.fold.opaque import Opaque
from kdgen.nets.blocks import Chain, ResBlock
from kdgen.nets.resample import Double, Up
from kdgen.nets.unet import UNet


class Enlarge(nn.Module):
    """Double the size: a transposed convolution, 4×4 with stride 2."""

    def __init__(self, conv: nn.ConvTranspose2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.conv(x)  # type: ignore[no-any-return]


def fold_up(net: UNet) -> int:
    """Returns the number of doublings. Those with a longer filter (NCSN++) stay: at the borders a
    filter and a convolution are not one."""
    count = 0
    for chain in blocks(net, Chain):
        for k, module in enumerate(chain):
            if isinstance(module, Up):
                chain[k] = Enlarge(transposed(module.conv))
                count += 1
            elif isinstance(module, ResBlock) and _doubles(module):
                _fold_block(module)
                count += 1
    return count


def _doubles(block: ResBlock) -> bool:
    doubles = isinstance(block.resize, Double) and block.resize.box
    return doubles and not isinstance(block.conv1, Opaque)


def _fold_block(block: ResBlock) -> None:
    double, block.resize = block.resize, nn.Identity()
    block.conv1 = transposed(block.conv1)  # type: ignore[assignment]
    # A 1×1 convolution of repeated pixels is the repeated convolution, at a quarter of the cost.
    projects = not isinstance(block.shortcut, nn.Identity)
    block.shortcut = nn.Sequential(block.shortcut, double) if projects else double  # type: ignore[assignment]


def transposed(conv: nn.Conv2d) -> nn.ConvTranspose2d:
    """`conv` behind a nearest-neighbour doubling."""
    usual = ((3, 3), (1, 1), (1, 1))
    if (found := (conv.kernel_size, conv.stride, conv.padding)) != usual:
        raise ValueError(
            f"fold: a convolution behind a doubling has kernel, stride and padding {found}; "
            f"expected {usual}. Leave out the fold 'up'."
        )
    c_out, c_in = conv.weight.shape[:2]
    new = nn.ConvTranspose2d(
        *(c_in, c_out, 4, 2, 1), bias=conv.bias is not None, device="meta", dtype=conv.weight.dtype
    )
    # Which of the 3 taps each of the 4 sums up, in one direction.
    sums = conv.weight.new_tensor([[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]])
    weight = torch.einsum("ya,xb,oiab->ioyx", sums, sums, conv.weight)
    new.weight = nn.Parameter(weight.contiguous(memory_format=torch.channels_last))
    new.bias = conv.bias
    return new
