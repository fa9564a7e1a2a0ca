"""CIFAR-10's pickled batches, read without ever calling what a pickle asks to call.

The stream is scanned first: it may use a short list of opcodes, and name what rebuilds a numpy
array. Then it is loaded with stand-ins for these names, and the array is made from what the
stand-ins were given.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdgen.data.offenders import quoted

OPCODES = frozenset(  # protocol 2, which the published files use, and its successors
    {
        *("PROTO", "FRAME", "STOP", "MARK", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD"),
        *("MEMOIZE", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"),
        *("EMPTY_DICT", "SETITEM", "SETITEMS", "EMPTY_LIST", "APPEND", "APPENDS"),
        *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "NONE", "NEWTRUE", "NEWFALSE"),
        *("BININT", "BININT1", "BININT2", "LONG1", "BINSTRING", "SHORT_BINSTRING"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BINUNICODE", "SHORT_BINUNICODE"),
    }
)
TUPLES = 64  # a batch needs a dozen; hashing deeply nested ones would overflow the stack


class RefusedPickle(Exception):
    """What the file asks for or lacks."""


class _Dtype:
    """Stands in for numpy.dtype: only bytes are wanted, and they need no state."""

    def __init__(self, code: Any = None, *flags: Any) -> None:
        self.code = code.decode("latin1") if isinstance(code, bytes) else code

    def __setstate__(self, state: Any) -> None:
        pass


class _Array:
    """Stands in for numpy.ndarray: (version, shape, dtype, column-major, bytes) as pickled."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def rows(self, width: int) -> NDArray[np.uint8]:
        match self.state:
            case (int(), (int(n), int(w)), _Dtype(code="u1"), int(by_column), bytes(data)):
                if n >= 0 and w == width and n * w == len(data):
                    flat = np.frombuffer(data, np.uint8)
                    return flat.reshape(w, n).T if by_column else flat.reshape(n, w)
        raise RefusedPickle(f"'data' is not a uint8 array of rows of {width:,}")


def _reconstruct(*arguments: Any) -> _Array:
    return _Array()


def _encode(text: Any, codec: Any = "latin1") -> bytes:
    """Stands in for _codecs.encode, by which newer pythons write bytes in old protocols."""
    if not isinstance(text, str) or codec not in ("latin1", b"latin1"):
        raise RefusedPickle("bytes are not written as latin1")
    return text.encode("latin1")


STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("_codecs", "encode"): _encode,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return _stand_in(module, name)


def _stand_in(module: str, name: str) -> Any:
    if (module, name) not in STAND_INS:
        raise RefusedPickle(f"refused: the file asks for {quoted(f'{module}.{name}')}")
    return STAND_INS[module, name]


def read_batch(data: bytes, width: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Rows (n, width) under 'data' and labels (n,) under 'labels'. Raises RefusedPickle."""
    try:
        _scan(data)
        batch = _Unpickler(io.BytesIO(data), encoding="bytes").load()
    except RefusedPickle:
        raise
    except Exception as error:  # damaged pickles raise nearly anything
        what = str(error) or type(error).__name__
        raise RefusedPickle(f"not a readable pickle ({what})") from None
    if not isinstance(batch, dict):
        raise RefusedPickle(f"holds a {type(batch).__name__}, not a dict")
    array, labels = (batch.get(key.encode(), batch.get(key)) for key in ("data", "labels"))
    if not isinstance(array, _Array):
        raise RefusedPickle("has no array 'data'")
    rows = array.rows(width)
    if not isinstance(labels, list) or any(type(k) is not int or not 0 <= k < 256 for k in labels):
        raise RefusedPickle("has no list of numbers 'labels'")
    if len(labels) != len(rows):
        raise RefusedPickle(f"has {len(rows):,} images and {len(labels):,} labels")
    return rows, np.array(labels, np.int64)


def _scan(data: bytes) -> None:
    """Refuses what a batch never needs before any of it is loaded."""
    tuples = 0
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        name = opcode.name
        tuples += name.startswith("TUPLE")
        if name == "GLOBAL":
            _stand_in(*str(argument).split(" ", 1))
        elif name not in OPCODES or tuples > TUPLES:
            raise RefusedPickle(f"refused: the file uses opcode {name} where a batch does not")
        elif name in ("BINPUT", "LONG_BINPUT") and int(argument or 0) > count:
            raise RefusedPickle(f"refused: memo slot {argument}")  # would allocate gigabytes
