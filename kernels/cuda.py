"""The CUDA kernels (`kdgen._cuda`): whether they loaded, what they serve, and torch-side wrappers.

The module takes addresses, sizes, a device and a stream; everything about tensors is settled here.
They run on torch's current stream, and allocate nothing that torch does not know of.
"""

from __future__ import annotations

import math
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from . import layout

CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
HALVES = (torch.float16, torch.bfloat16)
DRAWS = {"philox_uint32": 0, "philox_uniform": 1, "philox_normal": 2}
OLDEST = (8, 0)  # compute capability: asynchronous copies, bfloat16 in tensor cores
PACK = 16  # bytes of the loads and stores
WIDEST_HEAD = 256
LIMIT = 2**31  # values of an image, whose places are 32-bit numbers


def _load() -> tuple[ModuleType | None, str]:
    try:
        from kdgen import _cuda
    except ImportError as error:
        return None, f"the CUDA part did not load ({error})"
    return _cuda, ""


module, why = _load()


# ---- what they serve ------------------------------------------------------------------------


def unable(x: Tensor, *_: Any) -> str:
    """Why the CUDA kernels cannot take float tensor `x`; "" when they can."""
    if reason := unable_on(x.device):
        return reason
    if x.dtype not in CODES:
        return f"x is {str(x.dtype)[6:]}; expected float32, float16 or bfloat16"
    return _too_large(math.prod(x.shape[1:])) if x.ndim > 1 else ""


def _too_large(values: int) -> str:
    return f"an image has {values} values; expected fewer than 2**31" if values >= LIMIT else ""


def unable_on(device: torch.device) -> str:
    if module is None:
        return why
    if device.type != ("cpu" if module.emulated else "cuda"):
        return f"the tensor is on {device.type}; expected cuda"
    if not module.emulated and (capability := _capability(device.index)) < OLDEST:
        return f"the GPU has compute capability {capability[0]}.{capability[1]}; expected 8.0"
    return ""


@cache
def _capability(index: int | None) -> tuple[int, int]:
    """Of a GPU; where there is none (shapes only), as if there were a good one."""
    return torch.cuda.get_device_capability(index) if torch.cuda.is_available() else OLDEST


def unable_to_step(x_t: Tensor, raw: Tensor, *_: Any) -> str:
    return unable(x_t) or unable(raw).replace("x is", "raw is")


def unable_to_scale(
    x: Tensor,
    _c: float | Tensor,
    _step: Tensor | None = None,
    dtype: torch.dtype | None = None,
    channels: int | None = None,
) -> str:
    if reason := unable(x):
        return reason
    if dtype is not None and dtype not in CODES:
        return f"dtype is {str(dtype)[6:]}; expected float32, float16 or bfloat16"
    return _too_large((channels or 0) * math.prod(x.shape[2:]))


def unable_to_draw(_seed: int, _stream: int, index: Tensor, _size: int) -> str:
    return unable_on(index.device)


def unable_to_norm(
    x: Tensor,
    weight: Tensor,
    _bias: Tensor,
    groups: int,
    _eps: float = 0.0,
    _scale: Tensor | None = None,
    _shift: Tensor | None = None,
    _add: Tensor | None = None,
    _act: bool = True,
    _more: Tensor | None = None,
) -> str:
    if reason := unable(x):
        return reason
    if not _channels_innermost(x):
        return "x has its channels apart; expected channels last"
    channels, size = weight.shape[0], math.prod(x.shape[2:])
    if reason := _too_large(channels * size):
        return reason
    assert module is not None
    if (
        size
        and not module.group_norm_plan(size, channels, x.shape[1], groups, x.dtype.itemsize, 2)[0]
    ):
        packs = PACK // x.dtype.itemsize
        return (
            f"there are {x.shape[1]} + {channels - x.shape[1]} channels in {groups} groups; "
            f"expected multiples of {packs}, and groups of at most {128 * packs}"
        )
    return ""


def unable_to_attend(q: Tensor, k: Tensor, v: Tensor, heads: int, *_: Any) -> str:
    if reason := unable_on(q.device):
        return reason
    if q.dtype not in HALVES:
        return f"q is {str(q.dtype)[6:]}; expected float16 or bfloat16"
    width = q.shape[1] // heads
    if width % 8 or width > WIDEST_HEAD:
        return f"a head has {width} channels; expected a multiple of 8 up to {WIDEST_HEAD}"
    return ""


