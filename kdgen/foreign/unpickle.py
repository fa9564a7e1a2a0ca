"""Unpickling with stand-ins: a pickle gets what we chose for a name, or is refused."""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Callable
from typing import Any

from kdgen.data.offenders import quoted
from kdgen.data.pickles import OPCODES, RefusedPickle

ALLOWED = OPCODES | {
    *("BINFLOAT", "BINPERSID", "NEWOBJ", "EMPTY_SET", "ADDITEMS", "LONG4", "REDUCE", "POP"),
}
TUPLES = 20_000  # a network of 1,000 tensors; hashing deeply nested ones would overflow the stack

Names = Callable[[str, str], Any]  # (module, name) -> its stand-in, or None


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, names: Names, persistent: Callable[[Any], Any]) -> None:
        super().__init__(file)
        self._names, self._persistent = names, persistent

    def find_class(self, module: str, name: str) -> Any:
        if (found := self._names(module, name)) is None:
            raise RefusedPickle(f"refused: the file asks for {quoted(f'{module}.{name}')}")
        return found

    def persistent_load(self, pid: Any) -> Any:
        return self._persistent(pid)


def _nothing(pid: Any) -> Any:
    raise RefusedPickle("refused: the file refers to something outside of it")


def load(file: io.BytesIO, names: Names, persistent: Callable[[Any], Any] = _nothing) -> Any:
    """The next pickle of `file`, its opcodes checked before any of it is loaded."""
    begin = file.tell()
    _scan(file)
    file.seek(begin)
    return _Unpickler(file, names, persistent).load()


def _scan(file: io.BytesIO) -> None:
    tuples = 0
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        tuples += opcode.name.startswith("TUPLE")
        if opcode.name not in ALLOWED or tuples > TUPLES:
            raise RefusedPickle(f"refused: the file uses opcode {opcode.name} where none does")
        if opcode.name in ("BINPUT", "LONG_BINPUT") and int(argument or 0) > count:
            raise RefusedPickle(f"refused: memo slot {argument}")  # would allocate gigabytes
