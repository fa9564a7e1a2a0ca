"""Measures as text, Markdown, HTML or JSON. Every form keeps floor, n, seed and caveat."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from typing import Literal

from kdgen.metrics.measure import Measure, check_comparable

Style = Literal["text", "markdown", "html", "json"]
Runs = Mapping[str, Sequence[Measure]]

NOTE = (
    "No measure here uses a network trained elsewhere; none is FID, and none compares with "
    "published FID values."
)


def table(measures: Sequence[Measure] | Runs, style: Style = "text") -> str:
    """One row per measure; several named runs (`{"teacher": …, "student": …}`) share the rows."""
    runs = _runs(measures)
    if style == "json":
        return _json(runs)
    columns, cells = rows(runs)
    makers = {"text": _text, "markdown": _markdown, "html": _html}
    if style not in makers:
        raise ValueError(f"table: style is {style!r}; expected text, markdown, html or json.")
    return makers[style](columns, cells)


def rows(measures: Sequence[Measure] | Runs) -> tuple[list[str], list[list[str]]]:
    """Column names and cells, for other renderers. Runs must hold the same measures."""
    runs = _runs(measures)
    columns = ["measure", *runs, "floor", "floor is", "better", "caveat"]
    return columns, [_row(same) for same in _aligned(runs)]


def number(value: float, digits: int = 3) -> str:
    """A few significant digits, without an exponent in the usual range."""
    if value == 0:
        return "0"
    if 1e-4 <= abs(value) < 1e5:
        text = f"{value:#.{digits}g}" if abs(value) < 10 ** (digits - 1) else f"{value:.0f}"
        return text.removesuffix(".").replace("-", "−")
    return f"{value:.{digits - 1}e}".replace("-", "−")


def _runs(measures: Sequence[Measure] | Runs) -> dict[str, list[Measure]]:
    if isinstance(measures, Mapping):
        return {name: list(found) for name, found in measures.items()}
    return {"value": list(measures)}


def _aligned(runs: Mapping[str, Sequence[Measure]]) -> list[tuple[Measure, ...]]:
    lists = list(runs.values())
    if len({len(found) for found in lists}) > 1:
        sizes = ", ".join(f"{name}: {len(found)}" for name, found in runs.items())
        raise ValueError(f"table: runs hold different measures ({sizes}); expected the same.")
    aligned = list(zip(*lists, strict=True))
    for first, *others in aligned:
        for other in others:
            check_comparable(first, other)
    return aligned


def _row(same: Sequence[Measure]) -> list[str]:
    first = same[0]
    return [first.name, *map(_value, same), number(first.floor), _floor(first), first.better,
            f"{first.caveat}{_interval(same)} Seed {first.seed}."]  # fmt: skip


def _value(m: Measure) -> str:
    text = number(m.value) + ("" if m.spread is None else f" ± {number(m.spread, 2)}")
    return text if m.meaningful else f"{text} (not meaningful)"


def _interval(same: Sequence[Measure]) -> str:
    intervals = [f"{number(m.interval[0])} … {number(m.interval[1])}" for m in same if m.interval]
    return f" 95% interval: {'; '.join(intervals)}." if intervals else ""


def _floor(m: Measure) -> str:
    if m.half_floor is None or m.half_n == m.n:
        return m.floor_of
    return f"{m.floor_of}; two disjoint halves: {number(m.half_floor)} at n={m.half_n}"


def _text(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """Numbers in columns, then the caveats one per line: a terminal has no room for both."""
    shown = [[*columns[:-3], "better"], *([*row[:-3], row[-2]] for row in cells)]
    widths = [max(len(row[i]) for row in shown) for i in range(len(shown[0]))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in shown]
    notes = [f"{row[0]}: floor is {row[-3]}. {row[-1]}" for row in cells]
    return "\n".join([*(line.rstrip() for line in lines), "", *notes, "", NOTE])


def _markdown(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    def line(row: Sequence[str]) -> str:
        return "| " + " | ".join(c.replace("|", "\\|").replace("\n", " ") for c in row) + " |"

    return "\n".join([line(columns), line(["---"] * len(columns)), *map(line, cells), "", NOTE])


def _html(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    def line(row: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(c)}</{tag}>" for c in row) + "</tr>"

    body = "\n".join(line(row, "td") for row in cells)
    head = line(columns, "th")
    return f"<table><thead>{head}</thead><tbody>\n{body}\n</tbody></table>\n<p>{escape(NOTE)}</p>"


def _json(runs: Mapping[str, Sequence[Measure]]) -> str:
    content = {name: [asdict(m) for m in found] for name, found in runs.items()}
    return json.dumps({"runs": content, "note": NOTE}, indent=1, allow_nan=False)