# ---- group norm -----------------------------------------------------------------------------


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
    more: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As `forward_reference` of the op."""
    x, more = _rows(x), _rows(more)
    n, channels = x.shape[0], weight.shape[0]
    y = _beside(x, channels)
    statistics = x.new_empty((2, n, groups), dtype=torch.float32)
    if not y.numel():
        return y, statistics.fill_(float("nan"))
    kept = [_small(v) for v in (weight, bias, scale, shift, add)]
    _cuda().group_norm_silu_forward(
        x.data_ptr(),
        _address(more),
        *map(_address, kept),
        y.data_ptr(),
        statistics.data_ptr(),
        statistics.data_ptr() + 4 * n * groups,
        n,
        y.numel() // (n * channels),
        channels,
        x.shape[1],
        groups,
        eps,
        act,
        add is not None and add.ndim == 2,
        CODES[x.dtype],
        *_queue(x),
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
    more: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """As `backward_reference` of the op; None for an absent input."""
    x, more, dy = _rows(x), _rows(more), _rows(dy)
    n, channels = x.shape[0], weight.shape[0]
    dx, dmore = _beside(x), None if more is None else _beside(more)
    kept = [_small(v) for v in (weight, bias, scale, shift, add)]
    grads = [None if v is None else torch.empty_like(v) for v in kept]
    if not dy.numel():
        return (dx, *(None if g is None else g.zero_() for g in grads), dmore)
    scratch = x.new_empty((3, n, channels), dtype=torch.float32)
    _cuda().group_norm_silu_backward(
        dy.data_ptr(),
        x.data_ptr(),
        _address(more),
        _address(kept[0]),
        _address(kept[1]),
        statistics.data_ptr(),
        statistics.data_ptr() + 4 * n * groups,
        *map(_address, kept[2:]),
        dx.data_ptr(),
        _address(dmore),
        *map(_address, grads),
        scratch.data_ptr(),
        n,
        dy.numel() // (n * channels),
        channels,
        x.shape[1],
        groups,
        act,
        add is not None and add.ndim == 2,
        CODES[x.dtype],
        *_queue(x),
    )
    return (dx, *grads, dmore)


# ---- sampler's steps ------------------------------------------------------------------------


def ddim_update(
    x_t: Tensor, x0: Tensor, a: float | Tensor, b: float | Tensor, clip: float | None
) -> Tensor:
    form = layout.of(x_t)
    y = layout.empty(x_t, form)
    _step(x_t, x0, a, b, clip, y, False)
    return y


def ddim_update_uint8(
    x_t: Tensor, x0: Tensor, a: float | Tensor, b: float | Tensor, clip: float | None
) -> Tensor:
    y = _bytes_of(x_t)
    _step(x_t, x0, a, b, clip, y, True)
    return y


def to_uint8(x: Tensor) -> Tensor:
    y = _bytes_of(x)
    _step(x, None, 1.0, 0.0, None, y, True)
    return y


def chain_step(x_t: Tensor, raw: Tensor, table: Tensor, step: Tensor, clip: float | None) -> Tensor:
    y = layout.empty(x_t, layout.of(x_t))
    _chain(x_t, raw, table, step, clip, y, False)
    return y


def chain_step_uint8(
    x_t: Tensor, raw: Tensor, table: Tensor, step: Tensor, clip: float | None
) -> Tensor:
    y = _bytes_of(x_t)
    _chain(x_t, raw, table, step, clip, y, True)
    return y


def scale_input(
    x: Tensor,
    c: float | Tensor,
    step: Tensor | None,
    dtype: torch.dtype | None,
    channels: int | None,
) -> Tensor:
    form = layout.of(x)
    x, y = layout.dense(x, form), layout.empty_padded(x, dtype, channels)
    if not x.numel():
        return y.zero_()
    each = _small(c) if isinstance(c, Tensor) else None
    _cuda().scale_input(
        x.data_ptr(),
        y.data_ptr(),
        _address(each),
        _address(step),
        0 if each is None else each.shape[0],
        0.0 if isinstance(c, Tensor) else c,
        *_planes(x, form),
        y.shape[1],
        CODES[x.dtype],
        CODES[y.dtype],
        *_queue(x),
    )
    return y


def _step(
    x_t: Tensor,
    x0: Tensor | None,
    a: float | Tensor,
    b: float | Tensor,
    clip: float | None,
    y: Tensor,
    to_bytes: bool,
) -> None:
    form = layout.of(x_t)
    x_t, x0 = layout.dense(x_t, form), None if x0 is None else layout.dense(x0, form)
    if not x_t.numel():
        return
    each = [_small(v) if isinstance(v, Tensor) else None for v in (a, b)]
    flat = [0.0 if isinstance(v, Tensor) else float(v) for v in (a, b)]
    _cuda().step(
        x_t.data_ptr(),
        _address(x0),
        y.data_ptr(),
        *map(_address, each),
        *flat,
        clip or 0.0,
        *_planes(x_t, form),
        to_bytes,
        CODES[x_t.dtype],
        *_queue(x_t),
    )


def _chain(
    x_t: Tensor,
    raw: Tensor,
    table: Tensor,
    step: Tensor,
    clip: float | None,
    y: Tensor,
    to_bytes: bool,
) -> None:
    form = layout.of(x_t)
    x_t = layout.dense(x_t, form)
    raw, raw_channels = layout.rows(raw, form)
    if not x_t.numel():
        return
    table = table.float().contiguous()
    _cuda().chain_step(
        x_t.data_ptr(),
        raw.data_ptr(),
        table.data_ptr(),
        step.data_ptr(),
        y.data_ptr(),
        table.shape[0],
        clip or 0.0,
        *_planes(x_t, form),
        raw_channels,
        to_bytes,
        CODES[x_t.dtype],
        CODES[raw.dtype],
        *_queue(x_t),
    )


def draw(op: str, seed: int, stream: int, index: Tensor, size: int) -> Tensor:
    dtype = torch.int64 if op == "philox_uint32" else torch.float32
    index = index.contiguous()
    out = index.new_empty((index.shape[0], size), dtype=dtype)
    if out.numel():
        _cuda().philox(
            seed,
            stream,
            index.data_ptr(),
            out.data_ptr(),
            index.shape[0],
            size,
            DRAWS[op],
            *_queue(index),
        )
    return out


# ---- bias and residual ----------------------------------------------------------------------


def bias_residual(x: Tensor, residual: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    form = layout.of(x)
    x, residual = layout.dense(x, form), layout.dense(residual, form)
    y, bias = layout.empty(x, form), _small(bias)
    if x.numel():
        _cuda().bias_residual(
            x.data_ptr(),
            residual.data_ptr(),
            _address(bias),
            y.data_ptr(),
            scale,
            *_planes(x, form),
            CODES[x.dtype],
            *_queue(x),
        )
    return y


def bias_residual_backward(
    dy: Tensor, scale: float, form: torch.memory_format, wants_bias: bool
) -> tuple[Tensor, Tensor | None]:
    """As `backward_reference` of the op."""
    dy = layout.dense(dy, form)
    dx = dy if scale == 1 else layout.empty(dy, form)
    dbias = dy.new_zeros(dy.shape[1], dtype=torch.float32) if wants_bias else None
    if not dy.numel() or (dx is dy and dbias is None):
        return dx, dbias
    planes, scratch = _planes(dy, form), None
    if dbias is not None:
        parts = _cuda().bias_residual_parts(*planes)
        scratch = dy.new_empty((parts, dy.shape[1]), dtype=torch.float32)
    _cuda().bias_residual_backward(
        dy.data_ptr(),
        0 if dx is dy else dx.data_ptr(),
        _address(dbias),
        _address(scratch),
        scale,
        *planes,
        CODES[dy.dtype],
        *_queue(dy),
    )
    return dx, dbias


# ---- attention ------------------------------------------------------------------------------


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float) -> tuple[Tensor, Tensor]:
    """As `forward_reference` of the op."""
    tokens = [_tokens(x) for x in (q, k, v)]
    out = _like_tokens(q)
    n, size = out.shape[:2]
    logsumexp = q.new_empty((n, heads, size), dtype=torch.float32)
    if out.numel():
        _cuda().attention_forward(
            *_strided(*tokens),
            out.data_ptr(),
            logsumexp.data_ptr(),
            scale,
            n,
            heads,
            size,
            q.shape[1] // heads,
            CODES[q.dtype],
            *_queue(q),
        )
    return layout.image(out, q.shape), logsumexp


def attention_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    heads: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `backward_reference` of the op."""
    tokens = [_tokens(x) for x in (q, k, v)]
    rows, given = (_aligned(layout.pixels(x.to(q.dtype)).contiguous()) for x in (out, dout))
    dq, dk, dv = (_like_tokens(q) for _ in range(3))
    n, size = rows.shape[:2]
    if rows.numel():
        logsumexp = logsumexp.contiguous()
        delta = torch.empty_like(logsumexp)
        _cuda().attention_backward(
            given.data_ptr(),
            *_strided(*tokens),
            rows.data_ptr(),
            logsumexp.data_ptr(),
            delta.data_ptr(),
            *(g.data_ptr() for g in (dq, dk, dv)),
            scale,
            n,
            heads,
            size,
            q.shape[1] // heads,
            CODES[q.dtype],
            *_queue(q),
        )
    dq, dk, dv = (layout.image(g, q.shape) for g in (dq, dk, dv))
    return dq, dk, dv


