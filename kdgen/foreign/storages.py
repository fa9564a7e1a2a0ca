"""The bytes of a tensor inside a pickle: a file of its own, in torch's format before version 1.6.

Five pickles (a magic number, a version, the machine, a reference, a list of one key), then the
number of elements as int64 and the elements, little-endian.
"""

from __future__ import annotations

import io
import struct
from typing import Any

import torch
from torch import Tensor

from kdgen.data.pickles import RefusedPickle
from kdgen.foreign import unpickle

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001
DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def read(data: bytes) -> Tensor:
    """All elements, (N,). Raises RefusedPickle."""
    file = io.BytesIO(data)
    parts = [unpickle.load(file, _dtype, _reference) for _ in range(5)]
    match parts:
        case [int(magic), int(version), dict(machine), torch.dtype() as dtype, [str()]]:
            known = (magic, version) == (MAGIC, VERSION) and machine.get("little_endian") is True
        case _:
            known = False
    if not known:
        raise RefusedPickle("a tensor is not in torch's old format, little-endian")
    body = data[file.tell() :]
    count = struct.unpack("<q", body[:8])[0] if len(body) >= 8 else -1
    if count < 0 or len(body) - 8 != count * dtype.itemsize:
        raise RefusedPickle(f"a tensor of {count:,} elements has {len(body):,} bytes")
    if not count:
        return torch.empty(0, dtype=dtype)
    return torch.frombuffer(bytearray(body[8:]), dtype=dtype)


def _dtype(module: str, name: str) -> torch.dtype | None:
    return DTYPES.get(name) if module == "torch" else None


def _reference(pid: Any) -> torch.dtype:
    match pid:
        case ("storage", torch.dtype() as dtype, *_):
            return dtype
    raise RefusedPickle("a tensor refers to something other than its elements")
