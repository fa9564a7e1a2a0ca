"""Let a flow agree with what it will say a moment later, while it is being learned."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from kdgen.denoiser import Denoiser, Sampling
from kdgen.methods.base import GENERATORS, Batch, Method, Nets, drops, per_image_mean
from kdgen.nets import UNet
from kdgen.nets.coupling import Coupling, encoder
from kdgen.schedules import Flow, expand

START = 1e-5  # no time is below it
LAWS = ("uniform", "rule", "origin")
SOLVERS = ("ddim", "velocity_heun", "dpm", "rk45")

Slope = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Table:
    """A family of Runge-Kutta steps from (x, t) towards the data that share their slopes.

    Slope 1 is at (x, t). stages[j − 2] are the weights, in units of h, of the move from x to where
    slope j is taken, at t − (j − 1)·h. landings[i − 1] are those of the step to t − i·h.
    """

    stages: tuple[tuple[float, ...], ...]
    landings: tuple[tuple[float, ...], ...]

    @property
    def heads(self) -> int:
        """How many steps; each is learned by its own output."""
        return len(self.landings)

    def positions(
        self, slope: Slope, x: Tensor, t: Tensor, h: Tensor, first: Tensor | None = None
    ) -> list[Tensor]:
        """Where the steps from x (B, …) at t (B,) land; `first` is slope(x, t) where it is
        known."""
        slopes = [slope(x, t) if first is None else first]
        for j, row in enumerate(self.stages, 1):
            slopes.append(slope(_moved(x, h, row, slopes), t - j * h))
        return [_moved(x, h, row, slopes) for row in self.landings]


def _moved(x: Tensor, h: Tensor, row: Sequence[float], slopes: list[Tensor]) -> Tensor:
    terms = (w * k for w, k in zip(row, slopes, strict=True) if w)
    return x - expand(h, x) * torch.stack(list(terms)).sum(0)


_THIRD = (5 / 12, 2 / 3, -1 / 12)
TABLES: dict[str, Table] = {
    "rk12": Table((), ((1.0,),)),
    "rk23": Table(((1.0,),), ((1 / 2, 1 / 2), (1.0, 1.0))),
    # As released: its first step is of order 2 (Σ b·a·c is −1/48, not 1/6), the others of order 1.
    "rk34": Table(((1.0,), (7 / 4, 1 / 4)), tuple(tuple(i * b for b in _THIRD) for i in (1, 2, 3))),
    # Σ b·a·c = 1/6 makes the first step order 3; the others, of their own weights, are of order 2.
    "rk34_corrected": Table(
        ((1.0,), (4.0, -2.0)), (_THIRD, (1 / 3, 4 / 3, 1 / 3), (3 / 4, 0.0, 9 / 4))
    ),
}


@dataclass(frozen=True)
class CatchUp(Method):
    """Catch-up distillation: Shao et al. 2023, arXiv:2305.10769. It needs no teacher.

    Every output of the student, a rectified flow, learns x1 − x0 (weight weights[1]) and what the
    first output says where a step of `table` lands (weights[0]); as the data is nearer than the
    last of these steps, x1 − x0 again. `ramp` moves the weight from the former to the latter as the
    round goes on. The step h is drawn by `law`: "uniform" below 1/scale, "rule" t/scale, "origin"
    1/scale. `discrete` draws t from {1/scale, …, 1} and h as a whole number of those: 1 ("origin"),
    or 1 … t·scale ("uniform").

    The slopes are those of the student itself as it trains, dropout included, or, with
    `target="ema"`, of an average that keeps the share `keep` of itself in every update.

    `coupling` trains an encoder with the student (`nets.coupling`): the noise of an image is drawn
    around the mean that it gives, at the price of `beta` times its divergence from N(0, 1).
    `phi` is the network's `skip_gain`, the paper's prior ShakeDrop; they must agree, since the same
    weights mean another function without it. `solver` and `steps` say how the student is sampled:
    8 steps of "velocity_heun" are 15 evaluations, "rk45" chooses its own. It gives the last
    output's image.

    The wavelet term that the paper adds on ImageNet is not here.
    """

    name: ClassVar[str] = "catch_up"
    draws: ClassVar[tuple[str, ...]] = ("eps", "u")
    uniforms: ClassVar[int] = 2

    table: Literal["rk12", "rk23", "rk34", "rk34_corrected"] = "rk12"
    law: Literal["uniform", "rule", "origin"] = "uniform"
    scale: int = 16
    discrete: bool = False
    weights: tuple[float, float] = (1.0, 1.0)
    ramp: bool = False
    target: Literal["online", "ema"] = "online"
    keep: float = 0.9999
    coupling: bool = False
    beta: float = 20.0
    phi: float | None = None
    solver: Literal["ddim", "velocity_heun", "dpm", "rk45"] = "ddim"
    steps: int = 16

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", tuple(self.weights))  # JSON gives a list
        for what, known in (
            ("table", tuple(TABLES)),
            ("law", LAWS),
            ("target", ("online", "ema")),
            ("solver", SOLVERS),
        ):
            if (value := getattr(self, what)) not in known:
                raise ValueError(
                    f"CatchUp: unknown {what} {value!r}; expected {', '.join(known)}. Pick one."
                )
        self._check_numbers()

    def _check_numbers(self) -> None:
        if self.discrete and self.law == "rule":
            raise ValueError(
                "CatchUp: discrete with law 'rule', whose t/scale is no whole number of steps; "
                "expected 'uniform' or 'origin'. Pick one."
            )
        if min(self.scale, self.steps) < 1 or len(self.weights) != 2 or min(self.weights) < 0:
            raise ValueError(
                f"CatchUp: scale is {self.scale}, steps {self.steps}, weights {self.weights}; "
                "expected at least 1, and two weights of at least 0. Correct them."
            )
        if not 0 <= self.keep < 1 or self.beta < 0:
            raise ValueError(
                f"CatchUp: keep is {self.keep}, beta {self.beta}; expected a share below 1 and at "
                "least 0. Correct them."
            )

    @property
    def roles(self) -> tuple[str, ...]:  # type: ignore[override]
        more = {"target": self.target == "ema", "encoder": self.coupling}
        return ("student", *(role for role, needed in more.items() if needed))

    @property
    def trains(self) -> Mapping[str, tuple[str, ...]]:  # type: ignore[override]
        return {"main": ("student", "encoder") if self.coupling else ("student",)}

    @property
    def heads(self) -> int:
        """Outputs of the student."""
        return TABLES[self.table].heads

    def cost(self, dropout: bool = False) -> float:
        # A student that drops nothing and is its own target knows slope 1.
        known = self.target == "online" and not dropout
        return 3.0 + 2.0 * self.heads - known

    def student(self, teacher: Denoiser) -> Denoiser:
        """The teacher as a flow with as many outputs as the table has steps, its dropout kept."""
        net = teacher.net
        net = net.copy(outputs=self.heads) if isinstance(net, UNet) else copy.deepcopy(net)
        return teacher.copy(schedule=Flow(), net=net, sampling=self.sampling(teacher))

    def cast(self, teacher: Denoiser, student: Denoiser | None = None) -> Nets:
        nets = super().cast(teacher, student)
        if self.coupling:
            net = nets.student.net
            if not isinstance(net, UNet):
                raise ValueError(
                    f"CatchUp: no encoder is known beside a {type(net).__name__}; expected a UNet. "
                    "Pass the role 'encoder', a nets.coupling.Coupling."
                )
            nets["encoder"] = encoder(net)  # type: ignore[assignment]
        return nets

    def check(self, nets: Nets) -> None:
        super().check(nets)
        student = nets.student
        if not isinstance(student.schedule, Flow):
            raise ValueError(
                f"CatchUp: the student is on {student.schedule.name}; expected flow. Use "
                "student.copy(schedule=Flow())."
            )
        if student.heads != self.heads:
            raise ValueError(
                f"CatchUp: the student has {student.heads} outputs; expected {self.heads} for "
                f"{self.table}. Copy its network with outputs={self.heads}."
            )
        form = getattr(student, "parameterisation", None)  # the exact denoisers have none
        if form in GENERATORS:
            raise ValueError(
                f"CatchUp: the student is read as {form!r}, which goes to the image in one step; "
                "expected a denoiser at every t. Start from the teacher it was made from."
            )
        self._check_phi(student)

    def _check_phi(self, student: Denoiser) -> None:
        gain = getattr(getattr(student.net, "facts", None), "skip_gain", None)
        if gain != self.phi:
            raise ValueError(
                f"CatchUp: a catch-up checkpoint without its phi: the student's skip_gain is "
                f"{gain}, phi {self.phi}; expected the same. Set phi to what it was trained with."
            )

    def sampling(self, student: Denoiser) -> Sampling:
        return replace(student.sampling, sampler=self.solver, steps=self.steps, grid="uniform")

    def keeps(self, progress: float) -> float:
        return self.keep

    def loss(self, phase: str, nets: Nets, batch: Batch) -> Tensor:
        student = nets.student
        x1, loss = self._noise(nets, batch)
        t, h = self._times(batch.u)
        x_t = student.schedule.noise(batch.x0, x1, t)
        heads = [guess.velocity for guess in student.outputs(x_t, t, batch.label)]
        with torch.no_grad():
            later = self._later(nets, batch.label, x_t, t, h, heads[0])
        straight = x1 - batch.x0
        near = expand(t < START + self.heads * h, straight)
        catch_up, flow = self._weights(batch.progress)
        for velocity, answer in zip(heads, later, strict=True):
            gap = velocity - torch.where(near, straight, answer)
            loss = loss + catch_up * per_image_mean(gap.square())
            loss = loss + flow * per_image_mean((velocity - straight).square())
        return loss

    def _noise(self, nets: Nets, batch: Batch) -> tuple[Tensor, Tensor]:
        """(the noise of every image, what drawing it costs (B,))."""
        if not self.coupling:
            return batch.eps, torch.zeros_like(batch.u[:, 0])
        coupled: Coupling = nets.encoder  # type: ignore[assignment]
        mean, logvar = coupled(batch.x0, batch.label)
        divergence = 0.5 * per_image_mean(mean.square() + logvar.exp() - 1 - logvar)
        return mean + (0.5 * logvar).exp() * batch.eps, self.beta * divergence

    def _times(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """(t, h), (B,) each."""
        n = self.scale
        if self.discrete:
            i = ((u[:, 0] * n).floor() + 1).clamp(max=n)
            most = i if self.law == "uniform" else torch.ones_like(i)
            return i / n, ((u[:, 1] * most).floor() + 1).clamp(max=most) / n
        t = START + (1 - START) * u[:, 0]
        if self.law == "uniform":
            return t, u[:, 1] / n
        return t, t / n if self.law == "rule" else torch.full_like(t, 1 / n)

    def _weights(self, progress: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """Of the two errors."""
        catch_up, flow = self.weights
        if self.ramp:
            return catch_up * 2 * progress, flow * 2 * (1 - progress)
        return catch_up, flow

    def _later(
        self, nets: Nets, label: Tensor | None, x_t: Tensor, t: Tensor, h: Tensor, first: Tensor
    ) -> list[Tensor]:
        """The first output's velocity where the table's steps land; `first` is the student's at
        x_t."""
        net = nets.target if self.target == "ema" else nets.student

        def slope(x: Tensor, at: Tensor) -> Tensor:
            return net.outputs(x, at.clamp(min=START), label)[0].velocity

        again = net.training and drops(net)
        known = first if self.target == "online" and not again else None
        landed = TABLES[self.table].positions(slope, x_t, t, h, known)
        return [slope(x, t - i * h) for i, x in enumerate(landed, 1)]
