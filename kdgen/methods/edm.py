"""Train a teacher on noise levels that matter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kdgen.data.augment import LABELS, UNIFORMS, augment
from kdgen.denoiser import SIGMA_DATA, Denoiser
from kdgen.methods.base import Batch, Method, Nets, per_image_mean
from kdgen.schedules import EDM


@dataclass(frozen=True)
class Edm(Method):
    """Denoise at log-normal noise levels. Karras et al. 2022, arXiv:2206.00364, §5 and table 1.

    ln sigma ~ N(p_mean, p_std²); the squared error of x0, divided by its variance for a network
    that puts out zeros, so that every level starts with a loss of 1. The mean over pixels, where
    the paper sums: Adam sees it only through its eps, which the published recipes scale; a clipped
    gradient does.

    `augment` is the probability of each change of `data.augment` (0.12 for CIFAR-10, 0.15 for
    faces); the network is told what was done, and needs `augments=9`. It mirrors half of the
    images itself, so leave the loop's own mirroring off.
    """

    name: ClassVar[str] = "edm"
    roles: ClassVar[tuple[str, ...]] = ("student",)
    trains: ClassVar[Mapping[str, str]] = {"main": "student"}
    draws: ClassVar[tuple[str, ...]] = ("eps", "u")
    uniforms: ClassVar[int] = 1 + UNIFORMS

    p_mean: float = -1.2
    p_std: float = 1.2
    augment: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.augment <= 1 or self.p_std <= 0:
            raise ValueError(
                f"Edm: augment is {self.augment}, p_std {self.p_std}; expected a probability and a "
                "number above 0. Correct them."
            )

    def cost(self, dropout: bool = False) -> float:
        return 3.0

    def student(self, teacher: Denoiser) -> Denoiser:
        """A copy on the path this method knows, with the dropout it has."""
        known = isinstance(teacher.schedule, EDM)
        return teacher.copy(schedule=teacher.schedule if known else EDM())

    def check(self, nets: Nets) -> None:
        super().check(nets)
        student = nets.student
        if not isinstance(student.schedule, EDM):
            raise ValueError(
                f"Edm: the student's schedule is {student.schedule.name}; expected edm, where "
                "sigma is what the loss draws. Use student.copy(schedule=EDM())."
            )
        told = getattr(getattr(student.net, "facts", None), "augments", 0)
        if self.augment and told != LABELS:
            raise ValueError(
                f"Edm: augment is {self.augment}, but the network takes {told} augmentation "
                f"labels; expected {LABELS}. Build it with augments={LABELS}."
            )

    def loss(self, phase: str, nets: Nets, batch: Batch) -> Tensor:
        student = nets.student
        sigma = (self.p_mean + self.p_std * torch.special.ndtri(batch.u[:, 0])).exp()
        t = sigma / student.schedule.levels(1.0)[1]
        x0, labels = batch.x0, None
        if self.augment:
            x0, labels = augment(x0, batch.u[:, 1:], self.augment)
        x_t = student.schedule.noise(x0, batch.eps, t)
        error = student(x_t, t, batch.label, labels).x0 - x0
        weight = (sigma.square() + SIGMA_DATA**2) / (SIGMA_DATA * sigma).square()
        loss: Tensor = weight * per_image_mean(error.square())
        return loss
