"""y = silu((GN(x + add)·weight + bias)·(1 + scale) + shift), the step between any two convolutions.

Wu & He 2018 (arXiv:1803.08494) for the norm; scale and shift are FiLM's, `add` is the per-channel
noise-level embedding of DDPM's residual block. `more` stands behind x in the channels without being
copied there: what a U-Net's decoder gets from its encoder. Statistics and arithmetic are float32
whatever the storage (float64 for float64).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _triton, checks, cuda, layout, library, native
from .dispatch import Backend, Example, Op, requested

NAME = "group_norm_silu"
Pair = tuple[Tensor, Tensor]


def reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float = 1e-6,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    add: Tensor | None = None,
    act: bool = True,
    more: Tensor | None = None,
) -> Tensor:
    """x (N, C, …); weight, bias (C,); scale, shift (N, C); add (N, C) or (C,). Returns like x.

    With `more` (N, C2, …) it is all of that for x and more as one tensor of C + C2 channels.
    """
    return forward_reference(x, weight, bias, groups, eps, scale, shift, add, act, more)[0]


def forward_reference(
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
) -> Pair:
    """The output, and statistics (2, N, groups): mean and reciprocal standard deviation."""
    x = layout.joined(x, more)
    h = _widen(x, add)
    size = x.shape[1] // groups
    grouped = h.unflatten(1, (groups, size))  # (N, groups, C / groups, …)
    inside = tuple(range(2, grouped.ndim))
    mean = grouped.mean(inside, keepdim=True)
    centred = grouped - mean
    rstd = (centred.square().mean(inside, keepdim=True) + eps).rsqrt()

    def beside(v: Tensor) -> Tensor:
        return layout.broadcast(v, x).to(h.dtype)

    y = (centred * rstd).flatten(1, 2) * beside(weight) + beside(bias)
    y = y if scale is None else y * (1 + beside(scale))
    y = y if shift is None else y + beside(shift)
    y = F.silu(y) if act else y
    y = y.to(x.dtype).contiguous(memory_format=layout.of(x))
    return y, torch.stack((mean.flatten(1), rstd.flatten(1)))


def backward_reference(
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
) -> tuple[Tensor, ...]:
    """Gradients of x, weight, bias, scale, shift, add, more; float32 but for those of x and more,
    and (0,) for an absent input."""
    form, own, x = layout.of(x), x.shape[1], layout.joined(x, more)
    h = _widen(x, add)
    weight, bias, dy = (v.to(h.dtype) for v in (weight, bias, dy))
    lift = 1 if scale is None else 1 + scale.to(h.dtype)
    size = x.shape[1] // groups

    def spread(per_group: Tensor) -> Tensor:
        return layout.broadcast(per_group.repeat_interleave(size, 1), x)

    def total(v: Tensor) -> Tensor:
        return v.flatten(2).sum(2) if v.ndim > 2 else v.clone()

    def group_mean(v: Tensor) -> Tensor:
        return spread(v.unflatten(1, (groups, size)).flatten(2).mean(2))

    mean, rstd = spread(statistics[0]), spread(statistics[1])
    xhat = (h - mean) * rstd
    gain = layout.broadcast(weight * lift, x)
    dz = dy
    if act:
        offset = bias * lift if shift is None else bias * lift + shift.to(h.dtype)
        z = xhat * gain + layout.broadcast(offset, x)
        sigma = z.sigmoid()
        dz = dy * sigma * (1 + z * (1 - sigma))
    s1, s2, dxhat = total(dz), total(dz * xhat), dz * gain
    dx = rstd * (dxhat - group_mean(dxhat) - xhat * group_mean(dxhat * xhat))
    # Copies: an answer must not share memory with an argument, nor with another answer.
    given = dx.to(x.dtype)
    return (
        given[:, :own].clone(memory_format=form),
        (s2 * lift).sum(0),
        (s1 * lift).sum(0),
        dx.new_empty(0) if scale is None else weight * s2 + bias * s1,
        dx.new_empty(0) if shift is None else s1.clone(),
        dx.new_empty(0) if add is None else total(dx).sum(0) if add.ndim == 1 else total(dx),
        x.new_empty(0) if more is None else given[:, own:].clone(memory_format=form),
    )


def _widen(x: Tensor, add: Tensor | None) -> Tensor:
    h = x.to(torch.promote_types(x.dtype, torch.float32))
    return h if add is None else h + layout.broadcast(add, x).to(h.dtype)


def check(
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
) -> None:
    """ValueError for anything `reference` does not define."""
    checks.floating(NAME, "x", x)
    checks.rank(NAME, "x", x, "(N, C, …)", 2)
    n, c = x.shape[:2]
    both = "x has"
    if more is not None:
        both, c = "x and more have", c + _check_more(x, more)
    if groups < 1 or c % groups:
        raise ValueError(
            f"{NAME}: {both} {c} channels, groups is {groups}; expected groups to divide channels. "
            f"Pass groups={max(g for g in range(1, max(1, min(groups, c)) + 1) if c % g == 0)}."
        )
    if not eps >= 0:
        raise ValueError(f"{NAME}: eps is {eps}; expected a number of at least 0.")
    per_image, per_channel = (n, c), (c,)
    checks.beside(NAME, "weight", weight, x, per_channel)
    checks.beside(NAME, "bias", bias, x, per_channel)
    if scale is not None:
        checks.beside(NAME, "scale", scale, x, per_image)
    if shift is not None:
        checks.beside(NAME, "shift", shift, x, per_image)
    if add is not None:
        checks.beside(NAME, "add", add, x, per_image, per_channel)


def _check_more(x: Tensor, more: Tensor) -> int:
    """The channels it has."""
    checks.dtype(NAME, "more", more, x.dtype)
    checks.rank(NAME, "more", more, f"{x.ndim} dimensions, as x", x.ndim, x.ndim)
    channels = max(1, more.shape[1])
    checks.beside(NAME, "more", more, x, (x.shape[0], channels, *x.shape[2:]))
    return channels


def examples(dtype: torch.dtype, device: torch.device) -> list[Example]:
    """Shapes of real networks in the small: both layouts, odd sizes, wide groups, FiLM, add, and a
    second input, whose seam may go through a group."""
    r = torch.Generator().manual_seed(7)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=r).to(device, dtype)

    def image(n: int, c: int, size: tuple[int, ...], last: bool) -> Tensor:
        x = normal(n, c, *size) * 1.5 - 2.3
        return x.contiguous(memory_format=layout.CHANNELS_LAST[x.ndim]) if last else x

    def one(
        name: str,
        shape: tuple[int, ...],
        groups: int,
        film: bool,
        add: int,
        act: bool,
        last: bool,
        behind: int = 0,
    ) -> Example:
        n, c, *size = shape
        x = image(n, c, tuple(size), last)
        more = image(n, behind, tuple(size), last) if behind else None
        c += behind
        weight, bias = 1 + normal(c) / 2, normal(c)
        scale, shift = (normal(n, c) / 2, normal(n, c)) if film else (None, None)
        plus = None if add == 0 else normal(c) if add == 1 else normal(n, c)
        return Example(name, (x, weight, bias, groups, 1e-6, scale, shift, plus, act, more))

    return [
        one("plain", (2, 32, 8, 8), 8, False, 0, True, False),
        one("last", (2, 32, 8, 8), 8, False, 0, True, True),
        one("film-add", (3, 24, 7, 7), 2, True, 2, True, False),
        one("film-add-last", (3, 24, 7, 7), 2, True, 2, True, True),
        one("linear", (2, 8, 16), 1, True, 1, False, False),
        one("last-linear", (1, 64, 5, 3), 16, False, 1, False, True),
        one("no-space", (4, 16), 4, False, 0, True, False),
        one("more", (2, 20, 4, 4), 4, True, 1, True, False, behind=12),
        one("more-last", (3, 32, 4, 4), 8, False, 2, True, True, behind=16),
        one("seam-in-a-group", (2, 32, 4, 4), 4, True, 1, True, True, behind=16),
    ]


# ---- registration ---------------------------------------------------------------------------

_INPUTS = "Tensor? scale, Tensor? shift, Tensor? add, bool act, Tensor? more, str backend"


def _run(*args: Any) -> Pair:
    y: Pair = group_norm_silu.pick(args[:-1], args[-1]).run(*args[:-1])
    return y


def _fake(x: Tensor, weight: Tensor, bias: Tensor, groups: int, *_: Any) -> Pair:
    wide = torch.promote_types(x.dtype, torch.float32)
    y = layout.empty(x, layout.of(x), weight.shape[0])
    return y, x.new_empty((2, x.shape[0], groups), dtype=wide)


def _run_backward(*args: Any) -> tuple[Tensor, ...]:
    _, x, weight, bias, _, groups, *extras, backend = args
    chosen = group_norm_silu.pick((x, weight, bias, groups, 0.0, *extras), backend)
    assert chosen.backward is not None
    *found, dmore = chosen.backward(*args[:-1])
    grads = (x.new_empty(0, dtype=found[1].dtype) if g is None else g for g in found)
    return *grads, x.new_empty(0) if dmore is None else dmore


def _fake_backward(
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
    *_: Any,
) -> tuple[Tensor, ...]:
    inputs, form = (weight, bias, scale, shift, add), layout.of(x)
    grads = [x.new_empty(0 if v is None else v.shape, dtype=statistics.dtype) for v in inputs]
    dmore = x.new_empty(0) if more is None else layout.empty(more, form)
    return layout.empty(x, form), *grads, dmore


library.define(
    f"{NAME}(Tensor x, Tensor weight, Tensor bias, int groups, float eps, {_INPUTS})"
    " -> (Tensor, Tensor)",
    _run,
    _fake,
)
library.define(
    f"{NAME}_backward(Tensor dy, Tensor x, Tensor weight, Tensor bias, Tensor statistics,"
    f" int groups, {_INPUTS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _run_backward,
    _fake_backward,
)


def _keep(ctx: Any, args: tuple[Any, ...], output: Pair) -> None:
    x, weight, bias, groups, _, scale, shift, add, act, more = args
    ctx.save_for_backward(x, weight, bias, output[1], scale, shift, add, more)
    ctx.options = groups, act


def _backward(ctx: Any, run: Callable[..., Any], dy: Tensor) -> tuple[Any, ...]:
    x, weight, bias, statistics, scale, shift, add, more = ctx.saved_tensors
    groups, act = ctx.options
    found = run(dy, x, weight, bias, statistics, groups, scale, shift, add, act, more)
    dx, dw, db, *extras, dmore = _as_inputs(found, (x, weight, bias, scale, shift, add, more))
    return dx, dw, db, None, None, *extras, None, dmore


def _as_inputs(found: Any, inputs: tuple[Tensor | None, ...]) -> list[Tensor | None]:
    """Gradients in their inputs' dtypes; None where there was no input."""
    return [
        None if v is None else g if g.dtype is v.dtype else g.to(v.dtype)
        for v, g in zip(inputs, found, strict=True)
    ]


