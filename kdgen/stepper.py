"""The device's part of a training step: run as it is, or recorded once a round and replayed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch

from kdgen import graph
from kdgen.batches import Taken
from kdgen.graph import Captured, CaptureError, Driver
from kdgen.learner import Outcome

Work = Callable[[Taken], Sequence[Outcome]]
log = logging.getLogger("kdgen")


class Stepper:
    """Runs work that is the same at every step of a round.

    The first `graph.WARMUP` steps of a round run as they are, on the stream that will record: they
    allocate Adam's moments and compile kernels, and they count. The next one is recorded (which
    runs nothing) and, like all after it, replayed. torch's own random numbers, dropout, follow the
    seed that the device's generator has at each step, replayed or not. So a run resumes bit-exactly
    wherever it is cut, if its kernels are deterministic.

    Where graphs cannot be, "on" raises CaptureError, and "auto" says so once and goes on without.
    """

    def __init__(
        self,
        wanted: Literal["auto", "on", "off"],
        device: torch.device,
        driver: Driver | None = None,
    ) -> None:
        self._wanted, self._driver = wanted, driver
        self._captured: Captured | None = None
        self._warm = 0  # steps of this round that were run
        if wanted == "off":
            self._driver = None
        elif driver is None:
            self._find(device)

    def _find(self, device: torch.device) -> None:
        why = graph.available(device)
        if not why:
            self._driver = graph.Cuda(device)
        elif self._wanted == "on" or device.type == "cuda":
            self._give_up(
                CaptureError(
                    f"fit: graph is {self._wanted!r}, but {why}; expected a GPU. Use graph='off'."
                )
            )

    @property
    def hopeful(self) -> bool:
        """Whether steps are to become graphs."""
        return self._driver is not None

    def look(self, loss: Callable[..., Any], *arguments: Any) -> None:
        """Give up if a loss is seen to be impossible to record."""
        if self.hopeful and (found := graph.objection(loss, *arguments, where="fit")):
            self._give_up(found)

    def renew(self) -> None:
        """A round begins: networks, moments and the method's constants are others now."""
        self._captured, self._warm = None, 0

    def __call__(self, work: Work, taken: Taken) -> Sequence[Outcome]:
        """The outcomes of a step, by phase; those of a graph are good until the next step."""
        if self._driver is None:
            return work(taken)
        if self._warm < graph.WARMUP:
            return self._run(work, taken, self._driver)
        if self._captured is None and not self._record(work, taken, self._driver):
            return work(taken)
        assert self._captured is not None
        outcomes: Sequence[Outcome] = self._captured(taken)
        return outcomes

    def _run(self, work: Work, taken: Taken, driver: Driver) -> Sequence[Outcome]:
        self._warm += 1
        outcomes, places = graph.warm(lambda: work(taken), driver)
        if places and self._warm == graph.WARMUP:  # before, kernels are compiled and tried
            self._give_up(graph.waits("fit", places))
        return outcomes

    def _record(self, work: Work, taken: Taken, driver: Driver) -> bool:
        try:
            self._captured = graph.capture(work, taken, warmup=0, driver=driver, where="fit")
        except (CaptureError, torch.OutOfMemoryError) as error:
            self._give_up(error)
        return self._captured is not None

    def _give_up(self, why: Exception) -> None:
        if self._wanted == "on":
            raise why
        log.warning("%s Going on without a graph.", why)
        self._driver = None
