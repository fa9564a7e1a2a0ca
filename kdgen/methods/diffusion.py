"""Train a teacher: denoise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from kdgen.denoiser import Prediction
from kdgen.methods.base import Batch, Method, Nets
from kdgen.methods.errors import check_error, error


@dataclass(frozen=True)
class Diffusion(Method):
    """Predict what was added. Ho et al. 2020, arXiv:2006.11239, eq. 14, and its relatives.

    `error` is the unit or the weight of the squared error per pixel, whatever the network predicts:
    "eps" (or "snr": DDPM's), "x0" ("constant"), "v" ("snr+1"), or Salimans & Ho 2022's "truncated",
    the larger of those of x0 and eps. `discrete` (an integer n) draws t from {1/n, …, 1} as DDPM
    does; None draws t uniformly from (0, 1]. `antithetic` gives image 2k + 1 of a run the time of
    image 2k, mirrored at the middle of the schedule (index n − 1 − i for i), as the released code
    of Song et al. 2020, arXiv:2010.02502, does; where its partner is not in the same batch, an
    image keeps its own. `label_dropout` is the share of labels replaced by "no class", which
    classifier-free guidance needs (Ho & Salimans 2022, arXiv:2207.12598).
    """

    name: ClassVar[str] = "diffusion"
    roles: ClassVar[tuple[str, ...]] = ("student",)
    draws: ClassVar[tuple[str, ...]] = ("eps", "u")

    error: Literal["eps", "x0", "v", "truncated", "snr", "constant", "snr+1"] = "eps"
    discrete: int | None = None
    label_dropout: float = 0.0
    antithetic: bool = False

    def __post_init__(self) -> None:
        check_error("Diffusion", "error", self.error)
        if (self.discrete is not None and self.discrete < 1) or not 0 <= self.label_dropout <= 1:
            raise ValueError(
                f"Diffusion: discrete is {self.discrete}, label_dropout {self.label_dropout}; "
                "expected at least 1 (or None) and a share in [0, 1]. Correct them."
            )

    def cost(self, dropout: bool = False) -> float:
        return 3.0

    def loss(self, phase: str, nets: Nets, batch: Batch) -> Tensor:
        student = nets.student
        u = batch.u[:, 0]
        t = self._times(_mirrored(u, batch.index) if self.antithetic else u)
        x_t = student.schedule.noise(batch.x0, batch.eps, t)
        guess = student(x_t, t, self._labels(batch))
        # The answer as a perfect prediction, so that every unit comes from the same conversions.
        answer = Prediction(x_t, batch.x0, guess.levels, eps=batch.eps)
        return error(guess, answer, self.error)

    def _times(self, u: Tensor) -> Tensor:
        if self.discrete is None:
            return 1 - u  # u is never 0 or 1, so t is never 0
        return ((u * self.discrete).floor() + 1).clamp(max=self.discrete) / self.discrete

    def _labels(self, batch: Batch) -> Tensor | None:
        if batch.label is None or not self.label_dropout:
            return batch.label
        return torch.where(batch.u[:, 1] < self.label_dropout, -1, batch.label)


def _mirrored(u: Tensor, index: Tensor) -> Tensor:
    """u (B,), with 1 − u of image 2k for image 2k + 1, wherever in the batch the two stand."""
    partner = (index[:, None] % 2 == 1) & (index[:, None] - 1 == index)  # (B, B), one a row at most
    theirs = torch.where(partner, u, 0).sum(1)
    # Below 1, as every u, also where 1 − u rounds to it.
    return torch.where(partner.any(1), (1 - theirs).clamp(max=1 - 2**-24), u)
