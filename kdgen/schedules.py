"""Noise schedules: how much signal and noise an image holds at time t, and the one step between
two times.

Every schedule is `x_t = alpha(t)·x0 + sigma(t)·eps` with t in [0, 1] and the data at t = 0. Times
are `(B,)` tensors inside a loss, or floats (float64 on the host) where a sampler plans its grid.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, ClassVar, overload

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from kdgen import kernels

Times = np.ndarray[Any, np.dtype[np.float64]]


def expand(c: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, …, 1), so that one number per image multiplies a whole image."""
    return c.reshape(-1, *[1] * (like.dim() - 1))


@dataclass(frozen=True)
class NoiseSchedule:
    """Base of all schedules; a subclass gives alpha, sigma, their slopes and its grids."""

    name: ClassVar[str]
    grids: ClassVar[tuple[str, ...]] = ("uniform",)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise level at times t in [0, 1]; same shape and dtype as t."""
        raise NotImplementedError

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """d alpha/dt and d sigma/dt at t (B,): what turns (x0, eps) into a velocity."""
        raise NotImplementedError

    def t_of_sigma(self, ratio: float) -> float:
        """The time at which sigma/alpha equals `ratio` (for EDM: the time of that sigma)."""
        raise NotImplementedError

    def levels(self, t: float) -> tuple[float, float]:
        """`alpha_sigma` on the host, in float64."""
        return _levels(self, t)

    def noise(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_t = alpha·x0 + sigma·eps."""
        alpha, sigma = self.alpha_sigma(t)
        return expand(alpha, x0) * x0 + expand(sigma, x0) * eps

    @overload
    def coefficients(self, t: float, s: float) -> tuple[float, float]: ...
    @overload
    def coefficients(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]: ...
    def coefficients(self, t: Any, s: Any) -> tuple[Any, Any]:
        """(a, b) of the deterministic step x_s = a·x_t + b·x0 from time t > 0 to time s.

        It is DDIM (Song et al. 2020, arXiv:2010.02502, eq. 12 with eta = 0), Euler on the EDM ODE
        and Euler on a rectified flow. Computed in float64, since b is a small difference when s is
        near t; a step to exactly s = 0 lands on x0, also where sigma(0) is not quite 0.
        """
        if not isinstance(t, Tensor):
            return self._host_coefficients(t, s)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = map(self.alpha_sigma, (t.double(), s.double()))
        a = torch.where(s == 0, 0, sigma_s / sigma_t)
        b = torch.where(s == 0, 1, alpha_s - a * alpha_t)
        return a.to(t.dtype), b.to(t.dtype)

    def _host_coefficients(self, t: float, s: float) -> tuple[float, float]:
        if s == 0.0:
            return 0.0, 1.0
        (alpha_t, sigma_t), (alpha_s, sigma_s) = self.levels(t), self.levels(s)
        if sigma_t == 0.0:
            raise ValueError(
                f"step: from t = {t} to {s} on {self.name}; expected noise (sigma > 0) to start "
                "from. Start at a later time."
            )
        a = sigma_s / sigma_t
        return a, alpha_s - a * alpha_t

    def step(self, x_t: Tensor, x0: Tensor, t: Any, s: Any, clip: float | None = None) -> Tensor:
        """Move x_t from time t to time s (floats, or (B,) tensors) along the clean image x0,
        clipped to ±clip first."""
        a, b = self.coefficients(t, s)
        return kernels.ddim_update(x_t, x0, a, b, clip)

    def landing(self, x_t: Tensor, x_s: Tensor, t: Any, s: Any) -> Tensor:
        """The x0 with which `step` would go from x_t to x_s: the inverse of `step` in its second
        argument."""
        a, b = self.coefficients(t, s)
        if isinstance(a, Tensor):
            a, b = expand(a, x_t), expand(b, x_t)
        landed: Tensor = (x_s - a * x_t) / b
        return landed

    def snr(self, t: Tensor) -> Tensor:
        """alpha²/sigma²."""
        alpha, sigma = self.alpha_sigma(t)
        return (alpha / sigma).square()

    def logsnr(self, t: Tensor) -> Tensor:
        """ln of `snr`."""
        alpha, sigma = self.alpha_sigma(t)
        return 2 * (alpha.log() - sigma.log())

    def start(self, z: Tensor, t: float) -> Tensor:
        """x_t at the start of sampling, from unit noise z (B, C, H, W)."""
        return z if self.variance_preserving else self.levels(t)[1] * z

    @property
    def variance_preserving(self) -> bool:
        """Whether alpha² + sigma² = 1."""
        return False

    def grid(self, steps: int, kind: str = "uniform") -> Times:
        """(steps + 1,) falling times from the noise end to 0, float64.

        `kind` is one of the schedule's `grids`: "uniform" in t; "stride" and "quad", Song et al.
        2020's index sequences (LinearVP); "karras", Karras et al. 2022, arXiv:2206.00364, eq. 5
        with rho = 7, then 0 (EDM); "ramp", the same down to sigma_min, without the 0 (EDM).
        """
        if steps < 1:
            raise ValueError(
                f"grid: steps is {steps}; expected at least 1. Ask for one step or more."
            )
        if kind not in self.grids:
            known = ", ".join(self.grids)
            raise ValueError(f"grid: {self.name} has no grid {kind!r}; expected {known}. Pick one.")
        return self._grid(steps, kind)

    def _grid(self, steps: int, kind: str) -> Times:
        return np.linspace(1.0, 0.0, steps + 1)

    def moves(self, steps: int, kind: str = "uniform") -> list[tuple[float, float]]:
        """(from, to) times of a chain, without the no-ops of a grid that repeats a time."""
        return [(t, s) for t, s in pairwise(self.grid(steps, kind).tolist()) if t != s]

    def config(self) -> dict[str, Any]:
        """What `schedule(**config)` needs to make this one again."""
        return {"name": self.name, **asdict(self)}


