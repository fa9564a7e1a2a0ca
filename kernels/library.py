"""Registration with torch.library, namespace `kdgen`: compilers and fake tensors see the ops.

`Library.define` + `impl` rather than `custom_op`: the call costs less than half, and networks on
8×8 images feel it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

LIBRARY = torch.library.Library("kdgen", "DEF")
_PLAIN = (Tensor, torch.nn.Parameter)


def define(schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> str:
    """Registers `run` for real tensors and `fake` for shapes only; returns the qualified name."""
    name = schema.partition("(")[0]
    LIBRARY.define(schema)
    LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"kdgen::{name}", fake, lib=LIBRARY)
    return f"kdgen::{name}"


def plain(*tensors: Tensor | None) -> bool:
    """Whether these are ordinary tensors that nobody traces: the dispatcher can be bypassed."""
    if torch.compiler.is_compiling():
        return False
    for t in tensors:
        if t is not None and (type(t) not in _PLAIN or t.device.type == "meta"):
            return False
    return not (torch._C._len_torch_dispatch_stack() or torch._C._are_functorch_transforms_active())


def needs_grad(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def learning(op: Any, definition: Callable[..., Any]) -> Callable[..., Any]:
    """What runs an op without a gradient of its own when one is needed: its definition.

    ValueError when another backend was asked for.
    """
    if (wanted := requested(op.name)) not in ("", "reference"):
        raise ValueError(
            f"{op.name}: backend {wanted} was asked for but has no gradient; expected no gradient "
            "to be needed. Call it under torch.no_grad(), or drop the choice."
        )
    return definition


def requested(name: str) -> str:
    """`dispatch.requested`, decided once when a program is compiled."""
    from .dispatch import requested as ask

    return ask(name)


# What torch.compiler.assume_constant_result sets; calling it would import the compiler, a second.
requested._dynamo_marked_constant = True  # type: ignore[attr-defined]
