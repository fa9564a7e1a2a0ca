"""`Program.combine` against float64, on every instruction set."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from one_op import (
    BFLOAT16,
    FLOAT32,
    ISAS,
    OneOp,
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

SIZES = [(1, 1), (5, 7), (8, 8), (1, 17)]


def factors(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    a, b = normal(2, rows, seed=seed).unbind()
    return a.contiguous(), b.contiguous()


def program(
    isa: str, storage: int, x: Tensor, more: Tensor | None, a: Tensor, b: Tensor | None
) -> OneOp:
    parts = {"x": x} if more is None else {"x": x, "more": more}
    op = OneOp(isa, storage, **parts)
    _, c, h, w = x.shape
    y = op.buffer(c, h, w)
    op.program.combine(
        "sum",
        op.at["x"],
        op.at.get("more", -1),
        y,
        a.data_ptr(),
        0 if b is None else b.data_ptr(),
        len(a),
    )
    return op.answer(y, c, h, w)


def drawn(n: int, channels: int, size: tuple[int, int], storage: int, seed: int = 0) -> Tensor:
    return stored(normal(n, channels, *size, seed=seed), storage)


def of_row(v: Tensor, rows: Tensor | None, n: int) -> Tensor:
    chosen = torch.zeros(n, dtype=torch.int64) if rows is None else rows.long()
    return v[chosen][:, None, None, None]


def holds(
    isa: str, storage: int, n: int, channels: int, size: tuple[int, int], rows: int, threads: int
) -> None:
    """A product and a sum a term, and the answer is stored."""
    x, more = (drawn(n, channels, size, storage, seed) for seed in (0, 1))
    (a, b), chosen = factors(rows, 2), numbers(n, rows)
    y = program(isa, storage, x, more, a, b).run(rows=chosen, threads=threads)
    ax, bm = (of_row(f, chosen, n).double() * v.double() for f, v in ((a, x), (b, more)))
    bound = 2 * UNIT[FLOAT32] * (ax.abs() + bm.abs()) + UNIT[storage] * (ax + bm).abs()
    assert y.shape == x.shape
    assert bool(((y.double() - (ax + bm)).abs() <= bound * 1.01).all())


@per_other_isa
@per_storage
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("rows", [1, 3])
def test_a_sum_is_within_its_roundings(isa, storage, size, rows):
    for channels in (3, 16, 48, 208):
        holds(isa, storage, 4, channels, size, rows, threads=rows)


@per_other_isa
@per_storage
def test_without_a_second_input_it_is_a_product(isa, storage):
    x = drawn(3, 20, (5, 7), storage)
    (a, _), chosen = factors(3, 1), numbers(3, 3)
    y = program(isa, storage, x, None, a, None).run(rows=chosen)
    assert torch.equal(y, stored(of_row(a, chosen, 3) * x, storage))


@per_other_isa
@per_storage
def test_what_a_factor_of_zero_meets_still_counts(isa, storage):
    """0·∞ is NaN here as in torch."""
    x, more = (drawn(2, 16, (3, 4), storage, seed) for seed in (0, 1))
    a, b = torch.zeros(1), torch.ones(1)
    op = program(isa, storage, x, None, a, None)
    got = op.run(spoilt(x, (math.inf, math.nan), seed=1).permute(0, 2, 3, 1))
    assert int(got.isnan().sum()) == 2
    assert not got.nan_to_num(0.0).any()
    assert torch.equal(program(isa, storage, x, more, a, b).run(), more)


@given(
    storage=st.sampled_from([FLOAT32, BFLOAT16]),
    n=st.sampled_from([0, 1, 3]),
    channels=st.sampled_from([1, 16, 48, 80]),
    size=st.tuples(st.integers(1, 11), st.integers(1, 11)),
    rows=st.integers(1, 3),
    isa=st.sampled_from(ISAS or [""]),
    threads=st.integers(1, 3),
)
def test_whatever_the_sum(storage, n, channels, size, rows, isa, threads):
    holds(isa, storage, n, channels, size, rows, threads)


@per_other_isa
@per_storage
def test_bits_depend_neither_on_the_batch_nor_on_the_threads(isa, storage):
    for size in SIZES:
        x, more = (drawn(5, 48, size, storage, seed) for seed in (0, 1))
        same_bits(program(isa, storage, x, more, *factors(3, 2)), numbers(5, 3))


@pytest.mark.parametrize(
    "wrong",
    [{"x": 99}, {"y": -1}, {"a": 0}, {"rows": 0}, {"more": "small"}, {"y": "free"}, {"y": "x"}],
    ids=str,
)
def test_what_cannot_be_is_refused(wrong):
    op = OneOp("", FLOAT32, x=normal(1, 16, 4, 4, seed=0))
    x, y, small, free = op.at["x"], op.buffer(16, 4, 4), op.buffer(16, 2, 2), op.buffer(16, 2, 2)
    op.convolve(small, torch.zeros(16, 16), torch.zeros(1, 16), x=x, kernel=1, stride=2)
    a, b = torch.ones(1), torch.ones(1)
    good = {"name": "sum", "x": x, "more": -1, "y": y, "a": a.data_ptr(), "b": b.data_ptr()}
    good["rows"] = 1
    places = {"small": small, "free": free, "x": x}
    bad = {k: places.get(v, v) for k, v in wrong.items()}
    with refused("combine", "sum"):
        op.program.combine(*(good | bad).values())
    op.program.combine(*good.values())
    assert op.answer(y, 16, 4, 4).run().any()


def test_a_second_input_without_its_factor_is_refused():
    op = OneOp("", FLOAT32, x=normal(1, 16, 4, 4, seed=0))
    a, y = torch.ones(1), op.buffer(16, 4, 4)
    with refused("combine"):
        op.program.combine("sum", op.at["x"], op.at["x"], y, a.data_ptr(), 0, 1)
