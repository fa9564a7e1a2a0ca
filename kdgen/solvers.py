"""Higher-order samplers, as plain as those of `kdgen.samplers`: fewer evaluations, or an error that
is known.

Two of them integrate the velocity in flow coordinates, y = x_t/(alpha + sigma) over
tau = sigma/(alpha + sigma): there the probability-flow ODE of every schedule is the rectified
flow's, dy/dtau = eps − x0, which is finite everywhere, also where alpha is 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from kdgen.denoiser import Prediction, Predicts
from kdgen.errors import NonFiniteError
from kdgen.schedules import NoiseSchedule

Slope = Callable[[Tensor, float], Tensor]


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


def rk45(
    denoiser: Predicts,
    z: Tensor,
    label: Tensor | None = None,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    end: float = 1e-3,
) -> Tensor:
    """The velocity's ODE to a tolerance, by Dormand & Prince's pair of orders 5 and 4: the
    reference sampler of Liu et al. 2022, arXiv:2209.03003.

    It goes to tau = `end` and lands from there on the predicted x0, which it already has. The
    host chooses every step after reading the error, a root mean square over the whole batch: so an
    image depends, within the tolerance, on the batch it came in. The number of evaluations is not
    known before; wrap the denoiser in `Counted` to learn it. The state is float64. Raises
    ValueError for impossible tolerances, NonFiniteError where the velocity is not finite.
    """
    if min(rtol, atol, end) <= 0 or end >= 1:
        raise ValueError(
            f"rk45: rtol is {rtol}, atol {atol}, end {end}; expected them above 0, and end below "
            "1. Correct them."
        )
    flow = _Flow(denoiser, label, z.dtype, None)
    least = denoiser.schedule.levels(0.0)  # Cosine keeps a trace of noise
    end = max(end, least[1] / sum(least))
    y, tau = flow.start(z, 1.0), flow.tau(1.0)
    slope = flow.velocity_at(y, tau)
    step = (tau - end) / 100
    while tau > end:
        to = max(end, tau - step) if tau - step - end > 1e-9 else end
        there, last, error = dormand_prince(flow.velocity_at, y, tau, to - tau, slope)
        scale = atol + rtol * torch.maximum(y.abs(), there.abs())
        size = (error / scale).square().mean().sqrt().item()
        if not math.isfinite(size):
            raise NonFiniteError(
                f"rk45: the velocity at tau = {tau:.3g} is not finite; expected numbers. Check the "
                "denoiser's weights."
            )
        step = (tau - to) * min(5.0, max(0.2, 0.9 * max(size, 1e-12) ** -0.2))
        if size <= 1:
            y, tau, slope = there, to, last
    return (y - tau * slope).to(z.dtype)


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

    def velocity_at(self, y: Tensor, tau: float) -> Tensor:
        last = tau >= self.tau(1.0)  # where sigma/alpha may be infinite
        t = 1.0 if last else self.denoiser.schedule.t_of_sigma(tau / (1 - tau))
        return self.velocity(y, t)


# Dormand & Prince 1980: nodes, one row of weights a stage; the last row is the step of
# order 5 itself, so that its slope opens the next step. _ERROR: that row less the one of order 4.
_NODES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


def dormand_prince(
    f: Slope, y: Tensor, t: float, step: float, first: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of dy/dt = f(y, t), `first` being f(y, t): (y after it, f there, its error); six
    evaluations."""
    slopes, there = [first], y
    for node, row in zip(_NODES, _STAGES, strict=True):
        there = y + step * _sum(row, slopes)
        slopes.append(f(there, t + step if node == 1 else t + node * step))
    return there, slopes[-1], step * _sum(_ERROR, slopes)


def _sum(weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    terms = [w * k for w, k in zip(weights, slopes, strict=True) if w]
    return torch.stack(terms).sum(0)


def _clipped(guess: Prediction, clip: float | None) -> Prediction:
    return guess if clip is None else guess.clip(-clip, clip)


def _log_ratio(q: NoiseSchedule, t: float) -> float:
    """ln(alpha/sigma)."""
    alpha, sigma = q.levels(t)
    return math.log(alpha / sigma) if alpha > 0 else -math.inf
