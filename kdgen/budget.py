"""What a distillation costs in evaluations of the network, and how to make it cost a given number.

One evaluation is one image through the network once; a backward pass counts as two more.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch

from kdgen import distill, pairs
from kdgen.batches import Source
from kdgen.data import Images
from kdgen.denoiser import Denoiser
from kdgen.errors import UsageError
from kdgen.methods import Nets
from kdgen.methods.base import drops
from kdgen.recipes import Stage
from kdgen.recipes.cost import per_image, per_pair
from kdgen.train import Blank, probe
from kdgen.training import fit

TRIED = 4  # updates in a trial, the first of which is not timed
TRIED_PAIRS = 64


@dataclass(frozen=True)
class Price:
    """Evaluations that a stage takes for each training image of its rounds, and for each pair."""

    image: float
    pair: int


def prices(stages: Sequence[Stage], teacher: Denoiser) -> list[Price]:
    """Of every stage. Raises ValueError where the teacher does not suit a method."""
    models, found = [teacher], []
    for stage in stages:
        tutor = distill.tutor(stage, models)
        nets = cast(stage, models)
        *_, last = stage.method.rounds()
        next(stage.method.rounds()).check(nets)
        found.append(_price(stage, tutor, nets.student))
        student = nets.student
        models.append(student.copy(sampling=last.sampling(student)))
    return found


def cast(stage: Stage, models: Sequence[Denoiser]) -> Nets:
    """The denoisers of a stage, from the run's teacher and the students of the stages before."""
    return stage.method.cast(distill.tutor(stage, models), stage.method.student(models[-1]))


def _price(stage: Stage, tutor: Denoiser, student: Denoiser) -> Price:
    method = stage.method
    image = method.cost(drops(student))
    if getattr(method, "online", False):  # the teacher makes every image as training goes
        image += per_image(tutor.schedule, getattr(method, "how", None) or tutor.sampling)
    return Price(image, per_pair(stage, tutor))


def updates(stage: Stage) -> int:
    """Optimizer steps over all rounds."""
    return sum(stage.method.updates(stage.training.steps))


def evaluations(stages: Sequence[Stage], at: Sequence[Price]) -> int:
    """Of training and of making pairs."""
    return round(sum(spent(s, p, updates(s)) for s, p in zip(stages, at, strict=True)))


def spent(stage: Stage, price: Price, done: int) -> float:
    """Evaluations of a stage after `done` updates; pairs come first."""
    return done * stage.training.batch * price.image + stage.pairs * price.pair


def scaled(stages: Sequence[Stage], factor: float) -> tuple[Stage, ...]:
    """Steps, warmup and pairs of every stage times `factor`; at least one step and one pair."""
    return tuple(_scaled(stage, factor) for stage in stages)


def _scaled(stage: Stage, factor: float) -> Stage:
    t = stage.training
    steps, warmup = max(1, round(t.steps * factor)), round(t.warmup * factor)
    count = max(1, round(stage.pairs * factor)) if stage.pairs else 0
    return replace(stage, training=replace(t, steps=steps, warmup=warmup), pairs=count)


def fitted(
    stages: Sequence[Stage], at: Sequence[Price], wanted: int, name: str
) -> tuple[Stage, ...]:
    """The stages scaled by one factor to the most that costs no more than `wanted` evaluations:
    one more step of the last stage would. UsageError where even one step costs more."""
    least = evaluations(scaled(stages, 0), at)
    if wanted < least:
        raise UsageError(
            f"compare: {name} takes {least:,} evaluations at least, one update of every round; "
            f"expected a budget of so many, not {wanted:,}. Raise --evaluations or --minutes."
        )
    low, high = 0.0, 1.0
    while evaluations(scaled(stages, high), at) <= wanted:
        low, high = high, 2 * high
    for _ in range(50):
        middle = (low + high) / 2
        cheap = evaluations(scaled(stages, middle), at) <= wanted
        low, high = (middle, high) if cheap else (low, middle)
    found = scaled(stages, low)
    while evaluations(longer := _longer(found), at) <= wanted:
        found = longer
    return found


def _longer(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """One step more in the last stage."""
    *before, last = stages
    t = last.training
    return (*before, replace(last, training=replace(t, steps=t.steps + 1)))


def pace(stages: Sequence[Stage], at: Sequence[Price], teacher: Denoiser, images: Images) -> float:
    """Evaluations a second, from a few updates of every stage and a few pairs."""
    models, seconds = [teacher], 0.0
    for stage in stages:
        nets = cast(stage, models)
        seconds += _seconds(stage, distill.tutor(stage, models), nets, images)
        student = nets.student
        *_, last = stage.method.rounds()
        models.append(student.copy(sampling=last.sampling(student)))
    return evaluations(stages, at) / seconds


def _seconds(stage: Stage, tutor: Denoiser, nets: Nets, images: Images) -> float:
    """That the whole stage would take."""
    source: Source | None = images if stage.method.data == "images" else None
    seconds, wanted = 0.0, distill.plan(stage, tutor)
    if wanted is not None:
        source = Blank(nets.student, "pairs")
        index = wanted.indices(0)[:TRIED_PAIRS]
        made = pairs.Tutor(tutor, wanted)  # once, however many pairs
        begun = time.perf_counter()
        made(index)
        seconds += (time.perf_counter() - begun) * wanted.count / len(index)
    copies = {role: net.copy() for role, net in nets.items()}
    tried = probe(nets.student, replace(stage.training, steps=max(TRIED, stage.training.steps)))
    stamps = []
    for step in islice(fit(stage.method, copies, source, tried), TRIED):
        float(step.loss)  # wait for the device
        stamps.append(time.perf_counter())
    each = (stamps[-1] - stamps[0]) / (len(stamps) - 1) * stage.training.batch / tried.batch
    return seconds + each * updates(stage)


def seeded(stages: Sequence[Stage], seed: int) -> tuple[Stage, ...]:
    """The same with another seed: other pairs, data order and noise."""
    return tuple(replace(s, training=replace(s.training, seed=seed)) for s in stages)


def settings(stages: Sequence[Stage]) -> list[dict[str, object]]:
    """All that decides what is learned, JSON-able."""
    return [
        {
            **stage.config(),
            "pairs": stage.pairs,
            "how": stage.how.config() if stage.how else None,
            "at": stage.at,
            "taught_by": stage.taught_by,
        }
        for stage in stages
    ]


def restart(seed: int) -> None:
    """Fresh weights of a student are drawn from torch's own generator."""
    torch.manual_seed(seed)
