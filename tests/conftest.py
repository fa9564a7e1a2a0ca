"""Set-up that must come before any kernel is imported, and what is skipped where."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from hypothesis import settings
from torch import nn

Module = TypeVar("Module", bound=nn.Module)

# The same examples in every run: a failure in CI is a failure here.
settings.register_profile("kdgen", derandomize=True, deadline=None, max_examples=30)
settings.load_profile("kdgen")

HAS_GPU = torch.cuda.is_available()

if not HAS_GPU:
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when a kernel's module is imported
    if importlib.util.find_spec("triton") is not None:
        spec = importlib.util.spec_from_file_location(
            "kdgen_tests_interpreter", Path(__file__).with_name("interpreter.py")
        )
        assert spec is not None
        assert spec.loader is not None
        interpreter = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(interpreter)
        interpreter.install()


# Processes that share the tests share the cores, too: threads beyond them cost more than they do.
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if WORKERS > 1:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // WORKERS))
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))


def pytest_configure(config: pytest.Config) -> None:
    """Under KDGEN_STRICT the compiled part must be there: no test may pass without it."""
    if os.environ.get("KDGEN_STRICT", "").lower() in ("", "0", "off", "false"):
        return
    from kdgen.kernels import native

    if native.why:
        pytest.exit(f"KDGEN_STRICT is set, but {native.why}. Install with pip first.", 3)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if HAS_GPU:
        return
    skip = pytest.mark.skip(reason="needs an NVIDIA GPU; torch.cuda.is_available() is false here")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture
def recorder() -> Any:
    """A graph driver that records on the CPU; see tests/recorder.py."""
    spec = importlib.util.spec_from_file_location(
        "kdgen_tests_recorder", Path(__file__).with_name("recorder.py")
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Recorder()


@pytest.fixture
def default_dtype() -> Iterator[Callable[[torch.dtype], None]]:
    """Sets torch's, until the test is over."""
    before = torch.get_default_dtype()
    yield torch.set_default_dtype
    torch.set_default_dtype(before)


@pytest.fixture
def lively() -> Callable[[Module], Module]:
    """As if it had been trained: no weight of the network is left at zero, the same ones always."""

    def enliven(net: Module, seed: int = 0) -> Module:
        r = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, p in net.named_parameters():
                drawn = torch.randn(p.shape, generator=r, dtype=p.dtype)
                if p.dim() > 1:
                    p.copy_(drawn * max(1, p[0].numel()) ** -0.5)
                else:  # scattered around its beginning, but for a bias, which torch may draw
                    p.mul_(not name.endswith("bias")).add_(drawn, alpha=0.1)
        return net

    return enliven
