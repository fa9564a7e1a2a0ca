"""The parts of a U-Net as steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from kdgen.engine.padding import padded
from kdgen.engine.refusal import Refused
from kdgen.engine.tape import Image, Tape, own_bias, unusual
from kdgen.fold.attention import Merged
from kdgen.fold.opaque import Opaque
from kdgen.fold.times import Constant, Table
from kdgen.nets.blocks import Attention, ResBlock
from kdgen.nets.layers import Pointwise
from kdgen.nets.resample import Double, Down, Filter, Up


def chain(tape: Tape, modules: nn.Module, x: Image, skip: Image | None = None) -> Image:
    """One after the other; the first, if need be, with what comes from the encoder."""
    for module in modules.children():
        if isinstance(module, Opaque):  # never the first of those that take a skip
            x = tape.opaque(module, x)
        elif skip is not None:
            x, skip = residual(tape, _taken(tape, module, ResBlock), x, skip), None
        else:
            x = _written(tape, module)(tape, module, x)
    return x


def residual(tape: Tape, block: ResBlock, x: Image, skip: Image | None = None) -> Image:
    """A residual block. What the time adds is in conv1's bias, or in the second norm's rows."""
    h = tape.normalise(block.norm1, x, more=skip)
    doubled = _doubles(block)
    if not doubled:
        h = resized(tape, block.resize, h, "branch")
    bias, gain, offset = _rows(tape, block)
    h = tape.layer(block.conv1, h, bias=bias, doubled=doubled)
    h = tape.normalise(block.norm2, h, gain=gain, offset=offset)
    if isinstance(block.dropout, Opaque):
        h = tape.opaque(block.dropout, h)
    past = _past(tape, block, x, skip)
    last = own_bias(block.conv2)
    if isinstance(block.shortcut, nn.Conv2d):
        last = last + own_bias(block.shortcut)
    return tape.layer(block.conv2, h, bias=last, residual=past, scale=block.skip_scale)


def attention(tape: Tape, block: Attention, x: Image) -> Image:
    """Each head is padded for itself: zeros add nothing to a product, whose scale stays that of the
    channels that count."""
    width = block.channels // block.heads
    h = tape.normalise(block.norm, x)
    qkv = tape.layer(block.qkv, h, parts=(width,) * (3 * block.heads))
    third = block.heads * padded(width)
    q, k, v = ((qkv, part * third) for part in range(3))
    seen = tape.attend(block, q, k, v, block.heads, width)
    return tape.layer(block.out, seen, residual=x, scale=block.skip_scale)


def merged(tape: Tape, block: Merged, x: Image) -> Image:
    """One head; the keys may be the pixels."""
    h, channels = tape.normalise(block.norm, x), block.channels
    count = 2 if block.queries else 3
    mixed = tape.layer(block.project, h, parts=(channels,) * count)
    q, *k, v = ((mixed, part * padded(channels)) for part in range(count))
    seen = tape.attend(block, q, k[0] if k else (h, 0), v, 1, channels)
    if isinstance(block.out, Pointwise):
        return tape.layer(block.out, seen, residual=x, scale=block.skip_scale)
    return tape.add(block, x, seen, block.skip_scale)


def down(tape: Tape, block: Down, x: Image) -> Image:
    """Strided 3×3."""
    if why := unusual(block.conv):
        return tape.call(block, tape.names[block], why, x, chained=True)
    return tape.layer(block.conv, x, behind=1 if block.after else None)


def up(tape: Tape, block: Up, x: Image) -> Image:
    """Nearest neighbour and 3×3, at once."""
    if why := _other(block.conv):
        return tape.call(block, tape.names[block], why, x, chained=True)
    return tape.layer(block.conv, x, doubled=True)


_WAYS: dict[type, Callable[[Tape, Any, Image], Image]] = {
    ResBlock: residual,
    Attention: attention,
    Merged: merged,
    Down: down,
    Up: up,
}


def _written(tape: Tape, module: nn.Module) -> Callable[[Tape, Any, Image], Image]:
    if type(module) not in _WAYS:
        raise _unknown(tape, module)
    return _WAYS[type(module)]


def _taken(tape: Tape, module: nn.Module, kind: type[ResBlock]) -> ResBlock:
    if type(module) is not kind:
        raise _unknown(tape, module)
    return module


def _unknown(tape: Tape, module: nn.Module) -> Refused:
    return Refused(
        f"engine: {tape.names[module]} is a {type(module).__name__}; expected one of "
        f"{', '.join(kind.__name__ for kind in _WAYS)}. Leave it to torch."
    )


def _doubles(block: ResBlock) -> bool:
    """Whether conv1 is a usual 3×3 behind nearest neighbour, which are one step."""
    box = isinstance(block.resize, Double) and block.resize.box
    return box and not isinstance(block.conv1, Opaque) and not _other(block.conv1)


def _other(conv: nn.Conv2d) -> str:
    """What the convolution is, if no usual 3×3."""
    facts = (conv.kernel_size, conv.stride, conv.padding)
    if facts == ((3, 3), (1, 1), (1, 1)):
        return ""
    return f"is a convolution with kernel, stride and padding {facts} behind a doubling"


def resized(tape: Tape, module: nn.Module, x: Image, what: str = "") -> Image:
    """Half or twice the size, or as it was."""
    if isinstance(module, nn.Identity):
        return x
    if isinstance(module, Opaque):
        return tape.opaque(module, x, what)
    if not isinstance(module, Filter):
        raise _unknown(tape, module)
    return tape.resample(module, x, what)


def _past(tape: Tape, block: ResBlock, x: Image, skip: Image | None) -> Image:
    """What joins the branch, without the shortcut's bias, which conv2 adds.

    Without it, the shortcut and a filter of each channel may change places: the shortcut runs where
    the image is smaller.
    """
    shortcut, resize = block.shortcut, block.resize
    if isinstance(shortcut, nn.Identity):
        return resized(tape, resize, x, "shortcut")
    if isinstance(shortcut, Opaque):
        return tape.opaque(shortcut, resized(tape, resize, x, "shortcut"))
    if not isinstance(shortcut, nn.Conv2d):
        raise _unknown(tape, shortcut)
    nothing = shortcut.weight.new_zeros(1, len(shortcut.weight))
    if isinstance(resize, Double) and isinstance(shortcut, Pointwise):
        return tape.resample(resize, tape.layer(shortcut, x, bias=nothing), "shortcut")
    x = resized(tape, resize, x, "shortcut")
    return tape.layer(shortcut, x, bias=nothing, more=skip)


def _rows(tape: Tape, block: ResBlock) -> tuple[Tensor, Tensor, Tensor]:
    """conv1's bias, and the gain and offset of the second norm, (rows, C) each."""
    bias, norm = own_bias(block.conv1), block.norm2
    if isinstance(norm, Opaque):  # which nothing is added to
        return bias, bias, bias
    gain, offset = norm.weight[None], norm.bias[None]
    if block.offset is not None:
        bias = bias + block.offset
    if isinstance(block.time, Constant):
        return bias if block.time.value is None else bias + block.time.value, gain, offset
    if not isinstance(block.time, Table):
        raise _unknown(tape, block.time)
    if not block.scale_shift:
        return bias + block.time.rows, gain, offset
    scale, shift = block.time.rows.chunk(2, dim=1)
    return bias, gain * (1 + scale), offset * (1 + scale) + shift