@lru_cache(maxsize=4096)
def _levels(schedule: NoiseSchedule, t: float) -> tuple[float, float]:
    # Kept, so that a loss that walks a sampler's grid computes nothing on the host after its first
    # run: the values are constants of the program, traced or captured.
    with unset_fake_temporarily():  # real numbers also where all others are only shapes
        alpha, sigma = schedule.alpha_sigma(torch.tensor([t], dtype=torch.float64, device="cpu"))
        return alpha.item(), sigma.item()


@lru_cache(maxsize=16)
def _log_alpha_bar(steps: int, beta: tuple[float, float]) -> Times:
    """(steps + 1,) ln of prod(1 - beta), with 0 in front for the clean image."""
    betas = np.linspace(*beta, steps, dtype=np.float64)
    return np.concatenate([[0.0], np.cumsum(np.log1p(-betas))])


_tables: dict[tuple[int, tuple[float, float], torch.device], Tensor] = {}


def _log_alpha_bar_on(steps: int, beta: tuple[float, float], device: torch.device) -> Tensor:
    key = steps, beta, device
    if key in _tables:
        return _tables[key]
    table = torch.from_numpy(_log_alpha_bar(steps, beta)).to(device)
    if type(table) is Tensor and device.type != "meta":  # a fake tensor must not outlive its mode
        _tables[key] = table
    return table


