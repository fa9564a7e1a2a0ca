"""torch-side wrappers of the compiled elementwise ops: see `native`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import layout
from .native import CODES, _address, _native, _small


def bias_residual(x: Tensor, residual: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    form = layout.of(x)
    x, residual = layout.dense(x, form), layout.dense(residual, form)
    y = layout.empty(x, form)
    if x.numel():
        bias = _small(bias)
        _native().bias_residual(
            x.data_ptr(), residual.data_ptr(), _address(bias), y.data_ptr(), scale, *_sizes(x, form)
        )
    return y


def bias_residual_backward(
    dy: Tensor, scale: float, form: torch.memory_format, wants_bias: bool
) -> tuple[Tensor, Tensor | None]:
    """As `backward_reference` of the op; dy itself where it is the gradient of x."""
    dy = layout.dense(dy, form)
    n, c = dy.shape[:2]
    dx = dy if scale == 1 else layout.empty(dy, form)
    dbias, partial = (_floats(dy, c), _floats(dy, n, c)) if wants_bias else (None, None)
    if not dy.numel():
        return dx, None if dbias is None else dbias.zero_()
    _native().bias_residual_backward(
        dy.data_ptr(),
        0 if scale == 1 else dx.data_ptr(),
        _address(dbias),
        _address(partial),
        scale,
        *_sizes(dy, form),
    )
    return dx, dbias


def chain_step(x_t: Tensor, raw: Tensor, table: Tensor, step: Tensor, clip: float | None) -> Tensor:
    return _chain_step(x_t, raw, table, step, clip, layout.empty(x_t, layout.of(x_t)))


def chain_step_uint8(
    x_t: Tensor, raw: Tensor, table: Tensor, step: Tensor, clip: float | None
) -> Tensor:
    n, c, h, w = x_t.shape
    y = torch.empty((n, h, w, c), dtype=torch.uint8, device=x_t.device)
    return _chain_step(x_t, raw, table, step, clip, y)


def scale_input(
    x: Tensor,
    c: float | Tensor,
    step: Tensor | None,
    dtype: torch.dtype | None,
    channels: int | None,
) -> Tensor:
    form = layout.of(x)
    x = layout.dense(x, form)
    y = layout.empty_padded(x, dtype, channels)
    if y.numel():
        each = _small(c) if isinstance(c, Tensor) else None
        _native().scale_input(
            x.data_ptr(),
            y.data_ptr(),
            _address(each),
            _address(step),
            0 if each is None else each.shape[0],
            0.0 if isinstance(c, Tensor) else c,
            x.shape[0],
            x.shape[1],
            math.prod(x.shape[2:]),
            y.shape[1],
            layout.channels_last(form),
            CODES[x.dtype],
            CODES[y.dtype],
            torch.get_num_threads(),
        )
    return y


def _chain_step(
    x_t: Tensor, raw: Tensor, table: Tensor, step: Tensor, clip: float | None, y: Tensor
) -> Tensor:
    form = layout.of(x_t)
    x_t, (raw, apart) = layout.dense(x_t, form), layout.rows(raw, form)
    if x_t.numel():
        rows = _small(table)
        _native().chain_step(
            x_t.data_ptr(),
            raw.data_ptr(),
            y.data_ptr(),
            _address(rows),
            step.data_ptr(),
            table.shape[0],
            0.0 if clip is None else clip,
            x_t.shape[0],
            x_t.shape[1],
            math.prod(x_t.shape[2:]),
            apart,
            layout.channels_last(form),
            y.dtype is torch.uint8,
            CODES[x_t.dtype],
            CODES[raw.dtype],
            torch.get_num_threads(),
        )
    return y


def _sizes(x: Tensor, form: torch.memory_format) -> tuple[int, int, int, bool, int, int]:
    """What every kernel is told of a dense tensor that is not empty."""
    n, c = x.shape[:2]
    last = layout.channels_last(form)
    return n, c, x.numel() // (n * c), last, CODES[x.dtype], torch.get_num_threads()


def _floats(like: Tensor, *size: int) -> Tensor:
    return torch.empty(size, dtype=torch.float32, device=like.device)
