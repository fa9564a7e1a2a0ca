"""The table of a result file: predicted beside measured, and the share of the roof."""

from __future__ import annotations

from typing import Any

from ..rows import duration
from .verdicts import verdicts

HEAD = ("what", "predicted", "measured", "spread", "of roof", "× base", "error", "J/image")


def lines(document: dict[str, Any]) -> list[str]:
    """Everything in the result file that people would ask for."""
    rows = document["rows"]
    out = [f"{document['device']} · {_versions(document)} · commit {document['commit'] or '?'}"]
    cells = [HEAD, *(_cells(key, row) for key, row in rows.items() if "seconds" in row)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        padded = [
            c.ljust(w) if k == 0 else c.rjust(w)
            for k, (c, w) in enumerate(zip(line, widths, strict=True))
        ]
        out.append("  ".join(padded).rstrip())
    out += [
        f"not measured: {key}: {row['skipped']}" for key, row in rows.items() if "skipped" in row
    ]
    full = document["stages"].get("images", {}).get("full")
    if full:
        out.append(
            f"{full['images']:,} images in {full['seconds']:.2f} s, measured in full, batch "
            f"{full['batch']}; public headline 51.5 s on a device its authors do not name"
        )
    return out + verdicts(document)


def _cells(key: str, row: dict[str, Any]) -> tuple[str, ...]:
    expected = row.get("expected")
    return (
        key,
        duration(expected) if expected else "",
        duration(row["seconds"]),
        f"{(row['high'] - row['low']) / row['seconds']:.0%}",
        f"{row['predicted'] / row['seconds']:.0%}" if row.get("predicted") else "",
        f"{row['ratio']:.2f}" if "ratio" in row else "",
        f"{row['error']:.1e}" if "error" in row else "",
        f"{row['joules']:.2g}" if "joules" in row else "",
    )


def _versions(document: dict[str, Any]) -> str:
    return ", ".join(f"{k} {v}" for k, v in document["versions"].items() if v)
