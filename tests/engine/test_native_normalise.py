"""`Program.normalise` against float64, on every instruction set."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from one_op import (
    FLOAT32,
    ISAS,
    OneOp,
    apart,
    needs_native,
    normal,
    numbers,
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

EPS = 1e-6
SIZES = [(1, 1), (5, 7), (8, 8), (1, 17)]
# Channels of x and of more, groups; in the last three a group lies across the seam.
WIDTHS = [(16, 0, 1), (48, 0, 16), (20, 0, 5), (208, 0, 16), (112, 64, 11), (20, 16, 3), (3, 5, 1)]


@dataclass(frozen=True)
class Case:
    storage: int = FLOAT32
    n: int = 2
    size: tuple[int, int] = (5, 7)
    own: int = 48
    others: int = 0
    groups: int = 8
    rows: int = 1
    act: bool = True
    mean: float = -2.3
    deviation: float = 1.5
    eps: float = EPS
    seed: int = 0

    @cached_property
    def parts(self) -> dict[str, Tensor]:
        found = {"x": (self.n, self.own, *self.size), "more": (self.n, self.others, *self.size)}
        drawn = {
            name: self.deviation * normal(*shape, seed=self.seed + k) + self.mean
            for k, (name, shape) in enumerate(found.items())
            if shape[1]
        }
        return {name: stored(x, self.storage) for name, x in drawn.items()}

    @cached_property
    def gain(self) -> Tensor:
        return 1 + normal(self.rows, self.own + self.others, seed=self.seed + 2) / 2

    @cached_property
    def offset(self) -> Tensor:
        return normal(self.rows, self.own + self.others, seed=self.seed + 3)

    @property
    def numbers(self) -> Tensor | None:
        return numbers(self.n, self.rows)

    def program(self, isa: str) -> OneOp:
        op = OneOp(isa, self.storage, **self.parts)
        sides = [self.own, self.others] if self.others else [self.own]
        y = op.program.buffer(*self.size, sum(-(-s // 16) * 16 for s in sides), self.storage)
        gain, offset = (apart(v, 1, sides) for v in (self.gain, self.offset))
        op.program.normalise(
            "norm",
            op.at["x"],
            op.at.get("more", -1),
            y,
            gain.data_ptr(),
            offset.data_ptr(),
            self.rows,
            self.groups,
            self.own,
            self.others,
            self.eps,
            self.act,
        )
        return op.answer(y, gain.shape[1], *self.size)

    def _spread(self, v: Tensor) -> Tensor:
        """(n, groups) beside the channels."""
        return v.repeat_interleave((self.own + self.others) // self.groups, 1)[:, :, None, None]

    def _rows(self, v: Tensor) -> Tensor:
        rows = torch.zeros(self.n, dtype=torch.int64) if self.numbers is None else self.numbers
        return v.double()[rows.long()][:, :, None, None]

    def exact_and_bound(self) -> tuple[Tensor, Tensor]:
        """Over a group of m values a sum has m roundings at most, so its mean is wrong by
        m·u·mean|x|, and its variance, the difference of two means where it is worst computed, by
        (3m + 4)·u·mean x². The reciprocal root halves that relative error and adds 2 roundings; the
        affine part, also as x·a + b, 4 of its terms; SiLU, whose slope is below 1.1, 8 of its
        value; then the answer is stored."""
        x, u = torch.cat(list(self.parts.values()), 1).double(), UNIT[FLOAT32]
        grouped = x.unflatten(1, (self.groups, -1)).flatten(2)
        m, mean = grouped.shape[2], grouped.mean(2)
        var = (grouped - mean[..., None]).square().mean(2)
        rstd = (var + self.eps).rsqrt()
        off_mean = m * u * grouped.abs().mean(2)
        off_rstd = (3 * m + 4) * u * grouped.square().mean(2) / (2 * (var + self.eps)) + 2 * u
        gain, offset = self._rows(self.gain), self._rows(self.offset)
        xhat = (x - self._spread(mean)) * self._spread(rstd)
        z = xhat * gain + offset
        affine = (x.abs() + self._spread(mean).abs()) * self._spread(rstd) * gain.abs()
        off = gain.abs() * (self._spread(rstd * off_mean) + xhat.abs() * self._spread(off_rstd))
        off = off + 4 * u * (affine + offset.abs())
        if self.act:
            z, off = z * z.sigmoid(), 1.1 * off
            off = off + 8 * u * z.abs()
        return z, (off + UNIT[self.storage] * z.abs()) * 1.001  # and second orders

    def channels(self, y: Tensor) -> Tensor:
        """The true ones of an answer; the others are zero."""
        second = -(-self.own // 16) * 16
        rest = torch.ones(y.shape[1], dtype=torch.bool)
        rest[: self.own] = False
        rest[second : second + self.others] = False
        assert not y[:, rest].any()
        return y[:, ~rest]


def holds(case: Case, isa: str, threads: int = 1) -> None:
    y = case.channels(case.program(isa).run(rows=case.numbers, threads=threads))
    want, bound = case.exact_and_bound()
    assert y.shape == want.shape
    error = (y.double() - want).abs()
    assert bool((error <= bound).all()), f"{case}: {float((error / bound).max()):.3g} of the bound"


@per_other_isa
@per_storage
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("width", WIDTHS, ids=str)
def test_a_norm_is_within_its_roundings(isa, storage, size, width):
    own, others, groups = width
    for act, rows in [(True, 1), (False, 3)]:
        holds(Case(storage, 3, size, own, others, groups, rows, act), isa, threads=rows)


@per_other_isa
@pytest.mark.parametrize("spoil", ["mean", "first", "last"])
def test_neither_a_large_mean_nor_a_lone_value_drowns_the_deviation(isa, spoil):
    """Up to the second order that rounding leaves: the mean of m values is wrong by m·u·mean|x| at
    most, the deviations from it by as much, and their squares' mean by no more than m·u of itself
    and that error's square."""
    case = Case(size=(16, 16), own=64, groups=64, mean=300.0 if spoil == "mean" else 0.0, act=False)
    x = case.parts["x"]
    if spoil != "mean":
        place = 0 if spoil == "first" else -1
        x[:, :, place, place] = 1000.0
    y = case.program(isa).run()
    wide, m, u = x.double().flatten(2), 16 * 16, UNIT[FLOAT32]
    mean, var = wide.mean(2, keepdim=True), wide.var(2, correction=0, keepdim=True)
    xhat = (wide - mean) * (var + EPS).rsqrt()
    off_mean = m * u * wide.abs().mean(2, keepdim=True)
    off = off_mean * (var + EPS).rsqrt() + xhat.abs() * (m * u + off_mean.square() / var)
    gain, offset = (v.double()[0][:, None] for v in (case.gain, case.offset))
    terms = (wide.abs() + mean.abs()) * (var + EPS).rsqrt() * gain.abs() + offset.abs()
    error = (y.double().flatten(2) - xhat * gain - offset).abs()
    assert bool((error <= off * gain.abs() + 4 * u * terms).all())


