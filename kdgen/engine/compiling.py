"""A plan in the compiled engine: buffers by number, weights by address."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kdgen.engine import steps
from kdgen.engine.calling import callback
from kdgen.engine.choice import Layer, Plan
from kdgen.kernels import native

CODES = native.CODES
PRODUCTS = {**CODES, torch.int8: 3}


def compiled(plan: Plan, *, isa: str = "", guarded: bool = False) -> Any:
    """A `kdgen._native.Program`, which has copies of all weights. `isa`: the name of an instruction
    set, else the selected one; `guarded`: with bands around every buffer, for tests."""
    assert native.module is not None
    program = native.module.Program(isa, guarded)
    for buffer in plan.trace.buffers:
        size = (buffer.height, buffer.width, buffer.channels)
        program.buffer(*size, CODES[plan.activations])
    for layer in plan.layers:
        if isinstance(layer.step, steps.Call):
            _call(program, plan, layer.step)
        else:
            _ADDED[type(layer.step)](program, layer)
    return program


def _call(program: Any, plan: Plan, step: steps.Call) -> None:
    x, y = (plan.trace.buffers[at] for at in (step.x, step.y))
    program.call(step.name, step.x, step.y, callback(step, x, y, plan.activations))


def _input(program: Any, layer: Layer) -> None:
    step = layer.step
    assert isinstance(step, steps.Input)
    program.input(step.y, step.channels)


def _output(program: Any, layer: Layer) -> None:
    step = layer.step
    assert isinstance(step, steps.Output)
    program.output(step.x, step.channels)


def _convolve(program: Any, layer: Layer) -> None:
    step = layer.step
    assert isinstance(step, steps.Convolve)
    weight, bias = _dense(step.weight), _dense(step.bias)
    program.convolve(
        step.name,
        step.x,
        step.more,
        step.residual,
        step.y,
        weight.data_ptr(),
        bias.data_ptr(),
        len(bias),
        step.kernel,
        step.stride,
        step.before,
        layer.form,
        PRODUCTS[layer.product],
        step.scale,
    )


def _normalise(program: Any, layer: Layer) -> None:
    step = layer.step
    assert isinstance(step, steps.Normalise)
    gain, offset = (_dense(rows) for rows in torch.broadcast_tensors(step.gain, step.offset))
    program.normalise(
        step.name,
        step.x,
        step.more,
        step.y,
        gain.data_ptr(),
        offset.data_ptr(),
        len(gain),
        step.groups,
        step.own,
        step.others,
        step.eps,
        step.act,
    )


def _attend(program: Any, layer: Layer) -> None:
    step = layer.step
    assert isinstance(step, steps.Attend)
    places = (step.q, step.q_at, step.k, step.k_at, step.v, step.v_at)
    program.attend(step.name, *places, step.y, step.heads, step.width, step.scale)


def _resample(program: Any, layer: Layer) -> None:
    step = layer.step
    assert isinstance(step, steps.Resample)
    program.resample(step.name, step.x, step.y, list(step.taps), step.up, step.before)


def _combine(program: Any, layer: Layer) -> None:
    step = layer.step
    assert isinstance(step, steps.Combine)
    a, b = _dense(step.a), _dense(step.b)
    program.combine(step.name, step.x, step.more, step.y, a.data_ptr(), b.data_ptr(), len(a))


_ADDED: dict[type, Callable[[Any, Layer], None]] = {
    steps.Input: _input,
    steps.Output: _output,
    steps.Convolve: _convolve,
    steps.Normalise: _normalise,
    steps.Attend: _attend,
    steps.Resample: _resample,
    steps.Combine: _combine,
}


def _dense(tensor: Tensor) -> Tensor:
    """As the engine reads it; to be kept until the call is over."""
    return tensor.detach().to(torch.float32).contiguous()
