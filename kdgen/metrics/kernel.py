"""Unbiased maximum mean discrepancy with a polynomial kernel (Gretton et al. 2012)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kdgen.metrics.pixels import check_same_n

# The kernel matrices are quadratic in n; beyond this, evenly spaced rows stand for the set.
ROWS = 2_000


@dataclass(frozen=True)
class Discrepancy:
    """MMD², its bootstrap standard deviation and its 95% bootstrap interval."""

    value: float
    spread: float
    interval: tuple[float, float]
    n: int


def mmd(x: Tensor, y: Tensor, draws: int = 200, seed: int = 0) -> Discrepancy:
    """Unbiased MMD² between feature sets x and y (n, d), kernel (xᵀy/d + 1)³. May be below zero."""
    check_same_n("MMD", x, y)
    kernels = _kernels(_thin(x), _thin(y))
    n = len(kernels[0])
    ones = torch.ones(1, n, dtype=torch.float64)
    value = float(_weighted(*kernels, ones, ones))
    if not draws:
        return Discrepancy(value, 0.0, (value, value), n)
    generator = torch.Generator().manual_seed(seed)
    boot = _weighted(*kernels, _counts(draws, n, generator), _counts(draws, n, generator))
    low, high = torch.quantile(boot, torch.tensor([0.025, 0.975], dtype=boot.dtype)).tolist()
    return Discrepancy(value, float(boot.std()), (low, high), n)


def _thin(x: Tensor) -> Tensor:
    if len(x) <= ROWS:
        return x.double()
    return x[torch.linspace(0, len(x) - 1, ROWS).long()].double()


def _kernels(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    d = x.shape[1]
    return _cubed(x @ x.T / d), _cubed(y @ y.T / d), _cubed(x @ y.T / d)


def _cubed(products: Tensor) -> Tensor:
    return products.add_(1).pow_(3)


def _counts(draws: int, n: int, generator: torch.Generator) -> Tensor:
    """How often each of n rows occurs in each of `draws` bootstrap resamples: (draws, n)."""
    picks = torch.randint(n, (draws, n), generator=generator)
    return torch.zeros(draws, n, dtype=torch.float64).scatter_add_(
        1, picks, torch.ones(draws, n, dtype=torch.float64)
    )


def _weighted(kxx: Tensor, kyy: Tensor, kxy: Tensor, w: Tensor, v: Tensor) -> Tensor:
    """MMD² of resamples given by row counts w, v (draws, n).

    A row never meets itself, not even as a repeated draw: that keeps the resampled estimate
    unbiased too.
    """
    cross = ((w @ kxy) * v).sum(1) / (w.sum(1) * v.sum(1))
    return _within(kxx, w) + _within(kyy, v) - 2 * cross


def _within(kernel: Tensor, w: Tensor) -> Tensor:
    squares = w.square()
    pairs = ((w @ kernel) * w).sum(1) - squares @ kernel.diagonal()
    return pairs / (w.sum(1).square() - squares.sum(1))
