"""The compiled CPU kernels (`kdgen._native`): whether they loaded, and torch-side wrappers.

The module takes addresses and sizes; everything about tensors (dtype, layout, device, allocation)
is settled here. `torch` is imported first so that its OpenMP runtime is the one in the process.
"""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from . import layout

VARIABLE = "KDGEN_ISA"
CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
DRAWS = {"philox_uint32": 0, "philox_uniform": 1, "philox_normal": 2}


def _load() -> tuple[ModuleType | None, str]:
    try:
        from kdgen import _native
    except ImportError as error:
        return None, f"the compiled part did not load ({error})"
    if isa := os.environ.get(VARIABLE):
        _native.select_isa(isa)
    return _native, ""


module, why = _load()


def unable(x: Tensor) -> str:
    """Why the compiled kernels cannot take float tensor `x`; "" when they can."""
    if module is None:
        return why
    if x.device.type != "cpu":
        return f"x is on {x.device.type}; expected cpu"
    if x.dtype not in CODES:
        return f"x is {str(x.dtype)[6:]}; expected float32, float16 or bfloat16"
    return ""


def unable_to_draw(_seed: int, _stream: int, index: Tensor, _size: int) -> str:
    if module is None:
        return why
    return "" if index.device.type == "cpu" else f"index is on {index.device.type}; expected cpu"


def group_norm_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    scale: Tensor | None,
    shift: Tensor | None,
    add: Tensor | None,
    act: bool,
    more: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """As `forward_reference` of the op."""
    form, x, more = _inputs(x, more)
    n, c = x.shape[0], weight.shape[0]
    y = layout.empty(x, form, c)
    statistics = torch.empty((2, n, groups), dtype=torch.float32, device=x.device)
    if not y.numel():
        return y, statistics.fill_(float("nan"))
    kept = [_small(v) for v in (weight, bias, scale, shift, add)]
    _native().group_norm_silu_forward(
        x.data_ptr(),
        *map(_address, (*kept, more)),
        y.data_ptr(),
        statistics.data_ptr(),
        statistics.data_ptr() + 4 * n * groups,
        n,
        c,
        x.shape[1],
        y.numel() // (n * c),
        groups,
        eps,
        act,
        layout.channels_last(form),
        add is not None and add.ndim == 2,
        CODES[x.dtype],
        torch.get_num_threads(),
    )
    return y, statistics


def group_norm_silu_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    statistics: Tensor,
    groups: int,
    scale: Tensor | None,
    shift: Tensor | None,
    add: Tensor | None,
    act: bool,
    more: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """As `backward_reference` of the op; None for an absent input."""
    own, apart = x.shape[1], more is not None
    form, x, more = _inputs(x, more)
    dy = layout.dense(dy, form)
    n, c = dy.shape[:2]
    dx, dmore = layout.empty(x, form), None if more is None else layout.empty(more, form)
    inputs = (weight, bias, scale, shift, add)
    kept = [_small(v) for v in inputs]
    grads = [None if v is None else torch.empty_like(v) for v in kept]
    if not dy.numel():
        grads = [None if g is None else g.zero_() for g in grads]
    else:
        _native().group_norm_silu_backward(
            dy.data_ptr(),
            x.data_ptr(),
            _address(kept[0]),
            _address(kept[1]),
            statistics.data_ptr(),
            statistics.data_ptr() + 4 * n * groups,
            *map(_address, (*kept[2:], more)),
            dx.data_ptr(),
            _address(dmore),
            *map(_address, grads),
            n,
            c,
            x.shape[1],
            dy.numel() // (n * c),
            groups,
            act,
            layout.channels_last(form),
            add is not None and add.ndim == 2,
            CODES[x.dtype],
            torch.get_num_threads(),
        )
    if apart and dmore is None:
        dx, dmore = layout.parted(dx, form, own)
    return (dx, *grads, dmore)


def _inputs(x: Tensor, more: Tensor | None) -> tuple[torch.memory_format, Tensor, Tensor | None]:
    """Dense, in one layout; channels last stay two tensors, others are joined."""
    form = layout.of(x)
    if more is None:
        return form, layout.dense(x, form), None
    if layout.channels_last(form):
        return form, layout.dense(x, form), layout.dense(more, form)
    return form, layout.joined(x, more), None


def ddim_update(
    x_t: Tensor, x0: Tensor, a: float | Tensor, b: float | Tensor, clip: float | None
) -> Tensor:
    form = layout.of(x_t)
    x_t, x0 = layout.dense(x_t, form), layout.dense(x0, form)
    y = layout.empty(x_t, form)
    if x_t.numel():
        n = x_t.shape[0]
        addresses, step, _kept = _step(x_t, x0, y, a, b, clip)
        _native().ddim_update(
            *addresses, *step, n, x_t.numel() // n, CODES[x_t.dtype], torch.get_num_threads()
        )
    return y


def ddim_update_uint8(
    x_t: Tensor, x0: Tensor, a: float | Tensor, b: float | Tensor, clip: float | None
) -> Tensor:
    return _bytes(x_t, x0, a, b, clip)


def to_uint8(x: Tensor) -> Tensor:
    return _bytes(x, None, 1.0, 0.0, None)


def draw(op: str, seed: int, stream: int, index: Tensor, size: int) -> Tensor:
    dtype = torch.int64 if op == "philox_uint32" else torch.float32
    index = index.contiguous()
    out = torch.empty((index.shape[0], size), dtype=dtype, device=index.device)
    if out.numel():
        _native().philox(
            seed,
            stream,
            index.data_ptr(),
            out.data_ptr(),
            index.shape[0],
            size,
            DRAWS[op],
            torch.get_num_threads(),
        )
    return out


def _bytes(
    x: Tensor, x0: Tensor | None, a: float | Tensor, b: float | Tensor, clip: float | None
) -> Tensor:
    form = layout.of(x)
    x = layout.dense(x, form)
    x0 = None if x0 is None else layout.dense(x0, form)
    n, c, h, w = x.shape
    y = torch.empty((n, h, w, c), dtype=torch.uint8, device=x.device)
    if x.numel():
        addresses, step, _kept = _step(x, x0, y, a, b, clip)
        _native().to_uint8(
            *addresses,
            *step,
            n,
            c,
            h * w,
            layout.channels_last(form),
            CODES[x.dtype],
            torch.get_num_threads(),
        )
    return y


def _step(
    x_t: Tensor,
    x0: Tensor | None,
    y: Tensor,
    a: float | Tensor,
    b: float | Tensor,
    clip: float | None,
) -> tuple[tuple[int, ...], tuple[float, ...], tuple[Tensor | None, ...]]:
    """Addresses and numbers of a step, and the tensors that must outlive the call."""
    each = [_small(v) if isinstance(v, Tensor) else None for v in (a, b)]
    flat = [0.0 if isinstance(v, Tensor) else float(v) for v in (a, b)]
    addresses = (x_t.data_ptr(), _address(x0), y.data_ptr(), *map(_address, each))
    return addresses, (*flat, 0.0 if clip is None else clip), tuple(each)


def _small(v: Tensor | None) -> Tensor | None:
    """A per-channel or per-image tensor as the kernels read it: float32, contiguous."""
    if v is None or (v.dtype is torch.float32 and v.is_contiguous()):
        return v
    return v.to(torch.float32).contiguous()


def _address(v: Tensor | None) -> int:
    return 0 if v is None else v.data_ptr()


def _native() -> Any:
    return module
