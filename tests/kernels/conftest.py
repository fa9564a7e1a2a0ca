"""The rule every backend is held to, and the devices the tests run on."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from kdgen.kernels import Example, Op, cuda

EMULATION = Path(__file__).parents[1] / "emulation" / "load.py"
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(scope="session", autouse=True)
def emulated() -> Iterator[ModuleType | None]:
    """Where there is no GPU, the CUDA kernels as a CPU runs them; they are built when they changed.
    None, and their tests are skipped, where they cannot be."""
    if torch.cuda.is_available():
        yield None
        return
    spec = importlib.util.spec_from_file_location("kdgen_tests_emulation", EMULATION)
    assert spec is not None
    assert spec.loader is not None
    emulation = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(emulation)
    before = cuda.module, cuda.why
    module, why = emulation.load()
    cuda.module, cuda.why = module, why
    yield module
    cuda.module, cuda.why = before


@pytest.fixture
def need() -> Callable[[Op[Any, Any], str, tuple[Any, ...]], None]:
    """Skips where a backend cannot run at all (the op has none, not built, other device)."""

    def check(op: Op[Any, Any], backend: str, args: tuple[Any, ...]) -> None:
        if backend not in op.by_name:
            pytest.skip(f"{op.name} has no backend {backend}")
        why = op.by_name[backend].serves(*op.bind(*args))
        if why:
            pytest.skip(f"{backend}: {why}")

    return check


@pytest.fixture
def served(need: Any) -> Callable[..., list[Example]]:
    """Those of some examples that a backend serves; skips where it serves none."""

    def choose(op: Op[Any, Any], backend: str, examples: list[Example]) -> list[Example]:
        chosen = op.by_name.get(backend)
        found = [e for e in examples if chosen and not chosen.serves(*op.bind(*e.args))]
        if not found:
            need(op, backend, examples[0].args)
        return found

    return choose


@pytest.fixture
def as_accurate() -> Callable[[Tensor, Tensor, Tensor], None]:
    """At most twice the reference's own error, both against float64, plus one ulp."""

    def check(got: Tensor, reference: Tensor, exact: Tensor) -> None:
        assert got.dtype == reference.dtype
        assert got.shape == reference.shape
        wide = exact.double()
        error, own = (v.double() - wide for v in (got, reference))
        ulp = unit(wide, got.dtype)
        for measure in (worst, typical):
            limit = 2 * measure(own) + ulp
            assert measure(error) <= limit, f"{measure.__name__} {measure(error)} > {limit}"

    return check


def worst(error: Tensor) -> float:
    return float(error.abs().max()) if error.numel() else 0.0


def typical(error: Tensor) -> float:
    return float(error.square().mean().sqrt()) if error.numel() else 0.0


def unit(exact: Tensor, dtype: torch.dtype) -> float:
    """One unit in the last place of the largest value."""
    if not dtype.is_floating_point:
        return 1.0
    top = worst(exact)
    exponent = torch.tensor(top or 1.0, dtype=torch.float64).frexp().exponent
    return float(torch.finfo(dtype).eps * 2.0 ** (int(exponent) - 1))


@pytest.fixture
def wide() -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
    """The same arguments in float64."""

    def widen(args: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(
            a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args
        )

    return widen


@pytest.fixture
def grads() -> Callable[..., list[Tensor]]:
    """Gradients of every float tensor argument, for the output gradient `dy`."""

    def run(call: Callable[..., Tensor], args: tuple[Any, ...], dy: Tensor) -> list[Tensor]:
        leaves = [
            a.detach().clone().requires_grad_()
            if isinstance(a, Tensor) and a.is_floating_point()
            else a
            for a in args
        ]
        y = call(*leaves)
        inputs = [a for a in leaves if isinstance(a, Tensor)]
        return list(torch.autograd.grad(y, inputs, dy.to(y.dtype)))

    return run
