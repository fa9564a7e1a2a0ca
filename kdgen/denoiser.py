"""What a network says about a noisy image, in every unit the field uses; the only place where units
are converted.

A network sees the noisy image at a fixed size, and its output and its time mean something that
depends on sigma/alpha alone. So one network serves every schedule: `denoiser.copy(schedule=Flow())`
is the same denoiser on another path.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from kdgen.schedules import Flow, LinearVP, NoiseSchedule, expand

# Standard deviation of natural images in [-1, 1]. Karras et al. 2022, arXiv:2206.00364, table 1
SIGMA_DATA = 0.5
# sigma/alpha at which a consistency model is the identity. Song et al. 2023, arXiv:2303.01469, §3
SIGMA_MIN = 0.002
# Below it, (x_t − sigma·eps)/alpha amplifies the network's error a thousandfold.
SMALLEST_ALPHA = 1e-3


class Levels:
    """Signal and noise levels at t (B,), each broadcast over an image; the slopes in t are computed
    when asked for."""

    def __init__(self, schedule: NoiseSchedule, t: Tensor, like: Tensor) -> None:
        self._schedule, self._t, self._like = schedule, t, like
        self.alpha, self.sigma = (expand(c, like) for c in schedule.alpha_sigma(t))

    @cached_property
    def _rates(self) -> tuple[Tensor, Tensor]:
        d_alpha, d_sigma = self._schedule.rates(self._t)
        return expand(d_alpha, self._like), expand(d_sigma, self._like)

    @property
    def d_alpha(self) -> Tensor:
        return self._rates[0]

    @property
    def d_sigma(self) -> Tensor:
        return self._rates[1]

    @cached_property
    def power(self) -> Tensor:
        """alpha² + sigma²: 1 on a variance-preserving schedule."""
        return self.alpha.square() + self.sigma.square()


class Prediction:
    """A guess at the clean image behind x_t, convertible to noise, v, velocity and score.

    All of them satisfy x_t = alpha·x0 + sigma·eps. They are computed when asked for.
    """

    def __init__(self, x_t: Tensor, x0: Tensor, levels: Levels, eps: Tensor | None = None) -> None:
        self.x_t, self.x0, self.levels, self._eps = x_t, x0, levels, eps

    @cached_property
    def eps(self) -> Tensor:
        """The noise in x_t."""
        if self._eps is not None:
            return self._eps
        return (self.x_t - self.levels.alpha * self.x0) / self.levels.sigma

    @property
    def v(self) -> Tensor:
        """alpha·eps − sigma·x0. Salimans & Ho 2022, arXiv:2202.00512, §4."""
        return self.levels.alpha * self.eps - self.levels.sigma * self.x0

    @property
    def velocity(self) -> Tensor:
        """dx_t/dt along the straight line through (x0, eps)."""
        return self.levels.d_alpha * self.x0 + self.levels.d_sigma * self.eps

    @property
    def score(self) -> Tensor:
        """Gradient of ln p(x_t)."""
        return (self.levels.alpha * self.x0 - self.x_t) / self.levels.sigma.square()

    def clip(self, low: float = -1.0, high: float = 1.0) -> Prediction:
        """Clamp x0; eps follows, so that alpha·x0 + sigma·eps is still x_t."""
        return Prediction(self.x_t, self.x0.clamp(low, high), self.levels)


# Each reader turns the raw network output into a Prediction: (x_t, raw, levels) -> Prediction.
def _read_x0(x_t: Tensor, raw: Tensor, q: Levels) -> Prediction:
    return Prediction(x_t, raw, q)


def _read_eps(x_t: Tensor, raw: Tensor, q: Levels) -> Prediction:
    return Prediction(x_t, (x_t - q.sigma * raw) / q.alpha, q, eps=raw)


def _read_v(x_t: Tensor, raw: Tensor, q: Levels) -> Prediction:
    """v of the state at unit power, where alpha and sigma are a cosine and a sine."""
    size = q.power.sqrt()
    x0 = (q.alpha * x_t / size - q.sigma * raw) / size
    return Prediction(x_t, x0, q, eps=(q.sigma * x_t / size + q.alpha * raw) / size)


def _read_both(x_t: Tensor, raw: Tensor, q: Levels) -> Prediction:
    """Salimans & Ho 2022, §4: x0 and eps heads, blended by their noise levels."""
    from_x0, from_eps = raw.chunk(2, dim=1)
    x0 = q.sigma.square() * from_x0 + q.alpha * (x_t - q.sigma * from_eps)
    return Prediction(x_t, x0 / q.power, q)


def _read_velocity(x_t: Tensor, raw: Tensor, q: Levels) -> Prediction:
    """eps − x0, along the straight path: at x_t/(alpha + sigma) and time sigma/(alpha + sigma)."""
    x0, eps = x_t - q.sigma * raw, x_t + q.alpha * raw
    size = q.alpha + q.sigma
    return Prediction(x_t, x0 / size, q, eps=eps / size)


def _read_score(x_t: Tensor, raw: Tensor, q: Levels) -> Prediction:
    """Of the state at unit power."""
    eps = -q.sigma / q.power.sqrt() * raw
    return Prediction(x_t, (x_t - q.sigma * eps) / q.alpha, q, eps=eps)


def _read_edm(x_t: Tensor, raw: Tensor, q: Levels) -> Prediction:
    """Karras et al. 2022, eq. 7, in x_t/alpha and sigma/alpha; multiplied out, alpha may be 0."""
    power = q.sigma.square() + (SIGMA_DATA * q.alpha).square()
    x0 = SIGMA_DATA**2 * q.alpha / power * x_t + SIGMA_DATA * q.sigma / power.sqrt() * raw
    return Prediction(x_t, x0, q)


def _read_consistency(x_t: Tensor, raw: Tensor, q: Levels) -> Prediction:
    """EDM's, moved so that x0 is x_t/alpha at SIGMA_MIN. Song et al. 2023, appendix C."""
    power = q.sigma.square() + (SIGMA_DATA * q.alpha).square()
    above = q.sigma - SIGMA_MIN * q.alpha
    skip = SIGMA_DATA**2 * q.alpha / (above.square() + (SIGMA_DATA * q.alpha).square())
    return Prediction(x_t, skip * x_t + SIGMA_DATA * above / power.sqrt() * raw, q)


