"""Every parameterisation as two numbers a time, and every chain as a table."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdgen import fold, samplers
from kdgen.denoiser import READERS, SMALLEST_ALPHA, Denoiser, Levels
from kdgen.schedules import SCHEDULES, Flow, LinearVP, NoiseSchedule


class Wavy(nn.Module):
    """A network that any mistake in scale or time shows in."""

    shape, classes = (3, 4, 4), 0

    def __init__(self, parts: int) -> None:
        super().__init__()
        self.parts = parts

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        y = (1.3 * x + time.reshape(-1, 1, 1, 1) / 500).sin() + 0.1 * x
        return torch.cat([y, y.cos()][: self.parts], dim=1)


def uses() -> list[tuple[NoiseSchedule, str]]:
    """All that divide by no alpha near 0."""
    found = []
    for kind in READERS:
        for make in SCHEDULES.values():
            q = make()
            if q.levels(1.0)[0] >= SMALLEST_ALPHA or kind not in ("eps", "score"):
                found.append((q, kind))
    return found


USES = uses()


def use(q: NoiseSchedule, kind: str) -> Denoiser:
    return Denoiser(Wavy(2 if kind == "both" else 1), q, kind, "angle")


def angle(q: NoiseSchedule, t: float) -> Tensor:
    alpha, sigma = q.levels(t)
    return torch.tensor([math.atan2(sigma, alpha) * 2000 / math.pi], dtype=torch.float64)


def z(n: int = 2) -> Tensor:
    return torch.randn(n, 3, 4, 4, generator=torch.Generator().manual_seed(n)).double()


@pytest.mark.parametrize(("q", "kind"), USES, ids=lambda x: getattr(x, "name", x))
def test_a_reading_is_what_the_denoiser_does(q: NoiseSchedule, kind: str):
    denoiser = use(q, kind)
    for t in (1.0, 0.37, 0.001):
        r = fold.reading(denoiser, t)
        x_t = q.start(z(), t)
        raw = denoiser.net(r.c_in * x_t, angle(q, t))
        said = denoiser(x_t, t)
        for (p, *qs), expected in ((r.x0, said.x0), (r.eps, said.eps)):
            found = p * x_t + sum(a * b for a, b in zip(qs, raw.split(3, dim=1), strict=True))
            assert (found - expected).abs().max() <= 1e-10 * expected.abs().max()


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize(
    ("q", "kind"), [u for u in USES if u[1] != "both"], ids=lambda x: getattr(x, "name", x)
)
def test_a_chains_rows_are_ddim(q: NoiseSchedule, kind: str, clip: float | None):
    denoiser = use(q, kind)
    for grid, steps in ((q.grids[-1], 5), ("uniform", 1)):
        moves = q.moves(steps, grid)
        rows, scales = fold.chain(denoiser, moves)
        assert rows.shape == (len(moves), 4)
        assert rows.dtype == scales.dtype == torch.float64
        x = q.start(z(), moves[0][0])
        for (p, share, a, b), c_in, (t, _) in zip(rows, scales, moves, strict=True):
            x0 = p * x + share * denoiser.net(c_in * x, angle(q, t))
            x = a * x + b * (x0 if clip is None else x0.clamp(-clip, clip))
        expected = samplers.ddim(denoiser, z(), steps, grid=grid, clip=clip)
        assert (x - expected).abs().max() <= 1e-10 * expected.abs().max()


def test_two_raw_outputs_fit_no_row_until_they_are_one(families: Callable[..., Any]):
    plain = families("pd64").denoiser().double()
    moves = [(1.0, 0.0)]
    with pytest.raises(ValueError, match="'both' has 2 raw outputs; expected one"):
        fold.chain(plain, moves)
    folded = fold.fold(plain, [1.0])
    ((p, share, _, _),), c_in = fold.chain(folded, moves)
    label = torch.tensor([2, -1])
    x_t = torch.randn(2, *plain.shape).double()
    x0 = p * x_t + share * folded.net(c_in * x_t, torch.ones(2).double(), label)
    expected = plain(x_t, 1.0, label).x0
    assert (x0 - expected).abs().max() <= 1e-10 * expected.abs().max()


def test_a_folded_input_and_output_are_ones_in_the_row(family: Any):
    plain = family.denoiser().double()
    (row,), c_in = fold.chain(fold.fold(plain, [0.7]), [(0.7, 0.0)])
    assert row[1:].tolist() == [1, 0, 1]
    assert row[0] == pytest.approx(fold.reading(plain, 0.7).x0[0])
    assert c_in == 1
    many = fold.fold(plain, [1.0, 0.7])
    assert fold.reading(many, 0.7) == fold.reading(plain, 0.7)


def test_a_network_that_is_not_asked_is_not_folded(families: Callable[..., Any]):
    """At its smallest noise a consistency model is x_t, whatever the network says."""
    plain = families("ncsnpp32").denoiser().double()
    t = plain.schedule.t_of_sigma(0.002)
    folded = fold.fold(plain, [t])
    x_t = 0.5 * torch.randn(2, *plain.shape).double()
    assert (folded(x_t, t).x0 - x_t).abs().max() < 1e-10


def test_what_is_not_linear_has_no_reading(monkeypatch: pytest.MonkeyPatch):
    def bent(x_t: Tensor, raw: Tensor, q: Levels) -> Any:
        return READERS["x0"](x_t, raw.square(), q)

    monkeypatch.setitem(READERS, "bent", bent)
    with pytest.raises(ValueError, match=r"'bent' at t = 0\.5 is not linear"):
        fold.reading(use(Flow(), "bent"), 0.5)
    assert fold.reading(use(LinearVP(), "x0"), 0.5).x0 == (0.0, 1.0)
