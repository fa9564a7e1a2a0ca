"""How error messages list what is wrong in files that people give us."""

from __future__ import annotations

from collections.abc import Sequence

SHOWN = 10
LONGEST = 80


def quoted(name: str) -> str:
    """A name from a file, safe to print: control characters escaped, long ones cut."""
    safe = name if name.isprintable() else ascii(name)[1:-1]
    return safe if len(safe) <= LONGEST else f"{safe[: LONGEST - 1]}…"


def listing(items: Sequence[str]) -> str:
    """The first ten and how many more."""
    more = len(items) - SHOWN
    return ", ".join(items[:SHOWN]) + (f" and {more:,} more" if more > 0 else "")
