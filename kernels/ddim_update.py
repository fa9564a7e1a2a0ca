"""One step of any deterministic sampler: x_s = a·x_t + b·clamp(x0, -clip, clip).

With a = σ_s/σ_t and b = α_s - a·α_t this is DDIM (Song et al. 2020, arXiv:2010.02502, eq. 12) on a
variance-preserving schedule and Euler on the EDM ODE and on a rectified flow.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _triton, checks, cuda, layout, library, native
from .dispatch import Backend, Example, Op, requested
from .to_uint8 import reference as to_bytes

NAME = "ddim_update"
BYTES = "ddim_update_uint8"


Number = float | Tensor


def reference(x_t: Tensor, x0: Tensor, a: Number, b: Number, clip: float | None = None) -> Tensor:
    """x_t, x0 (N, …); a, b numbers or (N,) float32. Computed in float32 (float64 for float64)."""
    y = _step(x_t, x0, a, b, clip)
    return y.to(x_t.dtype).contiguous(memory_format=layout.of(x_t))


def bytes_reference(
    x_t: Tensor, x0: Tensor, a: Number, b: Number, clip: float | None = None
) -> Tensor:
    """The last step, straight to uint8 (N, H, W, C): float32 is rounded once, to the byte."""
    return to_bytes(_step(x_t, x0, a, b, clip))


def _step(x_t: Tensor, x0: Tensor, a: Number, b: Number, clip: float | None) -> Tensor:
    wide = torch.promote_types(x_t.dtype, torch.float32)
    clean = x0.to(wide) if clip is None else x0.to(wide).clamp(-clip, clip)
    return _beside(a, x_t, wide) * x_t.to(wide) + _beside(b, x_t, wide) * clean


def _beside(v: Number, x: Tensor, wide: torch.dtype) -> Number:
    return v.to(wide).reshape(-1, *([1] * (x.ndim - 1))) if isinstance(v, Tensor) else v


def check(
    op: str,
    x_t: Tensor,
    x0: Tensor,
    a: Number,
    b: Number,
    clip: float | None,
) -> None:
    checks.floating(op, "x_t", x_t)
    if op == BYTES:
        checks.rank(op, "x_t", x_t, "(N, C, H, W)", 4, 4)
    checks.rank(op, "x_t", x_t, "(N, …)", 1)
    checks.dtype(op, "x0", x0, x_t.dtype)
    checks.beside(op, "x0", x0, x_t, x_t.shape)
    for arg, value in (("a", a), ("b", b)):
        if isinstance(value, Tensor):
            checks.beside(op, arg, value, x_t, x_t.shape[:1])
    if clip is not None and not clip > 0:
        raise ValueError(f"{op}: clip is {clip}; expected a number above 0, or None.")


def examples(dtype: torch.dtype, device: torch.device) -> list[Example]:
    """Numbers and one coefficient an image, with and without clip, both layouts."""
    r = torch.Generator().manual_seed(5)
    x_t, x0 = torch.randn(2, 4, 3, 8, 8, generator=r).to(device, dtype)
    last = [v.contiguous(memory_format=torch.channels_last) for v in (x_t, x0)]
    a, b = (torch.rand(2, 4, generator=r) + 0.1).to(device)
    return [
        Example("numbers", (x_t, x0, 0.7, 0.31, None)),
        Example("numbers-clip-last", (*last, 0.7, 0.31, 1.0)),
        Example("each", (x_t, x0, a, b, None)),
        Example("each-clip", (x_t, x0, a, 0.5, 0.8)),
    ]


# ---- registration ---------------------------------------------------------------------------

_SCHEMA = (
    "(Tensor x_t, Tensor x0, Tensor? a_each, Tensor? b_each, float a, float b, float? clip,"
    " str backend) -> Tensor"
)


def _join(each: Tensor | None, number: float) -> Number:
    return number if each is None else each


def _split(a: Number, b: Number) -> tuple[Any, ...]:
    """As the schema has them: tensors or None, then numbers."""
    each = [v if isinstance(v, Tensor) else None for v in (a, b)]
    return *each, *(0.0 if isinstance(v, Tensor) else v for v in (a, b))


def _run(
    x_t: Tensor,
    x0: Tensor,
    a_each: Tensor | None,
    b_each: Tensor | None,
    a: float,
    b: float,
    clip: float | None,
    backend: str,
) -> Tensor:
    args = (x_t, x0, _join(a_each, a), _join(b_each, b), clip)
    y: Tensor = ddim_update.pick(args, backend).run(*args)
    return y


def _run_bytes(
    x_t: Tensor,
    x0: Tensor,
    a_each: Tensor | None,
    b_each: Tensor | None,
    a: float,
    b: float,
    clip: float | None,
    backend: str,
) -> Tensor:
    args = (x_t, x0, _join(a_each, a), _join(b_each, b), clip)
    y: Tensor = ddim_update_uint8.pick(args, backend).run(*args)
    return y


def _fake(x_t: Tensor, *_: Any) -> Tensor:
    return layout.empty(x_t, layout.of(x_t))


def _fake_bytes(x_t: Tensor, *_: Any) -> Tensor:
    n, c, h, w = x_t.shape
    return x_t.new_empty((n, h, w, c), dtype=torch.uint8)


library.define(NAME + _SCHEMA, _run, _fake)
library.define(BYTES + _SCHEMA, _run_bytes, _fake_bytes)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x_t, x0, a_each, b_each, a, b, clip, _ = inputs
    ctx.save_for_backward(x_t, x0, a_each, b_each)
    ctx.options = a, b, clip


def _backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    x_t, x0, a_each, b_each = ctx.saved_tensors
    a, b, clip = ctx.options
    wide = torch.promote_types(x_t.dtype, torch.float32)
    dy = dy.to(wide)
    clean = x0.to(wide) if clip is None else x0.to(wide).clamp(-clip, clip)
    dx0 = dy * _beside(_join(b_each, b), x_t, wide)
    if clip is not None:
        dx0 = dx0 * (x0.to(wide).abs() <= clip)

    def per_image(v: Tensor, each: Tensor | None) -> Tensor | None:
        if each is None:
            return None
        return (v.flatten(1).sum(1) if v.ndim > 1 else v).to(each.dtype)

    return (
        (dy * _beside(_join(a_each, a), x_t, wide)).to(x_t.dtype),
        dx0.to(x0.dtype),
        per_image(dy * x_t.to(wide), a_each),
        per_image(dy * clean, b_each),
        None,
        None,
        None,
        None,
    )


torch.library.register_autograd(
    f"kdgen::{NAME}", _backward, setup_context=_remember, lib=library.LIBRARY
)


def _tensors(x_t: Tensor, x0: Tensor, a: Number, b: Number) -> list[Tensor]:
    return [v for v in (x_t, x0, a, b) if isinstance(v, Tensor)]


def _call(x_t: Tensor, x0: Tensor, a: Number, b: Number, clip: float | None = None) -> Tensor:
    check(NAME, x_t, x0, a, b, clip)
    tensors = _tensors(x_t, x0, a, b)
    if not library.plain(*tensors) or library.needs_grad(*tensors):
        y: Tensor = torch.ops.kdgen.ddim_update(
            x_t, x0, *_split(a, b), clip, library.requested(NAME)
        )
        return y
    y = ddim_update.pick((x_t, x0, a, b, clip), requested(NAME)).run(x_t, x0, a, b, clip)
    return y


def _call_bytes(x_t: Tensor, x0: Tensor, a: Number, b: Number, clip: float | None = None) -> Tensor:
    check(BYTES, x_t, x0, a, b, clip)
    if not library.plain(*_tensors(x_t, x0, a, b)):
        y: Tensor = torch.ops.kdgen.ddim_update_uint8(
            x_t, x0, *_split(a, b), clip, library.requested(BYTES)
        )
        return y
    y = ddim_update_uint8.pick((x_t, x0, a, b, clip), requested(BYTES)).run(x_t, x0, a, b, clip)
    return y


ddim_update = Op(
    NAME,
    _call,
    reference,
    (
        Backend("native", native.ddim_update, lambda x, *_: native.unable(x), ("cpu",)),
        Backend(
            "triton",
            lambda *args: _triton.load("images").ddim_update(*args),
            _triton.unable,
            ("cuda",),
        ),
        Backend("cuda", cuda.ddim_update, cuda.unable, ("cuda",)),
        Backend("reference", reference, lambda *_: ""),
    ),
    examples,
)
ddim_update_uint8 = Op(
    BYTES,
    _call_bytes,
    bytes_reference,
    (
        Backend("native", native.ddim_update_uint8, lambda x, *_: native.unable(x), ("cpu",)),
        Backend(
            "triton",
            lambda *args: _triton.load("images").ddim_update_uint8(*args),
            _triton.unable,
            ("cuda",),
        ),
        Backend("cuda", cuda.ddim_update_uint8, cuda.unable, ("cuda",)),
        Backend("reference", bytes_reference, lambda *_: ""),
    ),
    examples,
)
