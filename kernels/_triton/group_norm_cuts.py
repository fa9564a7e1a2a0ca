"""How the group norm's kernels are cut: the rules, and the constants that follow from a cut."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch

from .. import configs

DTYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}

# Values that a program holds in its registers; tools/aot_check.py sees that none spill. A thread
# has eight channels, so the backward's per-channel constants alone take half of its registers.
HELD = {"forward": 32768, "backward": 8192}
# At most this many leave room for a second program on the multiprocessor, whose loads then overlap
# with this one's sums: worth runs of 32 bytes.
SHARING = 16384
CHUNK = 8192  # values of an image looked at together, where it is too large to be held
# With the places of a channel side by side the tiles have three dimensions, and cost more.
CONTIGUOUS = {"forward": 16384, "backward": 4096}


class Cut(NamedTuple):
    groups: int  # in a slab
    places: int  # of an image that are looked at together
    warps: int


def chosen(
    which: str, size: int, channels: int, groups: int, last: bool, dtype: torch.dtype,
    device: torch.device,
) -> Cut:  # fmt: skip
    """The cut of `which` ("forward" or "backward") for images of this shape."""
    name, call, rule = known(which, size, channels, groups, last, dtype)
    return configs.chosen(name, call, rule, device)


@lru_cache(maxsize=1024)
def known(
    which: str, size: int, channels: int, groups: int, last: bool, dtype: torch.dtype
) -> tuple[str, str, Cut]:
    form = "nhwc" if last else "nchw"
    rule = (channels_last if last else contiguous)(which, size, channels // groups, groups)
    call = f"{size}x{channels}/{groups} {form} {DTYPES[dtype]}"
    return f"group_norm_silu.{which}", call, rule


def channels_last(which: str, size: int, width: int, groups: int) -> Cut:
    """Runs of at least 24 channels, in multiples of 8: whole 16 bytes of a 16-bit type."""
    most, places = power(groups), power(size)
    slab = _least(24, width, most)
    if which == "forward" and places * lanes(slab, width) > SHARING:
        narrow = _least(16, width, most)
        slab = narrow if places * lanes(narrow, width) <= SHARING else slab
    while slab < most and _worth(2 * slab, width, places):
        slab *= 2
    wide = lanes(slab, width)
    if places * wide > HELD[which]:
        places = min(places, max(1, CHUNK // wide))
    return Cut(slab, places, _warps(places * wide))


def _worth(slab: int, width: int, places: int) -> bool:
    """Whether small images leave room for so many groups, and the table of whose lane is whose."""
    wide = lanes(slab, width)
    return wide * places <= 2048 and wide * slab <= 2048


def _least(channels: int, width: int, most: int) -> int:
    """Groups in a slab of at least so many channels."""
    slab = 1
    while slab < most and (slab * width < channels or slab * width % 8):
        slab *= 2
    return slab


def contiguous(which: str, size: int, width: int, groups: int) -> Cut:
    """As many groups as make a program worth its while."""
    slab, most = 1, power(groups)
    worth = max(1, 2048 // max(1, power(size)))
    while slab < most and slab * width < worth:
        slab *= 2
    channels = slab * power(width)
    places = min(power(size), max(1, CONTIGUOUS[which] // channels))
    return Cut(slab, places, 8 if places * channels > 2048 else 4)


def _warps(values: int) -> int:
    """Up to 32 values a thread while 8 warps do, and up to 64 then."""
    return 16 if values > SHARING else min(8, max(1, values // 1024))


def lanes(slab: int, width: int) -> int:
    """Channels of a slab, rounded up to what a tile can have."""
    return power(slab * width)


def power(n: int) -> int:
    """The power of two at or above."""
    return 1 << max(0, n - 1).bit_length()
