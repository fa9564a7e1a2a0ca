"""Learn two of the teacher's steps as one; then be the teacher, and halve again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from kdgen.denoiser import Denoiser, Guided, Prediction, Predicts, Sampling
from kdgen.methods.base import GENERATORS, Batch, Method, Nets, without_dropout
from kdgen.methods.errors import check_error, error
from kdgen.schedules import EDM, NoiseSchedule, expand

GRIDS = ("uniform", "ramp")  # that of n steps is every other time of that of 2n


@dataclass(frozen=True)
class Progressive(Method):
    """Progressive distillation. Salimans & Ho 2022, arXiv:2202.00512, algorithm 2.

    `steps` are the student's in the first round, where the teacher takes twice as many; each round
    halves them, down to `until`. `weight` is that of the squared error of x0, as `Diffusion.error`;
    the paper's are "truncated" and, for v, "snr+1". `grid`: "uniform" in t, or "ramp", on an EDM
    path: the one of Karras et al. 2022 down to sigma_min (Song et al. 2023, arXiv:2303.01469).
    None is "ramp" there and "uniform" elsewhere; "uniform" on an EDM path is refused, where it is
    uniform in sigma.
    Rounds of two steps and of one take `last_length` times the updates of the others. The student
    is sampled with every x0 clipped to ±`clip`; targets are never clipped. A teacher with guidance
    is distilled together with it (Meng et al. 2022, arXiv:2210.03142).

    Each round begins with the raw weights of the one before: train with `Ema.none()`, a learning
    rate that falls to 0 and no weight decay, as the paper did.
    """

    name: ClassVar[str] = "progressive"
    draws: ClassVar[tuple[str, ...]] = ("eps", "u")

    steps: int = 512
    until: int = 1
    weight: Literal["truncated", "snr", "constant", "snr+1", "eps", "x0", "v"] = "truncated"
    grid: Literal["uniform", "ramp"] | None = None
    last_length: float = 2.0
    clip: float | None = 1.0

    def __post_init__(self) -> None:
        check_error("Progressive", "weight", self.weight)
        if self.grid not in (None, *GRIDS):
            raise ValueError(
                f"Progressive: unknown grid {self.grid!r}; expected {', '.join(GRIDS)}, whose "
                "times are kept when steps are halved. Pick one."
            )
        if self.until < 1 or not _halves_to(self.steps, self.until):
            raise ValueError(
                f"Progressive: steps is {self.steps}, until {self.until}; expected until of at "
                "least 1, and steps until·1, ·2, ·4, …. Change one."
            )
        if self.last_length <= 0 or (self.clip is not None and self.clip <= 0):
            raise ValueError(
                f"Progressive: last_length is {self.last_length}, clip {self.clip}; expected both "
                "above 0. Use clip=None for no limit."
            )

    def cost(self, dropout: bool = False) -> float:
        return 5.0  # the student forward and back, the teacher twice

    @property
    def length(self) -> float:
        return self.last_length if self.steps <= 2 else 1.0

    def rounds(self) -> Iterator[Progressive]:
        steps = self.steps
        while steps >= self.until:
            yield replace(self, steps=steps)
            steps //= 2

    def student(self, teacher: Denoiser) -> Denoiser:
        # Another path where the teacher's lacks the grid; `cast` takes the teacher along.
        q = teacher.schedule if self.grid_on(teacher.schedule) in teacher.schedule.grids else EDM()
        return without_dropout(teacher, schedule=q, sampling=self.sampling(teacher))

    def grid_on(self, q: NoiseSchedule) -> str:
        """The grid of steps on this path."""
        return self.grid or ("ramp" if isinstance(q, EDM) else "uniform")

    def sampling(self, student: Denoiser) -> Sampling:
        grid = self.grid_on(student.schedule)
        return Sampling("ddim", steps=self.steps, grid=grid, clip=self.clip)

    def check(self, nets: Nets) -> None:
        super().check(nets)
        student, teacher = nets.student, nets.teacher
        if student.schedule != teacher.schedule:
            raise ValueError(
                f"Progressive: the student is on {student.schedule}, its teacher on "
                f"{teacher.schedule}; expected one path. Use teacher.copy(schedule=…)."
            )
        _check_grid(student.schedule, self.grid_on(student.schedule))
        for role in ("student", "teacher"):
            _check_denoises(role, nets[role])

    def loss(self, phase: str, nets: Nets, batch: Batch) -> Tensor:
        student, teacher, q = nets.student, nets.teacher, nets.student.schedule
        t, m, s = self.times(q, batch.u[:, 0])
        x_t = q.noise(batch.x0, batch.eps, t)
        with torch.no_grad():
            x0 = self.target(_guided(teacher), x_t, t, m, s, batch.label)
        guess = student(x_t, t, batch.label)
        return error(guess, Prediction(x_t, x0, guess.levels), self.weight)

    def times(self, q: NoiseSchedule, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(t, m, s), each (B,): from, midway and to of one of the student's steps, drawn by u."""
        i = (u * self.steps).floor()  # u is below 1 by 2⁻²⁴ at least, which no product rounds away
        marks = ((i + 1) / self.steps, (i + 0.5) / self.steps, i / self.steps)
        if self.grid_on(q) == "uniform":
            return marks
        assert isinstance(q, EDM)
        t, m, s = map(q.ramp, marks)
        return t, m, s

    def target(
        self,
        teacher: Predicts,
        x_t: Tensor,
        t: Tensor,
        m: Tensor,
        s: Tensor,
        label: Tensor | None = None,
    ) -> Tensor:
        """The x0 with which one step from x_t at t to s lands where the teacher does in two, over
        m.

        Algorithm 2's formula divides by a small difference. Written out, it is a mean of the
        teacher's two guesses at x0, in which nothing cancels; where s is 0 it is the second.
        """
        q = teacher.schedule
        first = teacher(x_t, t, label).x0
        second = teacher(q.step(x_t, first, t, m), m, label).x0
        return torch.lerp(second, first, expand(share_of_first(q, t, m, s).to(first), first))


