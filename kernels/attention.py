"""softmax(scale·qkᵀ)·v over the pixels of each image, head by head.

Vaswani et al. 2017 (arXiv:1706.03762, eq. 1). Softmax and sums are float32 whatever the storage
(float64 for float64). q, k and v may be slices of one channels-last tensor: no backend copies
those. Every backend answers channels last.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _triton, checks, cuda, layout, library
from .dispatch import Backend, Example, Op, requested

NAME = "attention"
Pair = tuple[Tensor, Tensor]
Triple = tuple[Tensor, Tensor, Tensor]


def reference(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float | None = None) -> Tensor:
    """q, k, v (B, heads·D, …), channels ordered (head, channel); scale is 1/√D unless given.

    Returns (B, heads·D, …), channels last.
    """
    return forward_reference(q, k, v, heads, scale)[0]


def forward_reference(
    q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float | None = None
) -> Pair:
    """The output, and logsumexp (B, heads, pixels): log Σ exp(scale·q·k) over the keys."""
    q_, k_, v_ = (_heads(x, heads, _wide(x)) for x in (q, k, v))
    with _exact(q):
        scores = (q_ @ k_.mT) * scale_of(q, heads, scale)
        return _image(scores.softmax(-1) @ v_, q), scores.logsumexp(-1)


def backward_reference(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    heads: int,
    scale: float | None = None,
) -> Triple:
    """Gradients of q, k and v, in their dtype, channels last."""
    dout_, q_, k_, v_, out_ = (_heads(x, heads, _wide(x)) for x in (dout, q, k, v, out))
    factor = scale_of(q, heads, scale)
    p = (q_ @ k_.mT * factor - logsumexp[..., None]).exp()
    delta = (dout_ * out_).sum(-1, keepdim=True)
    ds = p * (dout_ @ v_.mT - delta) * factor
    return _image(ds @ k_, q), _image(ds.mT @ q_, q), _image(p.mT @ dout_, q)


def sdpa(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float | None = None) -> Tensor:
    """torch's own choice among its kernels, with torch's own gradients."""
    q_, k_, v_ = (_heads(x, heads, x.dtype) for x in (q, k, v))
    return _image(F.scaled_dot_product_attention(q_, k_, v_, scale=scale_of(q, heads, scale)), q)


def scale_of(q: Tensor, heads: int, scale: float | None) -> float:
    return 1 / math.sqrt(q.shape[1] // heads) if scale is None else scale


def _exact(x: Tensor) -> AbstractContextManager[Any]:
    """Products in the dtype of their factors, also under autocast."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if kind in ("cpu", "cuda") else nullcontext()


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _heads(x: Tensor, heads: int, dtype: torch.dtype) -> Tensor:
    """(B, heads, pixels, D), channels innermost: a view where strides and dtype allow it."""
    n, channels, *size = x.shape
    h = x.reshape(n, heads, channels // heads, math.prod(size)).mT
    h = h if h.stride(3) == 1 else h.contiguous()
    return h if h.dtype is dtype else h.to(dtype)


def _image(h: Tensor, like: Tensor) -> Tensor:
    """(B, heads, pixels, D) as an image of `like`'s shape and dtype, channels last."""
    rows = h.transpose(1, 2)
    if h.dtype is not like.dtype or not rows.is_contiguous():
        h = rows.to(like.dtype).contiguous().transpose(1, 2)
    return h.mT.view(like.shape)


def check(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float | None) -> None:
    """ValueError for anything `reference` does not define."""
    checks.floating(NAME, "q", q)
    checks.rank(NAME, "q", q, "(B, heads·D, …)", 3)
    for arg, x in (("k", k), ("v", v)):
        checks.dtype(NAME, arg, x, q.dtype)
        checks.beside(NAME, arg, x, q, q.shape)
    channels = q.shape[1]
    if heads < 1 or channels < 1 or channels % heads:
        fits = max((h for h in range(1, min(heads, channels) + 1) if channels % h == 0), default=1)
        raise ValueError(
            f"{NAME}: q has {channels} channels, heads is {heads}; expected heads to divide "
            f"channels. Pass heads={fits}."
        )
    if scale is not None and not math.isfinite(scale):
        raise ValueError(f"{NAME}: scale is {scale}; expected a finite number, or None for 1/√D.")


def examples(dtype: torch.dtype, device: torch.device) -> list[Example]:
    """Slices of one channels-last tensor as networks have them; odd sizes, padded head widths."""
    r = torch.Generator().manual_seed(11)

    def sliced(batch: int, channels: int, *size: int) -> tuple[Tensor, ...]:
        qkv = torch.randn(batch, *size, 3 * channels, generator=r).to(device, dtype)
        return qkv.movedim(-1, 1).chunk(3, 1)

    def planes(batch: int, channels: int, *size: int) -> tuple[Tensor, ...]:
        return torch.randn(3, batch, channels, *size, generator=r).to(device, dtype).unbind()

    return [
        Example("planes", (*planes(2, 32, 4, 4), 2, None)),
        Example("one-head", (*sliced(2, 64, 4, 4), 1, None)),
        Example("heads", (*sliced(3, 48, 5, 5), 3, 0.4)),
        Example("padded-head", (*sliced(1, 48, 7, 7), 1, None)),
        Example("tokens", (*planes(2, 32, 19), 2, None)),
        Example("two-pixels", (*sliced(2, 32, 1, 2), 1, None)),
    ]


# ---- registration ---------------------------------------------------------------------------


def _sdpa_forward(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float) -> Pair:
    """For who calls the registered op itself: `attention` lets compilers see through `sdpa`."""
    return sdpa(q, k, v, heads, scale), forward_reference(q, k, v, heads, scale)[1]


def _run(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float | None, backend: str) -> Pair:
    args = (q, k, v, heads, scale_of(q, heads, scale))
    found: Pair = attention.pick(args, backend).run(*args)
    return found


def _fake(q: Tensor, k: Tensor, v: Tensor, heads: int, *_: Any) -> Pair:
    pixels = math.prod(q.shape[2:])
    return _fresh(q), q.new_empty((q.shape[0], heads, pixels), dtype=_wide(q))


def _fresh(q: Tensor) -> Tensor:
    rows = q.new_empty((q.shape[0], math.prod(q.shape[2:]), q.shape[1]))
    return layout.image(rows, q.shape)


def _run_backward(*args: Any) -> Triple:
    dout, q, k, v, out, logsumexp, heads, scale, backend = args
    known = (q, k, v, heads, scale_of(q, heads, scale))
    chosen = attention.pick(known, backend)
    assert chosen.backward is not None
    found: Triple = chosen.backward(dout, q, k, v, out, logsumexp, *known[3:])
    return found


def _fake_backward(dout: Tensor, q: Tensor, *_: Any) -> Triple:
    return _fresh(q), _fresh(q), _fresh(q)


library.define(
    f"{NAME}(Tensor q, Tensor k, Tensor v, int heads, float? scale, str backend)"
    " -> (Tensor, Tensor)",
    _run,
    _fake,
)
library.define(
    f"{NAME}_backward(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor logsumexp,"
    " int heads, float? scale, str backend) -> (Tensor, Tensor, Tensor)",
    _run_backward,
    _fake_backward,
)


def _keep(ctx: Any, args: tuple[Any, ...], output: Pair) -> None:
    q, k, v, *ctx.options = args
    ctx.save_for_backward(q, k, v, *output)


def _backward(ctx: Any, run: Callable[..., Any], dout: Tensor) -> tuple[Any, ...]:
    return *run(dout, *ctx.saved_tensors, *ctx.options), None, None


_with_gradient = library.differentiable(NAME, _keep, _backward)

# Backends made of torch's operators: autograd and compilers see through them.
_OPEN = {"": sdpa, "sdpa": sdpa, "reference": reference}  # "" while sdpa is first everywhere


def _call(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float | None = None) -> Tensor:
    check(q, k, v, heads, scale)
    q, k, v = _autocast(q, k, v)
    args = (q, k, v, heads, scale_of(q, heads, scale))
    plain = library.plain(q, k, v)
    wanted = requested(NAME) if plain else library.requested(NAME)
    if wanted in _OPEN:
        return _OPEN[wanted](*args)
    if not plain:
        y: Tensor = torch.ops.kdgen.attention(*args, wanted)[0]
        return y
    backend = attention.pick(args, wanted)
    if library.needs_grad(q, k, v):
        return _with_gradient(backend, *args)
    y = backend.run(*args)[0]
    return y


def _autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """What autocast does to SDPA's arguments, for every backend."""
    kind = tensors[0].device.type
    if kind not in ("cpu", "cuda") or not torch.is_autocast_enabled(kind):
        return tensors
    to = torch.get_autocast_dtype(kind)
    return tuple(x if x.dtype is torch.float64 else x.to(to) for x in tensors)


def _span(x: Tensor) -> int:
    """Elements from the first to the last of an image, those between them included."""
    return sum((n - 1) * s for n, s in zip(x.shape[1:], x.stride()[1:], strict=True)) + 1


def _triton_unable(q: Tensor, k: Tensor, v: Tensor, heads: int, *_: Any) -> str:
    if (width := q.shape[1] // heads) % 16 or width > 256:
        return f"a head has {width} channels; expected a multiple of 16 up to 256"
    if (span := max(map(_span, (q, k, v)))) >= 2**31:  # offsets inside an image: 32 bits
        return f"an image spans {span} values; expected fewer than 2**31"
    return _triton.unable(q)


attention = Op(
    NAME,
    _call,
    reference,
    (
        Backend("sdpa", _sdpa_forward, lambda *_: "", (), backward_reference),
        Backend(
            "triton",
            lambda *args: _triton.load(NAME).forward(*args),
            _triton_unable,
            ("cuda",),
            lambda *args: _triton.load(NAME).backward(*args),
        ),
        Backend("cuda", cuda.attention, cuda.unable_to_attend, ("cuda",), cuda.attention_backward),
        Backend("reference", forward_reference, lambda *_: "", (), backward_reference),
    ),
    examples,
)
