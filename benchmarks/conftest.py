"""Options, devices and the table at the end."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1]))  # a plain `pytest benchmarks` finds the package too

from benchmarks import machine, rows, suite

WARNING = (
    "WARNING: MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_ are not set: page faults are "
    "inside the figures, and ratios may be several times too high or too low (benchmarks/README.md)"
)
TIMEOUT = 1200  # seconds a test; the suite's own budgets are far below


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("kdgen benchmarks")
    group.addoption(
        "--device",
        default="auto",
        choices=("auto", "cpu", "cuda", "all"),
        help="what to measure on; auto: the GPU where there is one, else the CPU",
    )
    group.addoption(
        "--results",
        type=Path,
        metavar="FOLDER",
        help="write <device>.json with medians, spread, ratios and versions into FOLDER",
    )


def pytest_configure(config: pytest.Config) -> None:
    if not config.pluginmanager.hasplugin("benchmark"):
        raise pytest.UsageError(
            "benchmarks: pytest-benchmark is not installed. Run: pip install 'kdgen[bench]'"
        )
    suite.of(config)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "device" in metafunc.fixturenames:
        metafunc.parametrize("device", suite.of(metafunc.config).devices, ids=str, scope="session")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.pluginmanager.hasplugin("timeout"):
        for item in items:
            item.add_marker(pytest.mark.timeout(TIMEOUT))


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    machine_info.update(machine.facts())


@pytest.fixture(name="suite", scope="session")
def _suite(pytestconfig: pytest.Config) -> Iterator[suite.Suite]:
    """cuDNN searches for its fastest algorithms, for all alike; fp32 means fp32, not TF32."""
    before = torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = True, False
    yield suite.of(pytestconfig)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    torch.manual_seed(20_210_107)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    shared = suite.of(config)
    for device in shared.devices:
        if found := shared.of(device):
            roofs = shared.roofs(device).table()
            terminalreporter.section(machine.name(device))
            for line in _head(device, roofs) + _tables(found) + shared.notes.get(device, []):
                terminalreporter.write_line(line)
            if folder := config.getoption("results"):
                path = rows.write(folder, device, found, roofs)
                terminalreporter.write_line(f"results: {path}")


def _head(device: torch.device, roofs: dict[str, float]) -> list[str]:
    facts = machine.facts()
    versions = ", ".join(f"{k} {v}" for k, v in facts["versions"].items() if v)
    copies = [v for k, v in roofs.items() if k.startswith("copy")]
    products = [f"{k} {v / 1e9:,.0f} GFLOP/s" for k, v in roofs.items() if k.startswith("gemm")]
    slow, fast = min(copies, default=0), max(copies, default=0)
    warning = [] if device.type == "cuda" or machine.steady_memory() else [WARNING]
    return [
        *warning,
        versions,
        f"measured roofs: {', '.join(products)}, copy {slow / 1e9:.0f} to {fast / 1e9:.0f} GB/s "
        "by size",
    ]


def _tables(found: list[rows.Row]) -> list[str]:
    lines = []
    for group in dict.fromkeys(r.group for r in found):
        lines += ["", group, *rows.table([r for r in found if r.group == group])]
    return [*lines, ""]
