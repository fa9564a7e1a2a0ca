"""Every op, on every backend that serves the device, against the same in plain torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import machine, op_model, peers, suite
from benchmarks.cases import Case, cases
from benchmarks.race import Call
from kdgen import kernels


@dataclass(frozen=True)
class Trial:
    op: Any
    case: Case
    device: torch.device
    dtype: torch.dtype
    backend: str
    backward: bool = False

    def __str__(self) -> str:
        way = " backward" if self.backward else ""
        dtype = str(self.dtype)[6:]
        return f"{self.op.name}{way} {self.case.name} {dtype} {self.backend} {self.device}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    shared = suite.of(metafunc.config)
    metafunc.parametrize("trial", _trials(shared), ids=str)


def _trials(shared: suite.Suite) -> list[Trial]:
    return [
        Trial(op, case, device, dtype, backend, backward)
        for device in shared.devices
        for op in kernels.OPS
        for case in cases(op.name, device, smoke=shared.smoke)
        for dtype in case.dtypes
        for backend in _available(op, device)
        for backward in ((False, True) if case.trained else (False,))
    ]


def _available(op: Any, device: torch.device) -> list[str]:
    args = op.examples(torch.float32, device)[0].args
    found = [b.name for b in op.backends if not b.serves(*args)]
    # On a CPU Triton could only be interpreted, which says nothing about speed.
    return [b for b in found if b != "triton" or device.type == "cuda"]


def test_op(trial: Trial, suite: suite.Suite, benchmark: Any) -> None:
    op, case, device = trial.op, trial.case, trial.device
    copies = [case.make(device, trial.dtype)]
    cost = (op_model.backward_cost if trial.backward else op_model.cost)(op.name, copies[0])
    if not (suite.smoke or case.warm):
        copies += [case.make(device, trial.dtype) for _ in range(_spares(cost.bytes, device))]
    ready = _gradients if trial.backward else _results
    with (
        torch.inference_mode(not trial.backward),
        kernels.use(f"{op.name}={trial.backend}"),
    ):
        suite.measure(
            benchmark,
            device,
            trial.dtype,
            ready(op, copies),
            ready(peers.OPS[op.name], copies),
            predict=lambda roofs: cost.seconds(
                roofs.gemm(trial.dtype if cost.products else torch.float32),
                roofs.copy(cost.bytes if case.warm else None),
            ),
            group="ops",
            case=f"{op.name}{' backward' if trial.backward else ''} {case.name}",
            implementation=trial.backend,
            batch=case.batch,
            flops=cost.flops,
            bytes=cost.bytes,
        )


def _spares(moved: float, device: torch.device) -> int:
    """Copies of the inputs beyond the first, until a round through them leaves no cache warm."""
    return int(min(32, 2 * machine.last_cache(device) // moved))


def _results(run: Callable[..., Tensor], copies: list[tuple[Any, ...]]) -> list[Call]:
    return [partial(run, *args) for args in copies]


def _gradients(run: Callable[..., Tensor], copies: list[tuple[Any, ...]]) -> list[Call]:
    """The backward pass alone, of a graph that stays."""
    calls: list[Call] = []
    for args in copies:
        leaves = [a.detach().requires_grad_() if _learns(a) else a for a in args]
        y, learning = run(*leaves), [a for a in leaves if _learns(a)]
        dy = torch.randn_like(y)
        calls.append(partial(torch.autograd.grad, y, learning, dy, retain_graph=True))
    return calls


def _learns(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
