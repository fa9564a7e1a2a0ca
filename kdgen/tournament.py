"""Distil one teacher by one recipe, and measure what came of it; finished work is kept."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from kdgen import budget, checkpoint, distill, durable, metrics, noise, samplers
from kdgen.data import Images
from kdgen.denoiser import Denoiser, Sampling
from kdgen.errors import UsageError
from kdgen.evaluate import draw
from kdgen.loop import Step
from kdgen.recipes import Stage

MEASURED = 4  # times while the last stage trains
PATHS, PATH_STEPS = 128, 32  # images and Euler steps that straightness is measured on
SECOND = 0.821 / 80  # Geng et al. 2024's second time, for students that know only the first
STEPS = (16, 8, 4, 2, 1)  # of a chain that can be cut short
CURVE = "curve.json"  # in a run directory


@dataclass(frozen=True)
class Kept:
    """A model that a run leaves on its way: the student of a stage before the last, or of a round
    (None: of the whole stage) before a stage's last; both count from 1."""

    stage: int
    round: int | None
    method: str
    nfe: int
    distance: float

    @property
    def name(self) -> str:
        """For a table."""
        part = "" if self.round is None else f", round {self.round}"
        return f"stage {self.stage}{part} ({self.method})"


@dataclass(frozen=True)
class Record:
    """What one method did with one seed.

    quality: Fréchet distance on the classifier's features by number of evaluations; curve:
    (evaluations spent on training, that distance), sampled the student's own way; evaluations and
    seconds: of training and making pairs; straightness: of the last model that has a path, or None;
    kept: every model on the way, those of the last stage's rounds are in quality too.
    """

    method: str
    seed: int
    nfe: int
    quality: dict[int, float]
    curve: list[tuple[int, float]]
    evaluations: int
    seconds: float
    straightness: float | None
    settings: list[dict[str, Any]]
    about: dict[str, Any]  # teacher, data and n, as `Judge.about` says them
    kept: list[Kept] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """As JSON, whole or not at all."""
        durable.replace_file(path, json.dumps(asdict(self), indent=1).encode())

    @classmethod
    def load(cls, path: Path) -> Record:
        """What `save` wrote."""
        facts = json.loads(path.read_bytes())
        quality = {int(k): v for k, v in facts.pop("quality").items()}
        curve = [(int(x), y) for x, y in facts.pop("curve")]
        kept = [Kept(**k) for k in facts.pop("kept", [])]
        return cls(quality=quality, curve=curve, kept=kept, **facts)

    def hidden(self) -> list[Kept]:
        """Those whose number of evaluations stands for another model in `quality`."""
        last = len(self.settings)
        return [k for k in self.kept if k.stage < last or self.quality[k.nfe] != k.distance]


@dataclass(frozen=True)
class Judge:
    """Real images and the classifier whose features are compared."""

    images: Images
    classifier: metrics.Classifier
    seed: int
    n: int  # images on each side

    def measure(self, model: Denoiser, how: Sampling | None = None) -> metrics.Measure:
        """Fréchet distance of n samples, of the classes of n of the real images."""
        seen = model if how is None else model.copy(sampling=how)
        samples, labels = draw(seen, self.images, self.n, self.seed, None)
        (found,) = metrics.evaluate(
            samples,
            self.images,
            labels,
            seed=self.seed,
            classifier=self.classifier,
            measures=["FD features"],
        )
        return found

    def about(self, teacher: Denoiser) -> dict[str, Any]:
        """What makes results comparable: digests of teacher and data, n, seed."""
        weights = checkpoint.tensors_digest(teacher.state_dict())
        return {"teacher": weights, "data": self.images.digest, "n": self.n, "seed": self.seed}

    def distance(self, model: Denoiser, how: Sampling | None = None) -> float:
        """Its value."""
        return self.measure(model, how).value

    def straightness(self, model: Denoiser) -> float:
        """Mean over PATHS images from equal noise."""
        index = noise.addresses(0, PATHS)
        z = noise.normal(self.seed, noise.Stream.SAMPLE, index, model.shape)
        label = (
            self.images.labels[:PATHS] if model.classes and self.images.labels is not None else None
        )
        where = next(model.parameters()).device
        label = None if label is None else label.to(where)
        return float(metrics.straightness(model, z.to(where), PATH_STEPS, label).mean())


