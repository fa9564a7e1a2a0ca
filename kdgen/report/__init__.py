"""Reports: a run's results as one HTML file that opens offline.

Make a Report out of blocks, then `write(report, path)`. What a report says is the caller's; how it
looks is here. Every text is escaped, and the page may load nothing, not even from its own folder.
"""

from kdgen.report.blocks import (
    Block,
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
)
from kdgen.report.page import build, write
from kdgen.report.quality import quality

__all__ = [
    "Block",
    "Card",
    "Chart",
    "Definitions",
    "Panel",
    "Panels",
    "Report",
    "Section",
    "Series",
    "Table",
    "Text",
    "build",
    "quality",
    "write",
]
