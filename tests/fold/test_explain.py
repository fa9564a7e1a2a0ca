"""What folding saved, counted, and as the documentation says it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kdgen import fold, nets
from kdgen.denoiser import Denoiser
from kdgen.schedules import EDM, LinearVP

PAGE = (Path(__file__).parents[2] / "docs" / "folds.md").read_text(encoding="utf-8")
NAMES, SAVINGS = (PAGE.partition(f"\n## {title}\n")[2] for title in ("The folds", "What it saves"))
USES = {
    "ddpm32": (LinearVP(), "eps", "index"),
    "edm32": (EDM(), "edm", "log_sigma"),
    "adm64": (EDM(), "edm", "log_sigma"),
}


def told(row: str, name: str) -> tuple[int, float]:
    """(parameters, GFLOP) of a row in the page's table."""
    (line,) = re.findall(rf"^\| {row} \| (.*) \|$", SAVINGS, re.MULTILINE)
    cells = [cell.replace(",", "").replace("−", "-") for cell in line.split(" | ")]
    column = 2 * list(USES).index(name)
    return int(cells[column]), float(cells[column + 1])


def weightless(name: str) -> Denoiser:
    with torch.device("meta"):
        return Denoiser(nets.preset(name), *USES[name])


@pytest.mark.parametrize("name", ["ddpm32", "edm32"])
def test_the_documented_savings_are_those_counted(name: str):
    plain = weightless(name)
    found = fold.explain(plain, fold.fold(plain, [1.0]))
    for row, parameters, flops in zip(("none", "all"), found.parameters, found.flops, strict=True):
        assert told(row, name) == (parameters, pytest.approx(flops / 1e9, abs=5e-4))


def test_each_saving_is_documented():
    plain = weightless("ddpm32")
    for row in ("time", "up", "queries", "values"):
        found = fold.explain(plain, fold.fold(plain, [1.0], folds=[row]))
        (before, after), (slow, fast) = found.parameters, found.flops
        expected = (after - before, pytest.approx((fast - slow) / 1e9, abs=5e-4))
        assert told(f"`{row}`", "ddpm32") == expected


def test_every_fold_is_documented():
    named = re.findall(r"^\| `(\w+)` \|", NAMES.partition("\n## ")[0], re.MULTILINE)
    assert named == list(fold.KNOWN)


def test_an_explanation_is_for_people(families: Callable[..., Any]):
    plain = families("ddpm32").denoiser()
    shown = str(fold.explain(plain, fold.fold(plain, [1.0])))
    assert re.search(r"^up +1 doublings", shown, re.MULTILINE)
    assert re.search(r"^FLOPs +[\d.]+ G -> [\d.]+ G \(-\d", shown, re.MULTILINE)
    assert re.search(r"^parameters +[\d.]+ M -> [\d.]+ M \(-\d", shown, re.MULTILINE)
