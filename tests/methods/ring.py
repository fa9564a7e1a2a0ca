"""Eight narrow Gaussians on a ring: the smallest data whose denoiser is known and not linear."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kdgen import noise
from kdgen.denoiser import Denoiser, Sampling
from kdgen.ema import Ema
from kdgen.methods import Method
from kdgen.nets import exact
from kdgen.schedules import NoiseSchedule
from kdgen.training import Training, fit

SHAPE = (2, 1, 1)
RADIUS, STD = 0.75, 0.05  # a deviation of 0.53 per coordinate, natural images' 0.5
_EXACT, _SLICES = 1000, 1001  # streams of the reference points and of the projections


def teacher(schedule: NoiseSchedule, sampling: Sampling | None = None) -> exact.Mixture:
    """The exact denoiser of the ring."""
    return exact.Mixture(schedule, _means(), STD, sampling=sampling)


def _means() -> Tensor:
    angle = torch.arange(8) * (math.pi / 4)
    return RADIUS * torch.stack([angle.cos(), angle.sin()], 1).view(8, *SHAPE)


def points(count: int, seed: int) -> Tensor:
    """(count, 2, 1, 1) of the data."""
    index = noise.addresses(0, count)
    which = noise.classes(seed, _EXACT, index, 8)
    return _means()[which] + STD * noise.normal(seed, _EXACT + 10, index, SHAPE)


def normal(count: int, seed: int) -> Tensor:
    """(count, 2, 1, 1) unit noise."""
    return noise.normal(seed, noise.Stream.SAMPLE, noise.addresses(0, count), SHAPE)


def distance(x: Tensor, y: Tensor) -> float:
    """Sliced Wasserstein distance of order 2 of two equally large sets, along 32 directions."""
    angle = (torch.arange(32) + 0.5) * (math.pi / 32)
    along = torch.stack([angle.cos(), angle.sin()])  # (2, 32)
    a, b = (p.flatten(1).double() @ along.double() for p in (x, y))
    return float((a.sort(0).values - b.sort(0).values).square().mean().sqrt())


@dataclass(frozen=True)
class Points:
    """Images for `fit`."""

    x0: Tensor

    def __len__(self) -> int:
        return len(self.x0)

    def take(self, index: Tensor) -> tuple[Tensor, None]:
        return self.x0[index], None


@dataclass(frozen=True)
class Pairs:
    """Pairs of noise and image for `fit`."""

    z: Tensor
    x0: Tensor
    kind: str = "pairs"

    def __len__(self) -> int:
        return len(self.x0)

    def take(self, index: Tensor) -> tuple[Tensor, Tensor, None]:
        return self.z[index], self.x0[index], None


class Perceptron(nn.Module):
    """Three hidden layers of 128 that see the point and waves of ln(sigma/alpha); it reads the time
    "angle", which is finite on every path."""

    classes = 0
    shape = SHAPE

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            wide = [nn.Linear(2 + 16, 128), nn.Linear(128, 128), nn.Linear(128, 128)]
            layers = [part for layer in wide for part in (layer, nn.SiLU())]
            self.layers = nn.Sequential(*layers, nn.Linear(128, 2))

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        angle = time * (math.pi / 2000)
        # Nothing changes beyond sigma/alpha = 90: a flow's last time is then near the others.
        level = (angle.sin() / angle.cos().clamp(min=1e-6)).clamp(1e-3, 90).log()
        phases = level[:, None] * 0.3 * torch.arange(1, 9).to(level)
        seen = torch.cat([x.flatten(1), phases.sin(), phases.cos()], 1)
        return self.layers(seen).view(x.shape)

    def config(self) -> dict[str, Any]:
        return {}


def student(schedule: NoiseSchedule, parameterisation: str, seed: int = 0) -> Denoiser:
    """An untrained one."""
    return Denoiser(Perceptron(seed), schedule, parameterisation, "angle")


def train(
    method: Method,
    nets: Mapping[str, Denoiser | exact.Mixture],
    source: Points | Pairs | None,
    steps: int,
    lr: float = 2e-3,
    seed: int = 0,
    **changes: Any,
) -> Denoiser:
    """The raw student after `steps` updates a round, the learning rate falling to 0 in each."""
    how = {"batch": 256, "decay": "cosine", "ema": Ema.none(), "log_every": 1000, **changes}
    for step in fit(method, nets, source, Training(steps, lr=lr, seed=seed, **how)):  # noqa: B007
        pass
    return step.nets.student
