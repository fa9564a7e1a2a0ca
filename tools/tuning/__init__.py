"""What can be tuned, one file an op: a function `tunables(device)` that yields `Tunable`.

A new file is found by itself. `tools/tune.py` times them all.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Fields = dict[str, int]


@dataclass(frozen=True)
class Tunable:
    """One call of a kernel, and the cuts it may have. `run` makes the call and returns what it
    computed; under `configs.using(kernel, **cut)` it is cut like that."""

    kernel: str
    call: str  # as the kernel asks `configs.chosen` for it
    rule: Fields
    others: tuple[Fields, ...]
    run: Callable[[], Tensor]


def every(device: torch.device) -> Iterator[Tunable]:
    """Those of every file in this folder."""
    for module in pkgutil.iter_modules(__path__):
        found: Any = importlib.import_module(f"{__name__}.{module.name}")
        yield from found.tunables(device)