def _tokens(x: Tensor) -> Tensor:
    """(N, tokens, channels) with channels innermost and strides that packs can follow; a view where
    the tensor allows it."""
    rows = layout.pixels(x)
    step = PACK // x.dtype.itemsize
    good = rows.stride(2) == 1 and not any(
        stride % step
        for stride, size in zip(rows.stride()[:2], rows.shape, strict=False)
        if size > 1
    )
    return _aligned(rows if good else rows.contiguous())


def _strided(*all_tokens: Tensor) -> tuple[int, ...]:
    """Address and strides of each; a stride that is not used must not be an odd number."""
    found: list[int] = []
    for t in all_tokens:
        strides = (s if size > 1 else 0 for s, size in zip(t.stride(), t.shape[:2], strict=False))
        found += (t.data_ptr(), *strides)
    return tuple(found)


def _like_tokens(x: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], math.prod(x.shape[2:]), x.shape[1]))


# ---- tensors as the module takes them -------------------------------------------------------


def _rows(x: Any) -> Any:
    """Dense with channels innermost, on an address that packs can use; None stays None."""
    if x is None:
        return None
    last = layout.CHANNELS_LAST.get(x.ndim, layout.CONTIGUOUS)
    return _aligned(layout.dense(x, last))


def _channels_innermost(x: Tensor) -> bool:
    last = layout.CHANNELS_LAST.get(x.ndim)
    if last is None:
        return x.ndim == 2
    return layout.channels_last(layout.of(x)) or x.is_contiguous(memory_format=last)


