"""When memory runs out: how torch says so, and what to tell people."""

from __future__ import annotations

import os
import re

import torch

from kdgen.errors import MemoryLimitError

CPU_OUT_OF_MEMORY = "DefaultCPUAllocator"  # how torch's message about it begins
_WANTED = (r"[Tt]ried to allocate ([\d.]+ ?[KMGT]?i?B)", r"tried to allocate (\d+) bytes")


def ran_out(error: Exception) -> bool:
    """Whether there was no memory; torch has a type of its own for it on GPUs only, the compiled
    engine Python's."""
    named = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return named or CPU_OUT_OF_MEMORY in str(error)


def numbers(device: torch.device, said: str) -> str:
    """What the allocator wanted in its message `said`, and what is free now."""
    parts = [f"{wanted(said)} wanted"] if wanted(said) else []
    if (room := free(device)) is not None:
        parts.append(f"{_size(room)} free")
    return ", ".join(parts)


def wanted(said: str) -> str:
    """The size in an allocator's message; "" where it names none."""
    for pattern in _WANTED:
        if found := re.search(pattern, said):
            return found[1] if not found[1].isdigit() else _size(int(found[1]))
    return ""


def free(device: torch.device) -> int | None:
    """Bytes that can still be had on the device; None where it cannot be asked."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def refusal(images: int, device: torch.device, dtype: torch.dtype, said: str) -> MemoryLimitError:
    """The last word, when `images` at once are too many and fewer are not possible."""
    found = numbers(device, said)
    what = f"{images} images do" if images > 1 else "one image does"
    return MemoryLimitError(
        f"sample: {what} not fit on {device} in {dtype}"
        f"{f' ({found})' if found else ''}; expected room for them. Free memory, use --dtype bf16, "
        "or sample on the CPU."
    )


def _size(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"
