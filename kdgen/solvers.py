"""Higher-order samplers, as plain as those of `kdgen.samplers`: fewer evaluations.

`velocity_heun` integrates the velocity in flow coordinates, y = x_t/(alpha + sigma) over
tau = sigma/(alpha + sigma): there the probability-flow ODE of every schedule is the rectified
flow's, dy/dtau = eps − x0, which is finite everywhere, also where alpha is 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from kdgen.denoiser import Prediction, Predicts
from kdgen.schedules import NoiseSchedule


def velocity_heun(
    denoiser: Predicts,
    z: Tensor,
    steps: int,
    label: Tensor | None = None,
    *,
    grid: str = "uniform",
    clip: float | None = None,
) -> Tensor:
    """Heun on the velocity, z (B, C, H, W) -> images like z; 2·steps − 1 evaluations, since the
    last step lands on the predicted x0 as Euler does.

    Eight steps are the 15 evaluations of Shao et al. 2023, arXiv:2305.10769. Unlike
    `samplers.heun` it may start where alpha is 0. `clip` bounds every predicted x0 to ±clip. The
    state is float64.
    """
    flow = _Flow(denoiser, label, z.dtype, clip)
    times = [t for t, _ in denoiser.schedule.moves(steps, grid)]
    y = flow.start(z, times[0])
    for t, s in pairwise(times):
        step = flow.tau(s) - flow.tau(t)
        first = flow.velocity(y, t)
        second = flow.velocity(y + step * first, s)
        y = y + step * (first + second) / 2
    return flow.guess(y, times[-1]).x0.to(z.dtype)


def dpm(
    denoiser: Predicts,
    z: Tensor,
    steps: int,
    label: Tensor | None = None,
    *,
    grid: str = "uniform",
    clip: float | None = None,
) -> Tensor:
    """DPM-Solver++(2M): Lu et al. 2022, arXiv:2211.01095, algorithm 2; one evaluation a step.

    Each step is DDIM's, along an x0 extrapolated in ln(alpha/sigma) from the last two predictions.
    The first step, the last, and the one after a time with alpha = 0 (infinitely far away) are of
    first order. `clip` bounds every predicted x0 to ±clip, before extrapolation.
    """
    q = denoiser.schedule
    chain = q.moves(steps, grid)
    x, before, old = q.start(z, chain[0][0]), math.inf, None
    for t, s in chain:
        x0 = _clipped(denoiser(x, t, label), clip).x0
        length = _log_ratio(q, s) - _log_ratio(q, t) if s > 0 else 0.0
        ahead = x0 if old is None else torch.lerp(old, x0, 1 + length / (2 * before))
        x = q.step(x, ahead, t, s)
        before, old = length, x0
    return x


def prediction_along(
    denoiser: Predicts,
    z: Tensor,
    steps: int,
    index: int,
    label: Tensor | None = None,
    *,
    grid: str = "uniform",
    clip: float | None = None,
) -> Tensor:
    """The clean image that DDIM's chain of `steps` predicts at its evaluation `index`: 0 is the
    first, at the noise end, and the last one is the chain's image. index + 1 evaluations."""
    q = denoiser.schedule
    chain = q.moves(steps, grid)
    if not 0 <= index < len(chain):
        raise ValueError(
            f"prediction_along: index is {index}; expected 0 … {len(chain) - 1} on a chain of "
            f"{len(chain)} steps. Choose one of its evaluations."
        )
    x = q.start(z, chain[0][0])
    for t, s in chain[:index]:
        x = q.step(x, denoiser(x, t, label).x0, t, s, clip)
    return _clipped(denoiser(x, chain[index][0], label), clip).x0


class Counted:
    """A denoiser that counts its evaluations."""

    def __init__(self, denoiser: Predicts) -> None:
        self.denoiser, self.schedule, self.evaluations = denoiser, denoiser.schedule, 0

    def __call__(self, x_t: Tensor, t: Tensor | float, label: Tensor | None = None) -> Prediction:
        self.evaluations += 1
        return self.denoiser(x_t, t, label)


@dataclass(frozen=True)
class _Flow:
    """A denoiser seen from flow coordinates: y float64, tau and t floats."""

    denoiser: Predicts
    label: Tensor | None
    dtype: torch.dtype  # what the denoiser is fed
    clip: float | None

    def tau(self, t: float) -> float:
        if t == 0.0:  # also where a schedule keeps a trace of noise there
            return 0.0
        alpha, sigma = self.denoiser.schedule.levels(t)
        return sigma / (alpha + sigma)

    def start(self, z: Tensor, t: float) -> Tensor:
        q = self.denoiser.schedule
        return q.start(z.double(), t) / sum(q.levels(t))

    def guess(self, y: Tensor, t: float) -> Prediction:
        size = sum(self.denoiser.schedule.levels(t))
        return _clipped(self.denoiser((size * y).to(self.dtype), t, self.label), self.clip)

    def velocity(self, y: Tensor, t: float) -> Tensor:
        guess = self.guess(y, t)
        return guess.eps.double() - guess.x0.double()


def _clipped(guess: Prediction, clip: float | None) -> Prediction:
    return guess if clip is None else guess.clip(-clip, clip)


def _log_ratio(q: NoiseSchedule, t: float) -> float:
    """ln(alpha/sigma)."""
    alpha, sigma = q.levels(t)
    return math.log(alpha / sigma) if alpha > 0 else -math.inf
