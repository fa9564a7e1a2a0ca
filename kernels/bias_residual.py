"""y = (x + bias + residual)·scale, the end of every residual branch.

`bias` is that of the branch's last convolution, `scale` the √½ of networks that keep the variance
of such sums (Karras et al. 2022, arXiv:2206.00364). Computed in float32 whatever the storage
(float64 for float64), rounded once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import _triton, checks, cuda, layout, library, native, native_steps
from .dispatch import Backend, Example, Op, requested

NAME = "bias_residual"


def reference(
    x: Tensor, residual: Tensor, bias: Tensor | None = None, scale: float = 1.0
) -> Tensor:
    """x, residual (N, C, …); bias (C,). Returns like x."""
    wide = torch.promote_types(x.dtype, torch.float32)
    h = x.to(wide)
    h = h if bias is None else h + layout.broadcast(bias, x).to(wide)
    y = h + residual.to(wide)
    y = y if scale == 1 else y * scale
    return y.to(x.dtype).contiguous(memory_format=layout.of(x))


def backward_reference(
    dy: Tensor, scale: float, form: torch.memory_format, wants_bias: bool
) -> tuple[Tensor, Tensor | None]:
    """Gradient of x, which is also that of residual, in layout `form`; and (C,) float32 of bias."""
    wide = dy.to(torch.promote_types(dy.dtype, torch.float32))
    dx = dy if scale == 1 else (wide * scale).to(dy.dtype)
    others = [d for d in range(dy.ndim) if d != 1]
    return dx.contiguous(memory_format=form), wide.sum(others) * scale if wants_bias else None


def check(x: Tensor, residual: Tensor, bias: Tensor | None, scale: float) -> None:
    checks.floating(NAME, "x", x)
    checks.rank(NAME, "x", x, "(N, C, …)", 2)
    checks.dtype(NAME, "residual", residual, x.dtype)
    checks.beside(NAME, "residual", residual, x, x.shape)
    if bias is not None:
        checks.beside(NAME, "bias", bias, x, x.shape[1:2])


def examples(dtype: torch.dtype, device: torch.device) -> list[Example]:
    """With and without bias and scale, both layouts, odd sizes, no space."""
    r = torch.Generator().manual_seed(11)

    def one(name: str, shape: tuple[int, ...], bias: bool, scale: float, last: bool) -> Example:
        x, residual = (torch.randn(shape, generator=r).to(device, dtype) for _ in range(2))
        if last:
            form = layout.CHANNELS_LAST[x.ndim]
            x, residual = (v.contiguous(memory_format=form) for v in (x, residual))
        plus = torch.randn(shape[1], generator=r).to(device, dtype) if bias else None
        return Example(name, (x, residual, plus, scale))

    return [
        one("plain", (2, 32, 8, 8), False, 0.5**0.5, False),
        one("bias", (2, 12, 7, 5), True, 1.0, False),
        one("bias-scale-last", (3, 40, 7, 5), True, 0.5**0.5, True),
        one("scale-last", (2, 8, 4, 4), False, 0.7, True),
        one("bias-no-space", (4, 24), True, 0.5, False),
    ]


# ---- registration ---------------------------------------------------------------------------


def _run(x: Tensor, residual: Tensor, bias: Tensor | None, scale: float, backend: str) -> Tensor:
    args = (x, residual, bias, scale)
    y: Tensor = bias_residual.pick(args, backend).run(*args)
    return y


def _fake(x: Tensor, *_: Any) -> Tensor:
    return layout.empty(x, layout.of(x))


library.define(
    f"{NAME}(Tensor x, Tensor residual, Tensor? bias, float scale, str backend) -> Tensor",
    _run,
    _fake,
)


def _keep(ctx: Any, args: tuple[Any, ...], _: Tensor) -> None:
    x, _residual, bias, scale = args
    ctx.options = scale, layout.of(x), None if bias is None else bias.dtype


def _backward(ctx: Any, run: Callable[..., Any], dy: Tensor) -> tuple[Any, ...]:
    scale, form, kind = ctx.options
    dx, dbias = run(dy, scale, form, kind is not None)
    return dx, dx, None if dbias is None else dbias.to(kind), None


_with_gradient = library.differentiable(NAME, _keep, _backward, backward_reference)


def _call(x: Tensor, residual: Tensor, bias: Tensor | None = None, scale: float = 1.0) -> Tensor:
    check(x, residual, bias, scale)
    if not library.plain(x, residual, bias):
        y: Tensor = torch.ops.kdgen.bias_residual(x, residual, bias, scale, library.requested(NAME))
        return y
    args = (x, residual, bias, scale)
    backend = bias_residual.pick(args, requested(NAME))
    if backend.name == "reference":
        return reference(*args)
    if library.needs_grad(x, residual, bias):
        return _with_gradient(backend, *args)
    y = backend.run(*args)
    return y


bias_residual = Op(
    NAME,
    _call,
    reference,
    (
        Backend(
            "native",
            native_steps.bias_residual,
            lambda x, *_: native.unable(x),
            ("cpu",),
            native_steps.bias_residual_backward,
        ),
        Backend(
            "triton",
            lambda *args: _triton.load(NAME).forward(*args),
            _triton.unable,
            ("cuda",),
            lambda *args: _triton.load(NAME).backward(*args),
        ),
        Backend("cuda", cuda.bias_residual, cuda.unable, ("cuda",), cuda.bias_residual_backward),
        Backend("reference", reference, lambda *_: "", (), backward_reference),
    ),
    examples,
)
