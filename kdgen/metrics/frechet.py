"""Fréchet distance between Gaussians fitted to two sets of features, and principal components.

The value depends on n (its bias falls as 1/n) and on the features, so only equal n and equal
extractors compare. It is FID only on the features of one particular Inception network, which these
are not; hence the name FD.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kdgen.errors import MetricError
from kdgen.metrics.pixels import check_same_n


@dataclass(frozen=True)
class Moments:
    """Mean and unbiased covariance of n rows, float64. Moments of shards merge exactly."""

    n: int
    mean: Tensor  # (d,)
    covariance: Tensor  # (d, d)

    def merge(self, other: Moments) -> Moments:
        """Moments of both sets together (Chan, Golub, LeVeque 1979)."""
        n = self.n + other.n
        shift = other.mean - self.mean
        scatter = (self.n - 1) * self.covariance + (other.n - 1) * other.covariance
        scatter += torch.outer(shift, shift) * (self.n * other.n / n)
        return Moments(n, self.mean + shift * (other.n / n), scatter / (n - 1))


def moments(x: Tensor) -> Moments:
    """Moments of the rows of x (n, d)."""
    x = x.double()
    mean = x.mean(0)
    centred = x - mean
    return Moments(len(x), mean, centred.T @ centred / (len(x) - 1))


def frechet(a: Moments, b: Moments) -> float:
    """|μa − μb|² + tr(Σa + Σb − 2 (Σa^½ Σb Σa^½)^½), in closed form; ≥ 0, singular Σ allowed.

    tr (Σa^½ Σb Σa^½)^½ is the sum of the singular values of Σa^½ Σb^½. Taken that way no small
    eigenvalue is squared and then rooted again, which would cost half of the digits.
    """
    cross = torch.linalg.svdvals(_root(a.covariance) @ _root(b.covariance)).sum()
    spread = a.covariance.trace() + b.covariance.trace() - 2 * cross
    return max(0.0, float((a.mean - b.mean).square().sum() + spread))


def frechet_distance(x: Tensor, y: Tensor, where: str = "FD") -> float:
    """Fréchet distance between feature sets x (n, d) and y (n, d); refused unless n > d."""
    check_same_n(where, x, y)
    check_enough(where, len(x), x.shape[1])
    return frechet(moments(x), moments(y))


def check_enough(where: str, n: int, dimension: int) -> None:
    """Raise MetricError when n rows cannot fill a covariance of this dimension."""
    if n <= dimension:
        raise MetricError(
            f"{where}: n={n} images for {dimension} features; expected n > {dimension}, or the "
            "covariance is singular. Draw more images, use MMD, or fewer features."
        )


@dataclass(frozen=True)
class PCA:
    """Principal components of a set of rows: `pca(x)` is (n, components)."""

    mean: Tensor  # (D,)
    basis: Tensor  # (D, components)

    def __call__(self, x: Tensor) -> Tensor:
        return (x.double() - self.mean) @ self.basis

    @property
    def components(self) -> int:
        return self.basis.shape[1]


def pca(x: Tensor, components: int = 64) -> PCA:
    """The first `components` of x (n, D), clamped to D. Signs are arbitrary; distances are not."""
    fitted = moments(x)
    _, vectors = torch.linalg.eigh(fitted.covariance)
    return PCA(fitted.mean, vectors.flip(1)[:, :components].contiguous())


def _root(covariance: Tensor) -> Tensor:
    """Symmetric square root; rounding below zero is cut off."""
    values, vectors = torch.linalg.eigh(covariance)
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return root
