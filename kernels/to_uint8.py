"""Images in [-1, 1] to bytes, (N, C, H, W) to (N, H, W, C): round half to even, NaN to 0."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _triton, checks, cuda, library, native
from .dispatch import Backend, Example, Op, requested

NAME = "to_uint8"


def reference(x: Tensor) -> Tensor:
    """x (N, C, H, W) -> uint8 (N, H, W, C), contiguous."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    grey = ((wide.clamp(-1, 1) + 1) * 127.5).round().nan_to_num(0)
    return grey.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def check(x: Tensor) -> None:
    checks.floating(NAME, "x", x)
    checks.rank(NAME, "x", x, "(N, C, H, W)", 4, 4)


def examples(dtype: torch.dtype, device: torch.device) -> list[Example]:
    """RGB and grey, both layouts, with values outside the range."""
    r = torch.Generator().manual_seed(3)
    rgb = (torch.randn(2, 3, 6, 5, generator=r) * 0.7).to(device, dtype)
    grey = (torch.rand(3, 1, 8, 8, generator=r) * 2 - 1).to(device, dtype)
    last = rgb.contiguous(memory_format=torch.channels_last)
    return [Example("rgb", (rgb,)), Example("grey", (grey,)), Example("last", (last,))]


def _run(x: Tensor, backend: str) -> Tensor:
    y: Tensor = to_uint8.pick((x,), backend).run(x)
    return y


def _fake(x: Tensor, backend: str) -> Tensor:
    n, c, h, w = x.shape
    return x.new_empty((n, h, w, c), dtype=torch.uint8)


library.define(f"{NAME}(Tensor x, str backend) -> Tensor", _run, _fake)


def _call(x: Tensor) -> Tensor:
    check(x)
    if library.plain(x):
        return _run(x, requested(NAME))
    y: Tensor = torch.ops.kdgen.to_uint8(x, library.requested(NAME))
    return y


to_uint8 = Op(
    NAME,
    _call,
    reference,
    (
        Backend("native", native.to_uint8, native.unable, ("cpu",)),
        Backend("triton", lambda x: _triton.load("images").to_uint8(x), _triton.unable, ("cuda",)),
        Backend("cuda", cuda.to_uint8, cuda.unable, ("cuda",)),
        Backend("reference", reference, lambda *_: ""),
    ),
    examples,
)
