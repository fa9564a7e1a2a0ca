"""A sampler as arithmetic: which times the network sees, and what becomes of its output.

Each evaluation is the same fused update, with its own row of a table: x0 = clamp(p·x + q·raw), then
x ← a·x + b·x0 + keep·(x before the move) + fresh·noise. So a chain needs no decision on the way,
and one captured step, or one captured chain, serves all of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch

from kdgen import samplers
from kdgen.denoiser import Denoiser, Sampling
from kdgen.fold import reading
from kdgen.schedules import NoiseSchedule

Row = tuple[float, float, float, float]  # p, q, a, b


@dataclass(frozen=True)
class Evaluation:
    """One network call on size·x at time t, and the update that follows."""

    t: float
    size: float
    row: Row
    keep: float = 0.0
    fresh: float = 0.0  # times unit noise, of the move's own stream


Move = tuple[Evaluation, ...]


@dataclass(frozen=True)
class Chain:
    """x = start·z, then every move; after the last, x is the image. `clip` bounds every x0.

    All moves but the last are alike but for their numbers; the last is one evaluation.
    """

    start: float
    moves: tuple[Move, ...]
    clip: float | None = None

    @cached_property
    def evaluations(self) -> tuple[Evaluation, ...]:
        return tuple(e for move in self.moves for e in move)

    @property
    def times(self) -> tuple[float, ...]:
        """Those at which the network is evaluated, rising, each once."""
        return tuple(sorted({e.t for e in self.evaluations}))

    @property
    def noisy(self) -> bool:
        """Whether a move adds noise."""
        return any(e.fresh for e in self.evaluations)


def plan(denoiser: Denoiser, how: Sampling) -> Chain | None:
    """The chain that `samplers.sample` walks for `how`; None for "dpm" and "rk45", which are more
    than one update after another, and for outputs that are read as two images ("both")."""
    if denoiser.parts != 1 or how.sampler not in _PLANS:
        return None
    return _PLANS[how.sampler](denoiser, how)


def single(denoiser: Denoiser, times: Sequence[float]) -> Chain:
    """Moves of which each is the clean image predicted at one of these times."""
    moves = []
    for t in times:
        size, (p, slope), _ = reading(denoiser, t)
        moves.append((Evaluation(t, size, (p, slope, 0.0, 1.0)),))
    return Chain(1.0, tuple(moves))


def _ddim(denoiser: Denoiser, how: Sampling) -> Chain:
    q, moves = denoiser.schedule, []
    chain = q.moves(how.steps, how.grid)
    for t, s in chain:
        size, (p, slope), _ = reading(denoiser, t)
        a, b = q.coefficients(t, s)
        moves.append((Evaluation(t, size, (p, slope, a, b)),))
    return Chain(_start(q, chain[0][0]), tuple(moves), how.clip)


def _few_step(denoiser: Denoiser, how: Sampling) -> Chain:
    """x0, then noise again for the next time."""
    q, moves = denoiser.schedule, []
    levels = [q.levels(t) for t in how.times[1:]] + [(1.0, 0.0)]
    for t, (alpha, sigma) in zip(how.times, levels, strict=True):
        size, (p, slope), _ = reading(denoiser, t)
        moves.append((Evaluation(t, size, (p, slope, 0.0, alpha), fresh=sigma),))
    return Chain(q.levels(how.times[0])[1], tuple(moves), how.clip)


def _ancestral(denoiser: Denoiser, how: Sampling) -> Chain:
    """alpha·x0 + kept·eps + fresh·noise, with eps = (x_t − alpha_t·x0)/sigma_t."""
    q, moves = denoiser.schedule, []
    chain = q.moves(how.steps, how.grid)
    for t, s in chain:
        size, (p, slope), _ = reading(denoiser, t)
        a, b, fresh = (0.0, 1.0, 0.0) if (t, s) == chain[-1] else _renewed(q, t, s)
        moves.append((Evaluation(t, size, (p, slope, a, b), fresh=fresh),))
    return Chain(_start(q, chain[0][0]), tuple(moves), how.clip)


def _renewed(q: NoiseSchedule, t: float, s: float) -> tuple[float, float, float]:
    (alpha_t, sigma_t), (alpha, sigma) = q.levels(t), q.levels(s)
    fresh = samplers.posterior_deviation(q, t, s)
    kept = math.sqrt(max(0.0, sigma**2 - fresh**2))
    return kept / sigma_t, alpha - kept * alpha_t / sigma_t, fresh


def _heun(denoiser: Denoiser, how: Sampling) -> Chain:
    """In y = x_t/alpha, where the slope is (y − x0)/sigma with sigma the noise-to-signal ratio."""
    q = denoiser.schedule
    sigmas = samplers.heun_sigmas(q, how.steps, how.grid)
    times = [q.t_of_sigma(sigma) for sigma in sigmas[:-1]]
    scales = [q.levels(t)[0] for t in times]
    start = math.hypot(1.0, sigmas[0]) if q.variance_preserving else sigmas[0]
    return Chain(start, _trapezium(denoiser, times, sigmas, scales))


def _velocity_heun(denoiser: Denoiser, how: Sampling) -> Chain:
    """In y = x_t/(alpha + sigma), where the slope is (y − x0)/tau, tau = sigma/(alpha + sigma)."""
    q = denoiser.schedule
    times = [t for t, _ in q.moves(how.steps, how.grid)]
    scales = [sum(q.levels(t)) for t in times]
    taus = [q.levels(t)[1] / scale for t, scale in zip(times, scales, strict=True)]
    start = _start(q, times[0]) / scales[0]
    return Chain(start, _trapezium(denoiser, times, [*taus, 0.0], scales), how.clip)


def _trapezium(
    denoiser: Denoiser, times: Sequence[float], widths: Sequence[float], scales: Sequence[float]
) -> tuple[Move, ...]:
    """Heun's moves for dy/dw = (y − x0)/w over the falling `widths`, the last of them 0, with
    x_t = scale·y.

    Euler to e = y + (v − w)·(y − x0)/w; then the mean of both slopes, which is
    y/2 + e/2 + (v − w)/(2v)·(e − x0(e)). The last move ends at Euler, on x0 itself.
    """
    ends = list(zip(times, scales, strict=True))
    moves: list[Move] = []
    for k, (w, v) in enumerate(pairwise(widths)):
        euler = _scaled(denoiser, *ends[k], v / w, 1 - v / w)
        if v == 0:
            moves.append((euler,))
            continue
        back = (v - w) / (2 * v)
        moves.append((euler, _scaled(denoiser, *ends[k + 1], 0.5 + back, -back, keep=0.5)))
    return tuple(moves)


def _scaled(
    denoiser: Denoiser, t: float, scale: float, a: float, b: float, keep: float = 0.0
) -> Evaluation:
    """For a state y = x_t/scale."""
    size, (p, slope), _ = reading(denoiser, t)
    return Evaluation(t, size * scale, (p * scale, slope, a, b), keep)


def _start(q: NoiseSchedule, t: float) -> float:
    return q.start(torch.ones((), dtype=torch.float64), t).item()


_PLANS = {
    "ddim": _ddim,
    "few_step": _few_step,
    "ancestral": _ancestral,
    "heun": _heun,
    "velocity_heun": _velocity_heun,
}
