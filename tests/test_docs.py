"""Documentation agrees with the code: pages, options and their defaults, links, commands."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from kdgen import recipes
from kdgen.cli import VERBS
from kdgen.methods import methods

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "methods"
TEXTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHARED = {"catch_up_one_step": "catch-up"}  # told on another method's page
RECIPES = {"train": recipes.TEACHERS, "distill": recipes.STUDENTS}


def page(name: str) -> Path:
    return PAGES / f"{SHARED.get(name, name.replace('_', '-'))}.md"


def commands(text: str) -> Iterator[tuple[str, str | None]]:
    """(verb, recipe or None) of every `kdgen …` and `python -m kdgen.…` in code."""
    code = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    code += re.findall(r"`([^`]+)`", prose)
    call = r"(?:^|\s|/)(?:kdgen |python -m kdgen\.)([a-z]+)(?: ([a-z0-9][\w-]*))?"
    for verb, recipe in re.findall(call, "\n".join(code), re.MULTILINE):
        yield verb, recipe or None


def links(text: str) -> list[str]:
    """Targets within the repository, without their anchors."""
    found = re.findall(r"\]\(([^)#\s]+)", text)
    return [link for link in found if not re.match(r"[a-z]+:", link)]


@pytest.mark.parametrize("name", methods())
def test_a_method_has_a_page_with_every_option_and_its_default(name: str):
    text = page(name).read_text(encoding="utf-8")
    assert f"`{name}`" in text
    rows = dict(re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", text, re.MULTILINE))
    expected = {f.name: repr(f.default).replace("'", '"') for f in fields(methods()[name])}
    assert {n: rows.get(n) for n in expected} == expected


@pytest.mark.parametrize("name", methods())
def test_the_overview_links_every_page(name: str):
    assert page(name).name in links((PAGES / "README.md").read_text(encoding="utf-8"))


def measured(path: Path) -> set[tuple[str, ...]]:
    """Method, NFE, distance and what it is compared with, of the rows measured on the digits."""
    rows = re.findall(
        r"^\| ((?:teacher|digits-)[^|]* \|.*)$", path.read_text("utf-8"), re.MULTILINE
    )
    return {tuple(cell.strip() for cell in row.split("|")[:5]) for row in rows}


@pytest.mark.parametrize(
    "name", sorted(set(methods()) - {"edm"})
)  # its own teacher is not compared
def test_a_page_shows_what_its_method_measured(name: str):
    everything = measured(PAGES / "README.md")
    assert measured(page(name))
    assert measured(page(name)) <= everything


@pytest.mark.parametrize("path", TEXTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_link_leads_somewhere(path: Path):
    text = path.read_text(encoding="utf-8")
    assert [link for link in links(text) if not (path.parent / link).exists()] == []


@pytest.mark.parametrize("path", TEXTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_command_names_a_verb_and_a_recipe(path: Path):
    for verb, recipe in commands(path.read_text(encoding="utf-8")):
        assert verb in VERBS
        if verb in RECIPES and recipe is not None:
            assert recipe in RECIPES[verb]


def test_commands_are_found():
    """Or the test above would pass on nothing."""
    text = "`kdgen recipes`, `kdgen` alone\n```sh\n.venv/bin/python -m kdgen.train a-b --out x\n```"
    assert set(commands(text)) == {("recipes", None), ("train", "a-b")}
