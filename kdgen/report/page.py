"""From blocks to one HTML file."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Sequence
from html import escape
from pathlib import Path

from kdgen.durable import replace_file
from kdgen.report.blocks import (
    Block,
    Card,
    Chart,
    Definitions,
    Panels,
    Report,
    Section,
    Table,
    Text,
)
from kdgen.report.chart import draw
from kdgen.report.style import CSS

# The page says itself that it may load nothing, so that a mistake shows when it is first opened.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
NUMERIC = re.compile(r"^[<>≈~+−-]?\d[\d.,]*(?![\w-])")
PNG = b"\x89PNG\r\n\x1a\n"


def build(report: Report) -> str:
    """The page as text: no scripts, no external resources, every text escaped."""
    cards = "".join(map(_card, report.cards))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(report.title)}</title>\n<style>\n{CSS}\n</style>\n</head>\n<body>\n<main>\n"
        f'<h1>{escape(report.title)}</h1>\n<p class="lead">{escape(report.lead)}</p>\n'
        + (f'<div class="cards">{cards}</div>\n' if cards else "")
        + "\n".join(map(_section, report.sections))
        + (f"\n<footer>{escape(report.footer)}</footer>" if report.footer else "")
        + "\n</main>\n</body>\n</html>\n"
    )


def write(report: Report, path: Path | str) -> None:
    """Write the page; whoever has it open sees the old one or the new one, never half."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, build(report).encode())


def _card(card: Card) -> str:
    return (
        f'<div class="card"><div class="label">{escape(card.label)}</div>'
        f'<div class="value">{escape(card.value)}</div>{_note(card.note)}</div>'
    )


def _section(section: Section) -> str:
    title = escape(section.title)
    lead = f'<p class="sub">{escape(section.lead)}</p>' if section.lead else ""
    body = lead + _blocks(section.blocks)
    if section.folded:
        return f"<section><details><summary>{title}</summary>{body}</details></section>"
    return f"<section><h2>{title}</h2>{body}</section>"


def _blocks(blocks: Sequence[Block]) -> str:
    """Blocks in order; neighbouring charts share a row where the screen is wide enough."""
    parts: list[str] = []
    charts: list[str] = []
    for block in blocks:
        if isinstance(block, Chart):
            charts.append(draw(block))
            continue
        parts += [_row_of(charts), _block(block)]
        charts = []
    return "".join([*parts, _row_of(charts)])


def _row_of(charts: Sequence[str]) -> str:
    return f'<div class="charts">{"".join(charts)}</div>' if charts else ""


def _block(block: Panels | Table | Definitions | Text) -> str:
    match block:
        case Panels():
            return _panels(block)
        case Table():
            return _table(block)
        case Definitions():
            items = (
                f"<dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd>"
                for k, v in block.items.items()
            )
            return f"<dl>{''.join(items)}</dl>"
        case Text():
            return f"<p>{escape(block.text)}</p>"


def _panels(panels: Panels) -> str:
    figures = []
    for panel in panels.items:
        if not panel.png.startswith(PNG):
            raise ValueError(f"Panel {panel.title!r}: not a PNG file. Make it with kdgen.grid.png.")
        title = escape(panel.title)
        source = f"data:image/png;base64,{b64encode(panel.png).decode()}"
        figures.append(
            f'<figure><figcaption>{title}</figcaption><img alt="{title}" src="{source}">'
            f"{_note(panel.note)}</figure>"
        )
    return f'<div class="panels">{"".join(figures)}</div>'


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(c)}</th>" for c in table.columns)
    details = table.details or [""] * len(table.rows)
    body = "".join(
        _row(row) + _detail(d, len(row)) for row, d in zip(table.rows, details, strict=True)
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        f"</div>{_note(table.note)}"
    )


def _row(row: Sequence[str]) -> str:
    cells = []
    for i, cell in enumerate(row):
        number = ' class="number"' if i and NUMERIC.match(cell) else ""
        cells.append(f"<td{number}>{escape(cell)}</td>")
    return f"<tr>{''.join(cells)}</tr>"


def _detail(detail: str, columns: int) -> str:
    if not detail:
        return ""
    return f'<tr class="detail"><td colspan="{columns}">{escape(detail)}</td></tr>'


def _note(note: str) -> str:
    return f'<p class="note">{escape(note)}</p>' if note else ""
