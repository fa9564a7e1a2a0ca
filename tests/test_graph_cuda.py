"""The CUDA driver against a stand-in for torch.cuda that notes what it is asked, in order."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kdgen.graph import CaptureError, Cuda, capture


class Stream:
    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def wait_stream(self, other: Stream) -> None:
        self.log.append(f"{self.name} waits for {other.name}")


class Machine:
    """torch.cuda, as far as the driver uses it; `invalid` recordings cannot be ended."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.invalid = False
        self.mode = 0
        self.main = self.current = Stream("main", self.log)
        self.generator = SimpleNamespace(
            clone_state=lambda: "clone",
            graphsafe_set_state=lambda state: self.log.append(f"generator is {state}"),
        )
        machine = self

        class Graph:
            def register_generator_state(self, generator: Any) -> None:
                machine.log.append(f"registers {generator}")

            def capture_begin(self, pool: Any, capture_error_mode: str) -> None:
                machine.log.append(f"begins in {pool} {capture_error_mode} on {machine.name}")

            def capture_end(self) -> None:
                machine.log.append(f"ends on {machine.name}")
                if machine.invalid:
                    raise RuntimeError("CUDA error: operation failed during capture")

            def replay(self) -> None:
                machine.log.append("replays")

            def pool(self) -> str:
                return "pool"

        for name, stand_in in {
            "current_device": lambda: 0,
            "Stream": lambda device: Stream("side", self.log),
            "current_stream": lambda device: self.current,
            "stream": self.stream,
            "CUDAGraph": Graph,
            "graph_pool_handle": lambda: "new",
            "synchronize": lambda device: self.log.append("synchronizes"),
            "empty_cache": lambda: self.log.append("empties"),
            "get_sync_debug_mode": lambda: self.mode,
            "set_sync_debug_mode": self.set_mode,
            "default_generators": [self.generator],
        }.items():
            patch.setattr(torch.cuda, name, stand_in)
        for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
            patch.setattr(
                torch._C, name, lambda d, p, n=name: self.log.append(f"{n} {d} {p}"), raising=False
            )

    @property
    def name(self) -> str:
        return self.current.name

    def set_mode(self, mode: Any) -> None:
        self.mode = mode

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def sync() -> None:
    warnings.warn("called a synchronizing CUDA operation (Triggered internally)", stacklevel=1)


def test_recording_happens_aside_on_freed_memory(machine: Machine):
    graph, made = Cuda(torch.device("cuda")).record(lambda: machine.name, None, ["g"])  # type: ignore[list-item]
    assert made == "side"
    assert machine.log == [
        "registers g",
        "synchronizes",
        "empties",
        "side waits for main",
        "begins in new thread_local on side",
        "ends on side",
        "main waits for side",
    ]
    graph.replay()
    assert machine.log[-1] == "replays"


def test_a_given_pool_is_shared(machine: Machine):
    Cuda(torch.device("cuda:0")).record(lambda: None, "theirs", ())
    assert "begins in theirs thread_local on side" in machine.log


def test_a_mistake_while_recording_ends_it_and_is_told(machine: Machine):
    def work() -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        Cuda(torch.device("cuda")).record(work, None, ())
    assert machine.log[-2:] == ["ends on side", "main waits for side"]
    assert machine.name == "main"


def test_after_an_invalid_recording_neither_memory_nor_generator_still_record(machine: Machine):
    machine.invalid = True
    with pytest.raises(RuntimeError, match="failed during capture"):
        Cuda(torch.device("cuda")).record(lambda: None, None, ())
    assert machine.log[-4:] == [
        "_cuda_endAllocateToPool 0 new",
        "_cuda_releasePool 0 new",
        "generator is clone",
        "main waits for side",
    ]
    assert machine.name == "main"


def test_waits_are_noted_with_their_line_and_other_warnings_shown(machine: Machine):
    driver = Cuda(torch.device("cuda"))
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        with driver.watched() as places:
            assert machine.mode == "warn"
            sync()
            sync()
            warnings.warn("something else", stacklevel=1)
    assert machine.mode == 0
    assert len(places) == 2
    assert places[0].startswith("test_graph_cuda.py:")
    assert [str(w.message) for w in shown] == ["something else"]


def test_the_mode_is_as_before_also_after_an_error(machine: Machine):
    machine.mode = 2
    driver = Cuda(torch.device("cuda"))
    with pytest.raises(ValueError, match="mine"), driver.watched():
        raise ValueError("mine")
    assert machine.mode == 2


def test_a_capture_that_waits_never_begins(machine: Machine):
    with pytest.raises(CaptureError, match="the host waits for a value"):
        capture(sync, driver=Cuda(torch.device("cuda")))
    assert not [line for line in machine.log if line.startswith("begins")]
    assert machine.log == ["side waits for main", "main waits for side"] * 3
