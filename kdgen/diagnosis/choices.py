"""Which backend each op takes by itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from kdgen import kernels

Choices = dict[str, dict[str, dict[str, str]]]  # op -> device -> backend, why


def choices() -> Choices:
    """For float32, on the CPU and on a GPU, be there one or not."""
    taken: Choices = {}
    for op in kernels.OPS:
        args = op.examples(torch.float32, torch.device("cpu"))[0].args
        with FakeTensorMode():  # tensors without memory: a GPU is not needed
            taken[op.name] = {d: _choice(op, _moved(args, d)) for d in ("cpu", "cuda")}
    return taken


def _choice(op: Any, args: tuple[Any, ...]) -> dict[str, str]:
    why = kernels.explain(op, *args)
    try:
        return {"backend": op.choose(*args).name, "why": why}
    except ValueError:
        return {"backend": "refused", "why": why}


def _moved(args: tuple[Any, ...], device: str) -> tuple[Any, ...]:
    """Arguments of the same kind on another device. Inside FakeTensorMode."""

    def move(x: Tensor) -> Tensor:
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=device)

    return tuple(move(a) if isinstance(a, Tensor) else a for a in args)
