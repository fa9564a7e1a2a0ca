"""The quality table of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kdgen.metrics import Measure, rows
from kdgen.metrics.table import NOTE
from kdgen.report.blocks import Table


def quality(measures: Sequence[Measure] | Mapping[str, Sequence[Measure]]) -> Table:
    """Measures of one or several named runs, with floors, and caveats under the names."""
    columns, cells = rows(measures)
    floor_is, caveat = columns.index("floor is"), columns.index("caveat")
    shown = [i for i in range(len(columns)) if i not in (floor_is, caveat)]
    return Table(
        columns=[columns[i] for i in shown],
        rows=[[row[i] for i in shown] for row in cells],
        details=[f"{row[caveat]} Floor: {row[floor_is]}." for row in cells],
        note=NOTE,
    )
