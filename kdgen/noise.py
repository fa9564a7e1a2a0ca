"""Every draw has an address: noise as a function of (seed, stream, index), the same on every device
and batch size."""

from __future__ import annotations

import math
from enum import IntEnum

import torch
from torch import Tensor

from kdgen import kernels


class Stream(IntEnum):
    """What a draw is for; draws of different streams are independent."""

    SAMPLE = 0  # the generator's input, indexed by image
    LABEL = 1  # classes of samples
    TRAIN_EPS = 2  # indexed by the training image's position in the run: step · batch + place
    TRAIN_Z = 3
    TRAIN_U = 4
    FLIP = 5
    PAIR_Z = 6  # teacher pairs, indexed by pair
    PAIR_LABEL = 7
    PAIR_STEP = 8
    CHURN = 1 << 16  # + step: noise added while sampling


def normal(seed: int, stream: int, index: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(n, *shape) standard normals for the addresses index (n,) int64: float32, where index is."""
    return kernels.philox_normal(seed, int(stream), index, math.prod(shape)).view(
        len(index), *shape
    )


def uniform(seed: int, stream: int, index: Tensor, size: int) -> Tensor:
    """(n, size) uniforms in (0, 1)."""
    return kernels.philox_uniform(seed, int(stream), index, size)


def classes(seed: int, stream: int, index: Tensor, count: int) -> Tensor:
    """(n,) int64 classes, uniform over 0 … count − 1."""
    u = uniform(seed, stream, index, 1)[:, 0]
    return (u * count).long().clamp(max=count - 1)


def addresses(first: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """(count,) int64: first, first + 1, …"""
    return torch.arange(first, first + count, dtype=torch.int64, device=device)
