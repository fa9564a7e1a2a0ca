"""A driver for `kdgen.graph` on the CPU that is as strict as CUDA's.

While it records, every operator that reaches the dispatcher is noted with the very tensors it got.
Afterwards nothing has happened: what was changed is as before, what was made holds NaN. A replay
runs the noted operators on the noted tensors and writes what they make to where it was made, so it
knows no value that Python had: only what lies in memory now.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kdgen.graph import faults

WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique")
CONSTANTS = ("lift_fresh", "lift_fresh_copy")  # torch.tensor(…): made on the host, then copied


class Recorder:
    """`log` says what was asked of it; `pools` the pool of every recording."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.log: list[str] = []
        self.pools: list[Any] = []

    @contextmanager
    def aside(self) -> Iterator[None]:
        self.log.append("aside")
        yield

    @contextmanager
    def watched(self) -> Iterator[list[str]]:
        places: list[str] = []
        with Watch(places):
            yield places

    def record(
        self, work: Callable[[], Any], pool: Any, generators: Sequence[torch.Generator]
    ) -> tuple[Tape, Any]:
        self.log.append("record")
        tape = Tape(object() if pool is None else pool, generators, self.log)
        state = torch.default_generator.get_state()
        try:
            with tape:
                made = work()
        except Exception as error:  # as from C++, whose frames a traceback does not have
            error.with_traceback(without_own_frames(error.__traceback__))
            raise
        finally:
            tape.undo()
            torch.default_generator.set_state(state)
        self.pools.append(tape.pool())
        return tape, made


class Watch(TorchDispatchMode):
    """Notes where the host would wait for a device."""

    def __init__(self, places: list[str]) -> None:
        super().__init__()
        self.places = places

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if waits(func, args):
            self.places.append(faults.here(sys._getframe(1)))
        return func(*args, **(kwargs or {}))


class Tape(TorchDispatchMode):
    """A recording: operators, their arguments, and what they made."""

    def __init__(self, pool: Any, generators: Sequence[torch.Generator], log: list[str]) -> None:
        super().__init__()
        self._pool, self._log = pool, log
        self._known = {g._cdata for g in generators}
        self._steps: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self._made: dict[int, Tensor] = {}  # by storage
        self._before: dict[int, tuple[Any, Any]] = {}  # storages that were changed, and a copy

    def pool(self) -> Any:
        return self._pool

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self._check(func, args, kwargs)
        given, changes = tensors((args, kwargs)), written(func, args, kwargs)
        for x in changes:
            self._save(x)
        out = func(*args, **kwargs)
        old = {address(x) for x in given}
        fresh = [x for x in tensors(out) if address(x) not in old]
        for x in fresh:
            self._made[address(x)] = x
        if fresh or changes:  # else a view
            self._steps.append((func, args, kwargs, fresh))
        return out

    def _check(self, func: Any, args: Any, kwargs: Any) -> None:
        if waits(func, args):
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        if func.overloadpacket.__name__ in CONSTANTS:
            raise RuntimeError(
                "Cannot copy between CPU and CUDA tensors during CUDA graph capture unless the CPU "
                "tensor is pinned."
            )
        generator = kwargs.get("generator")
        if generator is not None and generator._cdata not in self._known:
            raise RuntimeError(
                "Attempt to increase offset for a CUDA generator not in capture mode."
            )

    def _save(self, x: Tensor) -> None:
        if address(x) not in self._made and address(x) not in self._before:
            storage = x.untyped_storage()
            self._before[address(x)] = storage, storage.clone()

    def undo(self) -> None:
        """Recording does nothing."""
        for storage, copy in self._before.values():
            storage.copy_(copy)
        with torch.no_grad(), torch._C._AutoDispatchBelowAutograd():
            for x in self._made.values():
                if x.is_floating_point():
                    x.fill_(math.nan)

    def replay(self) -> None:
        self._log.append("replay")
        with torch.no_grad(), torch._C._AutoDispatchBelowAutograd():
            for func, args, kwargs, fresh in self._steps:
                out = func(*args, **kwargs)
                old = {address(x) for x in tensors((args, kwargs))}
                again = [x for x in tensors(out) if address(x) not in old]
                for mine, new in zip(fresh, again, strict=True):
                    mine.copy_(new)


def waits(func: Any, args: Any) -> bool:
    """Whether this operator needs a value, or as many elements as a mask has."""
    name = func.overloadpacket.__name__
    masked = name in ("index", "index_put_", "index_put") and any(
        x.dtype == torch.bool for x in tensors(args[1])
    )
    return masked or name in WAITS


def without_own_frames(trace: TracebackType | None) -> TracebackType | None:
    """A traceback that ends above the innermost frames of this file."""
    links = []
    while trace is not None:
        links.append(trace)
        trace = trace.tb_next
    last = max(k for k, t in enumerate(links) if t.tb_frame.f_code.co_filename != __file__)
    links[last].tb_next = None
    return links[0]


def address(x: Tensor) -> int:
    return int(x.untyped_storage()._cdata)


def tensors(tree: Any) -> list[Tensor]:
    return [x for x in torch.utils._pytree.tree_leaves(tree) if isinstance(x, Tensor)]


def written(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """The arguments that an operator changes, by its schema."""
    found = []
    for k, a in enumerate(func._schema.arguments):
        if a.alias_info is not None and a.alias_info.is_write:
            found.append(args[k] if k < len(args) else kwargs.get(a.name))
    return tensors(found)
