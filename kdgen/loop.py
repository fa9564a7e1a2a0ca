"""What happens in one step of training, and in which order."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from kdgen.batches import Batches, Source, Taken, check_source, split
from kdgen.denoiser import Denoiser
from kdgen.ema import Average
from kdgen.graph import Driver
from kdgen.learner import Learner, Outcome
from kdgen.ledger import Ledger
from kdgen.methods.base import Batch, Method, Nets
from kdgen.stepper import Stepper

if TYPE_CHECKING:
    from kdgen.training import Training


@dataclass(frozen=True)
class Step:
    """What the loop did last; tensors stay on the device until they are read.

    number counts finished updates from 1 over all rounds, of `steps`; round counts from 0. loss and
    grad_norm are those of the student's phase, `losses` and `grad_norms` have all by phase. nets
    and ema are live, not copies. method is the round's, ends_round whether this was its last
    update.
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
    method: Method
    ends_round: bool

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
        driver: Driver | None = None,
    ) -> None:
        self.plan, self.training = list(method.rounds()), training
        check_nets(method, len(self.plan), nets)
        # Updates done at the beginning of every round, and after the last.
        self.starts = list(accumulate(method.updates(training.steps), initial=0))
        self.roles, self.phases = tuple(method.roles), tuple(method.phases)
        self.nets = Nets(nets)
        student = self.nets.student
        self.plan[0].check(self.nets)
        check_source(method, student, source, training.flip)
        self.device = next(student.parameters()).device if device is None else torch.device(device)
        for role in self.roles:
            self.nets[role].to(self.device)
        facts = student.shape, student.classes
        t = training
        self.batches = Batches(method, source, t.batch, t.seed, t.flip, self.device, *facts)
        trained = dict.fromkeys(method.trained(p) for p in self.phases)
        self.learners = {"+".join(roles): self._learner(roles) for roles in trained}
        self.average = None if t.ema.kind == "none" else Average(student)
        self.target = Average(student, self.nets["target"]) if "target" in self.roles else None
        self.ledger = Ledger(self.phases, t, self.device)
        self.ledger.rate = self.rate_of
        self.keeper: Saves | None = None
        self.stepper = Stepper(t.graph, self.device, driver)
        self.done = 0  # updates finished, over all rounds
        self._active: tuple[str, ...] = ()  # the roles being trained
        self._look()

    def _learner(self, roles: tuple[str, ...]) -> Learner:
        t = self.training
        nets = {role: self.nets[role] for role in roles}
        return Learner(nets, t.betas, t.adam_eps, t.weight_decay, t.clip)

    @property
    def total(self) -> int:
        """Updates in all rounds."""
        return self.starts[-1]

    @property
    def round(self) -> int:
        """The round that the last update belongs to."""
        return self.place(max(1, self.done))[0]

    def place(self, step: int) -> tuple[int, int, int]:
        """Of update number `step` (from 1): its round, the updates of the round before it, and all
        updates of that round."""
        r = bisect_left(self.starts, step) - 1
        return r, step - 1 - self.starts[r], self.starts[r + 1] - self.starts[r]

    def rate_of(self, step: int) -> float:
        """The learning rate of update number `step` (from 1)."""
        _, k, steps = self.place(step)
        return self.training.rate(k, steps)

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
            self.stepper.renew()  # the graph's memory, which it and the loop keep for each other
            for p, flag in flags:
                p.requires_grad_(flag)

    def _advance(self) -> None:
        """One update of every phase."""
        r, k, steps = self.place(self.done + 1)
        if k == 0:
            self._begin(r)
        self._set(r, k, steps)
        taken = self.batches.taken(self.done, k / steps)
        with _seeded(_dropout_seed(self.training.seed, self.done, self.phases[0]), self.device):
            outcomes = self.stepper(partial(self._work, self.plan[r]), taken)
        self.done += 1
        self.ledger.note(self.done, outcomes)
        last = self.done == self.total
        if self.ledger.due(self.done, last):
            self.ledger.gauges = self._gauges()
        self.ledger.read(last=last)

    def _set(self, r: int, k: int, steps: int) -> None:
        """Tell the device what the host decides of an update."""
        t = self.training
        for learner in self.learners.values():
            learner.lr.fill_(t.rate(k, steps))
        if self.average is not None:
            self.average.keep(t.ema.kept(k + 1, t.batch))
        if self.target is not None:
            self.target.keep(self.plan[r].keeps(k / steps))

    def _work(self, method: Method, taken: Taken) -> tuple[Outcome, ...]:
        """All that the device does in a step: the same at every step of a round, whatever the
        numbers in `taken` and those that `_set` has set, so that a graph can stand for it."""
        outcomes = tuple(
            self._update(method, phase, self.batches.drawn(taken, p))
            for p, phase in enumerate(self.phases)
        )
        fault = self._fault(outcomes)
        for average in (self.average, self.target):
            if average is not None:
                average.update(fault)
        return outcomes

    def _fault(self, outcomes: Sequence[Outcome]) -> Tensor:
        """0 if every update of the student was made."""
        roles = (self.plan[0].trained(phase) for phase in self.phases)
        faults = [o.fault for o, r in zip(outcomes, roles, strict=True) if "student" in r]
        return torch.stack(faults).amax() if faults else torch.zeros((), device=self.device)

    def _update(self, method: Method, phase: str, batch: Batch) -> Outcome:
        learner = self.learners["+".join(method.trained(phase))]
        self._activate(learner)
        parts = split(batch, self.training.accumulate)
        loss = partial(self._loss, method, phase, self.nets)
        return learner.update(parts, self.training.batch, loss)

    def _loss(self, method: Method, phase: str, nets: Nets, batch: Batch) -> Tensor:
        with self._autocast():
            return method.loss(phase, nets, batch)

    def _look(self) -> None:
        """Whether a graph could hold the losses of the first round."""
        if self.stepper.hopeful:
            taken = self.batches.taken(0, 0.0)
            for p, phase in enumerate(self.phases):
                call = partial(self._loss, self.plan[0], phase)
                self.stepper.look(call, self.nets, self.batches.drawn(taken, p))

    def _autocast(self) -> torch.autocast:
        # No cache: a weight cast under no_grad would be reused where gradients are wanted.
        bf16 = self.training.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=bf16, cache_enabled=False)

    def _gauges(self) -> dict[str, Tensor]:
        """The method's gauges on the last batch, with the weights after it."""
        r, k, steps = self.place(self.done)
        if type(self.plan[r]).gauges is Method.gauges:
            return {}
        for role in self.roles:
            self.nets[role].eval()
        batch = self.batches(self.done - 1, k / steps, len(self.phases) - 1)
        batch = next(split(batch, self.training.accumulate))  # no more than a step holds at once
        with torch.no_grad(), self._autocast():
            return self.plan[r].gauges(self.nets, batch)

    def _activate(self, learner: Learner) -> None:
        """Train its roles alone; gradients still pass through the others to their inputs."""
        roles = learner.roles
        if self._active != roles:
            for name in self.roles:
                self.nets[name].requires_grad_(False)
            for p in learner.params.values():
                p.requires_grad_(True)
            self._active = roles
        for name in self.roles:
            # The caller may have sampled in between.
            if self.nets[name].training != (name in roles):
                self.nets[name].train(name in roles)

    def _begin(self, r: int) -> None:
        """Start round r; after the first, the student becomes the teacher and moments and averages
        start anew."""
        if r:
            self.replace_teacher()
            for learner in self.learners.values():
                learner.reset()
            for average in (self.average, self.target):
                if average is not None:
                    average.reset()
        self._set_sampling(r)
        self.stepper.renew()

    def _set_sampling(self, r: int) -> None:
        """The student is sampled the way its round says."""
        student = self.nets.student
        student.sampling = self.plan[r].sampling(student)
        if self.average is not None:
            self.average.denoiser.sampling = student.sampling

    def replace_teacher(self) -> None:
        """By a copy of the student's raw weights; the caller's own denoiser stays as it is."""
        self.nets["teacher"] = self.nets.student.copy().requires_grad_(False).eval()

    def restored(self) -> None:
        """Called when the weights of a checkpoint are in place."""
        self._set_sampling(self.round)

    def _report(self) -> Step:
        losses, norms = self.ledger.last.unbind(1)
        r, k, steps = self.place(max(1, self.done))
        return Step(
            number=self.done,
            steps=self.total,
            round=r,
            images=self.done * self.training.batch,
            lr=self.rate_of(self.done),
            losses=dict(zip(self.phases, losses, strict=True)),
            grad_norms=dict(zip(self.phases, norms, strict=True)),
            phase=main_phase(self.plan[0]),
            nets=self.nets,
            ema=self.nets.student if self.average is None else self.average.denoiser,
            method=self.plan[r],
            ends_round=k + 1 == steps,
        )


def main_phase(method: Method) -> str:
    """The last phase that trains the student."""
    return next(
        (p for p in reversed(method.phases) if "student" in method.trained(p)), method.phases[-1]
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
        trained = method.trained(phase) if phase in method.trains else ()
        if not trained or not set(trained) <= set(method.roles) - {"target"}:
            raise ValueError(
                f"fit: phase {phase!r} of {method.name} trains {', '.join(trained) or 'nothing'}; "
                f"expected some of {needed}, without target. Correct `trains`."
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
