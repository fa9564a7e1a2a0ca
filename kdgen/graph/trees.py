"""Tensors in tuples, lists, dicts, named tuples and dataclasses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from torch import Tensor


def leaves(tree: Any, path: str) -> Iterator[tuple[str, Any]]:
    """(path, what is there) of everything that has no parts."""
    parts = _parts(tree)
    if parts is None:
        yield path, tree
        return
    for name, part in parts:
        yield from leaves(part, path + name)


def changed(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same tree with other tensors."""
    if isinstance(tree, Tensor):
        return change(tree)
    parts = _parts(tree)
    if parts is None:
        return tree
    values = [changed(part, change) for _, part in parts]
    if isinstance(tree, Mapping):
        return dict(zip(tree, values, strict=True))
    if is_dataclass(tree) and not isinstance(tree, type):
        names = [f.name for f in fields(tree)]
        return replace(tree, **dict(zip(names, values, strict=True)))
    return type(tree)(*values) if hasattr(tree, "_fields") else type(tree)(values)


def _parts(tree: Any) -> list[tuple[str, Any]] | None:
    """(name, part) of a container; None of anything else."""
    if isinstance(tree, Tensor):
        return None
    if is_dataclass(tree) and not isinstance(tree, type):
        return [(f".{f.name}", getattr(tree, f.name)) for f in fields(tree)]
    if isinstance(tree, Mapping):
        return [(f"[{key!r}]", value) for key, value in tree.items()]
    if isinstance(tree, tuple | list):
        names = getattr(tree, "_fields", None)
        return [(f".{names[k]}" if names else f"[{k}]", value) for k, value in enumerate(tree)]
    return None
