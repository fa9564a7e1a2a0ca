"""Launches the group norm's kernels: forward, backward, in both layouts."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import layout
from . import group_norm_channels_last as rows
from . import group_norm_contiguous as planes
from . import group_norm_cuts as cuts


def forward(
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
    call = _Call.of(x, more, weight, groups, scale, shift, add, act)
    y = layout.empty(call.x, call.form, call.channels)
    statistics = x.new_empty((2, x.shape[0], groups), dtype=torch.float32)
    if not y.numel():
        return y, statistics.fill_(float("nan"))
    affine = [call.pointer(v) for v in (weight, bias, scale, shift, add)]
    with torch.cuda.device_of(x):
        _launch("forward", call, (*call.images, *affine, y, *statistics.unbind()), eps)
    return y, statistics


def backward(
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
    """As `backward_reference` of the op."""
    call = _Call.of(x, more, weight, groups, scale, shift, add, act)
    dy = layout.dense(dy, call.form)
    dx = layout.empty(call.x, call.form)
    dmore = dx if call.more is None else layout.empty(call.more, call.form)
    sums = x.new_zeros((3, x.shape[0], call.channels), dtype=torch.float32).unbind()
    if dy.numel():
        affine = [call.pointer(v) for v in (weight, bias, scale, shift, add)]
        read = (*affine[:2], *statistics.unbind(), *affine[2:])
        written = (dx, dmore) if call.last else (dx,)
        with torch.cuda.device_of(x):
            _launch("backward", call, (dy, *call.images, *read, *written, *sums))
    if more is None:
        dmore = dx.new_empty(0)
    elif call.more is None:
        dx, dmore = layout.parted(dx, call.form, x.shape[1])
    return dx, *_small_gradients(sums, weight, bias, scale, shift, add), dmore


def _small_gradients(
    sums: tuple[Tensor, ...],
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    add: Tensor | None,
) -> tuple[Tensor, ...]:
    """From Σ dz, Σ dz·xhat and Σ dx of every channel of every image; torch's sum over the images
    has the same order every time."""
    s1, s2, dadd = sums
    lift: Any = 1 if scale is None else 1 + scale.float()
    return (
        (s2 * lift).sum(0),
        (s1 * lift).sum(0),
        s1.new_empty(0) if scale is None else weight.float() * s2 + bias.float() * s1,
        s1.new_empty(0) if shift is None else s1.clone(),
        s1.new_empty(0) if add is None else dadd.sum(0) if add.ndim == 1 else dadd.clone(),
    )


class _Call(NamedTuple):
    """The images, dense; `more` only where the kernels read it as a tensor of its own."""

    x: Tensor
    more: Tensor | None
    form: torch.memory_format
    channels: int
    groups: int
    options: dict[str, bool]
    add_stride: int

    @classmethod
    def of(
        cls,
        x: Tensor,
        more: Tensor | None,
        weight: Tensor,
        groups: int,
        scale: Tensor | None,
        shift: Tensor | None,
        add: Tensor | None,
        act: bool,
    ) -> _Call:
        form, c = layout.of(x), len(weight)
        if more is not None and layout.channels_last(form):
            x, more = layout.dense(x, form), layout.dense(more, form)
        else:
            x, more = layout.dense(layout.joined(x, more), form), None
        options = {
            "HAS_SCALE": scale is not None,
            "HAS_SHIFT": shift is not None,
            "HAS_ADD": add is not None,
            "ACT": act,
        }
        return cls(x, more, form, c, groups, options, c if add is not None and add.ndim == 2 else 0)

    @property
    def last(self) -> bool:
        return layout.channels_last(self.form)

    @property
    def images(self) -> tuple[Tensor, ...]:
        """As the kernels take them; what stands for an absent tensor is never read."""
        if not self.last:
            return (self.x,)
        return self.x, self.x if self.more is None else self.more

    @property
    def size(self) -> int:
        return math.prod(self.x.shape[2:])

    def pointer(self, v: Tensor | None) -> Tensor:
        return self.x if v is None else v.contiguous()

    def cut(self, which: str) -> cuts.Cut:
        return cuts.chosen(
            which, self.size, self.channels, self.groups, self.last, self.x.dtype, self.x.device
        )


def _launch(which: str, call: _Call, tensors: tuple[Tensor, ...], *numbers: float) -> None:
    (_launch_rows if call.last else _launch_planes)(which, call, tensors, numbers)


def _launch_planes(
    which: str, call: _Call, tensors: tuple[Tensor, ...], numbers: tuple[float, ...]
) -> None:
    kernel = planes.forward_kernel if which == "forward" else planes.backward_kernel
    c, g, cut = call.channels, call.groups, call.cut(which)
    slabs = -(-g // cut.groups)
    kernel[(call.x.shape[0] * slabs,)](
        *tensors,
        call.size,
        c,
        g,
        slabs,
        call.add_stride,
        *numbers,
        **call.options,
        WIDTH=c // g,
        PLACES=cut.places,
        SLAB=cut.groups,
        BLOCK_D=cuts.power(c // g),
        ONCE=call.size <= cut.places,
        num_warps=cut.warps,
    )


def _launch_rows(
    which: str, call: _Call, tensors: tuple[Tensor, ...], numbers: tuple[float, ...]
) -> None:
    n, c, g, own = call.x.shape[0], call.channels, call.groups, call.x.shape[1]
    cut = call.cut(which)
    slabs, chunks = -(-g // cut.groups), -(-call.size // cut.places)
    sizes = (call.size, c, own, g, slabs, call.add_stride, *numbers)
    options: dict[str, Any] = call.options | constants(call.size, c, g, cut) | {"MORE": own < c}
    if chunks == 1:
        options["FULL"] = full(call.size, c, g, cut)
        kernel = rows.held_forward_kernel if which == "forward" else rows.held_backward_kernel
        kernel[(n * slabs,)](*tensors, *sizes, **options, num_warps=cut.warps)
        return
    parts = 2 * options["KINDS"] if which == "forward" else 3 * options["LANES"]
    scratch = call.x.new_empty((n, slabs, chunks, parts), dtype=torch.float32)
    if which == "forward":
        kernel, options["CHUNKS"] = rows.walked_forward_kernel, cuts.power(chunks)
    else:
        kernel = rows.walked_backward_kernel
    shares = _shares(n * slabs, chunks, call.x.device)
    for phase in (rows.BOTH,) if shares == 1 else (rows.MEASURE, rows.APPLY):
        kernel[(n * slabs * shares,)](
            *tensors, scratch, *sizes, phase, chunks, shares, **options, num_warps=cut.warps
        )


def constants(size: int, channels: int, groups: int, cut: cuts.Cut) -> dict[str, int]:
    """What the kernels for channels last are compiled for."""
    width = channels // groups
    return {
        "WIDTH": width,
        "GROUPS": cut.groups,
        "LANES": cuts.lanes(cut.groups, width),
        "KINDS": cuts.power(cut.groups),
        "PLACES": cut.places,
    }


def full(size: int, channels: int, groups: int, cut: cuts.Cut) -> bool:
    """Whether every value of every tile exists, so that nothing needs to be masked."""
    slab = cut.groups * (channels // groups)
    return size == cut.places and slab == cuts.power(slab) and channels % slab == 0


def _shares(programs: int, chunks: int, device: torch.device) -> int:
    """Into how many programs each walk is divided: until all multiprocessors have work."""
    return max(1, min(chunks, _multiprocessors(device.type, device.index) // max(1, programs)))


@lru_cache(maxsize=64)
def _multiprocessors(kind: str, index: int | None) -> int:
    if kind != "cuda":
        return 1
    return torch.cuda.get_device_properties(index).multi_processor_count
