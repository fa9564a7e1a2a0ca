"""Pull a one-step generator along the difference of two scores: the teacher's, and that of the
generator's own images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from kdgen.data.augment import LABELS, UNIFORMS, augment
from kdgen.denoiser import SIGMA_DATA, Denoiser, Prediction, Sampling
from kdgen.methods.base import GENERATORS, Batch, Method, Nets, per_image_mean
from kdgen.methods.errors import error
from kdgen.schedules import EDM, NoiseSchedule

PATHS = ("edm", "teacher")
# The error each kind of network was trained with, as the weight of `errors.error`. Off EDM's path.
WEIGHTS = {"eps": "snr", "score": "snr", "x0": "truncated", "both": "truncated"}


@dataclass(frozen=True)
class Sid(Method):
    """Score identity Distillation, without data. Zhou et al. 2024, arXiv:2404.04057, algorithm 1.

    The generator makes x_g = G(z) with the teacher's network in one evaluation, at the noise level
    `sigma_init` (sigma/alpha). Phase "fake" trains the denoiser f_psi on these images, as the
    teacher f_phi was trained on data: EDM's weighted error, ln sigma ~ N(p_mean, p_std²). Phase
    "generator" then noises new images, x_t = x_g + sigma·n, and minimises, through both frozen
    denoisers,

        w · <f_phi − f_psi, (f_phi − x_g) − alpha·(f_phi − f_psi)>,    w = 1 / mean |x_g − f_phi|,

    w per image and as a constant (`weighted`; False is w = 1). Its sigma lies on EDM's ramp between
    the shares t_min and t_max, uniformly: 0.8 is sigma 24.4. The paper sums over pixels, and
    multiplies this sum by 100; here they are means: Adam sees it only through its eps, which the
    published recipes scale, a clipped gradient does.

    The loss is no sign of convergence. With f_psi at its optimum its mean is
    (1 − alpha)·E||f_phi − f_psi||²: 0 for *any* generator at alpha = 1, and the more negative the
    worse the generator above that. Watch the gauge "score_gap", ||f_phi − f_psi||² per pixel.

    alpha: 1.2, the best of the paper on CIFAR-10 and ImageNet; 1.0 (AFHQ) and 0.5 are safer. At 0.5
    the gradient is exactly half that of the Fisher divergence; up to 1 it points the right way
    everywhere, at 1.2 not where the generator varies much more than the data. Some images have a
    tiny |x_g − f_phi| if they have few pixels; then w can make alpha = 1.2 diverge.

    `augment` is the probability of each change of `data.augment` to the images that the fake learns
    from: the teacher's own (0.12 for CIFAR-10), and 0 for one that was trained without.

    `path` "edm" takes any teacher to EDM's noise levels. "teacher" keeps its own schedule: then t
    is uniform between t_min (0.02, say) and t_max in both phases, and the fake is trained with the
    error of its parameterisation. A teacher's guidance is not distilled.
    """

    name: ClassVar[str] = "sid"
    roles: ClassVar[tuple[str, ...]] = ("student", "teacher", "fake")
    phases: ClassVar[tuple[str, ...]] = ("fake", "generator")
    trains: ClassVar[Mapping[str, str]] = {"fake": "fake", "generator": "student"}
    data: ClassVar[str] = "noise"
    draws: ClassVar[tuple[str, ...]] = ("z", "eps", "u")
    uniforms: ClassVar[int] = 1 + UNIFORMS
    graphs: ClassVar[int] = 3  # the generator's loss goes back through all three networks

    alpha: float = 1.2
    sigma_init: float = 2.5
    t_min: float = 0.0
    t_max: float = 0.8
    p_mean: float = -1.2
    p_std: float = 1.2
    weighted: bool = True
    augment: float = 0.0
    path: Literal["edm", "teacher"] = "edm"

    def __post_init__(self) -> None:
        if self.path not in PATHS:
            raise ValueError(
                f"Sid: unknown path {self.path!r}; expected {', '.join(PATHS)}. Pick one."
            )
        if not 0 <= self.alpha <= 2:
            raise ValueError(
                f"Sid: alpha is {self.alpha}; expected 0 to 2, or the gradient leads away from the "
                "teacher. Use 1.2, 1.0 or 0.5."
            )
        if not 0 <= self.t_min < self.t_max <= 1:
            raise ValueError(
                f"Sid: t_min is {self.t_min}, t_max {self.t_max}; expected 0 ≤ t_min < t_max ≤ 1. "
                "Correct them."
            )
        if not 0 <= self.augment <= 1:
            raise ValueError(
                f"Sid: augment is {self.augment}; expected a probability. Use the teacher's."
            )
        for name in ("sigma_init", "p_std"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(
                    f"Sid: {name} is {getattr(self, name)}; expected above 0. Raise it."
                )

    def cost(self, dropout: bool = False) -> float:
        """Fake: 1 (generator) + 3. Generator: 3, and 2 in each of the frozen two, whose inputs have
        gradients and whose weights have none."""
        return 1 + 3 + 3 + 2 + 2

    def student(self, teacher: Denoiser) -> Denoiser:
        """The teacher's network, with its dropout, read as a generator at `sigma_init`."""
        generator = teacher.copy(schedule=self._schedule(teacher))
        generator.sampling = self.sampling(generator)
        return generator

    def cast(self, teacher: Denoiser, student: Denoiser | None = None) -> Nets:
        """All three start from the teacher."""
        student = self.student(teacher) if student is None else student
        frozen, fake = (teacher.copy(schedule=student.schedule) for _ in range(2))
        return Nets({"student": student, "teacher": frozen, "fake": fake})

    def check(self, nets: Nets) -> None:
        super().check(nets)
        _check_score(nets.teacher)
        self._check_schedules(nets)
        told = getattr(getattr(nets.fake.net, "facts", None), "augments", 0)
        if self.augment and told != LABELS:
            raise ValueError(
                f"Sid: augment is {self.augment}, but the teacher's network takes {told} "
                f"augmentation labels; expected {LABELS}. Leave augment at 0."
            )

    def sampling(self, student: Denoiser) -> Sampling:
        """One evaluation, at sigma_init."""
        times = (self._first(student.schedule),)
        return Sampling("few_step", steps=1, times=times, clip=1.0)

    def loss(self, phase: str, nets: Nets, batch: Batch) -> Tensor:
        if phase == "fake":
            return self._fake_loss(nets, batch)
        x_g, teacher, fake = self._scores(nets, batch)
        gap, rest = teacher.x0 - fake.x0, teacher.x0 - x_g
        loss = per_image_mean(gap * (rest - self.alpha * gap))
        if not self.weighted:
            return loss
        return loss / per_image_mean(rest.detach().abs()).clamp(min=1e-5)

    def gauges(self, nets: Nets, batch: Batch) -> dict[str, Tensor]:
        """score_gap: the squared difference of the two denoisers per pixel, on the generator's
        images; 0 when they are the teacher's."""
        _, teacher, fake = self._scores(nets, batch)
        return {"score_gap": (teacher.x0 - fake.x0).square().mean()}

    def _fake_loss(self, nets: Nets, batch: Batch) -> Tensor:
        with torch.no_grad():
            x_g, labels = self._generate(nets.student, batch), None
            if self.augment:
                x_g, labels = augment(x_g, batch.u[:, 1:], self.augment)
        q = nets.fake.schedule
        t = self._fake_times(q, batch.u[:, 0])
        x_t = q.noise(x_g, batch.eps, t)
        guess = nets.fake(x_t, t, batch.label, labels)
        if isinstance(q, EDM):
            weight = q.snr(t) + SIGMA_DATA**-2  # Karras et al. 2022, arXiv:2206.00364, table 1
            return weight * per_image_mean((guess.x0 - x_g).square())
        answer = Prediction(x_t, x_g, guess.levels, eps=batch.eps)
        return error(guess, answer, WEIGHTS.get(nets.fake.parameterisation, "snr+1"))

    def _scores(self, nets: Nets, batch: Batch) -> tuple[Tensor, Prediction, Prediction]:
        """(x_g, f_phi(x_t), f_psi(x_t)), all with gradients down to the generator."""
        x_g = self._generate(nets.student, batch)
        q = nets.teacher.schedule
        t = self._times(q, batch.u[:, 0])
        x_t = q.noise(x_g, batch.eps, t)
        with _still(nets.teacher, nets.fake):
            return x_g, nets.teacher(x_t, t, batch.label), nets.fake(x_t, t, batch.label)

    def _generate(self, student: Denoiser, batch: Batch) -> Tensor:
        """x_g, unclipped: few_step's image with gradients everywhere."""
        t = self._first(student.schedule)
        x_g: Tensor = student(student.schedule.levels(t)[1] * batch.z, t, batch.label).x0
        return x_g

    def _times(self, q: NoiseSchedule, u: Tensor) -> Tensor:
        share = self.t_min + (self.t_max - self.t_min) * u
        return q.ramp(share) if isinstance(q, EDM) else share

    def _fake_times(self, q: NoiseSchedule, u: Tensor) -> Tensor:
        if not isinstance(q, EDM):
            return self._times(q, u)
        n: Tensor = torch.special.ndtri(u)
        sigma = (self.p_mean + self.p_std * n).exp()
        # One in a million lies beyond the teacher's last sigma.
        return sigma.clamp(q.sigma_min, q.sigma_max) / q.sigma_max

    def _first(self, q: NoiseSchedule) -> float:
        """The time of sigma_init."""
        return q.t_of_sigma(self.sigma_init)

    def _schedule(self, teacher: Denoiser) -> NoiseSchedule:
        q = teacher.schedule
        return q if self.path == "teacher" or isinstance(q, EDM) else EDM()

    def _check_schedules(self, nets: Nets) -> None:
        q = nets.student.schedule
        for role in ("teacher", "fake"):
            if nets[role].schedule != q:
                raise ValueError(
                    f"Sid: the {role} is on {nets[role].schedule}; expected {q} as the student. "
                    "Build the roles with cast()."
                )
        if self.path == "edm" and not isinstance(q, EDM):
            raise ValueError(
                f"Sid: the student is on {q.name}; expected edm. Build it with cast(), or set "
                "path='teacher'."
            )
        if not 0 < self._first(q) <= 1:
            raise ValueError(
                f"Sid: sigma_init is {self.sigma_init}; expected a sigma/alpha that {q.name} has. "
                "Lower it."
            )


@contextmanager
def _still(*denoisers: Denoiser) -> Iterator[None]:
    """Inside, gradients pass through these denoisers and leave their weights alone."""
    weights = [p for d in denoisers for p in d.parameters() if p.requires_grad]
    for p in weights:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in weights:
            p.requires_grad_(True)


def _check_score(teacher: Denoiser) -> None:
    """ValueError where the teacher is itself a one-step generator."""
    form, how = getattr(teacher, "parameterisation", None), teacher.sampling
    if form in GENERATORS or how.sampler == "few_step" or how.steps == 1:
        what = f"a {form!r} network" if form in GENERATORS else "a one-step or few-step generator"
        raise ValueError(
            f"Sid: the teacher is {what}, which says images and no score; expected a diffusion "
            "model. Start from one trained by the method 'diffusion'."
        )
