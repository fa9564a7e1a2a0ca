"""How each contestant is prepared, started and called.

A module has `start(job) -> Runner` and, where something is made once before (an exported file, a
compiled package), `prepare(job)`, which runs in a process of its own. What cannot run here raises
`Refused` with the reason. The modules of a contestant that needs no torch do not import it.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..case import Array, Case
from ..variants import Variant

Call = Callable[[], Array]


class Refused(Exception):
    """A contestant that cannot run here, or not this network."""


@dataclass(frozen=True)
class Job:
    """`folder` holds the network's files, `work` the contestant's own."""

    variant: Variant
    case: Case
    folder: Path
    work: Path
    threads: int
    batches: tuple[int, ...]

    def check(self) -> None:
        """Refused where a package is missing."""
        absent = [p for p in self.variant.packages if importlib.util.find_spec(p) is None]
        if absent:
            raise Refused(f"{', '.join(absent)} not installed")


class Runner(Protocol):
    """`note` is what is worth knowing about how it runs; `dtype` that of its products, which may be
    another one than was asked for. "" where there is nothing to say."""

    note: str
    dtype: str

    def call(self, x: Array, label: Array | None) -> Call:
        """A call that answers for these inputs, made ready for their number."""


def module(variant: Variant) -> Any:
    return importlib.import_module(f"{__name__}.{variant.runner}")
