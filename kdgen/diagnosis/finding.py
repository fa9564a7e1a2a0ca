"""One line of a diagnosis."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

REINSTALL = "install kdgen again (in a checkout: make clean test)"

State = Literal["ok", "note", "missing"]


@dataclass(frozen=True)
class Finding:
    """A "note" can be lived without, what is "missing" cannot."""

    topic: str
    state: State
    text: str
    fix: str = ""


def has(module: str) -> bool:
    """Whether it can be found; it is not imported."""
    with suppress(ImportError, ValueError):
        return importlib.util.find_spec(module) is not None
    return False


def version_of(package: str) -> str:
    """As it was installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(version unknown)"


def first_line(error: BaseException) -> str:
    """Of its message; its type where there is none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def gigabytes(size: int) -> str:
    """For people."""
    return f"{size / 1e9:.1f} GB"