@per_other_isa
@per_storage
def test_eps_is_added_to_the_variance(isa, storage):
    """Where it is as large: elsewhere its share is less than what rounding may change."""
    holds(Case(storage, own=64, groups=4, mean=0.1, deviation=0.5, eps=0.3), isa)


@per_other_isa
@per_storage
def test_a_constant_group_comes_out_as_its_offset(isa, storage):
    """Its variance is 0 up to roundings, and must not become a negative number's root."""
    for mean in (0.5, -2.3, 1000.0):
        holds(Case(storage, own=32, groups=4, mean=mean, deviation=0.0), isa)


@settings(max_examples=60)
@given(
    width=st.sampled_from(WIDTHS),
    size=st.tuples(st.integers(1, 11), st.integers(2, 11)),
    n=st.sampled_from([0, 1, 3]),
    rows=st.sampled_from([1, 2]),
    act=st.booleans(),
    storage=st.sampled_from([FLOAT32, 2]),
    isa=st.sampled_from(ISAS or [""]),
    threads=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_whatever_the_norm(width, size, n, rows, act, storage, isa, threads, seed):
    own, others, groups = width
    holds(Case(storage, n, size, own, others, groups, rows, act, seed=seed), isa, threads)


@per_other_isa
@per_storage
def test_bits_depend_neither_on_the_batch_nor_on_the_threads(isa, storage):
    for size in SIZES:
        case = Case(storage, 5, size, 112, 64, 11, rows=3)
        same_bits(case.program(isa), case.numbers)


@per_other_isa
@per_storage
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_spoils_its_group_and_no_other(isa, storage, value):
    case = Case(storage, 2, (6, 5), 48, groups=6)
    op = case.program(isa)
    want = op.run()
    x = spoilt(case.parts["x"], (value,), seed=3)
    got = op.run(x.permute(0, 2, 3, 1))
    group = (~x.isfinite()).unflatten(1, (6, 8)).any(4).any(3).any(2).repeat_interleave(8, 1)
    assert bool(group.any())
    assert torch.equal(got.isfinite(), ~group[:, :, None, None].expand_as(got))
    assert torch.equal(got[~group], want[~group])


WRONG = {
    "x": 99,
    "y": -1,
    "gain": 0,
    "offset": 0,
    "rows": 0,
    "groups": 5,
    "own": 17,
    "others": 16,
    "eps": -1.0,
    "more": "small",
}


@pytest.mark.parametrize("wrong", [*WRONG, "no groups", "a small answer", "onto itself"])
def test_what_cannot_be_is_refused(wrong):
    op = OneOp("", FLOAT32, x=normal(1, 16, 4, 4, seed=0))
    y, small, free = op.buffer(16, 4, 4), op.buffer(16, 2, 2), op.buffer(16, 2, 2)
    zeros = torch.zeros(16 * 16)
    op.convolve(small, zeros, torch.zeros(1, 16), x=op.at["x"], kernel=1, stride=2)
    good = {
        "name": "norm",
        "x": op.at["x"],
        "more": -1,
        "y": y,
        "gain": zeros.data_ptr(),
        "offset": zeros.data_ptr(),
        "rows": 1,
        "groups": 4,
        "own": 16,
        "others": 0,
        "eps": EPS,
        "act": True,
    }
    value = WRONG.get(wrong, 0)
    bad = {
        "no groups": {"groups": 0},
        "a small answer": {"y": free},
        "onto itself": {"y": op.at["x"], "rows": 2},
    }.get(wrong, {wrong: small if value == "small" else value})
    with refused("normalise", "norm"):
        op.program.normalise(*(good | bad).values())
    op.program.normalise(*good.values())
    assert not op.answer(y, 16, 4, 4).run().any()
    out = torch.empty(16 * 16)
    steps = op.program.profile(zeros.data_ptr(), 0, out.data_ptr(), 1)
    assert [name for name, _ in steps] == ["input", "layer", "norm moments", "norm", "output"]
