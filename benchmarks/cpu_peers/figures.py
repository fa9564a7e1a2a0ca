"""What a result file says, as numbers to compare: medians, spread, ratios round by round."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from .variants import BY_NAME


@dataclass(frozen=True)
class Spread:
    """Median, quartiles and extremes of one value a round."""

    middle: float
    low: float
    high: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        cuts = quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
        return cls(median(values), cuts[0], cuts[2], min(values), max(values))


@dataclass(frozen=True)
class Figure:
    """A contestant at a batch. `roof` in FLOP/s of its products' dtype, `flops` of an image."""

    batch: int
    seconds: tuple[float, ...]  # a call, round by round
    error: float
    flops: float
    roof: float | None

    @property
    def rate(self) -> Spread:
        """Images a second."""
        return Spread.of([self.batch / s for s in self.seconds])

    @property
    def fraction(self) -> float | None:
        """Of the roof that direct products could reach."""
        if not self.roof:
            return None
        return self.flops * self.rate.middle / self.roof


def ratio(ours: Figure, peer: Figure) -> Spread:
    """How many times faster ours is; of times that were taken in the same round."""
    return Spread.of([p / o for o, p in zip(ours.seconds, peer.seconds, strict=False)])


class Results:
    """One network of a result file."""

    def __init__(self, name: str, said: dict[str, Any]) -> None:
        self.name, self.said = name, said
        self.batches: list[int] = said["batches"]

    def row(self, variant: str) -> dict[str, Any]:
        """What is known of a contestant; {} if it was not asked."""
        row: dict[str, Any] = self.said["variants"].get(variant, {})
        return row

    def asked(self, variant: str) -> bool:
        """Whether the run was to have it; older files know only those of which there is a row."""
        return variant in self.said.get("contestants", self.said["variants"])

    def figure(self, variant: str, batch: int) -> Figure | None:
        """None where it has none."""
        row = self.row(variant)
        found = row.get("batches", {}).get(str(batch), {})
        if not found.get("seconds"):
            return None
        roof = self.said.get("roofs", {}).get(row.get("dtype", BY_NAME[variant].dtype))
        return Figure(batch, tuple(found["seconds"]), found["error"], self.said["flops"], roof)

    def why(self, variant: str, batch: int) -> str:
        """The reason for a figure that is not there."""
        row = self.row(variant)
        if not self.asked(variant):
            return "not asked for"
        if why := row.get("failed"):
            return str(why)
        return str(row.get("batches", {}).get(str(batch), {}).get("failed", "not measured"))


def networks(document: dict[str, Any]) -> Iterator[Results]:
    for name, said in document["networks"].items():
        yield Results(name, said)


def read(path: Path) -> dict[str, Any]:
    """Raises ValueError for another file."""
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for results in networks(document):
            results.said["variants"], results.said["flops"]
        document["device"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"cpu_peers: {path} is no result ({type(error).__name__}: {error}); expected a file "
            "that `python -m benchmarks.cpu_peers` wrote. Name one."
        ) from error
    return document