@dataclass(frozen=True)
class Course:
    """A recipe's stages, trained in the run directory `out`. The first ones may be those of another
    recipe, `begun`, which is trained before this one: they are done once."""

    name: str
    stages: tuple[Stage, ...]
    out: Path
    begun: Course | None = None

    @property
    def length(self) -> int:
        """Number of stages."""
        return len(self.stages)

    def leads_to(self, other: Course) -> bool:
        """Whether the other one begins with all its stages, and goes on."""
        return self.length < other.length and other.stages[: self.length] == self.stages

    def place(self, k: int) -> Place:
        """Of stage k, from 1."""
        if self.begun and k <= self.begun.length:
            return self.begun.place(k)
        return Place(self.name, distill.folder(self.out, self.stages, k))


@dataclass(frozen=True)
class Place:
    """Where a stage is trained, and for which recipe."""

    name: str
    folder: Path


def play(course: Course, teacher: Denoiser, judge: Judge) -> Record:
    """Train and measure; the same call again resumes, and a finished one is only read."""
    name, stages, out = course.name, course.stages, course.out
    kept, about = out / "measured.json", judge.about(teacher)
    settings = checkpoint.plain({"": budget.settings(stages)})[""]
    if kept.exists():
        record = Record.load(kept)
        _require_same(kept, {**record.about, "": record.settings}, {**about, "": settings})
        return record
    prices = budget.prices(stages, teacher)
    out.mkdir(parents=True, exist_ok=True)  # the first stages may be elsewhere
    diary = _Diary(out / CURVE, None if course.begun is None else course.begun.out / CURVE)
    models = [teacher]
    for k, stage in enumerate(stages, 1):
        spent = budget.evaluations(stages[: k - 1], prices[: k - 1]) if k > 1 else 0
        budget.restart(judge.seed)
        nets, tutor = budget.cast(stage, models), distill.tutor(stage, models)
        updates, place = budget.updates(stage), course.place(k)
        running = distill.steps(stage, tutor, nets, judge.images, place.folder, place.name)
        for step in diary.timed(k, running):
            if k == len(stages) and _due(step, updates):
                cost = spent + budget.spent(stage, prices[k - 1], step.number)
                diary.note(step, round(cost), judge.distance(step.ema))
        models.append(step.ema.copy().eval())
    passed = list(_kept(course, models, judge))
    record = Record(
        method=name,
        seed=judge.seed,
        nfe=samplers.evaluations(models[-1].schedule, models[-1].sampling),
        quality=_quality(models[-1], [k for k in passed if k.stage == len(stages)], judge),
        curve=[(x, y) for _, x, y in diary.points],
        evaluations=budget.evaluations(stages, prices),
        seconds=diary.seconds,
        straightness=_straightness(models[1:], judge),
        settings=settings,
        about=about,
        kept=passed,
    )
    record.save(kept)
    return record


