"""Averages of the weights along training: how much of the old average one step keeps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from kdgen.denoiser import Denoiser

KINDS = ("constant", "half_life", "power", "none")


@dataclass(frozen=True)
class Ema:
    """Which average of the weights is kept; use `Ema.constant`, `.half_life`, `.power` or `.none`.

    decay is kept per step; images is a half-life in training images, ramped up so that it never
    exceeds `ramp` times the images seen (Karras et al. 2022, arXiv:2206.00364; None for no ramp);
    gamma is the exponent of the power-function average (Karras et al. 2024, arXiv:2312.02696, eq.
    1).
    """

    kind: Literal["constant", "half_life", "power", "none"] = "constant"
    decay: float = 0.9999
    images: float = 500_000
    ramp: float | None = 0.05
    gamma: float = 6.94

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(
                f"Ema: unknown kind {self.kind!r}; expected {', '.join(KINDS)}. Pick one."
            )
        if not 0 <= self.decay < 1:
            raise ValueError(f"Ema: decay is {self.decay}; expected 0 ≤ decay < 1. Try 0.9999.")
        if self.images <= 0 or (self.ramp is not None and self.ramp <= 0):
            raise ValueError(
                f"Ema: images is {self.images}, ramp {self.ramp}; expected both above 0. Use "
                "ramp=None for no ramp."
            )
        if self.gamma <= 0:
            raise ValueError(f"Ema: gamma is {self.gamma}; expected above 0. Try sigma_rel=0.1.")

    @classmethod
    def constant(cls, decay: float = 0.9999) -> Ema:
        """Keeps `decay` of the average at each step."""
        return cls("constant", decay=decay)

    @classmethod
    def half_life(cls, images: float = 500_000, ramp: float | None = 0.05) -> Ema:
        """Half of the average is younger than `images` training images."""
        return cls("half_life", images=images, ramp=ramp)

    @classmethod
    def power(cls, gamma: float | None = None, sigma_rel: float | None = None) -> Ema:
        """Step n weighs like n to the power gamma; or give that profile's relative width."""
        if (gamma is None) == (sigma_rel is None):
            raise ValueError(
                f"Ema.power: gamma is {gamma}, sigma_rel {sigma_rel}; expected exactly one. Give "
                "one."
            )
        return cls("power", gamma=_gamma(sigma_rel) if gamma is None else gamma)  # type: ignore[arg-type]

    @classmethod
    def none(cls) -> Ema:
        """No average: the raw weights stand for it."""
        return cls("none")

    def kept(self, step: int, batch: int) -> float:
        """Share of the old average that update number `step` (from 1) keeps."""
        if self.kind == "constant":
            return self.decay
        if self.kind == "power":
            return math.pow(1 - 1 / step, self.gamma + 1)
        if self.kind == "half_life":
            seen = (step - 1) * batch
            images = self.images if self.ramp is None else min(self.images, seen * self.ramp)
            return math.pow(0.5, batch / images) if images > 0 else 0.0
        return 0.0


def _gamma(sigma_rel: float) -> float:
    """Exponent of the profile of relative width sigma_rel. Karras et al. 2024, eq. 127.

    sigma_rel² = (gamma + 1) / ((gamma + 2)² (gamma + 3)).
    """
    if not 0 < sigma_rel < math.sqrt(1 / 12):  # gamma = 0: a plain mean
        raise ValueError(
            f"Ema.power: sigma_rel is {sigma_rel}; expected between 0 and 0.288. Try 0.1."
        )
    inverse = sigma_rel**-2
    roots = np.roots([1, 7, 16 - inverse, 12 - inverse])
    return float(roots[np.isreal(roots)].real.max())


class Average:
    """A denoiser that follows another as an average of its weights: `follower`, or a copy made
    here."""

    def __init__(self, source: Denoiser, follower: Denoiser | None = None) -> None:
        follower = source.copy() if follower is None else follower
        self.denoiser = follower.eval().requires_grad_(False)
        self._source = source
        self._mine: list[Tensor] = list(self.denoiser.parameters())
        self._theirs: list[Tensor] = list(source.parameters())
        self._buffers = list(zip(self.denoiser.buffers(), source.buffers(), strict=True))
        # On the device, so that a graph reads what the host has set before it.
        self._taken = torch.zeros((), device=self._mine[0].device)

    def reset(self) -> None:
        """Start again from the weights followed."""
        self.denoiser.load_state_dict(self._source.state_dict())

    def keep(self, kept: float) -> None:
        """The share of the average that updates keep from now on."""
        self._taken.fill_(1 - kept)

    @torch.no_grad()
    def update(self, fault: Tensor) -> None:
        """Take in new weights, unless `fault`, a scalar on the device, says that the update was
        left out; buffers are copied."""
        taken = torch.where(fault == 0, self._taken, 0.0)
        weights = [taken.to(x.dtype).expand_as(x) for x in self._mine]
        torch._foreach_lerp_(self._mine, self._theirs, weights)
        for mine, theirs in self._buffers:
            mine.copy_(theirs)
