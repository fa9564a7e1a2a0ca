"""One step of a chain, its coefficients in a table: x0 = clamp(p·x_t + q·raw), y = a·x_t + b·x0.

`raw` is what the network said; (p, q) turn it into a clean image (eps: 1/α, −σ/α; v: α, −σ; EDM:
c_skip, c_out) and (a, b) are `ddim_update`'s. Which row of the table holds is a number on the
device that nothing reads on the host, so one captured step serves the whole chain.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _triton, checks, cuda, layout, library, native, native_steps
from .dispatch import Backend, Example, Op, requested
from .to_uint8 import reference as to_bytes

NAME = "chain_step"
BYTES = "chain_step_uint8"


def reference(
    x_t: Tensor, raw: Tensor, table: Tensor, step: Tensor, clip: float | None = None
) -> Tensor:
    """x_t, raw (N, C, …), of any two dtypes; table (steps, 4) float32 rows (p, q, a, b); step ()
    int64, a number outside the table taken as its nearest row. Like x_t, computed in float32
    (float64 if x_t or raw is float64)."""
    y = _moved(x_t, raw, table, step, clip)
    return y.to(x_t.dtype).contiguous(memory_format=layout.of(x_t))


def bytes_reference(
    x_t: Tensor, raw: Tensor, table: Tensor, step: Tensor, clip: float | None = None
) -> Tensor:
    """The last step, straight to uint8 (N, H, W, C): float32 is rounded once, to the byte."""
    return to_bytes(_moved(x_t, raw, table, step, clip))


def _moved(x_t: Tensor, raw: Tensor, table: Tensor, step: Tensor, clip: float | None) -> Tensor:
    wide = torch.promote_types(torch.promote_types(x_t.dtype, raw.dtype), torch.float32)
    row = step.clamp(0, table.shape[0] - 1).reshape(1)
    p, q, a, b = table.index_select(0, row)[0].to(wide).unbind()
    here = x_t.to(wide)
    x0 = p * here + q * raw.to(wide)
    return a * here + b * (x0 if clip is None else x0.clamp(-clip, clip))


def check(
    op: str, x_t: Tensor, raw: Tensor, table: Tensor, step: Tensor, clip: float | None
) -> None:
    checks.floating(op, "x_t", x_t)
    if op == BYTES:
        checks.rank(op, "x_t", x_t, "(N, C, H, W)", 4, 4)
    checks.rank(op, "x_t", x_t, "(N, C, …)", 2)
    checks.beside(op, "raw", raw, x_t, x_t.shape)
    checks.beside(op, "table", table, x_t, (max(1, *table.shape[:1]), 4))
    checks.scalar(op, "step", step, x_t)
    if clip is not None and not clip > 0:
        raise ValueError(f"{op}: clip is {clip}; expected a number above 0, or None.")


def examples(dtype: torch.dtype, device: torch.device) -> list[Example]:
    """Inside the table and beyond it, clip, both layouts, bfloat16 answers to a float32 chain, the
    first channels of a wider answer."""
    r = torch.Generator().manual_seed(13)
    last = torch.channels_last
    x_t, raw = torch.randn(2, 4, 3, 8, 8, generator=r).to(device, dtype)
    wide = torch.randn(4, 8, 8, 8, generator=r).to(device, dtype).contiguous(memory_format=last)
    table = (torch.randn(5, 4, generator=r) / 2).to(device)
    steps = [torch.tensor(k, device=device) for k in (0, 3, 99, -7)]
    x_last, raw_last = (v.contiguous(memory_format=last) for v in (x_t, raw))
    return [
        Example("first", (x_t, raw, table, steps[0], None)),
        Example("clip-last", (x_last, raw_last, table, steps[1], 0.8)),
        Example("low-raw", (x_last, raw_last.bfloat16(), table, steps[1], None)),
        Example("beyond-wide-raw", (x_last, wide[:, :3], table, steps[2], 1.0)),
        Example("before", (x_t, raw_last, table, steps[3], None)),
    ]


# ---- registration ---------------------------------------------------------------------------

_SCHEMA = "(Tensor x_t, Tensor raw, Tensor table, Tensor step, float? clip, str backend) -> Tensor"


def _op(
    name: str, definition: Any, fake: Any, run_native: Any
) -> Op[[Tensor, Tensor, Tensor, Tensor, float | None], Tensor]:
    def run(*args: Any) -> Tensor:
        y: Tensor = op.pick(args[:-1], args[-1]).run(*args[:-1])
        return y

    def call(
        x_t: Tensor, raw: Tensor, table: Tensor, step: Tensor, clip: float | None = None
    ) -> Tensor:
        args = (x_t, raw, table, step, clip)
        check(name, *args)
        if library.needs_grad(x_t, raw, table):
            y: Tensor = library.learning(op, definition)(*args)
            return y
        if library.plain(x_t, raw, table, step):
            return run(*args, requested(name))
        y = getattr(torch.ops.kdgen, name)(*args, library.requested(name))
        return y

    library.define(name + _SCHEMA, run, fake)
    op = Op(
        name,
        call,
        definition,
        (
            Backend("native", run_native, _native_unable, ("cpu",)),
            Backend(
                "triton",
                lambda *args: getattr(_triton.load(NAME), name)(*args),
                _triton_unable,
                ("cuda",),
            ),
            Backend("cuda", getattr(cuda, name), cuda.unable_to_step, ("cuda",)),
            Backend("reference", definition, lambda *_: ""),
        ),
        examples,
    )
    return op


def _native_unable(x_t: Tensor, raw: Tensor, *_: Any) -> str:
    return native.unable(x_t) or native.unable(raw).replace("x is", "raw is")


def _triton_unable(x_t: Tensor, raw: Tensor, *_: Any) -> str:
    return _triton.unable(x_t) or _triton.unable(raw).replace("x is", "raw is")


def _fake(x_t: Tensor, *_: Any) -> Tensor:
    return layout.empty(x_t, layout.of(x_t))


def _fake_bytes(x_t: Tensor, *_: Any) -> Tensor:
    n, c, h, w = x_t.shape
    return x_t.new_empty((n, h, w, c), dtype=torch.uint8)


chain_step = _op(NAME, reference, _fake, native_steps.chain_step)
chain_step_uint8 = _op(BYTES, bytes_reference, _fake_bytes, native_steps.chain_step_uint8)
