"""Modules that torch runs inside the engine: an image from a buffer, the answer into another."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import copy_context
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdgen.engine.padding import padded
from kdgen.engine.refusal import Refused
from kdgen.engine.steps import Buffer, Call
from kdgen.kernels import native

Room = memoryview  # one image's share of a buffer

# Apart, a module may sum in another order than for two images: some hundred roundings of float32.
_ALIKE = 1e-4


class Convolution(nn.Module):
    """A convolution of a shape that the engine has no steps for, without its bias."""

    def __init__(self, conv: nn.Conv2d, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.stride, self.padding = conv.stride, conv.padding

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, None, self.stride, self.padding)


@dataclass(frozen=True)
class Answer:
    """What a module makes of an image; whether it writes into that."""

    channels: int
    height: int
    width: int
    overwrites: bool


def answered(
    module: nn.Module, chained: bool, name: str, size: tuple[int, int, int], like: Tensor
) -> Answer:
    """To an image of that size (channels, height, width).

    Raises `Refused` where that is no image, or depends on the other images of a batch or on chance.
    """
    r = torch.Generator().manual_seed(0)
    x = torch.randn(2, *size, generator=r).to(like).contiguous(memory_format=torch.channels_last)
    call = Call(name, 0, 0, module, chained, "")
    try:
        with torch.inference_mode():
            both, alone = call.answer(x.clone()), call.answer(given := x[:1].clone())
            each = alone, call.answer(x[1:].clone())
    except Exception as error:
        raise Refused(
            f"engine: {name}: {type(error).__name__}: {error}; expected a function of the image "
            "alone. Leave it to torch."
        ) from error
    if not (isinstance(both, Tensor) and both.dim() == 4 and len(both) == 2 and both.numel()):
        raise Refused(f"engine: {name} answers with no image; expected one. Leave it to torch.")
    if not all(_alike(both[k : k + 1], apart) for k, apart in enumerate(each)):
        raise Refused(
            f"engine: {name} answers otherwise for an image alone than beside another; expected a "
            "function of the image. Leave it to torch."
        )
    channels, height, width = alone.shape[1:]
    return Answer(channels, height, width, not torch.equal(given, x[:1]))


def _alike(beside: Tensor, alone: Tensor) -> bool:
    finite = alone[alone.isfinite()]
    largest = float(finite.abs().max()) if finite.numel() else 0.0
    return beside.shape == alone.shape and torch.allclose(
        beside, alone, _ALIKE, _ALIKE * largest, equal_nan=True
    )


def callback(step: Call, x: Buffer, y: Buffer, dtype: torch.dtype) -> Callable[[Room, Room], None]:
    """What the engine calls for an image: (x's room, y's room), values of `dtype`."""
    assert native.module is not None
    channels, use_one_thread = y.own, native.module.use_one_thread
    # All that belongs to a thread is set: which one of the engine's it is must not show.
    context = copy_context()

    def compute(read: Room, written: Room) -> None:
        torch.get_num_threads()  # on a thread's first question torch sets its number anew …
        use_one_thread()
        with torch.inference_mode(), torch.autocast("cpu", enabled=False):
            said = step.answer(_image(_values(read, x, dtype), x))
            expected = (1, channels, y.height, y.width)
            if tuple(said.shape) != expected:
                raise ValueError(
                    f"engine: {step.name} answers with {tuple(said.shape)}; expected {expected}, "
                    "as before. Leave it to torch."
                )
            room = _values(written, y, dtype)
            room[..., :channels] = said[0].permute(1, 2, 0)
            room[..., channels:] = 0

    return lambda read, written: context.copy().run(compute, read, written)


def _values(room: Room, buffer: Buffer, dtype: torch.dtype) -> Tensor:
    """(height, width, channels), the same memory."""
    flat = torch.frombuffer(room, dtype=dtype)
    return flat.view(buffer.height, buffer.width, buffer.channels)


def _image(values: Tensor, buffer: Buffer) -> Tensor:
    """(1, channels that count, height, width), channels last, float32.

    A copy: a module may write into its input, or keep it, and others read the buffer too.
    """
    pieces = values.split([padded(part) for part in buffer.parts], dim=-1)
    own = [piece[..., :part] for piece, part in zip(pieces, buffer.parts, strict=True)]
    return torch.cat(own, dim=-1).float().permute(2, 0, 1)[None]
