"""A writer in a thread of its own, so that what makes images does not wait for the disk."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from kdgen.writers import Writer

ROOM = 256 * 2**20  # bytes of images that may wait: 50,000 of 32×32×3 do


class Background:
    """A `Writer` that hands batches to `target` from another thread, in order.

    `add` returns at once, unless `room` bytes wait already. An error of the target comes out of the
    next `add` or of `close`; the caller then aborts. `busy` is how long the target has worked,
    `waited` how long callers of `add` stood still for it, in seconds.
    """

    def __init__(self, target: Writer, room: int = ROOM) -> None:
        self.target, self.room = target, room
        self.busy, self.waited = 0.0, 0.0
        self._jobs: deque[tuple[Tensor, Tensor | None]] = deque()
        self._held = 0  # bytes
        self._ending = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def add(self, images: Tensor, labels: Tensor | None) -> None:
        """Hand over a batch, which must not be changed afterwards; labels on the CPU."""
        self._start()
        begun = time.perf_counter()
        with self._changed:
            self._changed.wait_for(lambda: self._error or self._fits(images.nbytes))
            self.waited += time.perf_counter() - begun
            self._complain()
            self._jobs.append((images, labels))
            self._held += images.nbytes
            self._changed.notify_all()

    def close(self) -> str:
        """Write what waits, and finish; what `Writer.close` says."""
        self._join()
        with self._changed:
            self._complain()
        with self._working():
            return self.target.close()

    def abort(self) -> None:
        """Leave nothing behind."""
        with self._changed:
            self._jobs.clear()
        self._join()
        self.target.abort()

    def _fits(self, size: int) -> bool:
        return not self._held or self._held + size <= self.room

    def _complain(self) -> None:
        if self._error is not None:
            raise self._error

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="kdgen-writer", daemon=True)
            self._thread.start()

    def _join(self) -> None:
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            while (job := self._next()) is not None:
                with self._working():
                    self.target.add(*job)
                with self._changed:
                    self._held -= job[0].nbytes
                    self._changed.notify_all()
        except BaseException as error:
            with self._changed:
                self._error = error
                self._jobs.clear()
                self._changed.notify_all()

    def _next(self) -> tuple[Tensor, Tensor | None] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._ending)
            return self._jobs.popleft() if self._jobs else None

    @contextmanager
    def _working(self) -> Iterator[None]:
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.busy += time.perf_counter() - begun
