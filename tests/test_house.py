"""House rules that hold for every file: no unsafe loading, nothing at import, no surprises."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = ("kdgen", "kernels", "tools", "benchmarks", "tests")
TEXT = {".py", ".pyi", ".md", ".toml", ".txt", ".cpp", ".h", ".cu", ".cfg", ".json", ".yml", ""}

# What runs code found in data, by the name it is called with.
UNSAFE = {
    "eval",
    "exec",
    "compile",
    "os.system",
    "os.popen",
    "marshal.load",
    "marshal.loads",
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "shelve.open",
    "torch.load",
    "yaml.load",
    "yaml.unsafe_load",
}
# Audited by reading: an Unpickler that resolves stand-ins only, and the files it must refuse.
AUDITED = {
    "kdgen/data/pickles.py": {"pickle.Unpickler"},
    "kdgen/foreign/unpickle.py": {"pickle.Unpickler"},
    "tests/data/test_cifar.py": {"pickle.loads", "eval", "exec", "os.system"},  # the attacks
}


def files(*folders: str) -> list[Path]:
    """Python files, the symlink kdgen/kernels left out."""
    found = (p for folder in folders for p in sorted((ROOT / folder).rglob("*.py")))
    return [p for p in found if not p.is_relative_to(ROOT / "kdgen" / "kernels")]


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def unsafe(module: ast.AST) -> set[str]:
    """Names of unsafe things a module calls or inherits from, also under another name."""
    aliases = _aliases(module)
    found = set()
    for node in ast.walk(module):
        if isinstance(node, ast.Name | ast.Attribute):
            name = _dotted(node, aliases)
            if name in UNSAFE or name.startswith("torch.hub"):
                found.add(name)
        if isinstance(node, ast.keyword) and ast.unparse(node) in (
            "allow_pickle=True",
            "shell=True",
            "weights_only=False",
        ):
            found.add(ast.unparse(node))
    return found


def _aliases(module: ast.AST) -> dict[str, str]:
    """Local name -> what it stands for."""
    names = {}
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            names |= {a.asname: a.name for a in node.names if a.asname}
        elif isinstance(node, ast.ImportFrom):
            names |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    return names


def _dotted(node: ast.expr, aliases: dict[str, str]) -> str:
    if isinstance(node, ast.Name):
        return aliases.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value, aliases)}.{node.attr}"
    return ""


def test_nothing_loads_data_that_can_run_code():
    for path in files(*CODE):
        where = path.relative_to(ROOT).as_posix()
        assert unsafe(tree(path)) <= AUDITED.get(where, set()), where


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\npickle.load(f)",
        "from pickle import loads as read\nread(b)",
        "import torch as t\nt.load(f)",
        "import torch\ntorch.hub.load(r, m)",
        "np.load(f, allow_pickle=True)",
        "eval(text)",
        "read = eval",
        "subprocess.run(c, shell=True)",
    ],
)
def test_unsafe_loading_is_seen(source):
    assert unsafe(ast.parse(source))


@pytest.mark.parametrize(
    "source", ["net.eval()", "re.compile(p)", "np.load(f, allow_pickle=False)"]
)
def test_safe_things_are_not_mistaken_for_it(source):
    assert not unsafe(ast.parse(source))


def python(code: str, folder: Path) -> str:
    """What a fresh interpreter prints."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


IMPORT_ALL = """
import importlib, random, threading, torch

def state():
    return (torch.get_rng_state().tolist(), random.getstate(), threading.active_count(),
            torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(),
            torch.are_deterministic_algorithms_enabled(), torch.cuda.is_initialized())

before = state()
for name in {names}:
    importlib.import_module(name)
assert state() == before
"""


def test_importing_any_module_says_and_changes_nothing(tmp_path):
    names = [
        ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for p in files("kdgen")
    ]
    assert python(IMPORT_ALL.format(names=names), tmp_path) == ""
    assert list(tmp_path.iterdir()) == []


IMPORT_SOME = """
import sys, torch
before = set(sys.modules)
import kdgen
print(len(before), *set(sys.modules) - before)
kdgen.fit, kdgen.generator, kdgen.Diffusion
print(*set(sys.modules) - before)
"""
LATER = {"PIL", "pynvml", "pytest", "sympy", "tqdm", "triton", "tyro"}


def test_the_package_costs_little_more_than_torch(tmp_path):
    """By the modules it brings: a clock would measure the machine."""
    first, second = python(IMPORT_SOME, tmp_path).splitlines()
    torch, *package = first.split()
    assert {name.partition(".")[0] for name in package} <= {"kdgen"}
    library = second.split()
    assert not {name.partition(".")[0] for name in library} & LATER
    assert len(library) <= int(torch) / 5


def public(module: ast.Module) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node


def test_every_public_name_says_what_it_is():
    silent = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path in files("kdgen")
        for node in public(tree(path))
        if not ast.get_docstring(node)
    ]
    assert silent == []


def test_every_module_says_what_it_is():
    assert [str(p) for p in files("kdgen", "kernels") if not ast.get_docstring(tree(p))] == []


def texts() -> list[Path]:
    """What is kept under version control, or would be."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode == 0 and listed.stdout:
        found = [ROOT / line for line in listed.stdout.splitlines()]
    else:  # an unpacked archive
        found = [p for folder in (*CODE, "csrc", "docs") for p in (ROOT / folder).rglob("*")]
        found += list(ROOT.iterdir())
    return [p for p in found if p.suffix in TEXT and p.is_file() and not p.is_symlink()]


def test_no_file_knows_the_machine_it_was_written_on():
    homes = re.compile(r"(?<![\w.])/(?:home|root|Users|work|mnt)/\w|[A-Z]:\\Users")
    for path in texts():
        text = path.read_text(encoding="utf-8")
        found = homes.search(text.replace("__init__", ""))
        assert path == Path(__file__) or not found, f"{path.relative_to(ROOT)}: {found}"
