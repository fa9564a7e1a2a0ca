"""Exact denoisers: the posterior mean of data whose distribution is known, as teachers for tests.

With x_t = a·x0 + s·eps and x0 from a mixture of N(mu_k, c²), V = a²c² + s² is the variance of x_t
inside a component, r_k ∝ w_k·N(x_t; a·mu_k, V) the probability that component k made x_t, and with
mu = Σ r_k·mu_k

    E[x0 | x_t] = mu + (a·c²/V)·(x_t − a·mu)        E[eps | x_t] = (s/V)·(x_t − a·mu).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdgen.denoiser import Levels, Prediction, Sampling, times
from kdgen.schedules import NoiseSchedule


class Mixture(nn.Module):
    """The denoiser of K Gaussians N(means[k], std²) with equal weights.

    means (K, C, H, W); classes (K,) int64 makes it conditional: a label keeps its components only,
    -1 (or None) keeps all. It stands wherever a Denoiser is called and not trained.
    """

    means: Tensor
    members: Tensor

    def __init__(
        self,
        schedule: NoiseSchedule,
        means: Tensor,
        std: float,
        classes: Tensor | None = None,
        sampling: Sampling | None = None,
    ) -> None:
        super().__init__()
        self.schedule, self.std, self.sampling = schedule, std, sampling or Sampling()
        self.shape = tuple(means.shape[1:])
        self.classes = 0 if classes is None else int(classes.max()) + 1
        self.register_buffer("means", means)
        # Row l: which components class l has; the last row: all of them.
        rows = [] if classes is None else [classes == k for k in range(self.classes)]
        everything = torch.ones(len(means), dtype=torch.bool)
        self.register_buffer("members", torch.stack([*rows, everything]))

    def forward(self, x_t: Tensor, t: Tensor | float, label: Tensor | None = None) -> Prediction:
        q = Levels(self.schedule, times(t, x_t), x_t)
        variance = (q.alpha * self.std).square() + q.sigma.square()
        mu = self._mean(x_t, q, variance, label)
        rest = (x_t - q.alpha * mu) / variance
        return Prediction(x_t, mu + q.alpha * self.std**2 * rest, q, eps=q.sigma * rest)

    def _mean(self, x_t: Tensor, q: Levels, variance: Tensor, label: Tensor | None) -> Tensor:
        """mu: the component means, weighted by how likely each one made x_t."""
        means = self.means.to(q.alpha.dtype)
        distance = (x_t[:, None] - q.alpha[:, None] * means).flatten(2).square().sum(2)  # (B, K)
        odds = (-distance / (2 * variance.flatten(1))).masked_fill(~self._kept(label), -torch.inf)
        return (odds.softmax(1) @ means.flatten(1)).view(x_t.shape)

    def _kept(self, label: Tensor | None) -> Tensor:
        """(B or 1, K): which components are possible."""
        if label is None or not self.classes:
            return self.members[-1:]
        return self.members[torch.where(label < 0, self.classes, label)]


def gaussian(
    schedule: NoiseSchedule,
    shape: tuple[int, int, int],
    mean: float = 0.3,
    std: float = 0.5,
    sampling: Sampling | None = None,
) -> Mixture:
    """Of data N(mean, std²) in every coordinate: affine in x_t, and so is every sampler on it."""
    return Mixture(schedule, torch.full((1, *shape), mean), std, sampling=sampling)


def dataset(
    schedule: NoiseSchedule,
    images: Tensor,
    labels: Tensor | None = None,
    sampling: Sampling | None = None,
) -> Mixture:
    """Of a finite set of images (K, C, H, W): what a network that had learned them by heart would
    say."""
    return Mixture(schedule, images, 0.0, labels, sampling)


class Affine(nn.Module):
    """gain·x + offset, both learnable: all the network that a student of Gaussian data needs."""

    classes = 0

    def __init__(self, shape: tuple[int, int, int], gain: float = 1.0, offset: float = 0.0) -> None:
        super().__init__()
        self.shape = shape
        self.gain = nn.Parameter(torch.tensor(gain))
        self.offset = nn.Parameter(torch.tensor(offset))

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        return self.gain * x + self.offset
