"""What a network is given: c·x in its dtype, channels last, padded with zero channels.

c is EDM's c_in (Karras et al. 2022, arXiv:2206.00364, table 1) or any other size at which a network
sees a noisy image. Tensor cores want channels in multiples of 8; zeros against zero weights change
nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import _triton, checks, cuda, layout, library, native, native_steps
from .dispatch import Backend, Example, Op, requested

NAME = "scale_input"


def reference(
    x: Tensor,
    c: float | Tensor,
    step: Tensor | None = None,
    dtype: torch.dtype | None = None,
    channels: int | None = None,
) -> Tensor:
    """x (N, C, H, W) -> (N, channels, H, W) in `dtype`, channels last; both are x's by default.

    c is a number, (N,) float32, or, with `step` () int64, a table (steps,) float32 of which the
    nearest row to `step` holds. Computed in float32 (float64 for float64), rounded once.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    y = (_factor(c, step, wide) * x.to(wide)).to(x.dtype if dtype is None else dtype)
    if channels is not None and channels > x.shape[1]:
        n, _, h, w = x.shape
        y = torch.cat([y, y.new_zeros(n, channels - x.shape[1], h, w)], 1)
    return y.contiguous(memory_format=torch.channels_last)


def _factor(c: float | Tensor, step: Tensor | None, wide: torch.dtype) -> float | Tensor:
    if not isinstance(c, Tensor):
        return c
    if step is not None:
        c = c.index_select(0, step.clamp(0, c.shape[0] - 1).reshape(1))
    return c.to(wide).reshape(-1, 1, 1, 1)


def check(
    x: Tensor,
    c: float | Tensor,
    step: Tensor | None,
    dtype: torch.dtype | None,
    channels: int | None,
) -> None:
    checks.floating(NAME, "x", x)
    checks.rank(NAME, "x", x, "(N, C, H, W)", 4, 4)
    if step is not None:
        checks.scalar(NAME, "step", step, x)
        if not isinstance(c, Tensor):
            raise ValueError(f"{NAME}: c is {c} beside a step; expected a table (steps,).")
    if isinstance(c, Tensor):
        entries = x.shape[:1] if step is None else (max(1, *c.shape[:1]),)
        checks.beside(NAME, "c", c, x, entries)
    if dtype is not None and dtype not in checks.FLOATS:
        raise ValueError(f"{NAME}: dtype is {checks.short(dtype)}; expected a float dtype.")
    if channels is not None and channels < x.shape[1]:
        raise ValueError(
            f"{NAME}: channels is {channels}, x has {x.shape[1]}; expected at least as many."
        )


def examples(dtype: torch.dtype, device: torch.device) -> list[Example]:
    """A number, one an image, a table inside and beyond; both layouts; other dtypes; padding."""
    r = torch.Generator().manual_seed(17)
    x = torch.randn(4, 3, 6, 5, generator=r).to(device, dtype)
    last = x.contiguous(memory_format=torch.channels_last)
    each, table = ((torch.rand(n, generator=r) + 0.2).to(device) for n in (4, 6))
    inside, beyond = (torch.tensor(k, device=device) for k in (2, 77))
    return [
        Example("number", (x, 0.37, None, None, None)),
        Example("each-last-low", (last, each, None, torch.bfloat16, None)),
        Example("table-padded", (x, table, inside, None, 8)),
        Example("table-beyond-padded-last", (last, table, beyond, torch.float16, 8)),
    ]


# ---- registration ---------------------------------------------------------------------------


def _run(
    x: Tensor,
    each: Tensor | None,
    c: float,
    step: Tensor | None,
    dtype: torch.dtype | None,
    channels: int | None,
    backend: str,
) -> Tensor:
    args = (x, c if each is None else each, step, dtype, channels)
    y: Tensor = scale_input.pick(args, backend).run(*args)
    return y


def _fake(
    x: Tensor,
    each: Tensor | None,
    c: float,
    step: Tensor | None,
    dtype: torch.dtype | None,
    channels: int | None,
    backend: str,
) -> Tensor:
    return layout.empty_padded(x, dtype, channels)


library.define(
    f"{NAME}(Tensor x, Tensor? each, float c, Tensor? step, ScalarType? dtype, SymInt? channels,"
    " str backend) -> Tensor",
    _run,
    _fake,
)


def _call(
    x: Tensor,
    c: float | Tensor,
    step: Tensor | None = None,
    dtype: torch.dtype | None = None,
    channels: int | None = None,
) -> Tensor:
    check(x, c, step, dtype, channels)
    each = c if isinstance(c, Tensor) else None
    if library.needs_grad(x, each):
        y: Tensor = library.learning(scale_input, reference)(x, c, step, dtype, channels)
        return y
    if library.plain(x, each, step):
        args = (x, c, step, dtype, channels)
        y = scale_input.pick(args, requested(NAME)).run(*args)
        return y
    number = 0.0 if isinstance(c, Tensor) else c
    y = torch.ops.kdgen.scale_input(x, each, number, step, dtype, channels, library.requested(NAME))
    return y


def _known(dtype: torch.dtype | None) -> str:
    if dtype is None or dtype in native.CODES:
        return ""
    return f"dtype is {checks.short(dtype)}; expected float32, float16 or bfloat16"


scale_input = Op(
    NAME,
    _call,
    reference,
    (
        Backend(
            "native",
            native_steps.scale_input,
            lambda x, c, step, dtype, channels: native.unable(x) or _known(dtype),
            ("cpu",),
        ),
        Backend(
            "triton",
            lambda *args: _triton.load(NAME).scale_input(*args),
            lambda x, c, step, dtype, channels: _triton.unable(x) or _known(dtype),
            ("cuda",),
        ),
        Backend("cuda", cuda.scale_input, cuda.unable_to_scale, ("cuda",)),
        Backend("reference", reference, lambda *_: ""),
    ),
    examples,
)
