"""What the demo's report says."""

from __future__ import annotations

import json
import platform
import statistics
from dataclasses import dataclass
from pathlib import Path

import torch

import kdgen
from kdgen import cli, grid
from kdgen.contest import ROUNDS, TIMED, Contestant
from kdgen.metrics import Measure
from kdgen.report import (
    Card,
    Chart,
    Definitions,
    Panel,
    Panels,
    Report,
    Section,
    Series,
    Table,
    Text,
    quality,
)

SHOWN = 64  # images in the report's grids


@dataclass(frozen=True)
class Page:
    """What the report says."""

    out: Path
    contestants: list[Contestant]
    agreement: list[Measure]
    speeds: dict[str, list[float]]
    device: torch.device
    seconds: float

    def build(self) -> Report:
        """The whole page."""
        return Report(
            title="Handwritten digits in one step",
            lead="A diffusion model learned 1,797 handwritten digits; "
            "a student learned to make the same images with one network evaluation.",
            cards=self._cards(),
            sections=[
                self._pictures(),
                self._quality(),
                self._speed(),
                self._curves(),
                self._how(),
                *self._facts(),
            ],
            footer=f"kdgen {kdgen.__version__} · {self._where()}",
        )

    def essence(self) -> str:
        """The same in a few lines for the terminal."""
        lines = [f"  {c.label:<28} {c.value:<12} {c.note}" for c in self._cards()]
        return "\n".join(["", *lines, ""])

    def _cards(self) -> list[Card]:
        many, once, student = (c.distance for c in self.contestants)
        steps = self.contestants[0].steps
        plain, fast = (self._pace(k, path) for k, path in ((0, "plain"), (2, "fast")))
        return [
            Card("Network evaluations", f"{steps} → 1", "for each image"),
            Card(
                "Fréchet distance, student",
                f"{student.value:.2f}",
                f"teacher {many.value:.2f} in {steps} steps, {once.value:.0f} in one; "
                f"real images {student.floor:.2f} (n = {student.n}; not FID)",
            ),
            Card(
                "Speed",
                f"{fast / plain:.1f}×",
                f"{plain:,.0f} → {fast:,.0f} images/s, teacher plain → student fast; "
                f"float32, {self._where()}",
            ),
            Card(
                "All of it took", f"{self.seconds / 60:.1f} min", "training, distilling, measuring"
            ),
        ]

    def _pictures(self) -> Section:
        titles = {0: "Teacher", 2: "Student", 1: "Teacher cut short"}
        panels = [
            Panel(f"{title}: NFE {c.steps}", grid.png(grid.grid(c.images[:SHOWN])))
            for title, c in ((t, self.contestants[k]) for k, t in titles.items())
        ]
        return Section(
            "From the same noise",
            [Panels(panels)],
            lead="Image by image the same noise and class. Nothing is selected: the first 64.",
        )

    def _quality(self) -> Section:
        table = quality({c.name: c.measures for c in self.contestants})
        return Section(
            "Quality",
            [table, quality(self.agreement)],
            lead="Generated images against the real ones. The floor is the same measure "
            "with real images in place of generated ones.",
        )

    def _speed(self) -> Section:
        base = self._pace(0, "plain")
        rows = [
            [
                name,
                f"{statistics.median(v):,.0f}",
                f"{min(v):,.0f} – {max(v):,.0f}",
                f"{statistics.median(v) / base:.1f}×",
            ]
            for name, v in self.speeds.items()
        ]
        note = (
            f"Median and range of {ROUNDS} interleaved calls of {TIMED} images; float32, "
            f"batch 256; uint8 images included, files not. {self._where()}, "
            f"torch {torch.__version__}."
        )
        return Section("Speed", [Table(["path", "images/s", "range", "gain"], rows, note=note)])

    def _curves(self) -> Section:
        charts = [
            Chart(
                f"{name} loss",
                [Series("loss", *losses(self.out / name))],
                y_label=what,
                log_y=True,
            )
            for name, what in (
                ("teacher", "squared error of v"),
                ("student", "error against the teacher"),
            )
        ]
        return Section("Training", charts)

    def _how(self) -> Section:
        return Section(
            "How it works",
            [
                Text(
                    "The teacher removes noise in small steps, always the same image from the same "
                    "noise. Its pairs of noise and image are computed once; the student, the same "
                    "network starting from the teacher's weights, learns to jump from the noise to "
                    "the image. That is the Denoising Student of Luhman & Luhman 2021 "
                    "(arXiv:2101.02388)."
                )
            ],
        )

    def _facts(self) -> list[Section]:
        settings = {
            name: json.dumps(json.loads((self.out / name / "config.json").read_bytes())["config"])
            for name in ("teacher", "student")
        }
        parameters = sum(p.numel() for p in self.contestants[0].model.parameters())
        environment = {
            "device": self._where(),
            "kdgen": kdgen.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "system": platform.platform(),
            "parameters": f"{parameters:,}",
        }
        return [
            Section("Configuration", [Definitions(settings)], folded=True),
            Section("Environment", [Definitions(environment)], folded=True),
        ]

    def _pace(self, contestant: int, path: str) -> float:
        return statistics.median(self.speeds[f"{self.contestants[contestant].name}, {path}"])

    def _where(self) -> str:
        return cli.device_name(self.device)


def losses(directory: Path) -> tuple[list[float], list[float]]:
    """Steps and losses of a run's log."""
    lines = [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines], [line["loss"] for line in lines]
