"""Registration with torch.library, namespace `kdgen`: compilers and fake tensors see the ops.

`Library.define` + `impl` rather than `custom_op`: the call costs less than half, and networks on
8×8 images feel it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LIBRARY = torch.library.Library("kdgen", "DEF")
_PLAIN = (Tensor, torch.nn.Parameter)


def define(schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> str:
    """Registers `run` for real tensors and `fake` for shapes only; returns the qualified name."""
    name = schema.partition("(")[0]
    LIBRARY.define(schema)
    LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"kdgen::{name}", fake, lib=LIBRARY)
    return f"kdgen::{name}"


Run = Callable[..., Any]
Keep = Callable[[Any, tuple[Any, ...], Any], None]
Backward = Callable[[Any, Run, Tensor], tuple[Any, ...]]


def differentiable(
    name: str, keep: Keep, backward: Backward, in_torch: Callable[..., Any] | None = None
) -> Callable[..., Tensor]:
    """Gives op `name` its gradient. Returns the call (backend, *args) -> y that has it without the
    dispatcher, which costs more than the arithmetic on small tensors.

    `keep(ctx, args, output)` saves what `backward(ctx, run, dy)` needs, which returns the gradients
    of args; `run` is the backend's backward. For compilers it is the registered `<name>_backward`,
    and second derivatives raise instead of coming out as zero. Where there is a backward
    `in_torch`, that serves both: compilers fuse it, and it can be differentiated again.
    """

    def direct(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        return None, *backward(ctx, ctx.backend.backward, dy)

    def plainly(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        return None, *backward(ctx, cast(Run, in_torch), dy)

    def traced(ctx: Any, dy: Tensor, *_: Any) -> tuple[Any, ...]:
        run = in_torch or partial(_registered, f"{name}_backward", ctx.backend)
        return *backward(ctx, run, dy), None

    def set_up(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *args, ctx.backend = inputs
        keep(ctx, tuple(args), output)
        if not isinstance(output, Tensor):
            ctx.mark_non_differentiable(*output[1:])

    again = plainly if in_torch else once_differentiable(direct)
    torch.library.register_autograd(f"kdgen::{name}", traced, setup_context=set_up, lib=LIBRARY)

    class Direct(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, backend: Any, *args: Any) -> Tensor:
            output = backend.run(*args)
            keep(ctx, args, output)
            ctx.backend = backend
            y: Tensor = output if isinstance(output, Tensor) else output[0]
            return y

        @staticmethod
        def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
            found: tuple[Any, ...] = (again if torch.is_grad_enabled() else direct)(ctx, dy)
            return found

    return Direct.apply


def _registered(name: str, backend: str, *args: Any) -> Any:
    return getattr(torch.ops.kdgen, name)(*args, backend)


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