def _aligned(x: Tensor) -> Tensor:
    return x if x.data_ptr() % PACK == 0 else x.clone()


def _beside(x: Tensor, channels: int | None = None) -> Tensor:
    """Uninitialised, like `x` with channels innermost."""
    last = layout.CHANNELS_LAST.get(x.ndim, layout.CONTIGUOUS)
    shape = (x.shape[0], x.shape[1] if channels is None else channels, *x.shape[2:])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=last)


def _bytes_of(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.new_empty((n, h, w, c), dtype=torch.uint8)


def _planes(x: Tensor, form: torch.memory_format) -> tuple[int, int, int, bool]:
    """Images, channels, places, and whether channels are innermost."""
    n, c = x.shape[0], x.shape[1] if x.ndim > 1 else 1
    last = layout.channels_last(form) or x.ndim == 2
    return n, c, x.numel() // (n * c), last


def _small(v: Tensor | None) -> Tensor | None:
    """A per-channel or per-image tensor as the kernels read it: float32, contiguous, aligned."""
    return None if v is None else _aligned(v.to(torch.float32).contiguous())


def _address(v: Tensor | None) -> int:
    return 0 if v is None else v.data_ptr()


def _queue(x: Tensor) -> tuple[int, int]:
    """Device and current stream, as numbers."""
    if x.device.type != "cuda":
        return 0, 0
    return x.device.index, torch.cuda.current_stream(x.device).cuda_stream


def _cuda() -> Any:
    return module
