"""Which networks can be folded, and changes of single layers that several folds share."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

from kdgen.fold.opaque import Opaque, own_modules
from kdgen.nets.blocks import Attention, Chain, ResBlock
from kdgen.nets.dropout import Dropout
from kdgen.nets.embedding import Embedding, Fourier, OneHot, Table, Waves
from kdgen.nets.layers import GroupNorm, Pointwise
from kdgen.nets.resample import Double, Down, Halve, Shrink, Up
from kdgen.nets.unet import Head, UNet

Kind = TypeVar("Kind", bound=nn.Module)

_PARTS = {
    *(Opaque, UNet, Chain, ResBlock, Attention, Head, Dropout, GroupNorm, Pointwise),
    *(Down, Up, Halve, Double, Shrink),
    *(Embedding, Waves, Fourier, OneHot, Table),
    *(nn.Conv2d, nn.Linear, nn.Identity, nn.ModuleList, nn.ModuleDict),
}


def check_whole(net: nn.Module) -> UNet:
    """The network, or ValueError where it is none that folds begin with."""
    if not isinstance(net, UNet):
        raise ValueError(
            f"fold: the network is a {type(net).__name__}; expected a UNet. Sample it without "
            "folding."
        )
    if net.folded:
        raise ValueError(
            "fold: the network was folded already; expected a whole one. Fold the denoiser it was "
            "made of, with all folds at once."
        )
    return net


def check_known(net: UNet) -> None:
    """Raises ValueError naming the part that a fold would have to guess about."""
    for name, module in own_modules(net):
        if why := _unknown(module):
            raise ValueError(
                f"fold: {name or 'the network'} {why}; expected a part of a UNet as it was made. "
                "Undo the change, or sample it without folding."
            )
    names = [n for n, _ in net.named_parameters(remove_duplicate=False)]
    if shared := set(names) - {n for n, _ in net.named_parameters()}:
        raise ValueError(
            f"fold: {min(shared)} is also a weight of another layer; expected one layer for each. "
            "Sample it without folding."
        )
    if len(dtypes := {p.dtype for p in net.parameters()}) > 1:
        raise ValueError(
            f"fold: the weights are {', '.join(sorted(map(str, dtypes)))}; expected one dtype. "
            "Fold before casting."
        )


def _unknown(module: nn.Module) -> str:
    if type(module) not in _PARTS:
        return f"is a {type(module).__name__}"
    if "forward" in vars(module):
        return "has a forward of its own"
    if module._forward_hooks or module._forward_pre_hooks:
        return "has a hook"
    return ""


def blocks(net: nn.Module, kind: type[Kind]) -> list[Kind]:
    """Every part of the kind that folds may look into, in the order of the network."""
    return [m for _, m in own_modules(net) if isinstance(m, kind)]


def heads(net: UNet) -> list[tuple[GroupNorm, nn.Conv2d]]:
    """The norm and the convolution of every output."""
    more = [m for m in net.heads if isinstance(m, Head)]
    return [(net.norm_out, net.conv_out), *((head.norm, head.conv) for head in more)]


def bias_of(layer: nn.Module) -> Tensor:
    """The bias of a layer that has one."""
    assert isinstance(layer.bias, Tensor)
    return layer.bias


def multiply(layer: nn.Module, weight: float, bias: float) -> None:
    """The weight and the bias of a layer, each by its factor."""
    assert isinstance(layer.weight, Tensor)
    layer.weight.mul_(weight)
    if isinstance(layer.bias, Tensor):
        layer.bias.mul_(bias)


def replace_weights(layer: nn.Module, weight: Tensor, bias: Tensor) -> None:
    """New weights, also of another shape, in the layout of the U-Net's."""
    weight = weight.contiguous(memory_format=torch.channels_last)
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
