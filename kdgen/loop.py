"""What happens in one step of training, and in which order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from kdgen.batches import Batches, Source, check_source, split
from kdgen.denoiser import Denoiser
from kdgen.ema import Average
from kdgen.learner import Learner, Outcome
from kdgen.ledger import Ledger
from kdgen.methods.base import Batch, Method, Nets

if TYPE_CHECKING:
    from kdgen.training import Training


@dataclass(frozen=True)
class Step:
    """What the loop did last; tensors stay on the device until they are read.

    number counts finished updates from 1 over all rounds, of `steps`; round counts from 0. loss and
    grad_norm are those of the student's phase, `losses` and `grad_norms` have all by phase. nets
    and ema are live, not copies.
    """

    number: int
    steps: int
    round: int
    images: int
    lr: float
    losses: Mapping[str, Tensor]
    grad_norms: Mapping[str, Tensor]
    phase: str
    nets: Nets
    ema: Denoiser

    @property
    def loss(self) -> Tensor:
        """Mean over the batch, before the update."""
        return self.losses[self.phase]

    @property
    def grad_norm(self) -> Tensor:
        """Over all parameters, before clipping."""
        return self.grad_norms[self.phase]

    def every(self, n: int) -> bool:
        """Whether this is an n-th step."""
        return self.number % n == 0

    def __str__(self) -> str:
        return (
            f"step {self.number:,}/{self.steps:,} · loss {float(self.loss):.4g} · "
            f"grad {float(self.grad_norm):.3g} · lr {self.lr:.2g} · {self.images:,} images"
        )


class Saves(Protocol):
    """What the loop needs of who keeps its state."""

    def after(self, *, due: bool, last: bool) -> None:
        """Called when the caller is done with a step."""


class Loop:
    """The state of a training and its steps; `fit` is the way in."""

    def __init__(
        self,
        method: Method,
        nets: Mapping[str, Denoiser],
        source: Source | None,
        training: Training,
        device: torch.device | str | None,
    ) -> None:
        self.plan, self.training = list(method.rounds()), training
        check_nets(method, len(self.plan), nets)
        self.roles, self.phases = tuple(method.roles), tuple(method.phases)
        self.nets = Nets(nets)
        student = self.nets.student
        check_source(method, student, source, training.flip)
        self.device = next(student.parameters()).device if device is None else torch.device(device)
        for role in self.roles:
            self.nets[role].to(self.device)
        facts = student.shape, student.classes
        t = training
        self.batches = Batches(method, source, t.batch, t.seed, t.flip, self.device, *facts)
        trained = dict.fromkeys(method.trains[p] for p in self.phases)
        self.learners = {role: self._learner(role) for role in trained}
        self.average = None if t.ema.kind == "none" else Average(student, t.ema, t.batch)
        self.ledger = Ledger(self.phases, t, self.device)
        self.keeper: Saves | None = None
        self.done = 0  # updates finished, over all rounds
        self._active = ""  # the role being trained

    def _learner(self, role: str) -> Learner:
        t = self.training
        return Learner(role, self.nets[role], t.betas, t.adam_eps, t.weight_decay, t.clip)

    @property
    def total(self) -> int:
        """Updates in all rounds."""
        return len(self.plan) * self.training.steps

    @property
    def round(self) -> int:
        """The round that the last update belongs to."""
        return max(0, self.done - 1) // self.training.steps

    def steps(self) -> Iterator[Step]:
        """The generator that `fit` returns."""
        flags = [(p, p.requires_grad) for role in self.roles for p in self.nets[role].parameters()]
        try:
            if self.done == self.total:
                yield self._report()
            while self.done < self.total:
                self._advance()
                yield self._report()
                if self.keeper:
                    last = self.done == self.total
                    due = last or self.done % self.training.save_every == 0
                    self.keeper.after(due=due, last=last)
        finally:
            for p, flag in flags:
                p.requires_grad_(flag)

    def _advance(self) -> None:
        """One update of every phase."""
        k = self.done % self.training.steps  # updates done in this round
        if k == 0 and self.done:
            self._promote()
        outcomes = [self._update(phase, k) for phase in self.phases]
        if self.average is not None:
            self.average.update(k + 1, self._fault(outcomes))
        self.done += 1
        self.ledger.note(self.done, outcomes)
        self.ledger.read(last=self.done == self.total)

    def _fault(self, outcomes: list[Outcome]) -> Tensor:
        """0 if every update of the student was made."""
        roles = (self.plan[0].trains[phase] for phase in self.phases)
        faults = [o.fault for o, r in zip(outcomes, roles, strict=True) if r == "student"]
        return torch.stack(faults).amax() if faults else torch.zeros((), device=self.device)

    def _update(self, phase: str, k: int) -> Outcome:
        t, method = self.training, self.plan[self.done // self.training.steps]
        learner = self.learners[method.trains[phase]]
        self._activate(learner.role)
        learner.lr.fill_(t.rate(k))
        batch = self.batches(self.done, k / t.steps)
        with _seeded(_dropout_seed(t.seed, self.done, phase), self.device):
            return learner.update(
                split(batch, t.accumulate), t.batch, partial(self._loss, method, phase)
            )

    def _loss(self, method: Method, phase: str, batch: Batch) -> Tensor:
        # No cache: a weight cast under no_grad would be reused where gradients are wanted.
        bf16 = self.training.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16, cache_enabled=False):
            return method.loss(phase, self.nets, batch)

    def _activate(self, role: str) -> None:
        """Train `role` alone; gradients still pass through the others to their inputs."""
        if self._active != role:
            for name in self.roles:
                self.nets[name].requires_grad_(False)
            for p in self.learners[role].params.values():
                p.requires_grad_(True)
            self._active = role
        for name in self.roles:
            if self.nets[name].training != (name == role):  # the caller may have sampled in between
                self.nets[name].train(name == role)

    def _promote(self) -> None:
        """Start a round: the student becomes the teacher; moments and average start anew."""
        self.replace_teacher()
        for learner in self.learners.values():
            learner.reset()
        if self.average is not None:
            self.average.reset()

    def replace_teacher(self) -> None:
        """By a copy of the student's raw weights; the caller's own denoiser stays as it is."""
        self.nets["teacher"] = self.nets.student.copy().requires_grad_(False).eval()

    def _report(self) -> Step:
        losses, norms = self.ledger.last.unbind(1)
        return Step(
            number=self.done,
            steps=self.total,
            round=self.round,
            images=self.done * self.training.batch,
            lr=self.training.rate((self.done - 1) % self.training.steps),
            losses=dict(zip(self.phases, losses, strict=True)),
            grad_norms=dict(zip(self.phases, norms, strict=True)),
            phase=main_phase(self.plan[0]),
            nets=self.nets,
            ema=self.nets.student if self.average is None else self.average.denoiser,
        )


def main_phase(method: Method) -> str:
    """The last phase that trains the student."""
    return next(
        (p for p in reversed(method.phases) if method.trains[p] == "student"), method.phases[-1]
    )


def check_nets(method: Method, rounds: int, nets: Mapping[str, Denoiser]) -> None:
    """ValueError where denoisers are missing or do not fit the method or each other."""
    needed = ", ".join(method.roles)
    for role in method.roles:
        if role not in nets:
            given = ", ".join(nets) or "none"
            raise ValueError(
                f"fit: no role {role!r} among {given}; expected {needed} for {method.name}. Pass "
                "it in nets."
            )
    for phase in method.phases:
        if (trained := method.trains.get(phase)) not in method.roles:
            raise ValueError(
                f"fit: phase {phase!r} of {method.name} trains {trained!r}; expected one of "
                f"{needed}. Correct `trains`."
            )
    if len({id(nets[role]) for role in method.roles}) < len(method.roles):
        raise ValueError(
            "fit: two roles share one denoiser; expected one each. Use denoiser.copy()."
        )
    student = nets["student"]
    for role in method.roles:
        theirs, mine = (nets[role].shape, nets[role].classes), (student.shape, student.classes)
        if theirs != mine:
            raise ValueError(
                f"fit: {role} has (shape, classes) {theirs}; expected {mine} as the student. Build "
                "it alike."
            )
    if rounds > 1 and "teacher" not in method.roles:
        raise ValueError(
            f"fit: {method.name} has {rounds} rounds and no teacher; expected one. Add the role."
        )


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's own randomness (dropout) inside; the caller's goes on undisturbed."""
    generators = [torch.default_generator]
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        generators.append(torch.cuda.default_generators[index])
    states = [g.get_state() for g in generators]
    for (
        g
    ) in generators:  # not torch.manual_seed, which formats a stack trace per absent accelerator
        g.manual_seed(seed)
    try:
        yield
    finally:
        for g, state in zip(generators, states, strict=True):
            g.set_state(state)


def _dropout_seed(seed: int, step: int, phase: str) -> int:
    """So that masks follow from the step, and resuming needs no generator state."""
    return int.from_bytes(
        hashlib.blake2b(f"{seed} {step} {phase}".encode(), digest_size=7).digest(), "little"
    )
