"""Regress the teacher's image from its noise, in one step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from kdgen import samplers
from kdgen.denoiser import Denoiser, Sampling
from kdgen.methods.base import Batch, Method, Nets, per_image_mean, without_dropout

FORMS = ("residual", "x0")
ERRORS = {"l1": F.l1_loss, "l2": F.mse_loss, "huber": F.smooth_l1_loss}


@dataclass(frozen=True)
class DenoisingStudent(Method):
    """x0 of one evaluation at t = 1 against the teacher's deterministic sample. Luhman & Luhman
    2021, arXiv:2101.02388.

    The pairs (z, x0) come from a store made once (`kdgen.pairs`), or, with `online`, from the
    teacher as training goes: the way `how` (default: the teacher's own) says. `form` is the
    student's output: "residual" reads the network as z − F(z), the paper's; "x0" as the image
    itself. The released CIFAR-10 run used l1, CelebA and LSUN l2; both were summed over pixels,
    here they are means (Adam sees it only through its eps, which the published recipes scale).
    """

    name: ClassVar[str] = "denoising_student"
    trains: ClassVar[Mapping[str, str]] = {"main": "student"}
    draws: ClassVar[tuple[str, ...]] = ("z",)

    error: Literal["l1", "l2", "huber"] = "l1"
    form: Literal["residual", "x0"] = "residual"
    online: bool = False
    how: Sampling | None = None

    def __post_init__(self) -> None:
        for what, value, known in (("error", self.error, ERRORS), ("form", self.form, FORMS)):
            if value not in known:
                raise ValueError(
                    f"DenoisingStudent: unknown {what} {value!r}; expected {', '.join(known)}. "
                    "Pick one."
                )

    @property
    def roles(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("student", "teacher") if self.online else ("student",)

    @property
    def data(self) -> str:  # type: ignore[override]
        return "noise" if self.online else "pairs"

    def cost(self, dropout: bool = False) -> float:
        return 3.0

    def student(self, teacher: Denoiser) -> Denoiser:
        """A copy of the teacher, without its dropout, that is read as a one-step generator."""
        sampling = Sampling("ddim", steps=1, clip=1.0)
        return without_dropout(teacher, parameterisation=self.form, sampling=sampling)

    def loss(self, phase: str, nets: Nets, batch: Batch) -> Tensor:
        student = nets.student
        target = self._teach(nets.teacher, batch) if self.online else batch.x0
        guess = student(student.schedule.start(batch.z, 1.0), 1.0, batch.label).x0
        return per_image_mean(ERRORS[self.error](guess, target, reduction="none"))

    def _teach(self, teacher: Denoiser, batch: Batch) -> Tensor:
        how = self.how or teacher.sampling
        samplers.check_deterministic(how, "DenoisingStudent")
        with torch.no_grad():
            return samplers.sample(teacher, batch.z, batch.label, how).clamp(-1, 1)
