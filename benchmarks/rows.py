"""One measured figure with what was predicted for it; as a table to read and a file to keep."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from . import machine
from .race import Race

SCHEMA = 1


@dataclass(frozen=True)
class Row:
    """`flops`, `bytes` and `predicted` seconds are the model's, all for one call."""

    group: str
    case: str
    implementation: str
    device: str
    dtype: str
    batch: int
    seconds: float  # median of the rounds
    low: float
    high: float
    best: float
    rounds: int
    flops: float
    bytes: float
    predicted: float
    images: int = 0  # made by a call; 0 when that is not what it does
    peer_seconds: float | None = None
    ratio: float | None = None
    best_ratio: float | None = None

    @property
    def fraction(self) -> float:
        """Of the roof: what was predicted over what was measured."""
        return self.predicted / self.seconds

    @property
    def key(self) -> str:
        """The same measurement in another run has the same key."""
        facts = (self.group, self.case, self.implementation, self.dtype, f"batch {self.batch}")
        return " · ".join(facts)

    @property
    def rate(self) -> str:
        if self.images:
            return f"{self.images / self.seconds:,.1f} img/s"
        return f"{self.bytes / self.seconds / 1e9:.1f} GB/s"


def row(race: Race, device: torch.device, dtype: torch.dtype, **facts: Any) -> Row:
    low, high = race.ours.middle
    return Row(
        device=machine.name(device),
        dtype=short(dtype),
        seconds=race.ours.median,
        low=low,
        high=high,
        best=race.ours.best,
        rounds=len(race.ours.rounds),
        peer_seconds=race.peer.median if race.peer else None,
        ratio=race.ratio,
        best_ratio=race.best_ratio,
        **facts,
    )


def short(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}.get(
        dtype, str(dtype)[6:]
    )


# ---- to read --------------------------------------------------------------------------------

HEAD = (
    "case",
    "by",
    "dtype",
    "batch",
    "measured",
    "spread",
    "rate",
    "GFLOP",
    "MB",
    "predicted",
    "of roof",
    "× torch",
)


def table(rows: Sequence[Row]) -> list[str]:
    """Lines under a head, one a row."""
    cells = [HEAD, *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [_line(line, widths) for line in cells]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    texts = [
        cell.ljust(width) if k < 3 else cell.rjust(width)
        for k, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(texts).rstrip()


def _cells(r: Row) -> tuple[str, ...]:
    return (
        r.case,
        r.implementation,
        r.dtype,
        str(r.batch),
        duration(r.seconds),
        f"{(r.high - r.low) / r.seconds:.0%}",
        r.rate,
        f"{r.flops / 1e9:.3g}",
        f"{r.bytes / 1e6:.3g}",
        duration(r.predicted),
        f"{r.fraction:.0%}",
        "" if r.ratio is None else f"{r.ratio:.2f}",
    )


def duration(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


# ---- to keep --------------------------------------------------------------------------------


def write(folder: Path, device: torch.device, rows: Sequence[Row], roofs: dict[str, float]) -> Path:
    """`<device>.json` in `folder`: medians and their spread, not every sample."""
    facts = {**machine.facts(), "roofs": roofs}
    if device.type == "cpu":
        del facts["gpu"]
    document = {
        "schema": SCHEMA,
        "device": machine.name(device),
        **rounded(facts),
        "rows": {r.key: rounded(_stored(r)) for r in rows},
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{machine.slug(device)}.json"
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    return path


def _stored(r: Row) -> dict[str, Any]:
    """Without what is in the key or the head, or follows."""
    said = {"group", "case", "implementation", "dtype", "device"}
    return {k: v for k, v in asdict(r).items() if k not in said and v not in (None, 0)}


def rounded(value: Any) -> Any:
    """Floats at four significant digits, all the way down."""
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [rounded(v) for v in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
