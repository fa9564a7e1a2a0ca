"""Learn the straight line from noise to image, and straighten it until one step is enough."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from kdgen import samplers
from kdgen.denoiser import Denoiser, Sampling
from kdgen.methods.base import Batch, Method, Nets, per_image_mean, with_dropout
from kdgen.schedules import Flow

KINDS = ("flow", "reflow", "distill")
ERRORS = {"l2": F.mse_loss, "huber": F.smooth_l1_loss}
# What is not finite where alpha is 0, and what the student has in its place.
_FINITE = {"eps": "velocity", "score": "velocity", "log_sigma": "thousandths"}


@dataclass(frozen=True)
class Reflow(Method):
    """Rectified flow: velocity against eps − x0 along x_t = (1 − t)·x0 + t·eps. Liu et al. 2022,
    arXiv:2209.03003, eq. 1 and algorithm 1 (there with time reversed).

    `kind` "flow" pairs images with fresh noise: the first flow. "reflow" takes eps from pairs
    (z, x0) that an earlier flow, or any deterministic sampler, has made: the flow through them is
    straighter. "distill" learns the same pairs at the times of `steps` steps alone, {1/steps, …, 1}
    (1 step: at pure noise). `error` "l2" or "huber" is per pixel; the paper also distils under
    LPIPS, which needs the weights of another network and is not here.

    t is uniform in (t_min, 1). The student takes `steps` Euler steps (20 if None; 1 for "distill").
    `online` makes the pairs as training goes, the way the teacher is sampled; then `flows` > 1
    repeats it, each flow the teacher of the next. The student of a teacher drops the share
    `dropout`.

    The student is on `Flow()`, whatever the path of its teacher. What a teacher has that is not
    finite where alpha is 0, the student has to learn anew, from the same weights: instead of eps or
    a score it predicts a velocity, instead of ln(sigma) it is told 999·t.
    """

    name: ClassVar[str] = "reflow"

    kind: Literal["flow", "reflow", "distill"] = "reflow"
    steps: int | None = None
    error: Literal["l2", "huber"] = "l2"
    t_min: float = 1e-3
    online: bool = False
    flows: int = 1
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for what, value, known in (("kind", self.kind, KINDS), ("error", self.error, ERRORS)):
            if value not in known:
                raise ValueError(
                    f"Reflow: unknown {what} {value!r}; expected {', '.join(known)}. Pick one."
                )
        if self.online and self.kind == "flow":
            raise ValueError(
                "Reflow: kind 'flow' is online; expected pairs to be made for 'reflow' or "
                "'distill'. Drop one."
            )
        if (self.steps is not None and self.steps < 1) or not 0 < self.t_min < 1:
            raise ValueError(
                f"Reflow: steps is {self.steps}, t_min {self.t_min}; expected at least 1 and a "
                "time in (0, 1). Correct them."
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(
                f"Reflow: dropout is {self.dropout}; expected a share in [0, 1). Change it."
            )
        if self.flows < 1 or (self.flows > 1 and not self.online):
            raise ValueError(
                f"Reflow: flows is {self.flows}, online {self.online}; expected 1, or more with "
                "online=True: stored pairs are of one teacher. Make pairs for each flow."
            )

    @property
    def roles(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("student", "teacher") if self.online else ("student",)

    @property
    def data(self) -> str:  # type: ignore[override]
        return "images" if self.kind == "flow" else "noise" if self.online else "pairs"

    @property
    def draws(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("eps", "u") if self.kind == "flow" else ("z", "u")

    def cost(self, dropout: bool = False) -> float:
        return 3.0  # online, the teacher's sampling comes on top

    def rounds(self) -> Iterator[Reflow]:
        for _ in range(self.flows):
            yield self

    def student(self, teacher: Denoiser) -> Denoiser:
        return with_dropout(
            teacher,
            self.dropout,
            schedule=Flow(),
            parameterisation=_FINITE.get(teacher.parameterisation, teacher.parameterisation),
            time=_FINITE.get(teacher.time, teacher.time),
            sampling=self.sampling(teacher),
        )

    def cast(self, teacher: Denoiser, student: Denoiser | None = None) -> Nets:
        """The teacher stays on its own path, where its sampler has its grid."""
        nets = Nets({"student": self.student(teacher) if student is None else student})
        if self.online:
            nets["teacher"] = teacher.copy()
        return nets

    def sampling(self, student: Denoiser) -> Sampling:
        if self.kind == "distill":
            return Sampling("ddim", steps=self.steps or 1, clip=1.0)
        return Sampling("ddim", steps=self.steps or 20)

    def check(self, nets: Nets) -> None:
        super().check(nets)
        if nets.student.schedule != Flow():
            raise ValueError(
                f"Reflow: the student is on {nets.student.schedule}; expected Flow(), whose paths "
                "are straight. Use student.copy(schedule=Flow())."
            )
        if self.online:
            samplers.check_deterministic(nets.teacher.sampling, "Reflow")

    def loss(self, phase: str, nets: Nets, batch: Batch) -> Tensor:
        student = nets.student
        x1 = batch.eps if self.kind == "flow" else batch.z
        x0 = self._teach(nets.teacher, batch) if self.online else batch.x0
        t = self._times(batch.u[:, 0])
        guess = student(student.schedule.noise(x0, x1, t), t, batch.label)
        return per_image_mean(ERRORS[self.error](guess.velocity, x1 - x0, reduction="none"))

    def _times(self, u: Tensor) -> Tensor:
        if self.kind == "distill":
            steps = self.steps or 1
            return ((u * steps).floor() + 1) / steps
        return self.t_min + (1 - self.t_min) * u

    def _teach(self, teacher: Denoiser, batch: Batch) -> Tensor:
        with torch.no_grad():
            # As a store holds them.
            return samplers.sample(teacher, batch.z, batch.label).clamp(-1, 1)
