"""A network of a few hundred weights, data that fits a page, and methods that show what the loop
did."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from kdgen.denoiser import Denoiser, Sampling
from kdgen.ema import Ema
from kdgen.methods.base import Method, per_image_mean
from kdgen.schedules import Cosine, schedule
from kdgen.training import Training


class Net(nn.Module):
    """Two convolutions, a time shift and dropout."""

    def __init__(self, width: int = 4, dropout: float = 0.2, classes: int = 0) -> None:
        super().__init__()
        self.width, self.dropout, self.classes = width, dropout, classes
        self.shape = (1, 8, 8)
        self.inward = nn.Conv2d(1, width, 3, padding=1)
        self.time = nn.Linear(1, width)
        self.drop = nn.Dropout(dropout)
        self.out = nn.Conv2d(width, 1, 3, padding=1)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        if self.training:
            self.calls += 1
        h = self.inward(x) + self.time(time[:, None] / 1000)[:, :, None, None]
        return self.out(self.drop(torch.tanh(h)))

    def config(self) -> dict[str, Any]:
        return {"width": self.width, "dropout": self.dropout, "classes": self.classes}


def denoiser(seed: int = 0, **options: Any) -> Denoiser:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Denoiser(Net(**options), Cosine(), "v")


def build(config: dict[str, Any]) -> Denoiser:
    return Denoiser(
        Net(**config["net"]),
        schedule(**config["schedule"]),
        config["parameterisation"],
        config["time"],
        Sampling(**config["sampling"]),
    )


class Source:
    """Smooth random images."""

    name, digest, classes, shape = "toy", "0", 0, (1, 8, 8)

    def __init__(self, n: int = 50) -> None:
        grid = torch.linspace(-1, 1, 8)
        angle = torch.arange(n)[:, None, None]
        self.x0 = torch.sin(3 * grid[None, :, None] + angle) * torch.cos(grid * 2 - angle)
        self.taken: list[Tensor] = []

    def __len__(self) -> int:
        return len(self.x0)

    def take(self, index: Tensor) -> tuple[Tensor, None]:
        self.taken.append(index)
        return self.x0[index][:, None], None


@dataclass(frozen=True)
class Denoise(Method):
    """Mean squared error of v; `poison` maps a step's first position to what its loss is
    multiplied by."""

    name: ClassVar[str] = "toy"
    roles: ClassVar[tuple[str, ...]] = ("student",)

    poison: tuple[tuple[int, float], ...] = ()

    def loss(self, phase: str, nets: Any, batch: Any) -> Tensor:
        t = batch.u[:, 0]
        x_t = nets.student.schedule.noise(batch.x0, batch.eps, t)
        loss = per_image_mean((nets.student(x_t, t).x0 - batch.x0).square())
        for position, factor in self.poison:
            loss = loss * torch.where(batch.index == position, factor, 1.0)
        return loss


@dataclass(frozen=True)
class Duel(Method):
    """Two phases in the manner of SiD: a fake network follows the student, the student moves
    through both."""

    name: ClassVar[str] = "duel"
    roles: ClassVar[tuple[str, ...]] = ("student", "fake", "teacher")
    phases: ClassVar[tuple[str, ...]] = ("fake", "generator")
    trains: ClassVar[dict[str, str]] = {"fake": "fake", "generator": "student"}

    def loss(self, phase: str, nets: Any, batch: Any) -> Tensor:
        t = batch.u[:, 0]
        x0 = nets.student(batch.z, 1.0).x0
        if phase == "fake":
            x0 = x0.detach()
        x_t = nets.student.schedule.noise(x0, batch.eps, t)
        if phase == "fake":
            return per_image_mean((nets.fake(x_t, t).x0 - x0).square())
        return per_image_mean((nets.teacher(x_t, t).x0 - nets.fake(x_t, t).x0).square())


@dataclass(frozen=True)
class Halving(Method):
    """Three rounds against a teacher that is the student of the round before."""

    name: ClassVar[str] = "halving"

    level: float = 1.0

    def rounds(self) -> Any:
        for level in (1.0, 0.5, 0.25):
            yield Halving(level)

    def loss(self, phase: str, nets: Any, batch: Any) -> Tensor:
        with torch.no_grad():
            target = nets.teacher(batch.z, self.level).x0
        return per_image_mean((nets.student(batch.z, self.level).x0 - target).square())


@dataclass(frozen=True)
class Ensemble(Method):
    """Two roles trained by one loss, a target that follows the student, rounds of unequal length,
    a gauge and a sampling of their own."""

    name: ClassVar[str] = "ensemble"
    roles: ClassVar[tuple[str, ...]] = ("student", "teacher", "target", "helper")
    trains: ClassVar[dict[str, tuple[str, ...]]] = {"main": ("student", "helper")}
    uniforms: ClassVar[int] = 2

    level: float = 1.0

    def rounds(self) -> Any:
        for level in (1.0, 0.5):
            yield Ensemble(level)

    @property
    def length(self) -> float:
        return self.level

    def keeps(self, progress: float) -> float:
        return 0.5 + progress / 4

    def sampling(self, student: Denoiser) -> Sampling:
        return Sampling(steps=int(8 * self.level))

    def gauges(self, nets: Any, batch: Any) -> dict[str, Tensor]:
        assert not torch.is_grad_enabled()
        assert not any(nets[role].training for role in self.roles)
        return {"gap": (nets.student(batch.z, 1.0).x0 - nets.target(batch.z, 1.0).x0).abs().mean()}

    def loss(self, phase: str, nets: Any, batch: Any) -> Tensor:
        with torch.no_grad():
            wanted = nets.teacher(batch.z, 1.0).x0 + nets.target(batch.z, 1.0).x0
        both = nets.student(batch.z, 1.0).x0 + nets.helper(batch.z, 1.0).x0
        return per_image_mean((both - wanted).square()) + 0 * batch.u.sum(1)


def training(**changes: Any) -> Training:
    usual: dict[str, Any] = {
        "steps": 20,
        "batch": 8,
        "lr": 1e-2,
        "warmup": 3,
        "decay": "cosine",
        "ema": Ema.constant(0.9),
        "save_every": 5,
        "log_every": 3,
    }
    return Training(**{**usual, **changes})


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    """Tiny tensors; and forked children must not wait for the parent's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def toy() -> SimpleNamespace:
    return SimpleNamespace(
        Net=Net, Source=Source, Denoise=Denoise, Duel=Duel, Halving=Halving,
        Ensemble=Ensemble, denoiser=denoiser, build=build, training=training,
    )  # fmt: skip
