"""What a stage is given: the device, the time left and where figures go."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from .. import machine
from ..race import Timing
from ..roofs import Roofs
from ..rows import Row, duration, short
from . import clock
from .clock import Contestant
from .record import Record


@dataclass
class Bench:
    """`tiny`: a rehearsal, inputs as small as the code allows and one round of everything."""

    device: torch.device
    record: Record
    seconds: float
    tiny: bool = False
    _begun: float = field(default_factory=time.monotonic)
    _roofs: Roofs | None = None

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.seconds - (time.monotonic() - self._begun)

    def time_for(self, key: str, seconds: float) -> bool:
        """Whether about `seconds` are left; if not, the record says that `key` was left out."""
        if self.left >= seconds:
            return True
        self.record.skip(key, f"deadline: {self.left:.0f} s left of {self.seconds:.0f}")
        return False

    @property
    def roofs(self) -> Roofs:
        if self._roofs is None:
            self._roofs = Roofs(self.device, tiny=self.tiny)
        return self._roofs

    def race(
        self, contestants: Mapping[str, Contestant], *, rounds: int = clock.ROUNDS
    ) -> dict[str, Timing]:
        few, least = (1, 0.0) if self.tiny else (rounds, clock.LEAST)
        return clock.race(contestants, self.device, rounds=few, least=least)

    def rows(
        self,
        timings: Mapping[str, Timing],
        base: str,
        dtype: torch.dtype,
        *,
        more: Mapping[str, Mapping[str, Any]] | None = None,
        **facts: Any,
    ) -> None:
        """A row for every contestant, its ratio that to `base`; `more` has facts by contestant."""
        peer = timings.get(base)
        for name, t in timings.items():
            low, high = t.middle
            against = peer if name != base else None
            row = Row(
                implementation=name,
                device=machine.name(self.device),
                dtype=short(dtype),
                seconds=t.median,
                low=low,
                high=high,
                best=t.best,
                rounds=len(t.rounds),
                peer_seconds=against.median if against else None,
                ratio=against.median / t.median if against else None,
                best_ratio=against.best / t.best if against else None,
                **facts,
            )
            self.record.row(row, **(more or {}).get(name, {}))
            print(f"  {row.key}: {duration(row.seconds)}", flush=True)
