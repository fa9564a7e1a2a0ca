"""Every op on every backend, cold and captured, each beside its error against float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kdgen import kernels

from .. import op_model, peers
from ..cases import Case, cases
from . import clock, expected, rivals
from .bench import Bench

GROUP = "ops"
ROUNDS = 10
PER_CASE = 12.0  # seconds a case takes at most, torch.compile included


def run(bench: Bench) -> None:
    # A compiled gradient is taken again and again from one forward pass.
    torch._functorch.config.donated_buffer = False
    trials = [
        (op, case, dtype, backward)
        for op in kernels.OPS
        for case in cases(op.name, bench.device, smoke=bench.tiny)
        for dtype in case.dtypes
        for backward in ((False, True) if case.trained else (False,))
    ]
    # What networks run in on a GPU comes first: the deadline may cut off the rest.
    for op, case, dtype, backward in sorted(trials, key=lambda trial: trial[2] is torch.float32):
        if bench.time_for(_title(op, case, backward, dtype), PER_CASE):
            _measure(bench, op, case, dtype, backward)


def _title(op: Any, case: Case, backward: bool, dtype: torch.dtype) -> str:
    return f"{GROUP} · {op.name}{' backward' * backward} {case.name} · {str(dtype)[6:]}"


def _measure(bench: Bench, op: Any, case: Case, dtype: torch.dtype, backward: bool) -> None:
    torch._dynamo.reset()  # beyond some shapes of one function, torch.compile would run it as it is
    args = case.make(bench.device, dtype)
    cost = (op_model.backward_cost if backward else op_model.cost)(op.name, args)
    count = 1 if bench.tiny else clock.copies(cost.bytes, bench.device)
    ring = [args, *(case.make(bench.device, dtype) for _ in range(count - 1))]
    ways = {name: _chosen(op, name) for name in _available(op, args)}
    ways |= {"torch": peers.OPS[op.name], **rivals.of_op(op.name, args, bench)}
    contestants, facts = {}, {}
    own = error_of(op.reference, op.reference, args, backward=backward)
    for name, way in ways.items():
        key, ours = f"{_title(op, case, backward, dtype)} · {name}", name in op.by_name
        error = error_of(way, op.reference, args, backward=backward) if ours else None
        if error is not None and not error <= allowed(own, dtype):
            bench.record.skip(key, f"wrong: error {error:.2e}, the reference's own {own:.2e}")
            continue
        try:
            with clock.recordable(bench.device):
                calls = _gradients(way, ring) if backward else [partial(way, *a) for a in ring]
            with torch.inference_mode(not backward):
                contestants[name] = clock.captured(calls, bench.device)
        except (RuntimeError, NotImplementedError) as cause:
            bench.record.skip(key, _line(cause))
            continue
        facts[name] = {"captured": contestants[name].captured, "expected": expected.op(cost)}
        if error is not None:
            facts[name]["error"] = error
    bench.rows(
        bench.race(contestants, rounds=ROUNDS),
        "torch",
        dtype,
        more=facts,
        group=GROUP,
        case=f"{op.name}{' backward' * backward} {case.name}",
        batch=case.batch,
        flops=cost.flops,
        bytes=cost.bytes,
        predicted=cost.seconds(bench.roofs.gemm(dtype_of_products(dtype)), bench.roofs.copy()),
    )


def dtype_of_products(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype in (torch.bfloat16, torch.float16) else torch.float32


def _available(op: Any, args: tuple[Any, ...]) -> list[str]:
    return [b.name for b in op.backends if b.name != "reference" and not b.serves(*op.bind(*args))]


def _chosen(op: Any, backend: str) -> Callable[..., Tensor]:
    def run(*args: Any) -> Tensor:
        with kernels.use(f"{op.name}={backend}"):
            result: Tensor = op(*args)
            return result

    return run


def _gradients(way: Callable[..., Tensor], ring: list[tuple[Any, ...]]) -> list[clock.Call]:
    """The backward pass alone, of a graph that stays."""
    return [_gradient(way, args) for args in ring]


def _gradient(
    way: Callable[..., Tensor], args: tuple[Any, ...]
) -> Callable[[], tuple[Tensor, ...]]:
    leaves = [a.detach().requires_grad_() if _learns(a) else a for a in args]
    y, learning = way(*leaves), [a for a in leaves if _learns(a)]
    # The same at every call, so that two ways can be compared.
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    return partial(torch.autograd.grad, y, learning, dy, retain_graph=True)


def _learns(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def allowed(own: float, dtype: torch.dtype) -> float:
    """The rule of the tests: twice the reference's own error and one unit in the last place."""
    return 2 * own + (torch.finfo(dtype).eps if dtype.is_floating_point else 0.0)


def error_of(
    way: Callable[..., Tensor],
    reference: Callable[..., Tensor],
    args: tuple[Any, ...],
    *,
    backward: bool = False,
) -> float:
    """‖way − reference in float64‖ / ‖reference‖ of the first images, or of their gradients; NaN
    where it cannot run."""
    few = tuple(_first(a, len(_tensor(args))) for a in args)
    wide = tuple(a.double() if _learns(a) else a for a in few)
    try:
        if backward:
            exact, found = (_joined(_gradient(*pair)()) for pair in ((reference, wide), (way, few)))
        else:
            exact, found = reference(*wide).double(), way(*few).double()
    except (RuntimeError, ValueError, TypeError):
        return float("nan")
    return float((found - exact).norm() / exact.norm().clamp(min=1e-30))


def _joined(parts: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([p.double().flatten() for p in parts])


def _tensor(args: tuple[Any, ...]) -> Tensor:
    return next(a for a in args if isinstance(a, Tensor))


def _first(value: Any, batch: int, few: int = 8) -> Any:
    """The first images of what has one entry an image."""
    each = isinstance(value, Tensor) and value.ndim > 1 and len(value) == batch
    return value[:few] if each else value


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