def _read_residual(x_t: Tensor, raw: Tensor, q: Levels) -> Prediction:
    """x0 = z − F: the one-step form of Luhman & Luhman 2021, arXiv:2101.02388.

    z is x_t at unit noise: x_t itself where the schedule preserves variance.
    """
    return Prediction(x_t, x_t / q.power.sqrt() - raw, q)


READERS: dict[str, Callable[[Tensor, Tensor, Levels], Prediction]] = {
    "eps": _read_eps,
    "x0": _read_x0,
    "v": _read_v,
    "both": _read_both,
    "velocity": _read_velocity,
    "score": _read_score,
    "edm": _read_edm,
    "consistency": _read_consistency,
    "residual": _read_residual,
}
_DIVIDES_BY_ALPHA = ("eps", "score")


# How large the network sees x_t, by parameterisation.
def _unit_power(q: Levels) -> Tensor:
    return q.power.sqrt()


def _unit_variance(q: Levels) -> Tensor:
    """Of the noisy data, whose clean images vary by SIGMA_DATA."""
    return (q.sigma.square() + (SIGMA_DATA * q.alpha).square()).sqrt()


def _straight(q: Levels) -> Tensor:
    return q.alpha + q.sigma


_SIZES = {"edm": _unit_variance, "consistency": _unit_variance, "velocity": _straight}


# What number the network's embedding sees for a time t (B,).
def _time_index(schedule: NoiseSchedule, t: Tensor) -> Tensor:
    """DDPM's index 0 … 999: elsewhere, that of the same sigma/alpha."""
    if isinstance(schedule, LinearVP):
        return t * schedule.steps - 1
    ddpm = LinearVP()
    return ddpm.time_at(*schedule.alpha_sigma(t)) * ddpm.steps - 1


def _time_angle(schedule: NoiseSchedule, t: Tensor) -> Tensor:
    """1000·(2/π)·arctan(sigma/alpha): Salimans & Ho 2022's inv-cos input."""
    alpha, sigma = schedule.alpha_sigma(t)
    return torch.atan2(sigma, alpha) * (2000 / torch.pi)


def _time_log_sigma(schedule: NoiseSchedule, t: Tensor) -> Tensor:
    """ln(sigma/alpha)/4: Karras et al. 2022, table 1."""
    alpha, sigma = schedule.alpha_sigma(t)
    return (sigma / alpha).log() / 4


def _time_raw(schedule: NoiseSchedule, t: Tensor) -> Tensor:
    """Rectified flow's time in [0, 1]: sigma/(alpha + sigma)."""
    if isinstance(schedule, Flow):
        return t
    alpha, sigma = schedule.alpha_sigma(t)
    return sigma / (alpha + sigma)


def _time_thousandths(schedule: NoiseSchedule, t: Tensor) -> Tensor:
    return 999 * _time_raw(schedule, t)


TIMES: dict[str, Callable[[NoiseSchedule, Tensor], Tensor]] = {
    "index": _time_index,
    "angle": _time_angle,
    "log_sigma": _time_log_sigma,
    "raw": _time_raw,
    "thousandths": _time_thousandths,
}
_USUAL_TIME = {"linear_vp": "index", "cosine": "angle", "edm": "log_sigma", "flow": "thousandths"}


