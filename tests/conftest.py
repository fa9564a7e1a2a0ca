"""Set-up that must come before any kernel is imported, and what is skipped where."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
import torch

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
