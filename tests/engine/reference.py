"""The steps of a trace by their definition, in torch, in any dtype: what the engine is held to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kdgen.engine import steps
from kdgen.engine.padding import padded
from kdgen.engine.steps import NONE, Buffer, Trace


def run(trace: Trace, images: Tensor, rows: Tensor | None = None) -> Tensor:
    """images (n, C, H, W), rows (n,) or None -> what the network answers, in the images' dtype.

    Fails for a buffer that is written twice, is not of its size, or is read before it is written.
    """
    machine = Machine(trace, images, rows)
    for step in trace.steps:
        _DEFINITIONS[type(step)](machine, step)
    return machine.answer


def nothing(buffer: Buffer) -> list[int]:
    """Channels that stand for nothing."""
    found, at = [], 0
    for part in buffer.parts:
        found += range(at + part, at + padded(part))
        at += padded(part)
    return found


class Machine:
    """Buffers (n, channels, H, W), and what the steps need to know of the images."""

    def __init__(self, trace: Trace, images: Tensor, rows: Tensor | None) -> None:
        self.trace, self.images = trace, images
        self.rows = torch.zeros(len(images), dtype=torch.int64) if rows is None else rows
        self.values: dict[int, Tensor] = {}
        self.answer = images

    def write(self, at: int, value: Tensor) -> None:
        buffer = self.trace.buffers[at]
        assert at not in self.values
        assert value.shape[1:] == (buffer.channels, buffer.height, buffer.width)
        assert not value[:, nothing(buffer)].any()
        self.values[at] = value

    def read(self, x: int, more: int = NONE) -> Tensor:
        return torch.cat([self.values[at] for at in (x, more) if at != NONE], dim=1)

    def row(self, table: Tensor) -> Tensor:
        """(n, C, 1, 1) of (rows, C), or (n, 1, 1, 1) of (rows,)."""
        assert len(table) in (1, self.trace.rows)
        chosen = table[self.rows if len(table) > 1 else self.rows * 0].to(self.images.dtype)
        return chosen.view(len(self.images), -1, 1, 1)


def _input(machine: Machine, step: steps.Input) -> None:
    n, channels, *size = machine.images.shape
    assert channels == step.channels
    more = machine.trace.buffers[step.y].channels - channels
    machine.write(
        step.y, torch.cat([machine.images, machine.images.new_zeros(n, more, *size)], dim=1)
    )


def _output(machine: Machine, step: steps.Output) -> None:
    machine.answer = machine.read(step.x)[:, : step.channels]


def _convolve(machine: Machine, step: steps.Convolve) -> None:
    x = machine.read(step.x, step.more)
    if step.doubled:
        x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    y = machine.trace.buffers[step.y]
    behind = [
        (size - 1) * step.stride + step.kernel - step.before - have
        for size, have in ((y.width, x.shape[3]), (y.height, x.shape[2]))
    ]
    x = F.pad(x, (step.before, behind[0], step.before, behind[1]))
    value = F.conv2d(x, step.weight.to(x.dtype), stride=step.stride) + machine.row(step.bias)
    if step.residual != NONE:
        value = value + machine.read(step.residual)
    machine.write(step.y, value * step.scale)


def _normalise(machine: Machine, step: steps.Normalise) -> None:
    x = machine.read(step.x)[:, : step.own]
    if step.more != NONE:
        x = torch.cat([x, machine.read(step.more)[:, : step.others]], dim=1)
    groups = x.unflatten(1, (step.groups, -1)).flatten(2)
    centred = groups - groups.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + step.eps).rsqrt()
    normal = (centred * scale).view(x.shape)
    wide = x.new_zeros(len(x), step.gain.shape[1], *x.shape[2:])
    wide[:, : step.own] = normal[:, : step.own]
    if step.more != NONE:
        at = machine.trace.buffers[step.x].channels
        wide[:, at : at + step.others] = normal[:, step.own :]
    value = wide * machine.row(step.gain) + machine.row(step.offset)
    machine.write(step.y, value * torch.sigmoid(value) if step.act else value)


def _attend(machine: Machine, step: steps.Attend) -> None:
    span = step.heads * step.width
    places = ((step.q, step.q_at), (step.k, step.k_at), (step.v, step.v_at))
    q, k, v = (
        machine.read(x)[:, at : at + span].unflatten(1, (step.heads, step.width)).flatten(3)
        for x, at in places
    )  # (n, heads, width, pixels)
    shares = (torch.einsum("nhci,nhcj->nhij", q, k) * step.scale).softmax(-1)
    y = machine.trace.buffers[step.y]
    value = torch.einsum("nhij,nhcj->nhci", shares, v)
    machine.write(step.y, value.reshape(len(v), span, y.height, y.width))


def _resample(machine: Machine, step: steps.Resample) -> None:
    x, y = machine.read(step.x), machine.trace.buffers[step.y]
    rows = _filter(step, y.height, x.shape[2]).to(x.dtype)
    columns = _filter(step, y.width, x.shape[3]).to(x.dtype)
    machine.write(step.y, torch.einsum("ia,jb,ncab->ncij", rows, columns, x))


def _filter(step: steps.Resample, size: int, have: int) -> Tensor:
    """(size, have): what each pixel takes of those there were, in one direction."""
    found = torch.zeros(size, have, dtype=torch.float64)
    for at in range(size):
        for k, tap in enumerate(step.taps):
            place = at + step.before - k if step.up else 2 * (2 * at + k - step.before)
            if place % 2 == 0 and 0 <= place // 2 < have:
                found[at, place // 2] += 2 * tap if step.up else tap
    return found


def _combine(machine: Machine, step: steps.Combine) -> None:
    value = machine.row(step.a) * machine.read(step.x)
    if step.more != NONE:
        value = value + machine.row(step.b) * machine.read(step.more)
    machine.write(step.y, value)


def _call(machine: Machine, step: steps.Call) -> None:
    x, y = (machine.trace.buffers[at] for at in (step.x, step.y))
    away = nothing(x)
    own = [c for c in range(x.channels) if c not in away]
    said = step.answer(machine.read(step.x)[:, own])
    more = y.channels - said.shape[1]
    machine.write(step.y, F.pad(said, (0, 0, 0, 0, 0, more)))


_DEFINITIONS: dict[type, Callable[[Machine, Any], None]] = {
    steps.Input: _input,
    steps.Output: _output,
    steps.Convolve: _convolve,
    steps.Normalise: _normalise,
    steps.Attend: _attend,
    steps.Resample: _resample,
    steps.Combine: _combine,
    steps.Call: _call,
}
