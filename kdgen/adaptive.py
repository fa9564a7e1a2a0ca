"""A sampler that chooses its steps: the probability-flow ODE to a tolerance, every image at its own
pace."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from kdgen.denoiser import Predicts
from kdgen.errors import KdgenError, NonFiniteError
from kdgen.rows import NUMBERS, padded
from kdgen.schedules import expand

Slope = Callable[[Tensor, Tensor], Tensor]


def rk45(
    denoiser: Predicts,
    z: Tensor,
    label: Tensor | None = None,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    end: float = 1e-3,
    most: int = 1000,
) -> Tensor:
    """The velocity's ODE to a tolerance, by Dormand & Prince's pair of orders 5 and 4: the
    reference sampler of Liu et al. 2022, arXiv:2209.03003.

    It integrates dy/dtau = eps − x0 in flow coordinates, y = x_t/(alpha + sigma) over
    tau = sigma/(alpha + sigma), to tau = `end`, and lands from there on the predicted x0, which it
    already has. Every image has steps of its own, which the host chooses from the root mean square
    of that image's error: it does not depend on its batch, which is evaluated until the slowest
    image arrives. The number of evaluations is not known before; wrap the denoiser in
    `solvers.Counted` to learn it. The state is float64.

    Raises ValueError for impossible tolerances, NonFiniteError where the velocity is not finite,
    KdgenError where an image has not arrived after trying `most` steps.
    """
    if min(rtol, atol, end) <= 0 or end >= 1 or most < 1:
        raise ValueError(
            f"rk45: rtol is {rtol}, atol {atol}, end {end}, most {most}; expected them above 0, "
            "and end below 1. Correct them."
        )
    walk = _Walk(denoiser, z, label, (rtol, atol), end)
    for _ in range(most):
        live = (walk.tau > walk.end).nonzero().flatten()
        if not len(live):
            return walk.landed()[: len(z)].to(z.dtype)
        walk.advance(padded(live, NUMBERS))
    late = walk.tau[: len(z)] > walk.end
    raise KdgenError(
        f"rk45: {int(late.sum())} of {len(z)} images have not arrived after {most:,} steps, the "
        f"last is at tau = {walk.tau.max():.3g}; expected all at {walk.end:.3g}. Loosen rtol and "
        "atol, or check the denoiser: its velocity is not smooth."
    )


class _Walk:
    """Where every image is: y and its slope float64 on the device; tau and the next step's length
    float64 on the host. Rows are padded, the last image repeated."""

    def __init__(
        self,
        denoiser: Predicts,
        z: Tensor,
        label: Tensor | None,
        tolerance: tuple[float, float],
        end: float,
    ) -> None:
        self.denoiser, self.tolerance, self.dtype = denoiser, tolerance, z.dtype
        self.label = None if label is None else padded(label, NUMBERS)
        q = denoiser.schedule
        alpha, sigma = q.levels(0.0)  # Cosine keeps a trace of noise
        self.end = max(end, sigma / (alpha + sigma))
        alpha, sigma = q.levels(1.0)
        self.first = sigma / (alpha + sigma)
        self.y = padded(q.start(z.double(), 1.0) / (alpha + sigma), NUMBERS)
        self.tau = torch.full((len(self.y),), self.first, dtype=torch.float64)
        self.step = (self.tau - self.end) / 100
        self.slope = self.velocity(self.y, self.tau, self.label)

    def velocity(self, y: Tensor, tau: Tensor, label: Tensor | None) -> Tensor:
        """eps − x0 (n, …) at y (n, …) and tau (n,)."""
        q = self.denoiser.schedule
        t = torch.tensor([self._time(v) for v in tau.tolist()], dtype=torch.float64)
        alpha, sigma = q.alpha_sigma(t)
        x_t = expand((alpha + sigma).to(y.device), y) * y
        guess = self.denoiser(x_t.to(self.dtype), t.to(y.device), label)
        return guess.eps.double() - guess.x0.double()

    def _time(self, tau: float) -> float:
        if tau >= self.first:  # where sigma/alpha may be infinite
            return 1.0
        return self.denoiser.schedule.t_of_sigma(tau / (1 - tau))

    def advance(self, live: Tensor) -> None:
        """Try one step of the images `live` (n,), and take it where its error is small enough."""
        here = live.to(self.y.device)
        tau, y, label = self.tau[live], self.y[here], None
        if self.label is not None:
            label = self.label[here]
        to = tau - self.step[live]
        to = torch.where(to - self.end > 1e-9, to, self.end)
        after, slope, error = dormand_prince(
            lambda x, at: self.velocity(x, at, label), y, tau, to - tau, self.slope[here]
        )
        sizes = self._sizes(error, torch.maximum(y.abs(), after.abs()), tau)
        growth = [min(5.0, max(0.2, 0.9 * max(size, 1e-12) ** -0.2)) for size in sizes]
        self.step[live] = (tau - to) * torch.tensor(growth, dtype=torch.float64)
        fine = torch.tensor([size <= 1 for size in sizes])
        taken, rows = here[fine.to(here.device)], fine.to(y.device)
        self.y[taken], self.slope[taken] = after[rows], slope[rows]
        self.tau[live[fine]] = to[fine]

    def _sizes(self, error: Tensor, y: Tensor, tau: Tensor) -> list[float]:
        """Of every image's error, where 1 is the most that the tolerance allows."""
        rtol, atol = self.tolerance
        sizes = (error / (atol + rtol * y)).square().flatten(1).mean(1).sqrt().tolist()
        for size, at in zip(sizes, tau.tolist(), strict=True):
            if not math.isfinite(size):
                raise NonFiniteError(
                    f"rk45: the velocity at tau = {at:.3g} is not finite; expected numbers. Check "
                    "the denoiser's weights."
                )
        return sizes

    def landed(self) -> Tensor:
        """The images predicted where the walk has ended."""
        return self.y - expand(self.tau.to(self.y.device), self.y) * self.slope


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
    f: Slope, y: Tensor, t: Tensor, step: Tensor, first: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of dy/dt = f(y, t) for every row of y (n, …), t and step (n,); `first` is f(y, t):
    (y after it, f there, its error); six evaluations."""
    slopes, there, length = [first], y, expand(step.to(y.device), y)
    for node, row in zip(_NODES, _STAGES, strict=True):
        there = y + length * _sum(row, slopes)
        slopes.append(f(there, t + node * step))
    return there, slopes[-1], length * _sum(_ERROR, slopes)


def _sum(weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    terms = [w * k for w, k in zip(weights, slopes, strict=True) if w]
    return torch.stack(terms).sum(0)
