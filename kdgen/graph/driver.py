"""What recording asks of a device; tests have one that records on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

import torch

T = TypeVar("T")


class Recording(Protocol):
    """Work that can be repeated, on the same addresses."""

    def replay(self) -> None:
        """Repeat it on the current stream; does not wait."""

    def pool(self) -> Any:
        """Where its memory is, for recordings that are never replayed at the same time."""


class Driver(Protocol):
    """A device that can record."""

    device: torch.device

    def aside(self) -> AbstractContextManager[None]:
        """Run what is inside on the stream that records, after and before the caller's work."""

    def watched(self) -> AbstractContextManager[list[str]]:
        """Fills the list with where the host waited for the device inside."""

    def record(
        self, work: Callable[[], T], pool: Any, generators: Sequence[torch.Generator]
    ) -> tuple[Recording, T]:
        """What `work` would do, not done, and what it returned; errors are those of `work`."""
