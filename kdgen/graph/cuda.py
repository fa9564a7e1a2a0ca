"""Recording on an NVIDIA GPU."""

from __future__ import annotations

import gc
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch

from kdgen.graph.driver import T
from kdgen.graph.faults import here


class Cuda:
    """The driver of one GPU; it has one stream, on which it warms up and records."""

    def __init__(self, device: torch.device) -> None:
        index = torch.cuda.current_device() if device.index is None else device.index
        self.device = torch.device("cuda", index)
        self._stream = torch.cuda.Stream(self.device)

    @contextmanager
    def aside(self) -> Iterator[None]:
        # The stream waits for the caller's before it allocates, the caller's for it before it
        # reads: so memory goes back and forth between them without being marked.
        mine = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(mine)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            mine.wait_stream(self._stream)

    @contextmanager
    def watched(self) -> Iterator[list[str]]:
        # As warnings rather than errors: the work inside ends as usual, and can go on without a
        # graph.
        places: list[str] = []
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings():
            warnings.filterwarnings("always", message=".*synchronizing CUDA operation")
            show = warnings.showwarning

            def noticed(message: Any, *rest: Any, **more: Any) -> None:
                if "synchronizing CUDA operation" in str(message):
                    places.append(here(sys._getframe(1)))
                else:
                    show(message, *rest, **more)

            warnings.showwarning = noticed
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield places
            finally:
                torch.cuda.set_sync_debug_mode(before)

    def record(
        self, work: Callable[[], T], pool: Any, generators: Sequence[torch.Generator]
    ) -> tuple[torch.cuda.CUDAGraph, T]:
        graph = torch.cuda.CUDAGraph()
        for generator in generators:
            graph.register_generator_state(generator)
        pool = torch.cuda.graph_pool_handle() if pool is None else pool
        # What warming up has left in the cache goes to the graph's pool.
        torch.cuda.synchronize(self.device)
        gc.collect()
        torch.cuda.empty_cache()
        with self.aside():
            # Other threads (writers, data) may allocate meanwhile.
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                made = work()
                graph.capture_end()
            except BaseException:
                self._recover(graph, pool)
                raise
        return graph, made

    def _recover(self, graph: torch.cuda.CUDAGraph, pool: Any) -> None:
        """End a recording that failed.

        CUDA refuses to end an invalid one, and torch then leaves its allocator and its generator
        recording.
        """
        with suppress(RuntimeError):  # the first error is the one to tell
            graph.capture_end()
            return
        with suppress(RuntimeError, AttributeError):
            torch._C._cuda_endAllocateToPool(self.device.index, pool)
        with suppress(RuntimeError, AttributeError):
            torch._C._cuda_releasePool(self.device.index, pool)
        generator = torch.cuda.default_generators[self.device.index]
        generator.graphsafe_set_state(generator.clone_state())
