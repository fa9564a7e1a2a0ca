"""What a report is made of. Plain text throughout; the page escapes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """A headline number: `Card("Fréchet distance", "3.1", "teacher 2.2, real images 1.2")`."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Series:
    """One line of a chart."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Chart:
    """Lines over a common axis. What is not finite, or not positive on a logarithmic axis, is left
    out."""

    title: str
    series: Sequence[Series]
    x_label: str = "step"
    y_label: str = ""
    log_y: bool = False
    log_x: bool = False


@dataclass(frozen=True)
class Panel:
    """A titled picture, the bytes of a PNG file."""

    title: str
    png: bytes
    note: str = ""


@dataclass(frozen=True)
class Panels:
    """Pictures next to each other, below each other on a narrow screen."""

    items: Sequence[Panel]


@dataclass(frozen=True)
class Table:
    """Cells are text. `details` has one small line for each row, shown below it."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    details: Sequence[str] = ()
    note: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(
                    f"Table: row {list(row)} has {len(row)} cells; expected {len(self.columns)}."
                )
        if self.details and len(self.details) != len(self.rows):
            raise ValueError(
                f"Table: {len(self.details)} details for {len(self.rows)} rows; expected as many."
            )


@dataclass(frozen=True)
class Definitions:
    """Terms and their values, as of a configuration."""

    items: Mapping[str, object]


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


Block = Chart | Panels | Table | Definitions | Text


@dataclass(frozen=True)
class Section:
    """A titled part of the page. `folded` hides its blocks until they are asked for."""

    title: str
    blocks: Sequence[Block]
    lead: str = ""
    folded: bool = False


@dataclass(frozen=True)
class Report:
    """The whole page: title, one sentence, headline numbers, sections."""

    title: str
    lead: str
    cards: Sequence[Card] = ()
    sections: Sequence[Section] = ()
    footer: str = ""
