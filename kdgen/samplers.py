"""Samplers: plain functions from unit noise to images. Each evaluates the denoiser once per step
unless it says otherwise."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from kdgen import adaptive, kernels, noise, solvers
from kdgen.denoiser import Denoiser, Guided, Prediction, Predicts, Sampling
from kdgen.schedules import NoiseSchedule


def ddim(
    denoiser: Predicts,
    z: Tensor,
    steps: int,
    label: Tensor | None = None,
    *,
    grid: str = "uniform",
    clip: float | None = None,
    last: Callable[..., Tensor] = kernels.ddim_update,
) -> Tensor:
    """Deterministic DDIM (Song et al. 2020, arXiv:2010.02502): z (B, C, H, W) -> images like z.

    `clip` bounds every predicted x0 to ±clip; None follows the paper (no clipping inside the
    chain). `last` makes the last step: `kernels.ddim_update_uint8` gives uint8 (B, H, W, C)
    instead.
    """
    q = denoiser.schedule
    chain = q.moves(steps, grid)
    x = q.start(z, chain[0][0])
    for t, s in chain[:-1]:
        x = q.step(x, denoiser(x, t, label).x0, t, s, clip)
    t, s = chain[-1]
    return last(x, denoiser(x, t, label).x0, *q.coefficients(t, s), clip)


def ancestral(
    denoiser: Predicts,
    z: Tensor,
    steps: int,
    label: Tensor | None = None,
    *,
    grid: str = "uniform",
    clip: float | None = 1.0,
    eta: float = 1.0,
    seed: int = 0,
    index: Tensor | None = None,
) -> Tensor:
    """Stochastic DDIM with Song et al. 2020, eq. 16; eta = 1 is DDPM's ancestral sampler with the
    posterior variance, on any schedule.

    Noise is addressed by (seed, image index, step): `index` (B,) int64, default 0 … B − 1.
    """
    q = denoiser.schedule
    index = noise.addresses(0, len(z), z.device) if index is None else index
    chain = q.moves(steps, grid)
    x = q.start(z, chain[0][0])
    for k, (t, s) in enumerate(chain[:-1]):
        guess = _clipped(denoiser(x, t, label), clip)
        alpha, sigma = q.levels(s)
        fresh = eta * posterior_deviation(q, t, s)
        kept = math.sqrt(max(0.0, sigma**2 - fresh**2))
        n = noise.normal(seed, noise.Stream.CHURN + k, index, tuple(z.shape[1:])).to(x)
        x = alpha * guess.x0 + kept * guess.eps + fresh * n
    return _clipped(denoiser(x, chain[-1][0], label), clip).x0


def _clipped(guess: Prediction, clip: float | None) -> Prediction:
    return guess if clip is None else guess.clip(-clip, clip)


def posterior_deviation(q: NoiseSchedule, t: float, s: float) -> float:
    """Of x_s given x_t and x0. Ho et al. 2020, arXiv:2006.11239, eq. 7, for any alpha and sigma."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = q.levels(t), q.levels(s)
    added = sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2  # variance of the noise between s and t
    return sigma_s / sigma_t * math.sqrt(max(0.0, added))


def heun(
    denoiser: Predicts,
    z: Tensor,
    steps: int,
    label: Tensor | None = None,
    *,
    grid: str = "karras",
    churn: float = 0.0,
    churn_range: tuple[float, float] = (0.0, math.inf),
    churn_noise: float = 1.0,
    seed: int = 0,
    index: Tensor | None = None,
) -> Tensor:
    """Karras et al. 2022, arXiv:2206.00364, algorithm 2, in y = x_t/alpha and sigma/alpha;
    2·steps − 1 evaluations.

    `churn`, `churn_range`, `churn_noise` are the paper's S_churn, (S_tmin, S_tmax) and S_noise;
    churn never goes beyond the noise of t = 1, which the denoiser has not seen. The state is
    float64. A time with alpha = 0 has no sigma/alpha, so the grid must start below it.
    """
    q = denoiser.schedule
    sigmas = heun_sigmas(q, steps, grid)
    index = noise.addresses(0, len(z), z.device) if index is None else index
    y = z.double() * (math.hypot(1.0, sigmas[0]) if q.variance_preserving else sigmas[0])
    for k, (sigma, target) in enumerate(pairwise(sigmas)):
        churned = churn_range[0] <= sigma <= churn_range[1]
        gamma = min(churn / steps, math.sqrt(2) - 1) if churned else 0.0
        hat = max(sigma, min(sigma * (1 + gamma), _ratio(q, 1.0)))
        if hat > sigma:
            n = noise.normal(seed, noise.Stream.CHURN + k, index, tuple(z.shape[1:])).to(y)
            y = y + math.sqrt(hat**2 - sigma**2) * churn_noise * n
        slope = (y - _clean(denoiser, y, hat, label, z.dtype)) / hat
        euler = y + (target - hat) * slope
        if target > 0:
            second = (euler - _clean(denoiser, euler, target, label, z.dtype)) / target
            euler = y + (target - hat) * (slope + second) / 2
        y = euler
    return y.to(z.dtype)


def heun_sigmas(q: NoiseSchedule, steps: int, grid: str = "karras") -> list[float]:
    """sigma/alpha along `heun`'s chain, falling, the last 0. ValueError where the first is
    infinite."""
    times = [t for t, _ in q.moves(steps, grid)]
    if not math.isfinite(first := _ratio(q, times[0])):
        raise ValueError(
            f"heun: alpha is 0 at the first time {times[0]} of {q.name}; expected a finite "
            "sigma/alpha. Use ddim."
        )
    return [first, *(_ratio(q, t) for t in times[1:]), 0.0]


