"""The order in which training sees the images: a function of (seed, position), and nothing else."""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def order(n: int, seed: int, epoch: int) -> Tensor:
    """The permutation of 0 … n − 1 in which an epoch visits n images: int64 (n,)."""
    if n < 1 or epoch < 0:
        raise ValueError(f"order: n is {n}, epoch is {epoch}; expected n ≥ 1 and epoch ≥ 0.")
    return torch.from_numpy(_permutation(n, seed, f"epoch {epoch}").copy())


def indices(n: int, seed: int, first: int, count: int) -> Tensor:
    """The images at positions first … first + count − 1 of the endless shuffled stream.

    int64 (count,). Position p is entry p mod n of epoch p div n: batch size and restarts change
    nothing.
    """
    if n < 1 or first < 0 or count < 0:
        raise ValueError(
            f"indices: n is {n}, first is {first}, count is {count}; "
            "expected n ≥ 1, first ≥ 0 and count ≥ 0."
        )
    parts: list[NDArray[np.int64]] = []
    position, end = first, first + count
    while position < end:
        epoch, start = divmod(position, n)
        part = _permutation(n, seed, f"epoch {epoch}")[start : start + end - position]
        parts.append(part)
        position += len(part)
    return torch.from_numpy(np.concatenate(parts) if parts else np.empty(0, np.int64))


def halves(n: int, seed: int, fraction: float) -> tuple[Tensor, Tensor]:
    """0 … n − 1 in two random disjoint parts, each rising; the first has round(fraction · n)."""
    size = round(fraction * n)
    if not 0 < size < n:
        raise ValueError(
            f"split: fraction is {fraction} of {n} images; expected two parts that are not empty."
        )
    shuffled = _permutation(n, seed, "split")
    return torch.from_numpy(np.sort(shuffled[:size])), torch.from_numpy(np.sort(shuffled[size:]))


@lru_cache(maxsize=2)  # a batch touches at most two epochs, unless it is larger than the data
def _permutation(n: int, seed: int, purpose: str) -> NDArray[np.int64]:
    """Sorting raw Philox words: unlike Generator.permutation, fixed across numpy versions."""
    key = hashlib.sha256(f"kdgen order, seed {seed}, {purpose}".encode()).digest()[:16]
    words = np.random.Philox(key=np.frombuffer(key, "<u8")).random_raw(n)
    permutation = np.argsort(words, kind="stable").astype(np.int64)
    permutation.setflags(write=False)
    return permutation
