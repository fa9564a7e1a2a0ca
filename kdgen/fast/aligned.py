"""Channels in multiples of what tensor cores take: images have three, so zeros stand beside them.

A convolution from 3 to 128 channels, or back, runs on a slow general kernel otherwise. Zero weights
against zero channels change no number.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdgen.nets import UNet

ALIGNED = 8  # 16 bytes of bfloat16


@torch.no_grad()
def align(net: nn.Module) -> int:
    """Pads the first and the last convolution in place; returns how many channels the network now
    takes. 0 where it is left alone: it sees its image in several places, or is no UNet."""
    if not isinstance(net, UNet) or net.pyramid or net.heads:
        return 0
    first, last = net.conv_in, net.conv_out
    if not (isinstance(first, nn.Conv2d) and isinstance(last, nn.Conv2d)):
        return 0
    more = -first.in_channels % ALIGNED
    _replace(first, "weight", F.pad(first.weight, (0, 0, 0, 0, 0, more)))
    first.in_channels += more
    beyond = -last.out_channels % ALIGNED
    _replace(last, "weight", F.pad(last.weight, (0, 0, 0, 0, 0, 0, 0, beyond)))
    if last.bias is not None:
        _replace(last, "bias", F.pad(last.bias, (0, beyond)))
    last.out_channels += beyond
    return first.in_channels


def worthwhile(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether there are tensor cores that this dtype runs on."""
    return device.type == "cuda" and dtype in (torch.bfloat16, torch.float16)


def _replace(conv: nn.Conv2d, name: str, tensor: Tensor) -> None:
    last = torch.channels_last if tensor.dim() == 4 else torch.contiguous_format
    parameter = nn.Parameter(tensor.contiguous(memory_format=last), requires_grad=False)
    setattr(conv, name, parameter)
