"""A callable on static memory: inputs are copied in, one launch does the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kdgen.graph import compiling
from kdgen.graph.cuda import Cuda
from kdgen.graph.driver import Driver, Recording, T
from kdgen.graph.faults import explained, refusal, waits
from kdgen.graph.trees import changed, leaves

# Runs before recording: Triton compiles, cuDNN tries its algorithms, and libraries allocate their
# workspaces in the first; the last is looked at.
WARMUP = 3


class Captured:
    """What `capture` returns: called like the callable, with arguments like the examples.

    `inputs` (a tuple) and `outputs` are static: they stay where they are, and every call or
    `replay` writes to them anew. `pool` is where the memory is: other captures may share it if they
    are made later, never replayed at the same time, and read before the next replay.
    """

    def __init__(
        self, recording: Recording, inputs: tuple[Any, ...], outputs: Any, kept: object
    ) -> None:
        self.inputs, self.outputs, self.pool = inputs, outputs, recording.pool()
        self._recording = recording
        self._kept = kept  # whatever the callable refers to must outlive the recording
        self._leaves = list(leaves(inputs, ""))

    def __call__(self, *values: Any) -> Any:
        """Copies the values in and replays; the outputs are good until the next call.

        Raises ValueError naming what has another shape, dtype or device than the example.
        """
        given = list(leaves(values, ""))
        if [path for path, _ in given] != [path for path, _ in self._leaves]:
            raise ValueError(
                f"graph: called with {_named(given)}; expected {_named(self._leaves)}, as captured."
                " Pass the same arguments."
            )
        for (path, value), (_, static) in zip(given, self._leaves, strict=True):
            _check_alike(path, value, static)
        for (_, value), (_, static) in zip(given, self._leaves, strict=True):
            if isinstance(static, Tensor) and value is not static:
                static.copy_(value, non_blocking=True)
        self.replay()
        return self.outputs

    def replay(self) -> None:
        """Once more on what `inputs` hold now; does not wait for the device."""
        self._recording.replay()


def available(device: torch.device | str) -> str:
    """Why graphs cannot be recorded on this device; "" when they can."""
    device = torch.device(device)
    if device.type != "cuda":
        return f"the device is {device.type}; expected cuda"
    return "" if torch.cuda.is_available() else "torch finds no NVIDIA GPU"


def capture(
    call: Callable[..., Any],
    *examples: Any,
    warmup: int = WARMUP,
    pool: Any = None,
    device: torch.device | str | None = None,
    generators: Sequence[torch.Generator] = (),
    driver: Driver | None = None,
    where: str = "graph",
) -> Captured:
    """Record `call(*examples)`, which must do the same work whatever the numbers in them.

    The examples are tensors, or tuples, lists, dicts and dataclasses of them; copies become the
    static inputs. `call` runs `warmup` times before, for real: what it changes, it changes that
    often. `pool` is that of an earlier capture to share memory with; `device` is needed without
    examples; torch.Generators other than the device's own must be named.

    Raises CaptureError, saying which line is at fault, where a graph cannot hold the work: the host
    waits, a shape depends on values, the host is copied from or to, random numbers are drawn from
    an unknown generator, a kernel is compiled after the warm-up, or something is not on the device.
    """
    driver = _driver(examples, device, where) if driver is None else driver
    _check_place(examples, driver.device, where)
    inputs = tuple(changed(x, _still) for x in examples)
    work = partial(call, *inputs)
    _warm(work, warmup, driver, where)
    try:
        with compiling.forbidden():
            recording, outputs = driver.record(work, pool, generators)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise explained(error, where) from error
    outputs = changed(outputs, lambda x: x.detach())
    _check_place(outputs, driver.device, where)
    return Captured(recording, inputs, outputs, call)


def warm(work: Callable[[], T], driver: Driver) -> tuple[T, list[str]]:
    """Run the work on the stream that will record; also where the host waited in it."""
    with driver.aside(), driver.watched() as places:
        made = work()
    return made, places


def _warm(work: Callable[[], Any], times: int, driver: Driver, where: str) -> None:
    places: list[str] = []
    for _ in range(times):
        _, places = warm(work, driver)
    if places:
        raise waits(where, places)


def _driver(examples: Any, device: torch.device | str | None, where: str) -> Driver:
    if device is None:
        tensors = [x for _, x in leaves(examples, "") if isinstance(x, Tensor)]
        if not tensors:
            raise ValueError(f"{where}: no example is a tensor; expected device. Pass device=.")
        device = tensors[0].device
    if why := available(device):
        raise refusal(where, f"{why}", "Call it without a graph.")
    return Cuda(torch.device(device))


def _still(x: Tensor) -> Tensor:
    """A copy for good, strides kept."""
    return torch.empty_like(x, requires_grad=False).copy_(x.detach())


def _check_place(tree: Any, device: torch.device, where: str) -> None:
    for path, x in leaves(tree, ""):
        if isinstance(x, Tensor) and x.device != device:
            raise refusal(
                where,
                f"a tensor ({path or 'the output'}) is on {x.device}",
                f"Move it to {device}.",
            )


def _check_alike(path: str, value: Any, static: Any) -> None:
    tensors = isinstance(static, Tensor), isinstance(value, Tensor)
    if not all(tensors):
        if any(tensors) or value != static:
            raise ValueError(
                f"graph: argument {path} is {value!r}; expected {static!r}, as captured. Capture "
                "another graph for it."
            )
        return
    for what in ("shape", "dtype", "device"):
        mine, theirs = getattr(static, what), getattr(value, what)
        if mine != theirs:
            raise ValueError(
                f"graph: argument {path} has {what} {_plain(theirs)}; expected {_plain(mine)}, as "
                "captured. Capture another graph for it."
            )


def _plain(fact: Any) -> Any:
    return tuple(fact) if isinstance(fact, torch.Size) else fact


def _named(found: list[tuple[str, Any]]) -> str:
    return ", ".join(path for path, _ in found) or "nothing"
