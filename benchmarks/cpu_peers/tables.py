"""A result file in Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from .claims import Verdict, verdicts
from .figures import Results, Spread, networks
from .variants import BY_NAME, VARIANTS, Variant

_MIB = 1 << 20


def page(document: dict[str, Any], picture: str) -> list[str]:
    """Everything about one machine; `picture` is a path beside the page."""
    lines = [f"### {document['device']}", ""]
    lines += [f"![Images a second against error, by network]({picture})", ""]
    for results in networks(document):
        lines += [*_head(results), *_contestants(results), "", *_ratios(results)]
    return lines


def _head(results: Results) -> list[str]:
    said = results.said
    versions = ", ".join(f"{k} {v}" for k, v in said["versions"].items() if v)
    roofs = ", ".join(f"{k} {v / 1e9:,.0f}" for k, v in said.get("roofs", {}).items())
    return [
        f"#### {results.name}",
        "",
        f"{said['parameters']:,} parameters, {said['flops'] / 1e9:.4g} GFLOP an image; "
        f"{said['threads']} threads, {said['rounds']} rounds, commit {said['commit'] or '?'}; "
        f"measured roofs in GFLOP/s: {roofs}. Versions: {versions}.",
        "",
        f"    {said['command']}",
        "",
    ]


def _contestants(results: Results) -> list[str]:
    """Images/s (quartiles), error and share of the roof at every batch."""
    batches = [f"batch {b}: images/s" for b in results.batches]
    head = ["", *(c for b in batches for c in (b, "error", "of roof")), "start", "made", "memory"]
    rows, notes = [], []
    for variant in VARIANTS:
        row = results.row(variant.name)
        if not row:
            continue
        rows.append(_row(results, variant, row))
        notes += _notes(results, variant, row)
    return [*table(head, rows), "", *(f"- {note}" for note in notes)]


def _row(results: Results, variant: Variant, row: dict[str, Any]) -> list[str]:
    cells = [f"**{variant.title}**" if variant.ours else variant.title]
    for batch in results.batches:
        figure = results.figure(variant.name, batch)
        if figure is None:
            cells += ["—", "", ""]
            continue
        share = figure.fraction
        cells += [_spread(figure.rate), _error(figure.error), f"{share:.0%}" if share else ""]
    start, made, memory = row.get("start"), row.get("preparation"), row.get("memory")
    cells += [f"{start:.1f} s" if start else "", f"{made:.0f} s" if made else ""]
    return [*cells, f"{memory / _MIB:,.0f} MiB" if memory else ""]


def _notes(results: Results, variant: Variant, row: dict[str, Any]) -> Iterator[str]:
    """What the dashes mean."""
    if why := row.get("failed"):
        yield f"{variant.title}: {why}"
        return
    if note := row.get("note"):
        yield f"{variant.title}: {note}"
    for batch in results.batches:
        if results.figure(variant.name, batch) is None:
            yield f"{variant.title}, batch {batch}: {results.why(variant.name, batch)}"


def _ratios(results: Results) -> list[str]:
    head = ["", "against", "batch", "ratio (quartiles)", "aim", "errors"]
    rows = []
    for v in verdicts(results):
        shown = _spread(v.ratio) if v.ratio else "—"
        errors = ", ".join(map(_error, v.errors)) if v.errors else v.why
        aim = f"{v.aim:g}" if v.aim else ""
        rows.append([BY_NAME[v.claim.ours].title, _peer(v), str(v.batch), shown, aim, errors])
    return [*table(head, rows), ""] if rows else []


def _peer(v: Verdict) -> str:
    """By name where it is the best of several."""
    found = v.peer if len(v.claim.peers) > 1 else ""
    return f"{v.claim.against}: {BY_NAME[found].title}" if found else v.claim.against


def _error(error: float) -> str:
    return f"{error:.1e}" if error else "0"


def _spread(s: Spread) -> str:
    return f"{number(s.middle)} ({number(s.low)}–{number(s.high)})"


def number(value: float) -> str:
    """With three digits, or all before the point; without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Markdown; the first column to the left, the others to the right."""
    marks = ["---", *["---:"] * (len(head) - 1)]
    return [f"| {' | '.join(_escaped(c) for c in line)} |" for line in (head, marks, *rows)]


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|")
