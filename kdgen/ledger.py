"""What updates did, gathered on the device, looked at rarely: the log lines, and when to stop."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kdgen.errors import NonFiniteError
from kdgen.learner import FAULTS, Outcome

if TYPE_CHECKING:
    from kdgen.training import Training

log = logging.getLogger("kdgen")


class Ledger:
    """Losses, gradient norms and faults; `lines` receives (step, **values) for the log."""

    def __init__(self, phases: Sequence[str], training: Training, device: torch.device) -> None:
        self.phases, self.training, self.device = phases, training, device
        self.lines: Callable[..., None] = lambda step, **values: None
        self.rate: Callable[[int], float] = training.rate  # learning rate of update number step
        self.gauges: dict[str, Tensor] = {}  # what the next line also says
        self.saved: Callable[[], int] = lambda: 0  # the newest step on disk
        self.strikes = 0  # updates left out in a row
        # By phase: loss and gradient norm of the last update; their sums and count since the last
        # line.
        self.last = torch.zeros(len(phases), 2, device=device)
        self.sums = torch.zeros(len(phases), 3, device=device)
        self._unread: list[tuple[int, Tensor]] = []  # (step, faults by phase)
        self._step = 0

    def note(self, step: int, outcomes: Sequence[Outcome]) -> None:
        """Take in the outcomes of one step, by phase; asks nothing of the device."""
        faults = torch.stack([o.fault for o in outcomes])
        self.last = torch.stack([torch.stack([o.loss, o.grad_norm]) for o in outcomes]).float()
        fine = (faults == 0).unsqueeze(1)
        self.sums[:, :2] += torch.where(fine, self.last, 0)
        self.sums[:, 2:] += fine
        self._unread.append((step, faults))
        self._step = step

    def read(self, *, last: bool = False, now: bool = False) -> None:
        """Look for faults; write the line that is due.

        On a GPU looking waits for it, so it happens every `log_every` steps, at the last one, or
        `now`. Raises NonFiniteError after `skips` faulty steps in a row.
        """
        due = not now and self.due(self._step, last)
        if not (due or now or self.device.type == "cpu"):
            return
        faults = torch.stack([f for _, f in self._unread]).tolist() if self._unread else []
        for (step, _), codes in zip(self._unread, faults, strict=True):
            self._judge(step, codes)
        self._unread.clear()
        if due:
            self._line()

    def due(self, step: int, last: bool) -> bool:
        """Whether a line is written after this step."""
        return last or step % self.training.log_every == 0

    def _judge(self, step: int, codes: list[int]) -> None:
        if not any(codes):
            self.strikes = 0
            return
        self.strikes += 1
        t, what = self.training, FAULTS[next(c for c in codes if c)]
        positions = [(step - 1) * t.batch, step * t.batch - 1]
        self.lines(step, skipped=what, positions=positions)
        log.warning(
            "step %d: %s not finite; update left out (%d in a row).", step, what, self.strikes
        )
        if self.strikes >= t.skips:
            raise NonFiniteError(self._diagnosis(step, what))

    def _diagnosis(self, step: int, what: str) -> str:
        t, saved = self.training, self.saved()
        first = (step - self.strikes) * t.batch
        good = f"last good checkpoint step {saved}" if saved else "no checkpoint yet"
        advice = "a lower lr or precision fp32" if t.precision == "bf16" else "a lower lr"
        return (
            f"fit: {what} not finite at step {step} (lr {self.rate(step):.2g}, "
            f"{t.precision}); "
            f"expected finite numbers. {self.strikes} updates in a row (positions "
            f"{first}…{step * t.batch - 1} "
            f"of the data order) were left out; {good}. Try {advice}."
        )

    def _line(self) -> None:
        t, step = self.training, self._step
        values: dict[str, Any] = {
            "images": step * t.batch,
            "lr": short(self.rate(step)),
        }
        for phase, (loss, norm, count) in zip(self.phases, self.sums.tolist(), strict=True):
            tail = f"_{phase}" if len(self.phases) > 1 else ""
            values["loss" + tail] = short(loss / count) if count else None
            values["grad_norm" + tail] = short(norm / count) if count else None
        for name, value in self.gauges.items():
            values[name] = short(v) if math.isfinite(v := float(value)) else None
        self.lines(step, **values)
        self.sums.zero_()


def short(x: float) -> float:
    """As many digits as a float32 has."""
    return float(f"{x:.7g}")