def _require_same(path: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    """UsageError where a kept result is of something else."""
    if changed := [key or "settings" for key in new if old.get(key) != new[key]]:
        raise UsageError(
            f"{path}: measured with another {' and '.join(changed)}; expected the same. Choose "
            "another --out, or delete its directory to do it again."
        )


def _due(step: Step, updates: int) -> bool:
    return step.number == updates or step.every(max(1, updates // MEASURED)) or step.ends_round


class _Diary:
    """Seconds and curve of a run, on disk after every point, so that a resumed run goes on; the
    first stages' seconds are those of the run that did them."""

    def __init__(self, path: Path, begun: Path | None = None) -> None:
        self._path = path
        self.points: list[tuple[int, int, float]] = []  # (step, evaluations, distance)
        self._spent: dict[str, float] = {}  # by stage
        self._before = 0.0
        if begun is not None and begun.exists():
            self._before = sum(json.loads(begun.read_bytes())["seconds"].values())
        if path.exists():
            facts = json.loads(path.read_bytes())
            self.points = [tuple(p) for p in facts["points"]]
            self._spent = facts["seconds"]

    @property
    def seconds(self) -> float:
        return self._before + sum(self._spent.values())

    def timed(self, k: int, steps: Iterator[Step]) -> Iterator[Step]:
        """The steps of stage k; only what happens in the loop counts, not what its caller does."""
        stage, first = str(k), True
        begun = time.perf_counter()
        try:
            for step in steps:
                passed = time.perf_counter() - begun
                if not (first and step.number == step.steps):  # else it was finished before
                    self._spent[stage] = self._spent.get(stage, 0.0) + passed
                first = False
                yield step
                begun = time.perf_counter()
        finally:  # a signal too
            self._save()

    def note(self, step: Step, evaluations: int, distance: float) -> None:
        """One point of the curve; replaces those that a crash made us repeat."""
        self.points = [p for p in self.points if p[0] < step.number]
        self.points.append((step.number, evaluations, distance))
        self._save()

    def _save(self) -> None:
        body = {"points": self.points, "seconds": self._spent}
        durable.replace_file(self._path, json.dumps(body).encode())


def _kept(course: Course, models: Sequence[Denoiser], judge: Judge) -> Iterator[Kept]:
    """What a finished run has kept on its way, each measured as it is sampled; models[k] is the
    student of stage k."""
    for k, stage in enumerate(course.stages, 1):
        device = next(models[k].parameters()).device
        rounds = sorted((course.place(k).folder / distill.ROUNDS).glob("*"))
        found: list[tuple[int | None, Denoiser]] = [
            (r, checkpoint.load(path).to(device)) for r, path in enumerate(rounds[:-1], 1)
        ]
        if k < course.length:
            found.append((None, models[k]))
        for r, model in found:
            nfe = samplers.evaluations(model.schedule, model.sampling)
            yield Kept(k, r, stage.method.name, nfe, judge.distance(model))


def _quality(student: Denoiser, rounds: Sequence[Kept], judge: Judge) -> dict[int, float]:
    """By number of evaluations; the final student's where a round's takes as many."""
    found = {k.nfe: k.distance for k in rounds}
    for model, how in _ways(student):
        found[samplers.evaluations(model.schedule, how)] = judge.distance(model, how)
    return dict(sorted(found.items(), reverse=True))


def _ways(student: Denoiser) -> Iterator[tuple[Denoiser, Sampling]]:
    """How else a student can be sampled: fewer steps of a path, or one or two times."""
    own = student.sampling
    if own.sampler == "few_step" and student.parameterisation != "residual":
        first = own.times[0]
        if first == 1.0:  # a consistency model; SiD's generator knows its one time only
            yield student, replace(own, times=(first,))
            yield student, replace(own, times=own.times if len(own.times) > 1 else (first, SECOND))
            return
    if own.sampler == "ddim" and own.steps > 1:
        for steps in STEPS:
            if steps != own.steps:
                yield student, replace(own, steps=steps)
    yield student, own


def shorter(teacher: Denoiser) -> Iterator[Sampling]:
    """The teacher's own sampling and its shorter chains; Euler's instead of Heun's."""
    own = teacher.sampling
    yield own
    full = samplers.evaluations(teacher.schedule, own)
    for steps in STEPS:
        if steps < full and own.sampler in ("ddim", "heun"):
            yield replace(own, sampler="ddim", steps=steps)


def _straightness(models: Sequence[Denoiser], judge: Judge) -> float | None:
    with_path = [m for m in models if m.sampling.sampler == "ddim" and m.sampling.steps > 1]
    return judge.straightness(with_path[-1]) if with_path else None
