"""Bend a flow that has caught up into a one-step generator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kdgen.denoiser import Denoiser, Sampling
from kdgen.methods.base import Batch, Method, Nets, per_image_mean, without_dropout
from kdgen.schedules import Flow

# Where along the teacher's chain of TRAJECTORY Euler steps the pairs of the three stages are taken.
TRAJECTORY, STAGES = 16, (8, 11, 14)


@dataclass(frozen=True)
class CatchUpOneStep(Method):
    """One evaluation from pure noise against the image that the teacher predicts part of the way
    along its trajectory. The extra training of Shao et al. 2023, arXiv:2305.10769.

    Pairs are (z, `solvers.prediction_along(teacher, z, TRAJECTORY, k)`), where k is STAGES in turn:
    one run on each, the first from the flow, each other from the run before. `anchor` weighs how
    far the student's velocity at z may leave that of the flow it began as, its frozen teacher.
    """

    name: ClassVar[str] = "catch_up_one_step"
    data: ClassVar[str] = "pairs"
    draws: ClassVar[tuple[str, ...]] = ("z",)

    anchor: float = 0.1

    def __post_init__(self) -> None:
        if self.anchor < 0:
            raise ValueError(
                f"CatchUpOneStep: anchor is {self.anchor}; expected at least 0. Raise it."
            )

    def cost(self, dropout: bool = False) -> float:
        return 4.0

    def student(self, teacher: Denoiser) -> Denoiser:
        """A copy of the teacher, as a flow without dropout: regression under it would learn
        another function than the one that is sampled."""
        return without_dropout(teacher, schedule=Flow(), sampling=self.sampling(teacher))

    def check(self, nets: Nets) -> None:
        super().check(nets)
        for role in self.roles:
            if not isinstance(nets[role].schedule, Flow):
                raise ValueError(
                    f"CatchUpOneStep: the {role} is on {nets[role].schedule.name}; expected flow. "
                    f"Use {role}.copy(schedule=Flow())."
                )

    def sampling(self, student: Denoiser) -> Sampling:
        return Sampling("ddim", steps=1, clip=1.0)

    def loss(self, phase: str, nets: Nets, batch: Batch) -> Tensor:
        guess = nets.student(batch.z, 1.0, batch.label)
        with torch.no_grad():
            began = nets.teacher(batch.z, 1.0, batch.label).velocity
        loss = per_image_mean((guess.x0 - batch.x0).square())
        return loss + self.anchor * per_image_mean((guess.velocity - began).square())
