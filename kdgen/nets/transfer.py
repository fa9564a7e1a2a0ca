"""Weights of one U-Net for another, of another size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kdgen.nets.blocks import Attention, ResBlock
from kdgen.nets.config import UNetConfig
from kdgen.nets.embedding import Embedding, Parts

if TYPE_CHECKING:
    from kdgen.nets.unet import UNet

Place = tuple[str | int, ...]


@torch.no_grad()
def inherit(heir: UNet, source: UNet) -> None:
    """Gives `heir` the weights of `source` for all that both have.

    The same part is what does the same work: the k-th block of a level (so fewer blocks are the
    first ones of every level), its attention, the step between two levels. Tensors of another shape
    share their leading channels, counted separately in each part of a joint dimension: queries,
    keys and values; scale and shift; what comes from below and what comes from the encoder. The
    rest of `heir` stays as it is. Raises ValueError when `source` has been folded.
    """
    if source.folded:
        raise ValueError(
            "UNet.copy: the network was folded; expected a whole network. Copy it before folding."
        )
    known = dict(_places(source))
    for place, module in _places(heir):
        if place in known:
            _share(module, known[place])


def _places(net: UNet) -> Iterator[tuple[Place, nn.Module]]:
    """Every part of the network, by the work it does."""
    for name in ("embedding", "conv_in", "norm_out", "conv_out"):
        yield (name,), getattr(net, name)
    for name in ("middle", "heads"):
        for k, module in enumerate(getattr(net, name)):
            yield (name, k), module
    for level, shrink in enumerate(net.pyramid.values()):
        yield ("pyramid", level), shrink
    for place, chain in zip(_encoder_places(net.facts), net.encoder, strict=True):
        yield from _in_chain(place, chain)
    for place, chain in zip(_decoder_places(net.facts), net.decoder, strict=True):
        yield from _in_chain(place, chain, net.facts.decoder_attention == "last")


def _encoder_places(config: UNetConfig) -> Iterator[Place]:
    for level in range(len(config.mult)):
        if level:
            yield ("down", level, 0)
        for k in range(config.blocks):
            yield ("encoder", level, k)


def _decoder_places(config: UNetConfig) -> Iterator[Place]:
    for level in reversed(range(len(config.mult))):
        for k in range(config.blocks + 1):
            yield ("decoder", level, k)


def _in_chain(
    place: Place, chain: nn.Module, last: bool = False
) -> Iterator[tuple[Place, nn.Module]]:
    """A block, then perhaps attention and the step to the next level."""
    first, *rest = chain.children()
    yield place, first
    level = place[:2]  # it has one step to the next, and perhaps one attention
    for module in rest:
        if isinstance(module, Attention):
            yield ("attention", *(level if last else place)), module
        else:
            yield ("up", *level), module


def _share(new: nn.Module, old: nn.Module) -> None:
    """Copies the tensors of `old` as far as they fit."""
    if type(new) is not type(old):
        return
    # Persistent buffers too; the tensors of a state dict are the module's own.
    theirs = old.state_dict()
    for name, mine in new.state_dict().items():
        if name in theirs and mine.ndim == theirs[name].ndim:
            _share_parts(
                mine, theirs[name], _parts(new, name, mine), _parts(old, name, theirs[name])
            )


def _parts(module: nn.Module, name: str, tensor: Tensor) -> tuple[int, tuple[int, ...]]:
    """The dimension of a tensor that is made of several, and their sizes."""
    joint: Parts = module.parts() if isinstance(module, ResBlock | Attention | Embedding) else {}
    return joint.get(name, (0, (tensor.shape[0],)))


def _share_parts(
    new: Tensor,
    old: Tensor,
    new_parts: tuple[int, tuple[int, ...]],
    old_parts: tuple[int, tuple[int, ...]],
) -> None:
    (dim, sizes), (old_dim, old_sizes) = new_parts, old_parts
    if dim != old_dim or len(sizes) != len(old_sizes):
        return
    for mine, theirs in zip(new.split(sizes, dim), old.split(old_sizes, dim), strict=True):
        both = tuple(slice(min(pair)) for pair in zip(mine.shape, theirs.shape, strict=True))
        mine[both].copy_(theirs[both])
