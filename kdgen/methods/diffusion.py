"""Train a teacher: denoise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from kdgen.denoiser import Prediction
from kdgen.methods.base import Batch, Method, Nets, per_image_mean

UNITS = ("eps", "x0", "v")


@dataclass(frozen=True)
class Diffusion(Method):
    """Predict what was added. Ho et al. 2020, arXiv:2006.11239, eq. 14, and its relatives.

    The squared error of `error` ("eps": DDPM; "x0"; "v") per pixel. `discrete` (an integer n) draws
    t from {1/n, …, 1} as DDPM does; None draws t uniformly from (0, 1]. `label_dropout` is the
    share of labels replaced by "no class", which classifier-free guidance needs (Ho & Salimans
    2022, arXiv:2207.12598).
    """

    name: ClassVar[str] = "diffusion"
    roles: ClassVar[tuple[str, ...]] = ("student",)
    trains: ClassVar[Mapping[str, str]] = {"main": "student"}
    draws: ClassVar[tuple[str, ...]] = ("eps", "u")

    error: Literal["eps", "x0", "v"] = "eps"
    discrete: int | None = None
    label_dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.error not in UNITS:
            raise ValueError(
                f"Diffusion: unknown error {self.error!r}; expected {', '.join(UNITS)}. Pick one."
            )
        if (self.discrete is not None and self.discrete < 1) or not 0 <= self.label_dropout <= 1:
            raise ValueError(
                f"Diffusion: discrete is {self.discrete}, label_dropout {self.label_dropout}; "
                "expected at least 1 (or None) and a share in [0, 1]. Correct them."
            )

    def loss(self, phase: str, nets: Nets, batch: Batch) -> Tensor:
        student = nets.student
        t = self._times(batch.u[:, 0])
        x_t = student.schedule.noise(batch.x0, batch.eps, t)
        guess = student(x_t, t, self._labels(batch))
        # The answer as a perfect prediction, so that every unit comes from the same conversions.
        answer = Prediction(x_t, batch.x0, guess.levels, eps=batch.eps)
        return per_image_mean((getattr(guess, self.error) - getattr(answer, self.error)).square())

    def _times(self, u: Tensor) -> Tensor:
        if self.discrete is None:
            return 1 - u  # u is never 0 or 1, so t is never 0
        return ((u * self.discrete).floor() + 1).clamp(max=self.discrete) / self.discrete

    def _labels(self, batch: Batch) -> Tensor | None:
        if batch.label is None or not self.label_dropout:
            return batch.label
        return torch.where(batch.u[:, 1] < self.label_dropout, -1, batch.label)