@dataclass(frozen=True)
class LinearVP(NoiseSchedule):
    """DDPM's linear betas. Ho et al. 2020, arXiv:2006.11239, §4.

    Time t stands at index `steps·t − 1`: t = 1/steps is DDPM's index 0, t = 1 its last index, t = 0
    the clean image. Between indices ln(alpha_bar) is linear.
    """

    name: ClassVar[str] = "linear_vp"
    grids: ClassVar[tuple[str, ...]] = ("uniform", "stride", "quad")

    steps: int = 1000
    beta: tuple[float, float] = (1e-4, 0.02)

    def __post_init__(self) -> None:
        object.__setattr__(self, "beta", tuple(self.beta))  # JSON gives a list

    @property
    def variance_preserving(self) -> bool:
        return True

    def _segment(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """ln(alpha_bar) at t and its slope d/dt."""
        table = _log_alpha_bar_on(self.steps, self.beta, t.device)
        place = t.double() * self.steps
        left = place.floor().clamp(0, self.steps - 1).long()
        low = table[left]
        rise = table[left + 1] - low
        return low + rise * (place - left), rise * self.steps

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        log_bar, _ = self._segment(t)
        return (0.5 * log_bar).exp().to(t.dtype), (-torch.expm1(log_bar)).sqrt().to(t.dtype)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        log_bar, slope = self._segment(t)
        bar = log_bar.exp()
        sigma = (-torch.expm1(log_bar)).sqrt()
        return (0.5 * slope * bar.sqrt()).to(t.dtype), (-0.5 * slope * bar / sigma).to(t.dtype)

    def t_of_sigma(self, ratio: float) -> float:
        log_bar = -math.log1p(ratio * ratio)
        table = _log_alpha_bar(self.steps, self.beta)
        return float(np.interp(-log_bar, -table, np.arange(self.steps + 1))) / self.steps

    def time_at(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The times (B,) at which sigma/alpha is what it is for these levels, within [1/steps, 1];
        asks nothing of the device."""
        table = _log_alpha_bar_on(self.steps, self.beta, alpha.device)
        a, s = alpha.double(), sigma.double()
        wanted = (a.square() / (a.square() + s.square())).log().clamp(table[-1], table[1])
        right = torch.searchsorted(-table, -wanted).clamp(1, self.steps)
        share = (wanted - table[right - 1]) / (table[right] - table[right - 1])
        return ((right - 1 + share) / self.steps).to(alpha.dtype)

    def indices(self, steps: int, kind: str) -> np.ndarray[Any, np.dtype[np.int64]]:
        """DDPM indices, rising: evenly spaced (`range(0, T, T // S)` where S divides T), or the
        quadratic list of Song et al. 2020 (appendix D.2).

        The quadratic list repeats small indices; a repeat is an exact no-op that samplers skip.
        """
        if steps > self.steps:
            raise ValueError(
                f"grid: {steps} steps; expected at most the schedule's {self.steps}. Ask for fewer."
            )
        if kind == "stride":
            return np.arange(steps, dtype=np.int64) * self.steps // steps
        # From the top, so that a single step starts there; 1e-9 lets exact squares stay themselves.
        falling = np.linspace(math.sqrt(0.8 * self.steps), 0, steps) ** 2
        return np.floor(falling[::-1] + 1e-9).astype(np.int64)

    def _grid(self, steps: int, kind: str) -> Times:
        if kind == "uniform":
            return super()._grid(steps, kind)
        rising = (self.indices(steps, kind) + 1) / self.steps
        return np.concatenate([rising[::-1], [0.0]])


@dataclass(frozen=True)
class Cosine(NoiseSchedule):
    """alpha = cos, sigma = sin of an angle linear in t, the log-SNR within ±logsnr_max.
    Salimans & Ho 2022, arXiv:2202.00512."""

    name: ClassVar[str] = "cosine"

    logsnr_max: float = 20.0

    @property
    def variance_preserving(self) -> bool:
        return True

    def _angles(self) -> tuple[float, float]:
        first = math.atan(math.exp(-0.5 * self.logsnr_max))
        return first, math.pi / 2 - 2 * first

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        first, span = self._angles()
        # cos near π/2 cancels; the sine of the complement does not.
        return torch.sin(first + span * (1 - t)), torch.sin(first + span * t)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        _, span = self._angles()
        alpha, sigma = self.alpha_sigma(t)
        return -span * sigma, span * alpha

    def t_of_sigma(self, ratio: float) -> float:
        first, span = self._angles()
        return min(1.0, max(0.0, (math.atan(ratio) - first) / span))


@dataclass(frozen=True)
class EDM(NoiseSchedule):
    """alpha = 1, sigma = sigma_max·t. Karras et al. 2022, arXiv:2206.00364."""

    name: ClassVar[str] = "edm"
    grids: ClassVar[tuple[str, ...]] = ("karras", "ramp", "uniform")

    sigma_max: float = 80.0
    sigma_min: float = 0.002
    rho: float = 7.0

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), self.sigma_max * t

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(t), torch.full_like(t, self.sigma_max)

    def t_of_sigma(self, ratio: float) -> float:
        return ratio / self.sigma_max

    def _grid(self, steps: int, kind: str) -> Times:
        if kind == "uniform":
            return super()._grid(steps, kind)
        if kind == "ramp":
            return self._ramp(np.linspace(1.0, 0.0, steps + 1))
        return np.append(self._ramp(1 - np.arange(steps) / max(steps - 1, 1)), 0.0)

    def _ramp(self, u: Times) -> Times:
        high, low = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        sigmas: Times = (low + u * (high - low)) ** self.rho
        times: Times = np.minimum(sigmas / self.sigma_max, 1.0)  # rounding is no time > 1
        return times

    def ramp(self, u: Tensor) -> Tensor:
        """Times of the rho-ramp: from sigma_min at u = 0 to sigma_max at u = 1. Karras et al. 2022,
        eq. 5."""
        high, low = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        times: Tensor = (low + u.double() * (high - low)) ** self.rho / self.sigma_max
        return times.clamp(max=1.0).to(u.dtype)


@dataclass(frozen=True)
class Flow(NoiseSchedule):
    """alpha = 1 − t, sigma = t: rectified flow. Liu et al. 2022, arXiv:2209.03003 (there with time
    reversed)."""

    name: ClassVar[str] = "flow"

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - t, t

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return -torch.ones_like(t), torch.ones_like(t)

    def t_of_sigma(self, ratio: float) -> float:
        return ratio / (1 + ratio)

    def start(self, z: Tensor, t: float) -> Tensor:
        return z  # at t = 1 nothing but noise is left


SCHEDULES: dict[str, type[NoiseSchedule]] = {c.name: c for c in (LinearVP, Cosine, EDM, Flow)}


def schedule(name: str, **options: Any) -> NoiseSchedule:
    """The schedule called `name`; the inverse of `NoiseSchedule.config`."""
    if name not in SCHEDULES:
        known = ", ".join(SCHEDULES)
        raise ValueError(f"schedule: unknown name {name!r}; expected {known}. Pick one.")
    return SCHEDULES[name](**options)
