"""How kernels are cut into programs: by a rule of their own, or as was measured on this device.

Nothing is timed while a program runs. `tools/tune.py` does that beforehand, on a GPU, and writes
`configs/<device>.json`, which ships with the package. A cut changes speed and, within rounding,
nothing else; it follows from what one image looks like and never from how many there are, so that
an image's bits do not depend on its batch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import torch

FOLDER = Path(__file__).with_name("configs")

Cut = TypeVar("Cut", bound=NamedTuple)  # every field a positive integer
Fields = Mapping[str, int]
Measured = Mapping[str, Mapping[str, Fields]]  # kernel -> call -> fields

# Not a context variable: autograd runs the backward kernels in threads of its own.
_forced: dict[str, Fields] = {}


def chosen(kernel: str, call: str, rule: Cut, device: torch.device) -> Cut:
    """`rule`, or as much of it as was measured for this call of `kernel`, replaced.

    `call` names all that the cut may depend on, e.g. "1024x128/32 bf16". Raises RuntimeError when
    the device's file is broken or has fields that `rule` has not.
    """
    if kernel in _forced:
        return _replaced(rule, _forced[kernel], "configs.using", kernel)
    if device.type != "cuda" or not (name := _name(device.index)):
        return rule
    fields = measured(name).get(kernel, {}).get(call)
    return rule if fields is None else _replaced(rule, fields, str(file_of(name)), kernel)


@contextmanager
def using(kernel: str, **fields: int) -> Iterator[None]:
    """Inside a `with`, every call of `kernel` is cut like this: for the tuner and for tests."""
    before = _forced.get(kernel)
    _forced[kernel] = fields
    try:
        yield
    finally:
        if before is None:
            del _forced[kernel]
        else:
            _forced[kernel] = before


def file_of(device: str) -> Path:
    """Where the cuts for a device of this name are kept: "NVIDIA H200" -> nvidia-h200.json."""
    return FOLDER / f"{re.sub('[^a-z0-9]+', '-', device.lower()).strip('-')}.json"


@lru_cache(maxsize=8)
def measured(device: str) -> Measured:
    """What `file_of(device)` holds; nothing where there is no such file."""
    path = file_of(device)
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _broken(path, f"not JSON ({error})") from None
    if wrong := _wrong(found, device):
        raise _broken(path, wrong)
    return cast(Measured, found["cuts"])


def _wrong(found: Any, device: str) -> str:
    """What a file's content lacks; "" when it is well formed."""
    if not isinstance(found, dict) or not isinstance(found.get("cuts"), dict):
        return 'without an object "cuts"'
    if found.get("device") != device:
        return f"of device {found.get('device')!r}, not of {device!r}"
    for kernel, calls in found["cuts"].items():
        for call, fields in calls.items() if isinstance(calls, dict) else [("", None)]:
            if not isinstance(fields, dict) or not all(map(_is_count, fields.values())):
                return f"wrong about {kernel} {call}: {fields!r} are not fields of at least 1"
    return ""


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _broken(path: Path, wrong: str) -> RuntimeError:
    return RuntimeError(
        f"configs: {path} is {wrong}; expected what tools/tune.py writes. Run it again on this "
        "device, or remove the file: kernels then follow their own rules."
    )


def _replaced(rule: Cut, fields: Fields, where: str, kernel: str) -> Cut:
    if unknown := set(fields) - set(rule._fields):
        raise RuntimeError(
            f"{where}: {kernel} has no {', '.join(sorted(unknown))}; expected "
            f"{', '.join(rule._fields)}. Run tools/tune.py again, or remove the entry."
        )
    return rule._replace(**fields)


@lru_cache(maxsize=64)
def _name(index: int | None) -> str:
    return torch.cuda.get_device_name(index) if torch.cuda.is_available() else ""
