"""Which real images stand in for generated ones when a floor is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Index = Tensor  # int64 (m,)
Pair = tuple[Index, Index]
PAIRS = 4


@dataclass(frozen=True)
class RealSets:
    """Row numbers of the real images, for n generated ones.

    match: the n real images that the generated ones are compared with.
    pairs: pairs of real sets of n, for the floor at equal n; `how` says how they were made.
    halves: two disjoint real sets of at most n, half of the data each.
    """

    match: Index
    pairs: tuple[Pair, ...]
    halves: Pair
    how: str


def real_sets(total: int, n: int, labels: Tensor | None, seed: int) -> RealSets:
    """Sets for n generated images against `total` real ones, drawn within classes if `labels`.

    With 2n real images at hand the floor is measured between disjoint sets of n. With fewer it is
    measured between two independent resamples of n, drawn with replacement: as two fresh samples of
    n from the data's distribution, which is then taken to be the data set itself. Both resamples
    have the sampling noise of n images, so this is a floor at equal n, where two disjoint halves
    are one at n/2 (about twice as high for distances whose bias falls as 1/n).
    """
    generator = torch.Generator().manual_seed(seed)
    groups = _groups(total, labels)
    limits = [len(group) // 2 for group in groups]
    shares = _shares([len(group) for group in groups], n)
    match = torch.arange(total) if n == total else _disjoint(groups, shares, generator)[0]
    if all(share <= limit for share, limit in zip(shares, limits, strict=True)):
        pairs = tuple(_disjoint(groups, shares, generator) for _ in range(PAIRS))
        return RealSets(match, pairs, pairs[0], "real against real, two disjoint sets of n")
    drawn = tuple(
        (_resample(groups, shares, generator), _resample(groups, shares, generator))
        for _ in range(PAIRS)
    )
    halves = _disjoint(groups, limits, generator)
    return RealSets(match, drawn, halves, "real against real, two resamples of n")


def _groups(total: int, labels: Tensor | None) -> list[Index]:
    if labels is None:
        return [torch.arange(total)]
    return [(labels.cpu() == label).nonzero()[:, 0] for label in torch.unique(labels.cpu())]


def _shares(sizes: Sequence[int], m: int) -> list[int]:
    """Split m over groups in proportion to their sizes (largest remainders)."""
    total = sum(sizes)
    shares = [size * m // total for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda i: -(sizes[i] * m % total))
    for i in by_remainder[: m - sum(shares)]:
        shares[i] += 1
    return shares


def _disjoint(groups: Sequence[Index], sizes: Sequence[int], generator: torch.Generator) -> Pair:
    """Two sets without a common row, with `sizes` rows of each group; the second may fall short."""
    rows = [group[torch.randperm(len(group), generator=generator)] for group in groups]
    first = [r[:size] for r, size in zip(rows, sizes, strict=True)]
    second = [r[size : 2 * size] for r, size in zip(rows, sizes, strict=True)]
    return torch.cat(first), torch.cat(second)


def _resample(groups: Sequence[Index], sizes: Sequence[int], generator: torch.Generator) -> Index:
    """`sizes` rows of each group, with replacement."""
    return torch.cat(
        [
            group[torch.randint(len(group), (size,), generator=generator)]
            for group, size in zip(groups, sizes, strict=True)
        ]
    )
