"""What a comparison of methods says: as a page, as JSON, and as a table to paste."""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

import kdgen
from kdgen import durable, grid
from kdgen.contest import ROUNDS, TIMED
from kdgen.metrics import Measure
from kdgen.report import Card, Chart, Definitions, Panel, Panels, Report, Section, Series, Table
from kdgen.tournament import Record

COLUMNS = (
    "method",
    "NFE",
    "Fréchet distance",
    "× better than the teacher at this NFE",
    "× the teacher's full distance",
    "training evaluations",
    "seconds",
    "images/s",
    "straightness",
)


@dataclass(frozen=True)
class Comparison:
    """Everything measured. teacher: distances of all seeds by evaluations; full: at its own
    sampling, with its floor; speeds: images/s by method in every round; pictures: uint8 (n, H, W,
    C) from equal noise."""

    records: list[Record]
    teacher: dict[int, list[float]]
    full: Measure
    teacher_straightness: float
    speeds: Mapping[str, list[float]]
    pictures: Mapping[str, Tensor]
    nfe: Mapping[str, int]
    device: str
    budget: str

    @property
    def methods(self) -> list[str]:
        """In the order they were compared."""
        return list(dict.fromkeys(r.method for r in self.records))

    def of(self, method: str) -> list[Record]:
        """All seeds of one method."""
        return [r for r in self.records if r.method == method]

    def distances(self, method: str, nfe: int) -> list[float]:
        """Over the seeds."""
        return [r.quality[nfe] for r in self.of(method)]

    def gain(self, nfe: int, found: list[float]) -> float | None:
        """How many times nearer than the teacher at as many evaluations."""
        base = self.teacher.get(nfe)
        return None if base is None else statistics.mean(base) / statistics.mean(found)

    def on_the_way(self, method: str) -> list[tuple[str, int, list[float]]]:
        """(name, evaluations, distances over the seeds) of kept models that `quality` has not."""
        return [
            (
                f"{method}, {kept.name}",
                kept.nfe,
                [
                    other.distance
                    for record in self.of(method)
                    for other in record.kept
                    if (other.stage, other.round) == (kept.stage, kept.round)
                ],
            )
            for kept in self.of(method)[0].hidden()
        ]

    @property
    def goal(self) -> float:
        """The teacher's distance at its own sampling."""
        return statistics.mean(self.teacher[self.nfe["teacher"]])

    def speed(self, method: str) -> float:
        """Median images/s, sampled the method's own way."""
        return statistics.median(self.speeds[method])