@dataclass(frozen=True)
class Sampling:
    """How a denoiser is meant to be sampled; stored with its weights."""

    sampler: str = "ddim"
    steps: int = 50
    grid: str = "uniform"
    clip: float | None = None
    guidance: float = 1.0
    times: tuple[float, ...] = ()  # of "few_step": falling, the first in (0, 1]

    def __post_init__(self) -> None:
        object.__setattr__(self, "times", tuple(self.times))  # JSON gives a list

    def config(self) -> dict[str, Any]:
        """JSON-able; `Sampling(**config)` makes it again."""
        return {**asdict(self), "times": list(self.times)}


class Net(Protocol):
    """Any module `(x (B, C, H, W), time (B,), label (B,) int64 or None) -> (B, C', H, W)` that
    knows this."""

    shape: tuple[int, int, int]
    classes: int

    def config(self) -> dict[str, Any]: ...


class Predicts(Protocol):
    """What samplers and methods need of a denoiser; `Denoiser`, `Guided` and `nets.exact` provide
    it."""

    schedule: NoiseSchedule

    def __call__(
        self, x_t: Tensor, t: Tensor | float, label: Tensor | None = None
    ) -> Prediction: ...


def times(t: Tensor | float, x_t: Tensor) -> Tensor:
    """Times beside x_t, (B,) or, for one time, (1,): float32, or float64 beside float64.

    One time stays one number: vector libraries round the sine of 32 numbers unlike that of 8, and
    an image's bits shall not depend on its batch.
    """
    wide = torch.promote_types(x_t.dtype, torch.float32)
    if isinstance(t, Tensor):
        return t.to(wide).reshape(-1)
    return torch.full((1,), t, dtype=wide, device=x_t.device)


class Denoiser(nn.Module):
    """A network together with its schedule and the meaning of its output.

    `parameterisation` is one of `READERS`; `time` (one of `TIMES`) says which number the network
    embeds and defaults to the schedule's usual one. The network may run under autocast; predictions
    are float32 (float64 for float64 images). Raises ValueError for unknown names, and for what is
    not finite on this schedule: "eps" and "score" where the last alpha is below 1e-3, "log_sigma"
    where it is 0.
    """

    def __init__(
        self,
        net: nn.Module,
        schedule: NoiseSchedule,
        parameterisation: str,
        time: str | None = None,
        sampling: Sampling | None = None,
    ) -> None:
        super().__init__()
        time = time or _USUAL_TIME[schedule.name]
        _check_name("parameterisation", parameterisation, READERS)
        _check_name("time", time, TIMES)
        _check_end(schedule, parameterisation, time)
        _check_gain(net, time)
        self.net, self.schedule = net, schedule
        self.parameterisation, self.time = parameterisation, time
        self.sampling = sampling or Sampling()

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return self.net.shape  # type: ignore[return-value]

    @property
    def classes(self) -> int:
        """Number of classes; 0 when unconditional."""
        return self.net.classes  # type: ignore[return-value]

    @property
    def heads(self) -> int:
        """How many predictions the network makes at once."""
        return int(getattr(getattr(self.net, "facts", None), "outputs", 1))

    def forward(
        self,
        x_t: Tensor,
        t: Tensor | float,
        label: Tensor | None = None,
        augment: Tensor | None = None,
    ) -> Prediction:
        """x_t (B, C, H, W), t (B,) or one float in (0, 1], label (B,) int64 with -1 (or None) for
        "no class", augment (B, 9) the labels of `data.augment` or None; the last head's."""
        return self.outputs(x_t, t, label, augment)[-1]

    def outputs(
        self,
        x_t: Tensor,
        t: Tensor | float,
        label: Tensor | None = None,
        augment: Tensor | None = None,
    ) -> tuple[Prediction, ...]:
        """The prediction of every head."""
        t = times(t, x_t)
        time = TIMES[self.time](self.schedule, t).expand(len(x_t))
        q = Levels(self.schedule, t, x_t)
        more = () if augment is None else (augment,)
        raw = self.net(self.scaled(x_t, q), time, label, *more)
        self._check_heads(x_t, raw)
        wide = torch.promote_types(x_t.dtype, torch.float32)
        x_t = x_t.to(wide)
        return tuple(self.read(x_t, head.to(wide), q) for head in raw.chunk(self.heads, dim=1))

    @property
    def parts(self) -> int:
        """How many images the network's raw output has for one head."""
        return 2 if self.parameterisation == "both" else 1

    def read(self, x_t: Tensor, raw: Tensor, q: Levels) -> Prediction:
        """What the raw output of one head says: linear in x_t and raw."""
        return READERS[self.parameterisation](x_t, raw, q)

    def scaled(self, x_t: Tensor, q: Levels) -> Tensor:
        """x_t at the size that the network was made for."""
        size = _SIZES.get(self.parameterisation, _unit_power)
        if size is _unit_power and self.schedule.variance_preserving:
            return x_t
        if size is _straight and isinstance(self.schedule, Flow):
            return x_t
        return x_t / size(q)

    def _check_heads(self, x_t: Tensor, raw: Tensor) -> None:
        expected = (len(x_t), self.heads * self.parts * x_t.shape[1], *x_t.shape[2:])
        if raw.shape != expected:  # broadcasting would hide it
            raise ValueError(
                f"Denoiser: the network gave {tuple(raw.shape)} for {self.parameterisation!r}; "
                f"expected {expected}. Set its out_channels to {expected[1]}."
            )

    def copy(self, **changes: Any) -> Denoiser:
        """An independent copy of the weights; keyword arguments replace constructor arguments.

        All parameters of the copy can be trained, also those of an average that never is.
        `schedule` puts the same denoiser on another path. Raises ValueError where it would not be
        the same: an index of a LinearVP other than DDPM's has no meaning elsewhere.
        """
        self._check_path(changes.get("schedule", self.schedule))
        facts: dict[str, Any] = {
            "schedule": self.schedule,
            "parameterisation": self.parameterisation,
            "time": self.time,
            "sampling": self.sampling,
            **changes,
        }
        if "net" not in facts:
            facts["net"] = copy.deepcopy(self.net)
        return Denoiser(**facts).train(self.training).requires_grad_(True)

    def _check_path(self, schedule: NoiseSchedule) -> None:
        if self.time == "index" and schedule != self.schedule != LinearVP():
            raise ValueError(
                f"Denoiser.copy: time 'index' counts the steps of {self.schedule}; expected "
                "LinearVP() for another path to have it too. Keep the schedule."
            )

    def config(self) -> dict[str, Any]:
        """JSON-able; `nets.denoiser(config)` builds the same denoiser with fresh weights."""
        return {
            "net": self.net.config(),  # type: ignore[operator]
            "schedule": self.schedule.config(),
            "parameterisation": self.parameterisation,
            "time": self.time,
            "sampling": self.sampling.config(),
        }


