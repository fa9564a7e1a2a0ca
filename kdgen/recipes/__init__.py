"""Named runs: everything that decides what is learned, as one frozen value each."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import ModuleType
from typing import TypeVar

from kdgen.errors import UsageError
from kdgen.recipes import celeba64, cifar10, digits, imagenet64, images_tiny, lsun256
from kdgen.recipes.base import Stage, Student, Teacher
from kdgen.recipes.cost import cost

__all__ = ["STUDENTS", "TEACHERS", "Stage", "Student", "Teacher", "student", "teacher", "twin"]

Recipe = TypeVar("Recipe", Teacher, Student)
_FAMILIES = (digits, images_tiny, cifar10, celeba64, imagenet64, lsun256)


def _found(kind: type[Recipe]) -> dict[str, Callable[[], Recipe]]:
    """The public functions that say they return `kind`, by name: `cifar10_sid` is cifar10-sid."""
    return {
        name.replace("_", "-"): make
        for module in _FAMILIES
        for name, make in _functions(module)
        if make.__annotations__.get("return") == kind.__name__
    }


def _functions(module: ModuleType) -> Iterator[tuple[str, Callable[[], Recipe]]]:
    for name, thing in vars(module).items():
        if getattr(thing, "__module__", "") == module.__name__ and not name.startswith("_"):
            yield name, thing


TEACHERS: dict[str, Callable[[], Teacher]] = _found(Teacher)
STUDENTS: dict[str, Callable[[], Student]] = _found(Student)


def teacher(name: str) -> Teacher:
    """The recipe called `name`; UsageError with the nearest names otherwise."""
    return _find(name, TEACHERS, "train")


def student(name: str) -> Student:
    """The recipe called `name`; UsageError with the nearest names otherwise."""
    return _find(name, STUDENTS, "distill")


def twin(recipe: Teacher | Student) -> Teacher:
    """The recipe whose network `recipe` trains: itself, or its teacher's."""
    return recipe if isinstance(recipe, Teacher) else teacher(recipe.teacher)


def _find(name: str, known: dict[str, Callable[[], Recipe]], verb: str) -> Recipe:
    if name in known:
        return known[name]()
    raise UsageError(
        f"{verb}: unknown recipe {name!r}; expected {', '.join(known)}. {_hint(name, known)}"
    )


def _hint(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    return f"Did you mean {' or '.join(near)}?" if near else "Pick one."


def main(argv: Sequence[str] | None = None) -> None:
    """`kdgen recipes`: the list by verb, with what each costs.

    Memory is weights, gradients, moments, averages and the activations of one part of a batch, in
    the recipe's precision: an estimate. EFLOP counts 2 for a multiply-add, on the published data's
    shape; making pairs is included.
    """
    parser = argparse.ArgumentParser(
        prog="python -m kdgen.recipes",
        description=main.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these; default: all")
    names = parser.parse_args(argv).names
    known: dict[str, Callable[[], Teacher | Student]] = {**TEACHERS, **STUDENTS}
    for name in names:
        if name not in known:
            parser.error(f"unknown recipe {name!r}. {_hint(name, known)}")
    for verb, group in (("train", TEACHERS), ("distill", STUDENTS)):
        chosen = [n for n in group if not names or n in names]
        if chosen:
            print(f"python -m kdgen.{verb} …")
        for name in chosen:
            print(described(name, known[name]()))


def _flops(count: float) -> str:
    """In EFLOP, or TFLOP where that is a tiny number."""
    return f"{count / 1e18:,.3g} EFLOP" if count > 1e17 else f"{count / 1e12:,.3g} TFLOP"


def described(name: str, recipe: Teacher | Student) -> str:
    """A few lines about one recipe."""
    spent = cost(recipe, twin(recipe))
    lines = [
        recipe.purpose,
        f"{spent.images / 1e6:,.3g} M images · {_flops(spent.flops)} · "
        f"{spent.memory / 2**30:,.3g} GiB",
    ]
    if isinstance(recipe, Student):
        lines[1] += f" · teacher {recipe.teacher}"
    lines += [f"published: {recipe.expected}"] if recipe.expected else []
    lines += [recipe.source] if recipe.source else []
    lines += [f"not as published: {recipe.differs}"] if recipe.differs else []
    return f"  {name}\n" + "\n".join(f"      {line}" for line in lines)
