"""The calls that are compiled, one file an op."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

from tools.aot.case import Case


def every() -> Iterator[Case]:
    """The cases of every file in this folder."""
    for module in pkgutil.iter_modules(__path__):
        yield from importlib.import_module(f"{__name__}.{module.name}").cases()
