"""Which implementation of an op runs: an explicit choice is an order, an automatic one a wish.

Choosing reads metadata only (device, dtype, layout, shape), never a value, so it costs no
synchronisation and a captured or compiled program takes the same path every time.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Generic, ParamSpec, TypeVar

import torch
from torch import Tensor

from . import fallback, presence

P = ParamSpec("P")
R = TypeVar("R")

VARIABLE = "KDGEN_KERNELS"
BACKENDS = ("native", "sdpa", "triton", "cuda", "reference")

_chosen: ContextVar[str] = ContextVar("kdgen_kernels", default="")
_known: dict[str, Op[Any, Any]] = {}


@dataclass(frozen=True)
class Backend:
    """One implementation of an op."""

    name: str
    run: Callable[..., Any]
    serves: Callable[..., str]  # the op's arguments -> why it cannot serve them, "" when it can
    devices: tuple[str, ...] = ()  # where the automatic choice may take it; () is everywhere
    backward: Callable[..., Any] | None = None


@dataclass(frozen=True)
class Example:
    """Arguments an op must handle; the tests and the benchmarks walk through these."""

    name: str
    args: tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class Op(Generic[P, R]):
    """A function with one meaning (`reference`) and several implementations."""

    name: str
    call: Callable[P, R]  # checks the arguments, then runs what `pick` returns
    reference: Callable[P, R]
    backends: tuple[Backend, ...]  # in order of preference
    examples: Callable[[torch.dtype, torch.device], list[Example]]
    by_name: dict[str, Backend] = field(init=False)
    automatic: tuple[Backend, ...] = field(init=False)  # as `backends`, but they may give up

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_name", {b.name: b for b in self.backends})
        self.arrange()
        _known[self.name] = self

    def arrange(self) -> None:
        """Puts together what the automatic choice takes; again when a backend has failed."""
        ready = tuple(_yielding(self, b) if presence.may_fail(b.name) else b for b in self.backends)
        object.__setattr__(self, "automatic", ready)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.call(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<op {self.name}: {', '.join(self.by_name)}>"

    def choose(self, *args: P.args, **kwargs: P.kwargs) -> Backend:
        """The backend this call would run. ValueError when an explicit choice cannot serve it."""
        return self.pick(self.bind(*args, **kwargs), requested(self.name), _say_nothing)

    def pick(
        self,
        args: tuple[Any, ...],
        wanted: str = "",
        step_in: Callable[[str, str, str], None] = fallback.step_in,
    ) -> Backend:
        """As `choose`, for all arguments in order and a backend's name ("" is automatic), about to
        run. `step_in` hears of a backend (op, missing, instead) that should have."""
        if wanted:
            return self._insist(args, wanted)
        device, absent = _device(args), ""
        for backend in self.automatic:
            if _stands_back(backend, device):
                continue
            if backend.serves(*args):
                absent = absent or (fallback.missing(self.name, backend.name) and backend.name)
                continue
            if absent:
                step_in(self.name, absent, backend.name)
            return backend
        raise ValueError(f"{self.name}: no backend serves this call.\n{self._candidates(args)}")

    def bind(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """The arguments in order, defaults filled in."""
        bound = inspect.signature(self.reference).bind(*args, **kwargs)
        bound.apply_defaults()
        return bound.args

    def _insist(self, args: tuple[Any, ...], wanted: str) -> Backend:
        if wanted not in self.by_name:
            raise ValueError(
                f"{self.name}: backend is {wanted!r}; expected one of {', '.join(self.by_name)}."
            )
        backend = self.by_name[wanted]
        if why := backend.serves(*args):
            raise ValueError(
                f"{self.name}: backend {wanted} was asked for but cannot serve this call: {why}. "
                f"Drop the choice (kernels.use, {VARIABLE}) to let another backend take over."
            )
        return backend

    def _candidates(self, args: tuple[Any, ...], taken: str = "") -> str:
        device = _device(args)
        lines = []
        for b in self.backends:
            if why := fallback.missing(self.name, b.name) or b.serves(*args):
                verdict = f"cannot: {why}"
            elif b.name == taken:
                verdict = "runs"
            elif _stands_back(b, device):
                verdict = f"only when asked for: not automatic on {device}"
            else:
                verdict = "could serve"
            lines.append(f"  {b.name:<10} {verdict}")
        return "\n".join(lines)


def explain(op: Op[P, R], *args: P.args, **kwargs: P.kwargs) -> str:
    """Which backend a call would run, why, and what the others say; a bad choice is told too."""
    full, wanted = op.bind(*args, **kwargs), requested(op.name)
    gone: list[str] = []
    try:
        taken = op.pick(full, wanted, lambda _, missing, __: gone.append(missing)).name
        how = "asked for" if wanted else "first in order of preference that can"
        how = f"instead of {gone[0]}: {fallback.missing(op.name, gone[0])}" if gone else how
        verdict = f"runs {taken} ({how})"
    except ValueError as error:
        taken, verdict = "", f"refuses: {str(error).splitlines()[0]}"
    return f"{op.name} on {_describe(full)}: {verdict}\n{op._candidates(full, taken)}"


def _say_nothing(op: str, missing: str, instead: str) -> None:
    pass


def _yielding(op: Op[Any, Any], backend: Backend) -> Backend:
    """`backend`, handing over to the next one when it turns out that it cannot be compiled."""

    def run(*args: Any) -> Any:
        try:
            return backend.run(*args)
        except Exception as error:
            _give_up(op, backend, error)
        return op.pick(args).run(*args)

    def backward(*args: Any) -> Any:
        try:
            return backend.backward(*args)  # type: ignore[misc]
        except Exception as error:
            _give_up(op, backend, error)
        fallback.step_in(op.name, backend.name, fallback.LAST)
        return op.by_name[fallback.LAST].backward(*args)  # type: ignore[misc]

    serves = backend.serves
    if why := fallback.missing(op.name, backend.name):
        serves = lambda *_: why  # noqa: E731
    return replace(backend, run=run, serves=serves, backward=backend.backward and backward)


def _give_up(op: Op[Any, Any], backend: Backend, error: Exception) -> None:
    """Takes a backend that cannot be compiled off the list; any other error goes on."""
    why = presence.unusable(backend.name, error)
    if not why:
        raise error
    fallback.fail(op.name, backend.name, why)
    op.arrange()


def retry() -> None:
    """Gives backends that have failed another chance, and counts from zero."""
    fallback.forget()
    for op in _known.values():
        op.arrange()


@contextmanager
def use(choice: str) -> Iterator[None]:
    """Insist on backends inside a `with`: "native", or "group_norm_silu=triton,to_uint8=native"."""
    parse(choice, "kernels.use")
    token = _chosen.set(choice)
    try:
        yield
    finally:
        _chosen.reset(token)


def requested(name: str) -> str:
    """The backend asked for: by `use`, else by the environment; "" when nobody asked."""
    if (choice := _chosen.get()) and (wanted := _wanted(choice, name)):
        return wanted
    choice = os.environ.get(VARIABLE, "")
    return _wanted(choice, name) if choice else ""


def parse(choice: str, where: str = VARIABLE) -> dict[str, str]:
    """`choice` as {op: backend}; the key "" stands for every op."""
    wanted: dict[str, str] = {}
    for part in filter(None, (p.strip() for p in choice.split(","))):
        op, _, backend = part.rpartition("=")
        if op and op not in _known:
            raise ValueError(f"{where}: op is {op!r}; expected one of {', '.join(sorted(_known))}.")
        if backend not in BACKENDS:
            raise ValueError(
                f"{where}: backend is {backend!r}; expected one of {', '.join(BACKENDS)}."
            )
        wanted[op] = backend
    return wanted


@lru_cache(maxsize=64)
def _wanted(choice: str, name: str) -> str:
    """A backend named for this op, else the one named for all, where this op has it."""
    wanted = parse(choice)
    general = wanted.get("", "")
    return wanted.get(name, general if general in _known[name].by_name else "")


def _device(args: tuple[Any, ...]) -> str:
    for a in args:
        if isinstance(a, Tensor):
            return a.device.type
    return "cpu"


def _stands_back(backend: Backend, device: str) -> bool:
    return bool(backend.devices) and device not in backend.devices


def _describe(args: tuple[Any, ...]) -> str:
    first = next(a for a in args if isinstance(a, Tensor))
    strides = "" if first.is_contiguous() else f" strides {tuple(first.stride())}"
    return f"{first.device.type} {str(first.dtype)[6:]} {tuple(first.shape)}{strides}"
