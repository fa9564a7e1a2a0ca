"""What the pipeline needs of a device: streams that run work in order, events, pinned memory.

Work is handed over as functions, never run in passing. So the tests can put a machine in a CUDA
device's place that delays and interleaves as wildly as streams may, and see every missing wait.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Event(Protocol):
    """A place in a stream's work."""

    def synchronize(self) -> None:
        """Hold the host until the stream has come by."""


class Stream(Protocol):
    """Does what it is given in order, later; knows nothing of other streams' order."""

    def submit(self, work: Callable[[], object]) -> None:
        """Enqueue."""

    def record(self) -> Event:
        """An event behind all that was submitted so far."""

    def wait(self, event: Event) -> None:
        """Let all that is submitted from now on run after the event."""

    def synchronize(self) -> None:
        """Hold the host until all is done."""


class Driver(Protocol):
    """Streams and page-locked memory."""

    def current(self) -> Stream:
        """The stream that the caller's own work is on."""

    def stream(self) -> Stream:
        """A new one."""

    def pinned(self, shape: tuple[int, ...]) -> Tensor:
        """uint8 on the host; a device copies into it without the host's help."""


@dataclass(frozen=True)
class CudaStream:
    """A `torch.cuda.Stream`."""

    raw: torch.cuda.Stream

    def submit(self, work: Callable[[], object]) -> None:
        """Enqueue what `work` launches."""
        with torch.cuda.stream(self.raw):
            work()

    def record(self) -> Event:
        """An event behind all that was submitted so far."""
        event: Event = self.raw.record_event()
        return event

    def wait(self, event: Event) -> None:
        """Let all that is submitted from now on run after the event."""
        assert isinstance(event, torch.cuda.Event)
        self.raw.wait_event(event)

    def synchronize(self) -> None:
        """Hold the host until all is done."""
        self.raw.synchronize()


@dataclass(frozen=True)
class CudaDriver:
    """One CUDA device."""

    device: torch.device

    def current(self) -> Stream:
        """The stream that the caller's own work is on."""
        return CudaStream(torch.cuda.current_stream(self.device))

    def stream(self) -> Stream:
        """A new one."""
        return CudaStream(torch.cuda.Stream(self.device))

    def pinned(self, shape: tuple[int, ...]) -> Tensor:
        """uint8 on the host; a device copies into it without the host's help."""
        return torch.empty(shape, dtype=torch.uint8, pin_memory=True)


def driver_of(device: torch.device) -> Driver | None:
    """None where nothing runs beside the host's own work."""
    return CudaDriver(device) if device.type == "cuda" else None
