"""The families of the folds' tests, the definition of the engine's steps, programs of one step."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from kdgen import engine, fold
from kdgen.denoiser import TIMES
from kdgen.kernels import native

HERE = Path(__file__).parent
MANY = (1.0, 0.25, 0.6)


def _module(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# pytest imports tests as files, not as a package: their helpers are importable once they are here.
for _name in ("one_op", "roundings", "strangers"):
    _module(_name, HERE / f"{_name}.py")
_families = _module("kdgen_tests_families", HERE.parent / "fold" / "conftest.py")
families = _families.families


@pytest.fixture(scope="session")
def reference() -> ModuleType:
    """The module beside this one."""
    return _module("kdgen_tests_engine_reference", HERE / "reference.py")


@pytest.fixture
def compiled() -> None:
    """Skips where the compiled engine is missing."""
    if why := engine.missing():
        pytest.skip(why)


@pytest.fixture
def folded(families: Callable[..., Any]) -> Callable[..., fold.Folded]:
    """(name, times, dtype) -> that family's denoiser, folded as the engine wants it."""

    def build(
        name: str, times: tuple[float, ...] = (1.0,), dtype: torch.dtype = torch.float32
    ) -> fold.Folded:
        plain = families(name).denoiser().to(dtype)
        return fold.fold(plain, times, folds=engine.FOLDS, check=False)

    return build


class Inputs:
    """Of a folded network: images that it could see, at each of its times, of every class."""

    def __init__(self, folded: fold.Folded, n: int = 6, seed: int = 1) -> None:
        dtype = next(folded.parameters()).dtype
        r = torch.Generator().manual_seed(seed)
        self.x = torch.randn(n, *folded.shape, generator=r, dtype=torch.float64).to(dtype)
        times = torch.tensor(folded.times, dtype=torch.float64)[torch.arange(n) % len(folded.times)]
        self.time = TIMES[folded.time](folded.schedule, times)
        classes = torch.arange(n) % (folded.classes + 1) - 1
        self.label: Tensor | None = classes if folded.classes else None

    @property
    def all(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """As a network takes them."""
        return self.x, self.time, self.label


@pytest.fixture
def inputs() -> type[Inputs]:
    return Inputs


@pytest.fixture
def isas() -> list[str]:
    return native.module.supported_isas() if native.module is not None else []
