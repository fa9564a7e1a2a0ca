"""The house has floors, and imports only point down."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FLOORS = (
    {"kernels", "errors", "durable", "lock", "build", "memory"},
    {"schedules", "denoiser", "noise", "graph", "rows"},
    {"samplers", "solvers", "adaptive", "nets"},
    {
        "methods",
        "data",
        "pairs",
        "checkpoint",
        "metrics",
        "fold",
        "engine",
        "grid",
        "foreign",
        "writers",
        "background",
        "report",
    },
    {
        "training",
        "fast",
        "acceleration",
        "run",
        "loop",
        "learner",
        "ledger",
        "keeper",
        "batches",
        "ema",
        "stepper",
    },
    {"recipes", "diagnosis"},
    {
        "cli",
        "convert",
        "train",
        "distill",
        "sample",
        "evaluate",
        "demo",
        "demo_page",
        "contest",
        "tournament",
        "sidebyside",
        "compare_page",
        "compare",
        "budget",
        "doctor",
    },
)
COMPILED = {
    ("kdgen.kernels.native", "kdgen._native"),
    ("kdgen.kernels.cuda", "kdgen._cuda"),
}
FLOOR_OF = {unit: floor for floor, units in enumerate(FLOORS) for unit in units}


@dataclass(frozen=True)
class Import:
    target: str  # "kdgen.data.order"
    names: tuple[str, ...]
    line: int
    runs: bool  # when the module is imported: not inside a function, nor for the type checker only


def modules() -> dict[str, ast.Module]:
    """Every module of the package, by its full name."""
    found = {}
    for folder, package in (("kdgen", "kdgen"), ("kernels", "kdgen.kernels")):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            if folder == "kdgen" and parts[0] == "kernels":
                continue  # the symlink
            name = ".".join((package, *parts)).removesuffix(".__init__")
            found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


MODULES = modules()
PACKAGES = {name.rpartition(".")[0] for name in MODULES} & MODULES.keys()


def imports(module: str, tree: ast.AST) -> list[Import]:
    """What a module imports from kdgen, wherever the statement stands."""
    return [i for i in _imports(module, tree, True) if i.target.split(".")[0] == "kdgen"]


def _imports(module: str, node: ast.AST, runs: bool) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield Import(alias.name, (), node.lineno, runs)
    elif isinstance(node, ast.ImportFrom):
        base = _absolute(module, node)
        for alias in node.names:
            target = f"{base}.{alias.name}"
            if target in MODULES or target in ("kdgen._native", "kdgen._cuda"):
                yield Import(target, (), node.lineno, runs)
            else:
                yield Import(base, (alias.name,), node.lineno, runs)
    elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        for child in node.body:
            yield from _imports(module, child, False)
    else:
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from _imports(module, child, runs and not inside)


def _absolute(module: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = module if module in PACKAGES else module.rpartition(".")[0]
    for _ in range(node.level - 1):
        package = package.rpartition(".")[0]
    return f"{package}.{node.module}" if node.module else package


def unit(module: str) -> str:
    """ "kdgen.data.order" -> "data"; the package itself is ""."""
    return module.partition(".")[2].partition(".")[0]


def upward(module: str, tree: ast.AST) -> list[str]:
    """The imports of a module that point up."""
    own = FLOOR_OF[unit(module)]
    return [
        f"{module}:{i.line} (floor {own}) imports {i.target} (floor {FLOOR_OF[unit(i.target)]})"
        for i in imports(module, tree)
        if unit(i.target) in FLOOR_OF and FLOOR_OF[unit(i.target)] > own
    ]


def test_every_module_has_a_floor():
    units = {unit(name) for name in MODULES} - {"", "__main__"}
    assert units <= FLOOR_OF.keys(), "say in tests/test_floors.py on which floor they live"


@pytest.mark.parametrize("floor", range(len(FLOORS)))
def test_imports_point_down(floor):
    here = [m for m in MODULES if FLOOR_OF.get(unit(m)) == floor]
    assert [line for m in here for line in upward(m, MODULES[m])] == []


@pytest.mark.parametrize(
    "statement",
    [
        "from kdgen.training import fit",
        "from kdgen import training",
        "import kdgen.training",
        "from .training import fit",
        "def f():\n    from kdgen import training",
        "if TYPE_CHECKING:\n    from kdgen.training import fit",
        "try:\n    import kdgen.training as t\nexcept ImportError:\n    t = None",
    ],
)
def test_an_upward_import_is_seen_wherever_it_stands(statement):
    assert upward("kdgen.samplers", ast.parse(statement))
    assert not upward("kdgen.recipes", ast.parse(statement))


def test_no_module_imports_itself_in_a_circle():
    graph = {
        name: {i.target for i in imports(name, tree) if i.runs and i.target in MODULES} - {"kdgen"}
        for name, tree in MODULES.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_a_method_knows_no_other_method():
    for name, tree in MODULES.items():
        if name.startswith("kdgen.methods."):
            others = {i.target for i in imports(name, tree) if unit(i.target) == "methods"}
            assert others <= {"kdgen.methods.base", "kdgen.methods.errors", name}, name


def test_kernels_know_nothing_of_kdgen_but_the_compiled_part():
    for name, tree in MODULES.items():
        if unit(name) == "kernels":
            for i in imports(name, tree):
                if unit(i.target) != "kernels":
                    assert (name, i.target) in COMPILED
                    assert not i.runs, "only when it is needed: it may be missing"


def test_of_the_package_itself_only_the_version_is_used():
    for name, tree in MODULES.items():
        for i in imports(name, tree):
            if i.target == "kdgen":
                assert set(i.names) <= {"__version__"}, f"{name}:{i.line}"


def test_importing_the_package_imports_nothing_of_it():
    assert [i for i in imports("kdgen", MODULES["kdgen"]) if i.runs] == []
