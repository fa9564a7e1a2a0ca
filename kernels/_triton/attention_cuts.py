"""How attention's kernels are cut: the rules, and the constants that follow from a cut."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch

from .. import configs

DTYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}

SMALL = 64  # tokens up to which one program may take a whole head, all gradients at once

# By padded head width, the best first (by reckoning; nothing is measured yet): (bytes of shared
# memory it takes, block_q, block_k, warps, stages). A head of 256 channels leaves room for small
# tiles only: two float32 accumulators of 64 x 256 fill the registers of 8 warps.
Options = dict[str, dict[int, tuple[tuple[int, int, int, int, int], ...]]]
_HALF: Options = {
    "forward": {
        64: ((65536, 128, 64, 4, 3),),
        128: ((98304, 128, 64, 8, 2),),
        256: ((196608, 128, 64, 8, 2), (69632, 64, 32, 4, 2)),
    },
    "backward_q": {
        64: ((49152, 64, 64, 4, 2),),
        128: ((98304, 64, 64, 8, 2),),
        256: ((196608, 64, 64, 8, 2), (98304, 64, 32, 8, 1)),
    },
    "backward_kv": {
        64: ((49664, 64, 64, 4, 2),),
        128: ((98816, 64, 64, 8, 2),),
        256: ((131328, 32, 64, 8, 2), (81920, 32, 32, 8, 1)),
    },
}
_SINGLE: Options = {
    "forward": {
        64: ((16640, 64, 32, 8, 1),),
        128: ((24832, 32, 32, 8, 1),),
        256: ((36992, 32, 32, 8, 1),),
    },
    "backward_q": {
        64: ((40960, 32, 32, 8, 1),),
        128: ((40960, 32, 32, 8, 1),),
        256: ((40960, 32, 32, 8, 1),),
    },
    "backward_kv": {
        64: ((14336, 16, 32, 8, 1),),
        128: ((22528, 16, 32, 8, 1),),
        256: ((36864, 16, 16, 8, 1),),
    },
}


class Cut(NamedTuple):
    block_q: int  # queries a program looks at together
    block_k: int  # keys
    split: int  # channels of a score's sum taken at a time
    warps: int
    stages: int


def chosen(which: str, tokens: int, width: int, dtype: torch.dtype, device: torch.device) -> Cut:
    """The cut of one kernel for heads of `width` channels; images of this size, however many."""
    name, call, rule = known(which, tokens, width, dtype, shared(device))
    return configs.chosen(name, call, rule, device)


@lru_cache(maxsize=1024)
def known(
    which: str, tokens: int, width: int, dtype: torch.dtype, room: int
) -> tuple[str, str, Cut]:
    call = f"{tokens}x{width} {DTYPES[dtype]}"
    return f"attention.{which}", call, ruled(which, tokens, width, dtype.itemsize, room)


def ruled(which: str, tokens: int, width: int, itemsize: int, room: int) -> Cut:
    """`room`: bytes of shared memory a program may have. Nothing spills (tools/aot_check.py)."""
    block, lanes = max(16, power(tokens)), power(width)
    if which == "backward_whole":
        return Cut(block, block, lanes, 8 if block * lanes > 4096 else 4, 1)
    options = (_SINGLE if itemsize == 4 else _HALF)[which][max(64, lanes)]
    fitting = [o for o in options if o[0] <= room] or options[-1:]
    _, block_q, block_k, warps, stages = fitting[0]
    if which == "forward" and itemsize == 2 and block * lanes <= 8192:
        warps = 4  # enough for so few rows
    stages = 1 if block <= min(block_q, block_k) else stages  # nothing to load ahead
    split = min(32, lanes) if itemsize == 4 else lanes
    return Cut(min(block, block_q), min(block, block_k), split, warps, stages)


def whole(tokens: int, width: int, itemsize: int, room: int) -> bool:
    """Whether one program can have all of a head on the chip: q, k, v, dout and some scores."""
    values = max(16, power(tokens)) * power(width)
    return tokens <= SMALL and itemsize == 2 and 9 * values <= room


def constants(cut: Cut, tokens: int, width: int) -> dict[str, Any]:
    """What the kernels are compiled for; each takes those it names."""
    return {
        "D": width,
        "BLOCK_D": power(width),
        "SPLIT": cut.split,
        "BLOCK_Q": cut.block_q,
        "BLOCK_K": cut.block_k,
        "RAGGED": tokens % cut.block_k != 0,
    }


@lru_cache(maxsize=64)
def shared(device: torch.device) -> int:
    """Bytes of shared memory a program may have; in the interpreter as on sm_90."""
    if device.type != "cuda":
        return 227 * 1024
    found = torch.cuda.get_device_properties(device)
    return int(getattr(found, "shared_memory_per_block_optin", found.shared_memory_per_block))


def power(n: int) -> int:
    """The power of two at or above."""
    return 1 << max(0, n - 1).bit_length()