def few_step(
    denoiser: Predicts,
    z: Tensor,
    times: Sequence[float],
    label: Tensor | None = None,
    *,
    clip: float | None = None,
    seed: int = 0,
    index: Tensor | None = None,
) -> Tensor:
    """x0 at times[0], then, for every further time, noise again and denoise; one evaluation each.
    Song et al. 2023, arXiv:2303.01469, algorithm 1.

    The new noise is addressed by (seed, image index, step), as in `ancestral`. Raises ValueError
    unless times fall within (0, 1].
    """
    if not times or sorted(set(times), reverse=True) != list(times) or not 0 < times[-1] <= 1:
        raise ValueError(
            f"few_step: times are {tuple(times)}; expected at least one, falling, in (0, 1]. "
            "Correct them."
        )
    q = denoiser.schedule
    index = noise.addresses(0, len(z), z.device) if index is None else index
    x = q.levels(times[0])[1] * z
    for k, t in enumerate(times):
        x0 = _clipped(denoiser(x, t, label), clip).x0
        if k + 1 < len(times):
            alpha, sigma = q.levels(times[k + 1])
            n = noise.normal(seed, noise.Stream.CHURN + k, index, tuple(z.shape[1:])).to(x)
            x = alpha * x0 + sigma * n
    return x0


def _ratio(q: NoiseSchedule, t: float) -> float:
    """sigma/alpha; 0 at t = 0, also where a schedule keeps a trace of noise there."""
    if t == 0.0:
        return 0.0
    alpha, sigma = q.levels(t)
    return sigma / alpha if alpha > 0 else math.inf


def _clean(
    denoiser: Predicts, y: Tensor, sigma: float, label: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """x0 predicted from y = x_t/alpha at noise-to-signal ratio sigma."""
    q = denoiser.schedule
    t = q.t_of_sigma(sigma)
    alpha = q.levels(t)[0]
    return denoiser((alpha * y).to(dtype), t, label).x0.double()


SAMPLERS: dict[str, Callable[..., Tensor]] = {
    "ddim": ddim,
    "ancestral": ancestral,
    "heun": heun,
    "few_step": few_step,
    "velocity_heun": solvers.velocity_heun,
    "dpm": solvers.dpm,
    "rk45": adaptive.rk45,
}
_TWICE = ("heun", "velocity_heun")  # evaluate twice a step, but once in the last


def check_deterministic(how: Sampling, where: str) -> None:
    """ValueError when `how` draws noise of its own: its images are no function of z."""
    if how.sampler == "ancestral" or (how.sampler == "few_step" and len(how.times) > 1):
        raise ValueError(
            f"{where}: the teacher samples with {how.sampler!r}, which adds noise the student does "
            "not see; expected a deterministic sampler. Use 'ddim' or 'heun'."
        )


def sampled_times(schedule: NoiseSchedule, how: Sampling) -> tuple[float, ...] | None:
    """The times at which `how` evaluates the denoiser, falling; None where they are not known
    beforehand."""
    if how.sampler == "few_step":
        return how.times
    if how.sampler in ("ddim", "ancestral", "dpm"):
        return tuple(t for t, _ in schedule.moves(how.steps, how.grid))
    return None


def evaluations(schedule: NoiseSchedule, how: Sampling) -> int:
    """NFE per image; guidance doubles it. ValueError for "rk45", which decides as it goes."""
    if how.sampler == "rk45":
        raise ValueError(
            "evaluations: 'rk45' chooses its steps as it goes; expected a sampler of fixed cost. "
            "Count calls instead."
        )
    if how.sampler == "few_step":
        once = len(how.times)
    else:
        steps = len(schedule.moves(how.steps, how.grid))
        once = 2 * steps - 1 if how.sampler in _TWICE else steps
    return once * (2 if how.guidance != 1.0 else 1)


def sample(
    denoiser: Denoiser,
    z: Tensor,
    label: Tensor | None = None,
    how: Sampling | None = None,
    *,
    seed: int = 0,
    index: Tensor | None = None,
) -> Tensor:
    """Images (B, C, H, W), nominally in [-1, 1], the way `how` (default: the denoiser's own
    `sampling`) says.

    `seed` and `index` address the extra noise of stochastic samplers.
    """
    how = how or denoiser.sampling
    guided = denoiser if how.guidance == 1.0 else Guided(denoiser, how.guidance)
    fresh: dict[str, Any] = {"seed": seed, "index": index}
    if how.sampler == "ddim":
        return ddim(guided, z, how.steps, label, grid=how.grid, clip=how.clip)
    if how.sampler == "ancestral":
        return ancestral(guided, z, how.steps, label, grid=how.grid, clip=how.clip, **fresh)
    if how.sampler == "heun":
        return heun(guided, z, how.steps, label, grid=how.grid, **fresh)
    if how.sampler == "few_step":
        return few_step(guided, z, how.times, label, clip=how.clip, **fresh)
    if how.sampler == "velocity_heun":
        return solvers.velocity_heun(guided, z, how.steps, label, grid=how.grid, clip=how.clip)
    if how.sampler == "dpm":
        return solvers.dpm(guided, z, how.steps, label, grid=how.grid, clip=how.clip)
    if how.sampler == "rk45":
        return adaptive.rk45(guided, z, label)
    raise ValueError(
        f"sample: unknown sampler {how.sampler!r}; expected {', '.join(SAMPLERS)}. Pick one."
    )