@dataclass(frozen=True)
class Page:
    """The report of a comparison that took `seconds`."""

    comparison: Comparison
    seconds: float

    def write(self, out: Path) -> None:
        """compare.json, compare.md and compare.png in OUT."""
        durable.replace_file(
            out / "compare.json", (json.dumps(self._json(), indent=1) + "\n").encode()
        )
        durable.replace_file(out / "compare.md", (self.markdown() + "\n").encode())
        grid.save_png(grid.side_by_side(self._titled(), columns=4), out / "compare.png")

    def markdown(self) -> str:
        """The table, with the line that says what was measured where."""
        lines = [f"| {' | '.join(COLUMNS)} |", f"| {' | '.join('---' for _ in COLUMNS)} |"]
        lines += [f"| {' | '.join(row)} |" for row in self._rows()]
        return "\n".join([*lines, "", self._caption()])

    def build(self) -> Report:
        """The whole page."""
        return Report(
            title="Distillation methods, side by side",
            lead="One teacher, distilled by every method; the same noise and judge for all.",
            cards=self._cards(),
            sections=[
                self._pictures(),
                Section("Results", [Table(list(COLUMNS), self._rows(), note=self._caption())]),
                self._charts(),
                self._speed(),
                *self._facts(),
            ],
            footer=f"kdgen {kdgen.__version__} · {self._where()}",
        )

    def _cards(self) -> list[Card]:
        c = self.comparison
        best = min(
            ((statistics.mean(c.distances(m, 1)), m) for m in c.methods if 1 in c.of(m)[0].quality),
            default=None,
        )
        cards = [
            Card(
                "Teacher",
                f"{c.goal:.2f}",
                f"NFE {c.nfe['teacher']}; real images {c.full.floor:.2f}",
            )
        ]
        if best:
            cards.append(Card("Best in one step", f"{best[0]:.2f}", best[1]))
        cards.append(Card("All of it took", f"{self.seconds / 60:.1f} min", f"budget: {c.budget}"))
        return cards

    def _rows(self) -> list[list[str]]:
        c = self.comparison
        rows = [
            ["teacher", str(n), spread(d), "1", f"{statistics.mean(d) / c.goal:.2f}", *[""] * 4]
            for n, d in sorted(c.teacher.items(), reverse=True)
        ]
        rows[0][-2:] = [f"{c.speed('teacher'):,.0f}", f"{c.teacher_straightness:.3f}"]
        for method in c.methods:
            rows += self._rows_of(method)
        return rows

    def _rows_of(self, method: str) -> list[list[str]]:
        """Kept models, then one row for every number of evaluations; costs stand beside the
        method's own."""
        c, own = self.comparison, self.comparison.of(method)[0]
        rows = [self._row(*kept) for kept in c.on_the_way(method)]
        for nfe in own.quality:
            costs = self._costs(method) if nfe == own.nfe else [""] * 4
            rows.append(self._row(method, nfe, c.distances(method, nfe), costs))
        return rows

    def _row(
        self, name: str, nfe: int, found: list[float], costs: Sequence[str] = ("",) * 4
    ) -> list[str]:
        c = self.comparison
        gain = c.gain(nfe, found)
        better = "" if gain is None else f"{gain:.1f}"
        return [
            name,
            str(nfe),
            spread(found),
            better,
            f"{statistics.mean(found) / c.goal:.2f}",
            *costs,
        ]

    def _costs(self, method: str) -> list[str]:
        c = self.comparison
        records = c.of(method)
        straight = [r.straightness for r in records if r.straightness is not None]
        return [
            f"{records[0].evaluations:,}",
            f"{statistics.mean(r.seconds for r in records):,.0f}",
            f"{c.speed(method):,.0f}",
            f"{statistics.mean(straight):.3f}" if straight else "—",
        ]

    def _caption(self) -> str:
        c = self.comparison
        seeds = sorted({r.seed for r in c.records})
        return (
            f"Fréchet distance on a classifier's features, n = {c.full.n:,}, not FID; floor (real "
            f"against real) {c.full.floor:.2f}; mean ± standard deviation over seeds "
            f"{', '.join(map(str, seeds))}. Budget: {c.budget}; the teacher's own training is not "
            f"counted, making pairs is. Seconds are of one run; images/s of the fast path, batch "
            f"256, median of {ROUNDS} interleaved rounds of {TIMED}. Straightness: Liu et al. "
            f"2022; 0 is a straight path, — no path. {self._where()}."
        )

    def _pictures(self) -> Section:
        panels = [Panel(t, grid.png(grid.grid(p, columns=8))) for t, p in self._titled().items()]
        lead = "The same noise and classes for all; the first 32, nothing is selected."
        return Section("From the same noise", [Panels(panels)], lead=lead)

    def _titled(self) -> dict[str, Tensor]:
        c = self.comparison
        return {f"{name} · NFE {c.nfe[name]}": p for name, p in c.pictures.items()}

    def _charts(self) -> Section:
        c = self.comparison
        teacher = {n: statistics.mean(d) for n, d in c.teacher.items()}
        by_nfe = [Series("teacher", *_sorted(teacher))]
        by_cost = []
        for method in c.methods:
            nfes = c.of(method)[0].quality
            means = {n: statistics.mean(c.distances(method, n)) for n in nfes}
            by_nfe.append(Series(method, *_sorted(means)))
            curve = c.of(method)[0].curve
            by_cost.append(Series(method, [x for x, _ in curve], [y for _, y in curve]))
        what = "Fréchet distance"
        return Section(
            "Quality against cost",
            [
                Chart("Sampling", by_nfe, "evaluations", what, log_y=True, log_x=True),
                Chart("Training, first seed", by_cost, "evaluations spent", what, log_y=True),
            ],
        )

    def _speed(self) -> Section:
        rows = [
            [
                name,
                str(self.comparison.nfe[name]),
                f"{statistics.median(v):,.0f}",
                f"{min(v):,.0f} – {max(v):,.0f}",
            ]
            for name, v in self.comparison.speeds.items()
        ]
        return Section("Speed", [Table(["model", "NFE", "images/s", "range"], rows)])

    def _facts(self) -> list[Section]:
        settings = {r.method: json.dumps(r.settings) for r in self.comparison.records}
        return [
            Section("Settings", [Definitions(settings)], folded=True),
            Section("Environment", [Definitions(self._environment())], folded=True),
        ]

    def _environment(self) -> dict[str, str]:
        return {
            "device": self.comparison.device,
            "kdgen": kdgen.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "system": platform.platform(),
            "dtype": "float32",
        }

    def _where(self) -> str:
        return f"{self.comparison.device}, torch {torch.__version__}, float32"

    def _json(self) -> dict[str, object]:
        c = self.comparison
        return {
            "environment": self._environment(),
            "budget": c.budget,
            "teacher": {
                "quality": c.teacher,
                "full": asdict(c.full),
                "straightness": c.teacher_straightness,
            },
            "records": [asdict(r) for r in c.records],
            "images_per_second": dict(c.speeds),
            "seconds": round(self.seconds, 1),
        }


def spread(values: list[float]) -> str:
    """Mean ± standard deviation."""
    mean = statistics.mean(values)
    return f"{mean:.2f} ± {statistics.stdev(values):.2f}" if len(values) > 1 else f"{mean:.2f}"


def _sorted(points: Mapping[int, float]) -> tuple[list[float], list[float]]:
    xs = sorted(points)
    return [float(x) for x in xs], [points[x] for x in xs]