class Guided:
    """Classifier-free guidance: x0 = x0(∅) + scale·(x0(label) − x0(∅)). Ho & Salimans 2022,
    arXiv:2207.12598.

    One batched network call of twice the size; scale 1 is the plain conditional prediction.
    """

    def __init__(self, denoiser: Denoiser, scale: float) -> None:
        if not denoiser.classes:
            raise ValueError(
                "Guided: the denoiser has no classes; expected a conditional one. Leave guidance "
                "at 1."
            )
        self.denoiser, self.schedule, self.scale = denoiser, denoiser.schedule, scale

    def __call__(self, x_t: Tensor, t: Tensor | float, label: Tensor | None = None) -> Prediction:
        if label is None:
            raise ValueError("Guided: label is None; expected one class per image. Pass labels.")
        t = times(t, x_t)
        twice = t if len(t) == 1 else torch.cat([t, t])
        labels = torch.cat([label, torch.full_like(label, -1)])
        both = self.denoiser(torch.cat([x_t, x_t]), twice, labels)
        with_label, without = both.x0.chunk(2)
        x0 = torch.lerp(without, with_label, self.scale)
        return Prediction(x_t, x0, Levels(self.schedule, t, x_t))


def _check_end(schedule: NoiseSchedule, parameterisation: str, time: str) -> None:
    """Refuse what would divide by the schedule's last alpha where that is (nearly) 0."""
    last = schedule.levels(1.0)[0]
    if parameterisation in _DIVIDES_BY_ALPHA and last < SMALLEST_ALPHA:
        raise ValueError(
            f"Denoiser: {parameterisation!r} divides by alpha, which is {last:.1e} at t = 1 on "
            f"{schedule.name}; expected at least {SMALLEST_ALPHA}. Use 'v' or 'x0'."
        )
    if time == "log_sigma" and last == 0:
        raise ValueError(
            f"Denoiser: time 'log_sigma' is infinite at t = 1 on {schedule.name}, where alpha is "
            "0; expected a finite one. Use 'angle' or 'thousandths'."
        )


def _check_gain(net: nn.Module, time: str) -> None:
    """A network whose skips are weighed by the time needs it in [0, 1]."""
    if getattr(getattr(net, "facts", None), "skip_gain", None) is not None and time != "raw":
        raise ValueError(
            f"Denoiser: time is {time!r} for a network with skip_gain; expected 'raw', the number "
            "that its gains are made of. Pass time='raw'."
        )


def _check_name(what: str, name: str, known: dict[str, Any]) -> None:
    if name not in known:
        raise ValueError(
            f"Denoiser: unknown {what} {name!r}; expected {', '.join(known)}. Pick one."
        )
