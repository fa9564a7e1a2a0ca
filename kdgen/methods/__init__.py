"""Distillation methods, one file each. To add one, add its file: the table below is filled from
this folder."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from kdgen.methods.base import Batch, Method, Nets

__all__ = ["Batch", "Method", "Nets", "methods"]


@cache
def methods() -> dict[str, type[Method]]:
    """Every method of this folder by name."""
    found: dict[str, type[Method]] = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        for thing in vars(module).values():
            if not isinstance(thing, type) or thing.__module__ != module.__name__:
                continue
            if issubclass(thing, Method) and thing is not Method:
                found[thing.name] = thing
    return found