_with_gradient = library.differentiable(NAME, _keep, _backward)


def _call(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float = 1e-6,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    add: Tensor | None = None,
    act: bool = True,
    more: Tensor | None = None,
) -> Tensor:
    args = (x, weight, bias, groups, eps, scale, shift, add, act, more)
    check(*args)
    tensors = (x, weight, bias, scale, shift, add, more)
    if not library.plain(*tensors):
        y: Tensor = torch.ops.kdgen.group_norm_silu(*args, library.requested(NAME))[0]
        return y
    backend = group_norm_silu.pick(args, requested(NAME))
    if backend.name == "reference":
        return reference(*args)
    if library.needs_grad(*tensors):
        return _with_gradient(backend, *args)
    y = backend.run(*args)[0]
    return y


def _triton_unable(x: Tensor, weight: Tensor, *_: Any) -> str:
    image = len(weight) * math.prod(x.shape[2:])
    if image >= 2**31:  # offsets inside an image: 32 bits
        return f"an image has {image} values; expected fewer than 2**31"
    return _triton.unable(x)


group_norm_silu = Op(
    NAME,
    _call,
    reference,
    (
        Backend(
            "native",
            native.group_norm_silu,
            lambda x, *_: native.unable(x),
            ("cpu",),
            native.group_norm_silu_backward,
        ),
        Backend(
            "triton",
            lambda *args: _triton.load(NAME).forward(*args),
            _triton_unable,
            ("cuda",),
            lambda *args: _triton.load(NAME).backward(*args),
        ),
        Backend(
            "cuda",
            cuda.group_norm_silu,
            cuda.unable_to_norm,
            ("cuda",),
            cuda.group_norm_silu_backward,
        ),
        Backend("reference", forward_reference, lambda *_: "", (), backward_reference),
    ),
    examples,
)
