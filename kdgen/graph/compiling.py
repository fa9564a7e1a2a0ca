"""No kernel is compiled while a graph is recorded: the warm-up must have done it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def forbidden() -> Iterator[None]:
    """Inside, Triton and torch.compile raise instead of compiling."""
    with _triton_forbidden(), _dynamo_forbidden():
        yield


class Compiles(RuntimeError):
    """Something would be compiled now."""


@contextmanager
def _triton_forbidden() -> Iterator[None]:
    # Only where it is in use already: importing it takes a second.
    knobs: Any = sys.modules.get("triton.knobs")
    if knobs is None:
        yield
        return
    before = knobs.runtime.jit_cache_hook
    knobs.runtime.jit_cache_hook = _refuse_triton
    try:
        yield
    finally:
        knobs.runtime.jit_cache_hook = before


def _refuse_triton(*_: Any, **facts: Any) -> bool:
    raise Compiles(f"Triton compiles {facts.get('repr', 'a kernel')}")


@contextmanager
def _dynamo_forbidden() -> Iterator[None]:
    callbacks: Any = sys.modules.get("torch._dynamo.callback")
    if callbacks is None:
        yield
        return
    handler: Any = callbacks.callback_handler
    refuse: Callable[..., None] = handler.register_start_callback(_refuse_dynamo)
    try:
        yield
    finally:
        handler.remove_start_callback(refuse)


def _refuse_dynamo(*_: Any) -> None:
    raise Compiles("torch.compile compiles a function")
