"""`Program.attend` against float64, on every instruction set."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from one_op import (
    BFLOAT16,
    FLOAT32,
    ISAS,
    OneOp,
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

SIZES = [(1, 1), (2, 3), (5, 7), (8, 8), (9, 9), (1, 17)]
HEADS = [(1, 16), (1, 64), (3, 16), (2, 80), (1, 208)]  # heads, channels of each


@dataclass(frozen=True)
class Case:
    """q, k and v in one buffer, as a layer gives them, or each in its own."""

    storage: int = FLOAT32
    n: int = 2
    size: tuple[int, int] = (5, 7)
    heads: int = 2
    width: int = 16
    scale: float = 0.25
    together: bool = True
    seed: int = 0

    @property
    def channels(self) -> int:
        return self.heads * self.width

    @cached_property
    def qkv(self) -> Tensor:
        x = normal(self.n, 3 * self.channels, *self.size, seed=self.seed)
        return stored(x, self.storage)

    def program(self, isa: str) -> OneOp:
        if self.together:
            op = OneOp(isa, self.storage, qkv=self.qkv)
            places = [(op.at["qkv"], k * self.channels) for k in range(3)]
        else:
            q, k, v = self.qkv.chunk(3, 1)
            op = OneOp(isa, self.storage, q=q, k=k, v=v)
            places = [(op.at[name], 0) for name in "qkv"]
        y = op.buffer(self.channels, *self.size)
        flat = [number for place in places for number in place]
        op.program.attend("attention", *flat, y, self.heads, self.width, self.scale)
        return op.answer(y, self.channels, *self.size)

    def _heads(self) -> list[Tensor]:
        """(n, heads, pixels, width) each, in float64."""
        apart = self.qkv.double().flatten(2).unflatten(1, (3, self.heads, self.width))
        return [part.mT for part in apart.unbind(1)]

    def exact_and_bound(self) -> tuple[Tensor, Tensor]:
        """A score has width + 1 roundings of its terms. e^score then is wrong by that, and by 4
        roundings of its own (2 ulp, the scale, the difference to the largest); so is the sum it is
        divided by, with one more a key; so is each term of the answer twice that, and one more a
        key. bfloat16 rounds the weights of the values, too; then the answer is stored."""
        q, k, v = self._heads()
        u, keys = UNIT[FLOAT32], q.shape[2]
        scores = (q @ k.mT) * self.scale
        off = (self.width + 1) * u * (q.abs() @ k.abs().mT) * abs(self.scale) + 4 * u * scores.abs()
        weights = scores.softmax(-1)
        each = off.amax(-1, keepdim=True) + (4 + keys) * u
        y = weights @ v
        coarse = UNIT[BFLOAT16] if self.storage == BFLOAT16 else 0.0
        bound = (2 * each + keys * u + coarse) * (weights @ v.abs())
        return self._image(y), self._image((bound + UNIT[self.storage] * y.abs()) * 1.01)

    def _image(self, y: Tensor) -> Tensor:
        return y.mT.reshape(self.n, self.channels, *self.size)


def holds(case: Case, isa: str, threads: int = 1) -> None:
    y, (want, bound) = case.program(isa).run(threads=threads), case.exact_and_bound()
    assert y.shape == want.shape
    error = (y.double() - want).abs()
    assert bool((error <= bound).all()), f"{case}: {float((error / bound).max()):.3g} of the bound"


@per_other_isa
@per_storage
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_attention_is_within_its_roundings(isa, storage, size, heads):
    scale = heads[1] ** -0.5
    holds(Case(storage, 2, size, *heads, scale), isa)
    holds(Case(storage, 1, size, *heads, scale, together=False), isa, threads=2)


@per_other_isa
@per_storage
def test_a_clear_choice_is_a_copy(isa, storage):
    """Scores so far apart that all but one weight vanish; e^x must not overflow on the way."""
    case = Case(storage, 1, (3, 5), 1, 16, scale=40.0)
    places = torch.eye(16)[:15].T.reshape(1, 16, 3, 5)  # every pixel likes itself
    v = case.qkv[:1, 32:]
    op = case.program(isa)
    y = op.run(torch.cat([10 * places, 10 * places, v], 1).permute(0, 2, 3, 1))
    assert torch.equal(y, v)


@per_other_isa
@per_storage
def test_equal_scores_give_the_mean(isa, storage):
    case = Case(storage, 1, (4, 4), 2, 16, scale=1.0)
    op = case.program(isa)
    v = torch.full((1, 32, 4, 4), 0.75)
    y = op.run(torch.cat([torch.zeros(1, 64, 4, 4), v], 1).permute(0, 2, 3, 1))
    assert torch.equal(y, v)  # sixteen weights of a sixteenth


@settings(max_examples=60)
@given(
    heads=st.sampled_from(HEADS),
    size=st.tuples(st.integers(1, 11), st.integers(1, 11)),
    n=st.sampled_from([0, 1, 3]),
    storage=st.sampled_from([FLOAT32, BFLOAT16]),
    scale=st.sampled_from([0.0, 0.1, 2.0]),
    together=st.booleans(),
    isa=st.sampled_from(ISAS or [""]),
    threads=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_whatever_the_attention(heads, size, n, storage, scale, together, isa, threads, seed):
    holds(Case(storage, n, size, *heads, scale, together, seed), isa, threads)


@per_other_isa
@per_storage
def test_bits_depend_neither_on_the_batch_nor_on_the_threads(isa, storage):
    for size in SIZES:
        same_bits(Case(storage, 5, size, 3, 16).program(isa))


@per_other_isa
@per_storage
@pytest.mark.parametrize("part", "qkv")
def test_nan_comes_out_where_torch_has_it(isa, storage, part):
    case = Case(storage, 2, (3, 4), 2, 16)
    op = case.program(isa)
    want = op.run()
    parts = dict(zip("qkv", case.qkv.chunk(3, 1), strict=True))
    parts[part] = spoilt(parts[part], (math.nan,), seed=4)
    got = op.run(torch.cat(list(parts.values()), 1).permute(0, 2, 3, 1))
    q, k, v = (x.flatten(2).unflatten(1, (2, 16)).mT for x in parts.values())
    torchs = case._image(((q @ k.mT * case.scale).softmax(-1) @ v).contiguous())
    assert bool(torchs.isnan().any())
    assert torch.equal(got.isnan(), torchs.isnan())
    assert torch.equal(got[~got.isnan()], want[~got.isnan()])


@pytest.mark.parametrize(
    "wrong",
    [
        {"q": 99},
        {"v": -1},
        {"q_at": -16},
        {"k_at": 8},
        {"v_at": 80},  # its last head would lie behind the end
        {"heads": 0},
        {"width": 24},
        {"width": 0},
        {"heads": 3},
        {"scale": -0.25},  # the largest score would be the smallest, and its exponential infinite
        {"scale": math.nan},
        {"k": "small"},
        {"y": "small"},
        {"y": "qkv"},
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(wrong):
    op = OneOp("", FLOAT32, qkv=normal(1, 96, 4, 4, seed=0))
    x, y, small = op.at["qkv"], op.buffer(32, 4, 4), op.buffer(96, 2, 2)
    op.convolve(small, torch.zeros(96, 96), torch.zeros(1, 96), x=x, kernel=1, stride=2)
    places = {"q": x, "q_at": 0, "k": x, "k_at": 32, "v": x, "v_at": 64, "y": y}
    good = {"name": "attention"} | places | {"heads": 2, "width": 16, "scale": 0.25}
    bad = {k: {"small": small, "qkv": x}.get(v, v) for k, v in wrong.items()}
    with refused("attend", "attention"):
        op.program.attend(*(good | bad).values())
    op.program.attend(*good.values())
    assert op.answer(y, 32, 4, 4).run().isfinite().all()
