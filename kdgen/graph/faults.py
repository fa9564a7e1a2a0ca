"""Why something cannot be captured: what torch said, in words that help, and the line at fault."""

from __future__ import annotations

import linecache
import re
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import FrameType, TracebackType

import torch

from kdgen.errors import KdgenError

_HIDDEN = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
_LIBRARY = ("contextlib.py", "functools.py", "warnings.py")

_WAITS = (
    "the host waits for a value of the device",
    "Keep the decision on the device: torch.where instead of if, a tensor instead of .item().",
)
_SHAPES = (
    "a shape depends on values",
    "Use torch.where or a mask that multiplies, instead of picking elements by one.",
)
_HOST = (
    "data is copied between host and device",
    "Make constants before the first call and keep them, or with torch.full on the device.",
)
_DRAWS = (
    "random numbers come from a generator that the graph does not know",
    "Draw by address (kdgen.noise), or pass generators=(generator,).",
)
_COMPILES = (
    "a kernel is compiled while recording",
    "Run every shape and dtype before, with a higher warmup.",
)
# What torch says, by exception name or message -> (what is wrong, what to do).
_KNOWN: tuple[tuple[str, tuple[str, str]], ...] = (
    (r"DataDependentOutput|synchronizing CUDA|\.numpy\(\) is not supported", _WAITS),
    (r"DynamicOutputShape", _SHAPES),
    (r"copy between CPU and CUDA|Device Propagation|must be pinned", _HOST),
    (r"[Gg]enerator|Offset increment|RNG", _DRAWS),
    (r"[Cc]ompil", _COMPILES),
    # Last: the general refusal, of which a wait is the usual cause.
    (r"when stream is capturing|captur", _WAITS),
)
_UNKNOWN = (
    "it failed while it was recorded",
    "Look at the error above; what runs only at the first call belongs before the capture.",
)


class CaptureError(KdgenError):
    """What cannot become a graph, and why."""


def explained(error: BaseException, where: str) -> CaptureError:
    """`error`, met in a capture, as a CaptureError."""
    text = f"{type(error).__name__}: {error}"
    what, advice = next((k for pattern, k in _KNOWN if re.search(pattern, text)), _UNKNOWN)
    said = str(error).strip().partition("\n")[0]
    return refusal(where, f"{what}, {blamed(error.__traceback__)} ({said})", advice)


def waits(where: str, places: Iterable[str]) -> CaptureError:
    """The host waited at these places."""
    what, advice = _WAITS
    return refusal(where, f"{what}, {'; '.join(dict.fromkeys(places))}", advice)


def refusal(where: str, what: str, advice: str) -> CaptureError:
    """In the house's form."""
    return CaptureError(f"{where}: {what}; expected work of the device alone. {advice}")


def blamed(trace: TracebackType | None) -> str:
    """The innermost line of a traceback that is neither torch's nor this package's."""
    return _innermost([(f.f_code.co_filename, n) for f, n in traceback.walk_tb(trace)])


def here(frame: FrameType | None) -> str:
    """The same of what runs in this frame."""
    return _innermost([(f.f_code.co_filename, n) for f, n in traceback.walk_stack(frame)][::-1])


def _innermost(lines: list[tuple[str, int]]) -> str:
    for file, number in reversed(lines):
        if not file.startswith((*_HIDDEN, "<")) and Path(file).name not in _LIBRARY:
            return f"{Path(file).name}:{number} `{linecache.getline(file, number).strip()}`"
    return "at an unknown line"
