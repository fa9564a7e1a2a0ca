"""The modules in a pickle of EDM's family, as data.

Each of their modules is pickled as its Python source, its class's name and its attributes, for a
reader that runs the source. Here the source is left alone; the attributes are enough.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from kdgen.data.pickles import RefusedPickle
from kdgen.foreign import storages, unpickle


@dataclass
class Module:
    """Stands in for any network module: its class's name and its attributes."""

    name: str = ""
    state: dict[str, Any] = field(default_factory=dict)

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise RefusedPickle("a module has no attributes")
        self.name, self.state = "", state

    def tensors(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """Parameters and buffers, by the names of a state dict."""
        for kind in ("_parameters", "_buffers"):
            for name, value in self.state.get(kind, {}).items():
                if isinstance(value, Tensor):
                    yield f"{prefix}{name}", value
        for name, child in self.state.get("_modules", {}).items():
            if isinstance(child, Module):
                yield from child.tensors(f"{prefix}{name}.")


class _Dtype:
    """Stands in for numpy.dtype; byte order and flags are left out."""

    def __init__(self, code: str, *flags: Any) -> None:
        self.code = code

    def __setstate__(self, state: Any) -> None:
        pass


def _scalar(dtype: _Dtype, data: bytes) -> int | float | bool:
    if dtype.code not in ("f8", "f4", "i8", "i4", "b1"):
        raise RefusedPickle("a number is of no known type")
    (number,) = np.frombuffer(data, dtype.code).tolist()
    return number  # type: ignore[no-any-return]


def _persistent(meta: dict[str, Any]) -> Module:
    """`meta` holds type, version, module_src, class_name and state."""
    name, state = meta.get("class_name"), meta.get("state")
    if not isinstance(name, str) or not isinstance(state, dict):
        raise RefusedPickle("an object has no class name or no attributes")
    return Module(name, state)


def _tensor(elements: Tensor, offset: int, shape: Any, stride: Any, *rest: Any) -> Tensor:
    return elements.as_strided(shape, stride, offset)  # which refuses what is out of bounds


def _parameter(tensor: Tensor, *rest: Any) -> Tensor:
    return tensor


STAND_INS: dict[tuple[str, str], Any] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch.storage", "_load_from_bytes"): storages.read,
    ("collections", "OrderedDict"): dict,
    ("dnnlib.util", "EasyDict"): dict,
    ("builtins", "set"): set,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
}


def _stand_in(module: str, name: str) -> Any:
    if module == "torch.nn.modules.container":
        return Module
    return STAND_INS.get((module, name))


def read(data: bytes) -> Any:
    """What is pickled in `data`, modules as `Module`. Raises RefusedPickle."""
    try:
        return unpickle.load(io.BytesIO(data), _stand_in)
    except RefusedPickle:
        raise
    except Exception as error:  # damaged pickles raise nearly anything
        what = str(error).split("\n")[0] or type(error).__name__
        raise RefusedPickle(f"not a readable pickle ({what})") from None