def share_of_first(q: NoiseSchedule, t: Tensor, m: Tensor, s: Tensor) -> Tensor:
    """Weight of the first guess in the target, (B,): with x_m = a1·x_t + b1·x0 and
    x_s = a2·x_m + b2·x0', a2·b1/(a2·b1 + b2). The schedule computes a and b in float64."""
    (_, b1), (a2, b2) = q.coefficients(t, m), q.coefficients(m, s)
    return a2 * b1 / (a2 * b1 + b2)


def _guided(teacher: Denoiser) -> Predicts:
    scale = teacher.sampling.guidance
    return teacher if scale == 1.0 else Guided(teacher, scale)


def _halves_to(steps: int, until: int) -> bool:
    ratio, rest = divmod(steps, until)
    return rest == 0 and ratio >= 1 and ratio & (ratio - 1) == 0


def _check_grid(q: NoiseSchedule, grid: str) -> None:
    if grid not in q.grids:
        raise ValueError(
            f"Progressive: {q.name} has no grid {grid!r}; expected {', '.join(q.grids)}. Use grid="
            "'uniform', or teacher.copy(schedule=EDM()) for 'ramp'."
        )
    if grid == "uniform" and isinstance(q, EDM):
        raise ValueError(
            f"Progressive: grid 'uniform' on edm is uniform in sigma: of 4 steps three would lie "
            f"above sigma = {q.sigma_max / 4:g}; expected 'ramp'. Leave grid out, or set "
            "grid='ramp'."
        )


def _check_denoises(role: str, denoiser: Denoiser) -> None:
    kind = getattr(denoiser, "parameterisation", None)  # the exact denoisers have none
    if kind in GENERATORS:
        raise ValueError(
            f"Progressive: the {role} is read as {kind!r}, which goes to the image in one step; "
            "expected a denoiser at every t. Distil the teacher it was made from."
        )
