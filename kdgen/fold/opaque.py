"""Parts of a network that folds do not look into: what somebody put in the place of one of ours."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from kdgen.nets.blocks import Attention, Chain, ResBlock
from kdgen.nets.dropout import Dropout
from kdgen.nets.layers import GroupNorm, Pointwise
from kdgen.nets.resample import Double, Down, Halve, Shrink, Up
from kdgen.nets.unet import Head, UNet


class Opaque(nn.Module):
    """`part` where it stood, asked for its image alone; `why` says what it is.

    In a chain (`chained`) it is handed None for the embedding of the time.
    """

    def __init__(self, part: nn.Module, name: str, why: str, *, chained: bool) -> None:
        super().__init__()
        self.part, self.name, self.why, self.chained = part, name, why, chained

    def forward(self, x: Tensor, *absent: Tensor | None, **named: Tensor | None) -> Tensor:
        return self.part(x, None) if self.chained else self.part(x)  # type: ignore[no-any-return]

    @property
    def weight(self) -> Tensor:
        """Of the part, which says in what dtype a network computes."""
        return self.part.weight  # type: ignore[return-value]


_Kinds = tuple[type[nn.Module], ...]

_CONV: _Kinds = (nn.Conv2d, Pointwise)
# What folds and engines expect where, and what may be something else.
_PLACES: Mapping[type[nn.Module], Mapping[str, _Kinds]] = {
    UNet: {"conv_in": _CONV, "norm_out": (GroupNorm,), "conv_out": _CONV},
    Head: {"norm": (GroupNorm,), "conv": _CONV},
    ResBlock: {
        "norm1": (GroupNorm,),
        "resize": (nn.Identity, Halve, Double),
        "conv1": _CONV,
        "norm2": (GroupNorm,),
        "dropout": (Dropout, nn.Identity),
        "conv2": _CONV,
        "shortcut": (nn.Identity, *_CONV),
    },
    Attention: {"norm": (GroupNorm,), "qkv": (Pointwise,), "out": (Pointwise,)},
    Down: {"conv": _CONV},
    Up: {"conv": _CONV},
    Shrink: {"conv": _CONV, "halve": (Halve,)},
}
_MEMBERS: _Kinds = (ResBlock, Attention, Down, Up)
# Without these parts the block itself is as good as unknown.
_WHOLE: Mapping[type[nn.Module], tuple[str, ...]] = {
    Attention: ("qkv", "out"),
    Down: ("conv",),
    Up: ("conv",),
}


def enclose(net: UNet) -> None:
    """Puts every part that is not as it was made into an `Opaque`, where it stands.

    Raises ValueError where it would need more than its image.
    """
    _enclose(net, "")


def opaque(net: nn.Module) -> list[Opaque]:
    """Those of a folded network, in its order."""
    return [module for _, module in own_modules(net) if isinstance(module, Opaque)]


def own_modules(net: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Every module by its name, but for those inside an `Opaque`."""
    yield name, net
    if not isinstance(net, Opaque):
        for child, module in net.named_children():
            yield from own_modules(module, _joined(name, child))


def _enclose(owner: nn.Module, at: str) -> None:
    for child, module in list(owner.named_children()):
        name = _joined(at, child)
        if why := _strange(owner, child, module):
            _check_place(owner, child, name, why)
            setattr(owner, child, Opaque(module, name, why, chained=isinstance(owner, Chain)))
        else:
            _enclose(module, name)


def _strange(owner: nn.Module, child: str, module: nn.Module) -> str:
    """What the module is, if that is not what belongs there."""
    kinds = _MEMBERS if type(owner) is Chain else _PLACES.get(type(owner), {}).get(child)
    if kinds is None:
        return ""
    if type(module) not in kinds:
        return f"is a {type(module).__name__}"
    if isinstance(module, nn.Conv2d):
        return _unusual(module)
    for inner in _WHOLE.get(type(module), ()):
        if why := _strange(module, inner, getattr(module, inner)):
            return f"is a {type(module).__name__} whose {inner} {why}"
    return ""


def _unusual(conv: nn.Conv2d) -> str:
    usual = (1, (1, 1), "zeros")
    if (found := (conv.groups, conv.dilation, conv.padding_mode)) != usual:
        return f"is a convolution with groups, dilation and padding {found}"
    return "is a convolution without a bias" if conv.bias is None else ""


def _check_place(owner: nn.Module, child: str, name: str, why: str) -> None:
    skips = isinstance(owner, ResBlock) and owner.sides[1] and child in ("norm1", "shortcut")
    if skips or re.fullmatch(r"decoder\.\d+\.0", name):
        raise ValueError(
            f"fold: {name} {why}; expected a part as it was made, because this one takes what the "
            "skip connection brings, too. Undo the change, or sample it without folding."
        )
    if name == "conv_in" and not isinstance(getattr(owner, child), nn.Conv2d):
        raise ValueError(
            f"fold: {name} {why}; expected a Conv2d, whose dtype is the network's. Undo the "
            "change, or sample it without folding."
        )


def _joined(name: str, child: str) -> str:
    return f"{name}.{child}" if name else child
