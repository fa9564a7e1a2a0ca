"""Line charts as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from kdgen.report.blocks import Chart, Series

WIDTH, HEIGHT = 480, 260
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 10, 42
POINTS = 300  # more than that many are averaged; the page stays small and the line readable
COLOURS = 10  # as many as the style sheet has

Point = tuple[float, float]


@dataclass(frozen=True)
class _Axis:
    """Maps values to pixels, linearly or by logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (self._scale(v) for v in (self.low, self.high, value))
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def _scale(self, value: float) -> float:
        return math.log10(value) if self.log else value


def draw(chart: Chart) -> str:
    """The chart as a <figure>, with a legend when it has several lines."""
    lines = [_points(series, chart) for series in chart.series]
    points = [point for line in lines for point in line]
    if not points:
        return f"<figure><figcaption>{escape(chart.title)}: no data</figcaption></figure>"
    x_axis = _axis([x for x, _ in points], LEFT, WIDTH - RIGHT, log=chart.log_x, tight=True)
    y_axis = _axis([y for _, y in points], HEIGHT - BOTTOM, TOP, log=chart.log_y)
    body = [
        *(_horizontal(y_axis(tick), tick) for tick in _ticks(y_axis)),
        *(_vertical(x_axis(tick), tick) for tick in _ticks(x_axis)),
        *(_line(line, i, x_axis, y_axis) for i, line in enumerate(lines)),
        _labels(chart),
    ]
    name = escape(chart.title)
    return (
        f"<figure><figcaption>{name}{_legend(chart.series)}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name}">'
        f"{''.join(body)}</svg>{_note(chart)}</figure>"
    )


def _points(series: Series, chart: Chart) -> list[Point]:
    """The drawable points, averaged in equal runs when there are too many."""
    known = _known(series, chart)
    size = _run(len(known))
    return [_mean(known[i : i + size]) for i in range(0, len(known), size)]


def _known(series: Series, chart: Chart) -> list[Point]:
    if len(series.x) != len(series.y):
        raise ValueError(
            f"Series {series.name!r}: {len(series.x)} x for {len(series.y)} y; expected as many."
        )
    return [
        (float(x), float(y))
        for x, y in zip(series.x, series.y, strict=True)
        if math.isfinite(x) and math.isfinite(y)
        if (y > 0 or not chart.log_y) and (x > 0 or not chart.log_x)
    ]


def _run(n: int) -> int:
    return max(1, -(-n // POINTS))


def _mean(points: Sequence[Point]) -> Point:
    return sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points)


def _axis(
    values: Sequence[float], start: float, end: float, log: bool, tight: bool = False
) -> _Axis:
    """An axis around the values; a little wider than they are, unless tight."""
    low, high = min(values), max(values)
    if low == high:
        margin = abs(low) * 0.5 or 1.0
        low, high = (low / 2, high * 2) if log else (low - margin, high + margin)
    elif log and not tight:
        room = (high / low) ** 0.05
        low, high = low / room, high * room
    elif not tight:
        room = (high - low) * 0.05
        low, high = (0.0 if 0 <= low < (high - low) / 2 else low - room), high + room
    return _Axis(low, high, start, end, log)


def _ticks(axis: _Axis) -> list[float]:
    """Round values along the axis, about five."""
    if axis.log:
        first, last = math.floor(math.log10(axis.low)), math.ceil(math.log10(axis.high))
        decades = max(1, (last - first) // 6)
        marks = (1,) if last - first > 3 else (1, 2, 5)
        ticks = [m * 10.0**e for e in range(first, last + 1, decades) for m in marks]
    else:
        step = _round_step((axis.high - axis.low) / 5)
        first = math.ceil(axis.low / step - 1e-9)
        ticks = [i * step for i in range(first, math.floor(axis.high / step + 1e-9) + 1)]
    return [tick for tick in ticks if axis.low * (1 - 1e-9) <= tick <= axis.high * (1 + 1e-9)] or [
        axis.low,
        axis.high,
    ]


def _round_step(rough: float) -> float:
    power: float = 10.0 ** math.floor(math.log10(rough))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))


def _number(value: float) -> str:
    """As short as a tick label should be: 40000 -> 40k, 0.0005 -> 5e-4."""
    if value == 0:
        return "0"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):.4g}{letter}"
    if abs(value) < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}".replace("-", "−")
    return f"{value:.4g}".replace("-", "−")


def _horizontal(y: float, tick: float) -> str:
    return (
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{_number(tick)}</text>'
    )


def _vertical(x: float, tick: float) -> str:
    base = HEIGHT - BOTTOM
    return (
        f'<line class="tick" x1="{x:.1f}" x2="{x:.1f}" y1="{base}" y2="{base + 5}"/>'
        f'<text x="{x:.1f}" y="{base + 18}" text-anchor="middle">{_number(tick)}</text>'
    )


def _line(points: Sequence[Point], index: int, x_axis: _Axis, y_axis: _Axis) -> str:
    colour = f"s{index % COLOURS}"
    if len(points) == 1:
        [(x, y)] = points
        return f'<circle class="{colour}" cx="{x_axis(x):.1f}" cy="{y_axis(y):.1f}" r="3"/>'
    path = " ".join(f"{x_axis(x):.1f},{y_axis(y):.1f}" for x, y in points)
    return f'<polyline class="{colour}" points="{path}"/>'


def _labels(chart: Chart) -> str:
    middle, y_middle = (LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2
    x_label = chart.x_label + (" (log)" if chart.log_x else "")
    y_label = chart.y_label + (" (log)" if chart.y_label and chart.log_y else "")
    base = HEIGHT - BOTTOM
    return (
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>'
        f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>'
        f'<text transform="translate(14 {y_middle}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_label)}</text>"
    )


def _legend(series: Sequence[Series]) -> str:
    if len(series) < 2:
        return ""
    items = (
        f'<span class="key s{i % COLOURS}">{escape(s.name)}</span>' for i, s in enumerate(series)
    )
    return f'<span class="legend">{"".join(items)}</span>'


def _note(chart: Chart) -> str:
    """Says what the line does not show."""
    known = [_known(series, chart) for series in chart.series]
    run = max(_run(len(points)) for points in known)
    missing = sum(len(s.y) - len(k) for s, k in zip(chart.series, known, strict=True))
    notes = []
    if run > 1:
        notes.append(f"Each point is the mean of {run} values.")
    if missing:
        notes.append(f"{missing} values cannot be drawn (not finite, or not positive).")
    return f'<p class="note">{" ".join(notes)}</p>' if notes else ""
