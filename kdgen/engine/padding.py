"""Channels in multiples of what the engine's vectors hold: zeros beside them change no number."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

LANES = 16


def padded(channels: int) -> int:
    """The next multiple of LANES."""
    return channels + -channels % LANES


def spread(tensor: Tensor, dim: int, parts: Sequence[int]) -> Tensor:
    """`tensor`, which consists of `parts` along `dim`, with zeros behind each of them."""
    if all(part % LANES == 0 for part in parts):
        return tensor
    return torch.cat([_filled(piece, dim) for piece in tensor.split(list(parts), dim)], dim)


def _filled(piece: Tensor, dim: int) -> Tensor:
    shape = list(piece.shape)
    shape[dim] = -shape[dim] % LANES
    return torch.cat([piece, piece.new_zeros(shape)], dim)
