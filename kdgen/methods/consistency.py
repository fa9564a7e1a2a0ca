"""Say the same all along a path from noise to data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from kdgen.denoiser import SIGMA_MIN, Denoiser, Sampling
from kdgen.methods.base import Batch, Method, Nets, per_image_mean, with_dropout
from kdgen.nets.dropout import Masks
from kdgen.schedules import EDM, expand

KINDS = ("cd", "ct", "ect")
ERRORS = ("l1", "l2", "huber")
# Nothing holds the x0 of these networks to x_t, not even without noise.
_UNBOUND = ("x0", "residual")
# Finer than this, float32 does not tell the two times of a pair apart.
_FINEST = 2.0**20


@dataclass(frozen=True)
class Consistency(Method):
    """f(x_t, t), the image where the path through x_t ends, shall be f(x_s, s) for every earlier s
    on it. Song et al. 2023, arXiv:2303.01469; Geng et al. 2024, arXiv:2406.14548.

    `kind` is where x_s comes from:
    - "cd", distillation: one Heun step of the teacher (2 evaluations), between neighbours of the
      Karras grid of `points` noise levels;
    - "ct", training without a teacher: x_t with less of its own noise, on the same grid;
    - "ect", the same at any times: ln sigma_t ~ N(p_mean, p_std²), and s nearer to t by a factor
      of `shrink` (Geng et al.'s q) in each of the `stages` of a round; the loss is divided by
      sigma_t − sigma_s.

    With `grown` the grid grows from `points` to grown + 1 levels (appendix C: s0 and s1; "ct" used
    points=2, grown=150 with mu=0.9 on CIFAR-10). `mu` is how much of the old target each update
    keeps, at the start where the grid grows; 0: the student is its own target. Both sides of a pair
    have the same dropout masks.

    The paths of "cd" and "ct" end at sigma_min. f is x0 for a "consistency" parameterisation, which
    the student of an "edm" teacher gets; else the step along x0 to sigma_min. Those of "ect" end at
    0, and f is x0. Either way f is the identity at the end.

    `error` is "l1" or "l2", means over pixels, or "huber": sqrt(|d|² + huber²) − huber of the
    image's difference d (Song & Dhariwal 2023, arXiv:2310.14189, with huber = 0.03 for CIFAR-10;
    0 is the plain norm, Geng et al.'s). None: "huber" for "ect", else "l2". The published
    CIFAR-10 results of "cd" and "ct" used LPIPS, whose weights are not part of kdgen.

    `times` are the sampler's, falling; Geng et al.'s two steps are (1, 0.821/80).
    """

    name: ClassVar[str] = "consistency"
    trains: ClassVar[Mapping[str, str]] = {"main": "student"}
    draws: ClassVar[tuple[str, ...]] = ("eps", "u")
    uniforms: ClassVar[int] = 1

    kind: Literal["cd", "ct", "ect"] = "cd"
    points: int = 18
    grown: int | None = None
    mu: float = 0.0
    error: Literal["l1", "l2", "huber"] | None = None
    huber: float = 0.0
    p_mean: float = -1.1
    p_std: float = 2.0
    shrink: float = 2.0
    stages: int = 8
    dropout: float = 0.0
    times: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        object.__setattr__(self, "times", tuple(self.times))  # JSON gives a list
        self._check_names()
        self._check_numbers()

    def _check_names(self) -> None:
        known = {"kind": KINDS, "error": (None, *ERRORS)}
        for what, names in known.items():
            if (value := getattr(self, what)) not in names:
                raise ValueError(
                    f"Consistency: unknown {what} {value!r}; expected {', '.join(map(str, names))}."
                    " Pick one."
                )

    def _check_numbers(self) -> None:
        falling = sorted(set(self.times), reverse=True) == list(self.times)
        good = {
            "points": self.points >= 2,
            "grown": self.grown is None or self.grown >= self.points,
            "mu": 0 <= self.mu < 1,
            "huber": self.huber >= 0,
            "p_std": self.p_std > 0,
            "shrink": self.shrink > 1,
            "stages": self.stages >= 1 and self.shrink**self.stages <= _FINEST,
            "times": bool(self.times) and falling and 0 < self.times[-1] <= self.times[0] <= 1,
        }
        if wrong := [name for name, fine in good.items() if not fine]:
            given = ", ".join(f"{name} = {getattr(self, name)}" for name in wrong)
            raise ValueError(
                f"Consistency: {given}; expected points >= 2, grown >= points, mu in [0, 1), "
                "huber >= 0, p_std > 0, shrink > 1, shrink**stages <= 2**20 and times falling "
                "within (0, 1]. Correct them."
            )

    @property
    def roles(self) -> tuple[str, ...]:  # type: ignore[override]
        teacher = ("teacher",) if self.kind == "cd" else ()
        return ("student", *teacher, *(("target",) if self.mu else ()))

    def cost(self, dropout: bool = False) -> float:
        return 4.0 + (2.0 if self.kind == "cd" else 0.0)

    def student(self, teacher: Denoiser) -> Denoiser:
        """A copy on the EDM path, with this method's dropout, exact where the path ends."""
        q = teacher.schedule if isinstance(teacher.schedule, EDM) else EDM()
        published = self.kind != "ect" and q.sigma_min == SIGMA_MIN
        form = teacher.parameterisation
        return with_dropout(
            teacher,
            self.dropout,
            schedule=q,
            parameterisation="consistency" if published and form == "edm" else form,
            sampling=self.sampling(teacher),
        )

    def sampling(self, student: Denoiser) -> Sampling:
        return Sampling("few_step", steps=len(self.times), clip=1.0, times=self.times)

    def check(self, nets: Nets) -> None:
        super().check(nets)
        q = _path(nets.student)
        endless = _UNBOUND if self.kind == "ect" else ("residual",)
        _refuse(nets.student, "student", endless)
        if self.kind == "cd":
            _refuse(nets.teacher, "teacher", ("residual", "consistency"))
            if _path(nets.teacher) != q:
                raise ValueError(
                    f"Consistency: the teacher's schedule is {nets.teacher.schedule}; expected "
                    f"the student's, {q}. Use teacher.copy(schedule=student.schedule)."
                )

    def loss(self, phase: str, nets: Nets, batch: Batch) -> Tensor:
        q, student = _path(nets.student), nets.student
        t, s = self._pair(q, batch)
        x_t = q.noise(batch.x0, batch.eps, t)
        if self.kind == "cd":
            x_s = _heun(nets.teacher, x_t, t, s, batch.label)
        else:
            x_s = q.noise(batch.x0, batch.eps, s)
        masks, target = Masks(), nets.target if self.mu else student
        with masks.drawn(student):
            guess = self.image(student, x_t, t, batch.label)
        with masks.reused(target), torch.no_grad():
            answer = self.image(target, x_s, s, batch.label)
        error = self._error(guess - answer)
        return error / ((t - s) * q.sigma_max) if self.kind == "ect" else error

    def keeps(self, progress: float) -> float:
        if not self.grown or not self.mu:
            return self.mu
        levels = self.levels(torch.tensor(progress, dtype=torch.float64, device="cpu"))
        # As released; the paper's appendix C divides by N, not N − 1.
        return math.exp(self.points * math.log(self.mu) / (levels.item() - 1))

    def levels(self, progress: Tensor) -> Tensor:
        """N, the number of noise levels of the grid, at this fraction of the round; scalar."""
        if not self.grown:
            return torch.full_like(progress, self.points)
        first, last = self.points**2, (self.grown + 1) ** 2
        return ((progress * (last - first) + first).sqrt() - 1).ceil() + 1

    def _pair(self, q: EDM, batch: Batch) -> tuple[Tensor, Tensor]:
        """(t, s), each (B,)."""
        u = batch.u[:, 0]
        if self.kind == "ect":
            t = (self.p_mean + self.p_std * torch.special.ndtri(u)).exp() / q.sigma_max
            return t, t * self.nearness(t * q.sigma_max, batch.progress)
        moves = self.levels(batch.progress).to(u.dtype) - 1
        place = torch.minimum((u * moves).floor(), moves - 1)
        return q.ramp((place + 1) / moves), q.ramp(place / moves)

    def nearness(self, sigma: Tensor, progress: Tensor) -> Tensor:
        """sigma_s/sigma_t of "ect", from sigma_t (B,) and the fraction of the round: 0 … 1. Geng et
        al. 2024, §3, with their k = 8 and b = 1."""
        stage = (progress * self.stages).floor().clamp(max=self.stages - 1)
        gap = (1 + 8 * torch.sigmoid(-sigma)) / (self.shrink ** (stage + 1)).to(sigma.dtype)
        share: Tensor = (1 - gap).clamp(min=0)
        return share

    def image(self, f: Denoiser, x_t: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        """f(x_t, t) for t (B,): where the path has ended, x_t to the last bit."""
        q, end = _path(f), torch.zeros_like(t)
        if self.kind != "ect":
            end = q.ramp(end)
        ended = t <= end
        asked = torch.where(ended, 1.0, t)  # any time will do; 0 has no logarithm
        x0 = f(x_t, asked, label).x0
        if self.kind != "ect" and f.parameterisation != "consistency":
            x0 = q.step(x_t, x0, asked, end)
        return torch.where(expand(ended, x_t), x_t, x0)

    def _error(self, d: Tensor) -> Tensor:
        error = self.error or ("huber" if self.kind == "ect" else "l2")
        if error != "huber":
            return per_image_mean(d.abs() if error == "l1" else d.square())
        # The slope of this norm is 0 where nothing differs; that of a root is not a number.
        loss: Tensor = torch.linalg.vector_norm(d.flatten(1), dim=1)
        if self.huber:  # multiplied out, so that nothing cancels
            loss = loss.square() / ((loss.square() + self.huber**2).sqrt() + self.huber)
        return loss


@torch.no_grad()
def _heun(teacher: Denoiser, x_t: Tensor, t: Tensor, s: Tensor, label: Tensor | None) -> Tensor:
    """x_s, one step of Karras et al. 2022, algorithm 1, along sigma."""
    q = _path(teacher)
    first = teacher(x_t, t, label)
    second = teacher(q.step(x_t, first.x0, t, s), s, label)
    x_s: Tensor = x_t + expand((s - t) * q.sigma_max, x_t) * (first.eps + second.eps) / 2
    return x_s


def _path(denoiser: Denoiser) -> EDM:
    if isinstance(denoiser.schedule, EDM):
        return denoiser.schedule
    raise ValueError(
        f"Consistency: a schedule is {denoiser.schedule.name}; expected edm for every role. Use "
        "denoiser.copy(schedule=EDM())."
    )


def _refuse(denoiser: Denoiser, role: str, forms: tuple[str, ...]) -> None:
    form = getattr(denoiser, "parameterisation", None)
    if form in forms:
        raise ValueError(
            f"Consistency: the {role}'s parameterisation is {form!r}; expected one that denoises "
            "at every noise level and keeps an image without noise. Use an edm, v or eps network."
        )
