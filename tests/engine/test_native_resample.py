"""`Program.resample` against a matrix an axis in float64, on every instruction set."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from one_op import (
    BFLOAT16,
    FLOAT32,
    ISAS,
    OneOp,
    integers,
    needs_native,
    normal,
    per_other_isa,
    per_storage,
    refused,
    same_bits,
    spoilt,
    stored,
)
from roundings import UNIT
from torch import Tensor

pytestmark = needs_native

PAIR = (0.5, 0.5)
FIR = (0.125, 0.375, 0.375, 0.125)  # 1 3 3 1, as NCSN++ has it
FILTERS = [
    (PAIR, 0),
    (FIR, 1),
    (FIR, 2),
    ((0.25, 0.5, 0.25), 1),
    ((1.0,), 0),
    ((-0.1, 0.2, 0.3, 0.4, 0.1, 0.6), 2),
]
SIZES = [(1, 1), (5, 7), (8, 8), (2, 17)]
per_way = pytest.mark.parametrize("up", [False, True], ids=["down", "up"])


@dataclass(frozen=True)
class Case:
    up: bool
    taps: tuple[float, ...] = PAIR
    before: int = 0
    storage: int = FLOAT32
    n: int = 2
    size: tuple[int, int] = (5, 7)
    channels: int = 48
    seed: int = 0

    @cached_property
    def x(self) -> Tensor:
        return stored(normal(self.n, self.channels, *self.size, seed=self.seed), self.storage)

    @property
    def answers(self) -> tuple[int, int]:
        h, w = (2 * s if self.up else -(-s // 2) for s in self.size)
        return h, w

    def program(self, isa: str) -> OneOp:
        op = OneOp(isa, self.storage, x=self.x)
        y = op.buffer(self.channels, *self.answers)
        op.program.resample("filter", op.at["x"], y, list(self.taps), self.up, self.before)
        return op.answer(y, self.channels, *self.answers)

    def _matrix(self, outward: int, inward: int) -> Tensor:
        """(answers, pixels) of an axis."""
        found = torch.zeros(outward, inward, dtype=torch.float64)
        for i in range(outward):
            for k, tap in enumerate(self.taps):
                if self.up:
                    j, odd = divmod(i + self.before - k, 2)
                    tap *= 2
                else:
                    j, odd = 2 * i + k - self.before, 0
                if not odd and 0 <= j < inward:
                    found[i, j] += tap
        return found

    def of(self, x: Tensor, absolute: bool = False) -> Tensor:
        down, across = (self._matrix(*s) for s in zip(self.answers, self.size, strict=True))
        down, across = (down.abs(), across.abs()) if absolute else (down, across)
        return torch.einsum("ih,nchw,jw->ncij", down, x.double(), across)

    def bound(self) -> Tensor:
        """An axis has a tap's rounding, a product and a sum a tap; then the answer is stored."""
        roundings = 2 * (len(self.taps) + 1)
        terms = self.of(self.x.abs(), absolute=True)
        stores = UNIT[self.storage] * self.of(self.x).abs()
        return (roundings * UNIT[FLOAT32] * terms + stores) * 1.01


def holds(case: Case, isa: str, threads: int = 1) -> None:
    y, want = case.program(isa).run(threads=threads), case.of(case.x)
    assert y.shape == want.shape
    assert bool(((y.double() - want).abs() <= case.bound()).all()), case


@per_other_isa
@per_storage
@per_way
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_filter_is_within_its_roundings(isa, storage, up, size):
    for taps, before in FILTERS:
        holds(Case(up, taps, before, storage, 2, size), isa)


@per_other_isa
@per_storage
def test_a_pair_upward_is_the_nearest_neighbour(isa, storage):
    case = Case(True, storage=storage, channels=20)
    y = case.program(isa).run()
    assert torch.equal(y, F.interpolate(case.x, scale_factor=2, mode="nearest"))


@per_other_isa
@per_storage
def test_a_pair_downward_is_the_mean_of_four(isa, storage):
    case = Case(False, storage=storage, size=(6, 8), channels=20)
    x = integers(2, 20, 6, 8, seed=1)
    y = case.program(isa).run(x.permute(0, 2, 3, 1))
    assert torch.equal(y, F.avg_pool2d(x, 2))  # quarters of small integers: exact


@settings(max_examples=60)
@given(
    up=st.booleans(),
    chosen=st.sampled_from(FILTERS),
    storage=st.sampled_from([FLOAT32, BFLOAT16]),
    n=st.sampled_from([0, 1, 3]),
    size=st.tuples(st.integers(1, 11), st.integers(1, 11)),
    channels=st.sampled_from([1, 16, 48, 80]),
    isa=st.sampled_from(ISAS or [""]),
    threads=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_whatever_the_filter(up, chosen, storage, n, size, channels, isa, threads, seed):
    holds(Case(up, *chosen, storage, n, size, channels, seed), isa, threads)


@per_other_isa
@per_storage
@per_way
def test_bits_depend_neither_on_the_batch_nor_on_the_threads(isa, storage, up):
    for size in SIZES:
        same_bits(Case(up, FIR, 1 + up, storage, 5, size).program(isa))


@per_other_isa
@per_storage
@per_way
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_not_finite_stays_where_the_filter_takes_it(isa, storage, up, value):
    case = Case(up, FIR, 1, storage, 2, (6, 7), 20)
    op = case.program(isa)
    want = op.run()
    x = spoilt(case.x, (value,), seed=2)
    got = op.run(x.permute(0, 2, 3, 1))
    reached = case.of((~x.isfinite()).double(), absolute=True) > 0
    assert bool(reached.any())
    assert torch.equal(got.isfinite(), ~reached)
    assert torch.equal(got[~reached], want[~reached])


@pytest.mark.parametrize(
    "wrong",
    [{"x": 99}, {"y": -1}, {"taps": []}, {"before": -1}, {"y": "x"}, {"y": "wide"}],
    ids=str,
)
def test_what_cannot_be_is_refused(wrong):
    op = OneOp("", FLOAT32, x=normal(1, 16, 4, 4, seed=0))
    y, wide = op.buffer(16, 2, 2), op.buffer(32, 2, 2)
    good = {"name": "filter", "x": op.at["x"], "y": y, "taps": [0.5, 0.5], "up": False, "before": 0}
    places = {"x": op.at["x"], "wide": wide}
    bad = {k: places.get(v, v) if isinstance(v, str) else v for k, v in wrong.items()}
    with refused("resample", "filter"):
        op.program.resample(*(good | bad).values())
    op.program.resample(*good.values())
    assert op.answer(y, 16, 2, 2).run().any()
