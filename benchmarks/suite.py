"""What a session of benchmarks shares: its devices, their roofs and the rows measured so far."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from .machine import devices, name
from .race import Call, race
from .roofs import Roofs
from .rows import Row, row


@dataclass
class Suite:
    """`smoke`: everything runs once on tiny inputs, nothing is measured or kept."""

    devices: list[torch.device]
    smoke: bool
    rows: list[Row] = field(default_factory=list)
    notes: dict[torch.device, list[str]] = field(default_factory=dict)  # lines under a table
    _roofs: dict[torch.device, Roofs] = field(default_factory=dict)

    def roofs(self, device: torch.device) -> Roofs:
        return self._roofs.setdefault(device, Roofs(device))

    def of(self, device: torch.device) -> list[Row]:
        return [r for r in self.rows if r.device == name(device)]

    def measure(
        self,
        benchmark: Any,
        device: torch.device,
        dtype: torch.dtype,
        ours: Sequence[Call],
        peer: Sequence[Call],
        *,
        predict: Callable[[Roofs], float],
        budget: float = 1.5,
        **facts: Any,
    ) -> Row | None:
        """Race `ours` against `peer` and keep the row; None in a smoke run.

        `predict` gives the seconds a call would take at the device's roofs; `facts` are the other
        fields of the row. pytest-benchmark's own record carries the same figures as extra_info.
        """
        benchmark.group = facts["group"]
        result = race(benchmark, device, ours, peer, budget=budget)
        if self.smoke:
            return None
        predicted = predict(self.roofs(device))
        found = row(result, device, dtype, predicted=predicted, **facts)
        self.rows.append(found)
        benchmark.extra_info.update(
            row=found.key, ratio=found.ratio, predicted=predicted, fraction=found.fraction
        )
        return found


KEY = pytest.StashKey[Suite]()


def of(config: pytest.Config) -> Suite:
    """The session's suite, made when it is first asked for."""
    if KEY not in config.stash:
        smoke = bool(config.getoption("benchmark_disable") or config.getoption("benchmark_skip"))
        try:
            found = devices(config.getoption("device"))
        except ValueError as error:
            raise pytest.UsageError(str(error)) from error
        config.stash[KEY] = Suite(found, smoke)
    return config.stash[KEY]
