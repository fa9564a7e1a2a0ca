"""`Program.convolve` against torch in float64, in every form and on every instruction set."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from one_op import (
    BFLOAT16,
    FLOAT32,
    INT8,
    ISAS,
    OneOp,
    apart,
    integers,
    needs_native,
    normal,
    numbers,
    padded,
    per_isa,
    refused,
    same_bits,
    spoilt,
    stored,
)
from roundings import TRANSFORMS, UNIT, filtered, filtered_moved, moved, rms, transformed, variance
from torch import Tensor

pytestmark = needs_native

PRECISIONS = {  # what buffers hold, what is multiplied
    "fp32": (FLOAT32, FLOAT32),
    "bf16": (BFLOAT16, BFLOAT16),
    "fp32-bf16": (FLOAT32, BFLOAT16),
    "fp32-int8": (FLOAT32, INT8),
    "bf16-int8": (BFLOAT16, INT8),
}
ROUNDED = [name for name, (_, product) in PRECISIONS.items() if product == INT8]
FORMS = ("direct", "winograd2", "winograd4", "up_direct", "up_winograd")
EXACT = ("direct", "winograd2", "up_direct", "up_winograd")  # in small integers
SERVED = [
    (form, precision)
    for form in FORMS
    for precision in PRECISIONS
    if (precision != "fp32-bf16" or form in TRANSFORMS)
    and (form != "winograd4" or precision not in ROUNDED)
]
SIZES = [(1, 1), (5, 7), (8, 8), (13, 6), (1, 17)]
CHANNELS = [(16, 16), (48, 80), (3, 20), (112, 144), (208, 64)]  # of x, of y
per_form = pytest.mark.parametrize(("form", "precision"), SERVED)


@dataclass(frozen=True)
class Case:
    """A layer and what it is given. `whole`: of small integers, for which float32 is exact."""

    form: str = "direct"
    precision: str = "fp32"
    n: int = 2
    size: tuple[int, int] = (5, 7)
    channels: int = 48
    out: int = 80
    more: int = 0  # channels of the second input
    residual: bool = False
    rows: int = 1
    scale: float = 1.0
    kernel: int = 3
    stride: int = 1
    before: int = 1
    whole: bool = False
    seed: int = 0

    @property
    def up(self) -> bool:
        return self.form.startswith("up")

    @property
    def answers(self) -> tuple[int, int]:
        h, w = (2 * s if self.up else -(-s // self.stride) for s in self.size)
        return h, w

    def _drawn(self, *shape: int, seed: int) -> Tensor:
        drawn = integers if self.whole else normal
        return drawn(*shape, seed=self.seed + seed)

    @cached_property
    def parts(self) -> dict[str, Tensor]:
        found = {"x": self._drawn(self.n, self.channels, *self.size, seed=1)}
        if self.more:
            found["more"] = self._drawn(self.n, self.more, *self.size, seed=2)
        if self.residual:
            found["residual"] = self._drawn(self.n, self.out, *self.answers, seed=3)
        storage, _ = PRECISIONS[self.precision]
        return {name: stored(x, storage) for name, x in found.items()}

    @cached_property
    def weight(self) -> Tensor:
        """That bfloat16 holds, so that packing rounds none; multiples of four among the integers,
        whose transforms by quarters are integers again."""
        drawn = self._drawn(self.out, self.channels + self.more, self.kernel, self.kernel, seed=4)
        return 4 * drawn if self.whole else stored(drawn / 8, BFLOAT16)

    @cached_property
    def bias(self) -> Tensor:
        return self._drawn(self.rows, self.out, seed=5)

    @property
    def rounds(self) -> bool:
        """To integers, before they are multiplied."""
        return self.precision in ROUNDED

    @property
    def numbers(self) -> Tensor | None:
        return numbers(self.n, self.rows)

    def program(self, isa: str) -> OneOp:
        storage, product = PRECISIONS[self.precision]
        op = OneOp(isa, storage, **self.parts)
        y = op.buffer(self.out, *self.answers)
        sides = [self.channels, self.more] if self.more else [self.channels]
        op.convolve(
            y,
            apart(apart(self.weight, 1, sides), 0, [self.out]),
            apart(self.bias, 1, [self.out]),
            x=op.at["x"],
            more=op.at.get("more", -1),
            residual=op.at.get("residual", -1),
            kernel=self.kernel,
            stride=self.stride,
            before=self.before,
            form=self.form,
            product=product,
            scale=self.scale,
        )
        return op.answer(y, self.out, *self.answers)

    def added(self) -> Tensor:
        """Bias and residual, in float64."""
        rows = torch.zeros(self.n, dtype=torch.int64) if self.numbers is None else self.numbers
        bias = self.bias.double()[rows.long()][:, :, None, None]
        return bias + self.parts["residual"].double() if self.residual else bias

    def input(self) -> Tensor:
        """All channels, in float64."""
        return torch.cat([self.parts[p] for p in ("x", "more") if p in self.parts], 1).double()

    def exact(self) -> Tensor:
        x = self.input()
        x = x.repeat_interleave(2, 2).repeat_interleave(2, 3) if self.up else x
        y = filtered(x, self.weight.double(), self.stride, self.before, self.answers)
        return (y + self.added()) * self.scale

    def terms(self) -> Tensor:
        """The sizes of the terms that a value of the answer is the sum of, added up."""
        x, weight = self.input().abs(), self.weight.double().abs()
        if self.form in TRANSFORMS:
            y = transformed(x, weight, TRANSFORMS[self.form].absolute())
        else:
            x = x.repeat_interleave(2, 2).repeat_interleave(2, 3) if self.up else x
            y = filtered(x, weight, self.stride, self.before, self.answers)
        return (y + self.added().abs()) * self.scale

    def bound(self) -> Tensor:
        """Roundings on the way of a term: a product and a sum a channel and tap (a product a
        channel of a Winograd domain, and the transforms), then bias, residual, scale and storing
        the answer. bfloat16 products round both factors after Winograd's transforms; without them
        both are given in bfloat16, but for weights that `up_direct` may have added up (three sums).
        """
        storage, product = PRECISIONS[self.precision]
        channels = self.channels + self.more
        if self.form in TRANSFORMS:
            roundings, coarse = channels + TRANSFORMS[self.form].depth, 2
        else:
            roundings = channels * self.kernel**2 + (3 if self.up else 0)
            coarse = 1 if self.up else 0
        u = (roundings + 5) * UNIT[FLOAT32] + coarse * (UNIT[product] if product == BFLOAT16 else 0)
        moved = self.moved()
        rounded = UNIT[storage] * (self.exact().abs() + moved)
        return (u * self.terms() + rounded + moved) * (1 + u)

    def moved(self) -> Tensor:
        """By int8 factors; each input has scales of its own. Of weights that `up_direct` has added
        up, the sum of their scales is the larger one."""
        if not self.rounds:
            return torch.zeros((), dtype=torch.float64)
        x, weight = self.input(), self.weight.double()
        if self.form in TRANSFORMS:
            return moved(x, weight, TRANSFORMS[self.form]) * self.scale
        x = x.repeat_interleave(2, 2).repeat_interleave(2, 3) if self.up else x
        window = (self.stride, self.before, self.answers)
        own, others = (v.split([self.channels, self.more], 1) for v in (x, weight))
        pairs = [(a, b) for a, b in zip(own, others, strict=True) if a.shape[1]]
        return sum(filtered_moved(a, b, *window) for a, b in pairs) * self.scale  # type: ignore[return-value]


def agrees(case: Case, y: Tensor) -> None:
    want, bound = case.exact(), case.bound()
    assert y.shape == want.shape
    error = (y.double() - want).abs()
    assert bool((error <= bound).all()), f"{case}: {float((error / bound).max()):.3g} of the bound"
    if case.whole and case.form in EXACT and not case.rounds:
        storage, _ = PRECISIONS[case.precision]
        assert torch.equal(y, stored(want.float(), storage)), case


def holds(case: Case, isa: str, threads: int = 1) -> None:
    agrees(case, case.program(isa).run(rows=case.numbers, threads=threads))


# ---- values ---------------------------------------------------------------------------------


@pytest.mark.parametrize("form", TRANSFORMS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_transforms_that_bound_the_error_are_those_of_a_convolution(form, size):
    case = Case(form, size=size, channels=4, out=4, scale=1.0)
    y = transformed(case.input(), case.weight.double(), TRANSFORMS[form]) + case.added()
    torch.testing.assert_close(y, case.exact(), rtol=1e-12, atol=1e-12)


@per_isa
@per_form
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_layer_is_within_its_roundings(isa, form, precision, size):
    holds(Case(form, precision, size=size), isa)


@per_isa
@per_form
@pytest.mark.parametrize("channels", CHANNELS, ids=str)
def test_a_layer_of_any_width_is_within_its_roundings(isa, form, precision, channels):
    holds(Case(form, precision, channels=channels[0], out=channels[1], size=(6, 5)), isa, 2)


@per_isa
@pytest.mark.parametrize(
    ("form", "precision"), [s for s in SERVED if s[0] in EXACT and s[1] not in ROUNDED]
)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_small_integers_come_out_exactly(isa, form, precision, size):
    """Every product and sum of theirs is a number that float32 holds, and what is multiplied one
    that bfloat16 holds: one term that is missing or in the wrong place is seen. Not F(4×4), whose
    transforms have thirds and fifths in them."""
    for channels, out in CHANNELS:
        holds(Case(form, precision, size=size, channels=channels, out=out, whole=True), isa)


@per_isa
@per_form
def test_everything_that_is_added_is_added(isa, form, precision):
    for residual, rows, scale in [(True, 1, 1.0), (False, 3, 0.5), (True, 3, 0.5**0.5)]:
        case = Case(form, precision, 3, residual=residual, rows=rows, scale=scale)
        holds(case, isa)
        holds(replace(case, whole=True, scale=min(scale, 0.5)), isa, 2)


@per_isa
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp32-int8"])
@pytest.mark.parametrize("kernel", [1, 3, 4, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("before", [0, 1, 2])
def test_direct_takes_any_window(isa, precision, kernel, stride, before):
    for size in SIZES:
        case = Case(
            "direct", precision, 2, size, 32, 48, kernel=kernel, stride=stride, before=before
        )
        holds(case, isa)
        holds(replace(case, whole=True), isa)


@per_isa
@pytest.mark.parametrize("precision", ["fp32", "bf16", "bf16-int8"])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("sides", [(16, 16), (48, 80), (20, 3), (112, 96)], ids=str)
def test_a_second_input_stands_behind_the_first(isa, precision, kernel, sides):
    case = Case("direct", precision, 2, (5, 7), sides[0], 48, sides[1], kernel=kernel)
    case = replace(case, before=kernel // 2, residual=True)
    holds(case, isa)
    holds(replace(case, whole=True), isa)


@per_isa
@pytest.mark.parametrize("form", TRANSFORMS)
def test_the_error_of_bfloat16_products_is_that_of_its_roundings(isa, form):
    """A rounding's relative error has a variance of at most u²/3, and those of the two factors of
    every product are independent: Σ (2u²/3)·term² bounds the mean square error. The float32 part
    is not random, but three orders smaller."""
    case = Case(form, "fp32-bf16", 2, (13, 10), 112, 48)
    assert case.exact().numel() > 10_000  # enough for a mean
    x, weight = case.input(), case.weight.double()
    squares = transformed(x, weight, TRANSFORMS[form], power=2)
    y = case.program(isa).run()
    limit = UNIT[BFLOAT16] * float((2 / 3 * squares).mean().sqrt())
    assert rms(y.double() - case.exact()) <= limit + rms(replace(case, precision="fp32").bound())


@per_isa
@pytest.mark.parametrize("form", ["winograd2", "up_winograd"])
def test_the_error_of_int8_products_is_that_of_their_roundings(isa, form):
    """As above. Larger by a tenth at most, because what is rounded is not quite random: a map's
    largest value meets an integer exactly, and zeros do."""
    case = Case(form, "fp32-int8", 2, (13, 10), 112, 48)
    expected = float(variance(case.input(), case.weight.double(), TRANSFORMS[form]).mean().sqrt())
    found = rms(case.program(isa).run().double() - case.exact())
    assert 0.8 * expected < found < 1.1 * expected


@per_isa
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("more", [0, 35])
def test_integers_that_int8_holds_come_out_exactly(isa, kernel, more):
    """With a 127 in every row and column all scales are 1."""
    case = Case("direct", "fp32-int8", 2, (5, 7), 48, 80, more, kernel=kernel, before=kernel // 2)
    case = replace(case, whole=True)
    for part in case.parts.values():
        part[:, 5] = 127
    case.weight.div_(4)
    for first in (3, case.channels + 3)[: 1 + bool(more)]:
        case.weight[:, first] = -127
    assert torch.equal(case.program(isa).run(), case.exact().float())


@per_isa
@pytest.mark.parametrize("form", ["direct", "winograd2"])
def test_rows_of_zeros_and_of_tiny_numbers_are_zero_in_int8(isa, form):
    case = Case(form, "fp32-int8", 1, (4, 4), 32, 32)
    case.bias.zero_()
    for size in (0.0, 2.0**-110, 1e-40):
        case.parts["x"].fill_(size)
        assert not case.program(isa).run().any()
    case.parts["x"].fill_(2.0**-90)
    assert bool(case.program(isa).run().all())


def cases() -> st.SearchStrategy[Case]:
    def whole(chosen: tuple[str, str], kernel: int, stride: int, before: int, more: int, **rest):
        form, precision = chosen
        free = form == "direct"
        window = (kernel, stride, before) if free else (3, 1, 1)
        names = dict(zip(("kernel", "stride", "before"), window, strict=True))
        return Case(form, precision, more=more if free else 0, whole=form in EXACT, **names, **rest)

    side = st.integers(1, 11)
    return st.builds(
        whole,
        chosen=st.sampled_from(SERVED),
        kernel=st.integers(1, 5),
        stride=st.integers(1, 2),
        before=st.integers(0, 2),
        more=st.sampled_from([0, 0, 16, 35]),
        n=st.sampled_from([0, 1, 3]),
        size=st.tuples(side, side),
        channels=st.sampled_from([1, 16, 33, 64, 80]),
        out=st.sampled_from([3, 16, 48, 80, 144]),
        residual=st.booleans(),
        rows=st.sampled_from([1, 2]),
        scale=st.sampled_from([1.0, 0.5]),
        seed=st.integers(0, 1000),
    )


@settings(max_examples=80)
@given(case=cases(), isa=st.sampled_from(ISAS or [""]), threads=st.integers(1, 3))
def test_whatever_the_layer(case, isa, threads):
    holds(case, isa, threads)


# ---- bits -----------------------------------------------------------------------------------


@per_isa
@per_form
@pytest.mark.parametrize("size", [(1, 1), (5, 7), (16, 16)], ids=str)
def test_bits_depend_neither_on_the_batch_nor_on_the_threads(isa, form, precision, size):
    case = Case(form, precision, 5, size, 48, 80, residual=True, rows=3)
    same_bits(case.program(isa), case.numbers)


@per_isa
@pytest.mark.parametrize("channels", CHANNELS, ids=str)
@pytest.mark.parametrize(("form", "size"), [("winograd2", (3, 4)), ("winograd4", (5, 7))])
def test_few_tiles_come_out_as_many_do(isa, form, size, channels):
    """Points of weights are made of taps for 4 tiles, an image's, and packed for 20."""
    case = Case(form, "fp32", 5, size, *channels, residual=True)
    same_bits(case.program(isa))


@per_isa
@pytest.mark.parametrize(("form", "precision"), [s for s in SERVED if s[0] in TRANSFORMS])
def test_taps_are_kept_where_they_are_fewer_and_an_image_has_few_tiles(isa, form, precision):
    small, large = (
        Case(form, precision, 1, size).program(isa).program.packed for size in [(3, 4), (16, 16)]
    )
    kept = form != "up_winograd" and precision == "fp32"
    assert small - large == kept * 9 * 4 * 48 * 80


@per_isa
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp32-int8"])
def test_bits_of_any_window_depend_neither_on_the_batch_nor_on_the_threads(isa, precision):
    for kernel, stride in [(1, 1), (1, 2), (3, 2), (4, 2)]:
        case = Case("direct", precision, 5, (9, 7), 32, 48, 16, kernel=kernel, stride=stride)
        same_bits(replace(case, before=kernel // 2).program(isa))


# ---- NaN and infinity -----------------------------------------------------------------------


def kinds(y: Tensor) -> Tensor:
    return y.isnan().int() + 2 * y.isposinf().int() + 4 * y.isneginf().int()


@per_isa
@pytest.mark.parametrize("form", ["direct", "up_direct"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("values", [(math.nan,), (math.inf,), (math.inf, -math.inf)], ids=str)
def test_direct_has_nan_and_infinity_where_torch_has_them(isa, form, precision, values):
    storage, _ = PRECISIONS[precision]
    clean = Case(form, precision, 2, (6, 7), 20, 24)
    x = spoilt(clean.parts["x"], values, seed=5)
    op = clean.program(isa)
    want, got = op.run(), op.run(x.permute(0, 2, 3, 1))
    twice = x.repeat_interleave(2, 2).repeat_interleave(2, 3) if clean.up else x
    torchs = F.conv2d(stored(twice, storage), clean.weight, padding=1)
    assert bool(kinds(torchs).any())
    if clean.up:  # it may add weights up first: then ∞ is not taken from itself
        assert torch.equal(got.isfinite(), torchs.isfinite())
    else:
        assert torch.equal(kinds(got), kinds(torchs))
    assert torch.equal(got[kinds(got) == 0], want[kinds(got) == 0])


@per_isa
@pytest.mark.parametrize("form", ["direct", "up_direct"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_int8_spoils_all_that_sees_a_pixel_which_is_no_number(isa, form, value):
    clean = Case(form, "fp32-int8", 2, (6, 7), 20, 24)
    x = spoilt(clean.parts["x"], (value,), seed=5)
    op = clean.program(isa)
    want, got = op.run(), op.run(x.permute(0, 2, 3, 1))
    twice = x.repeat_interleave(2, 2).repeat_interleave(2, 3) if clean.up else x
    torchs = F.conv2d(twice, clean.weight, padding=1)
    assert torch.equal(got.isnan(), ~torchs.isfinite())
    assert torch.equal(got[got.isfinite()], want[got.isfinite()])


@per_isa
@pytest.mark.parametrize(("form", "precision"), [s for s in SERVED if s[0] in TRANSFORMS])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_winograd_spoils_no_more_than_the_tiles_that_see_it(isa, form, precision, value):
    """Those values are not finite which torch has not finite, and at most their tiles' others."""
    clean = Case(form, precision, 2, (9, 11), 20, 24)
    x = spoilt(clean.parts["x"], (value,), seed=5)
    op = clean.program(isa)
    want, got = op.run(), op.run(x.permute(0, 2, 3, 1))
    twice = x.repeat_interleave(2, 2).repeat_interleave(2, 3) if clean.up else x
    torchs = F.conv2d(twice, clean.weight, padding=1)
    assert not bool(got[~torchs.isfinite()].isfinite().any())
    side = len(TRANSFORMS[form].answer)
    seen = (~torchs.isfinite()).any(1, keepdim=True).float()
    spread = F.max_pool2d(seen, side, side, ceil_mode=True).repeat_interleave(side, 2)
    tiles = spread.repeat_interleave(side, 3)[:, :, : got.shape[2], : got.shape[3]] > 0
    assert torch.equal(got.masked_fill(tiles, 0), want.masked_fill(tiles, 0))


# ---- what is wrong --------------------------------------------------------------------------


WRONG = {
    "no such buffer": {"x": 99},
    "no buffer": {"x": -1},
    "another's size": {"residual": "small"},
    "more of another size": {"more": "small"},
    "a form": {"form": "winograd9"},
    "no kernel": {"kernel": 0},
    "no stride": {"stride": 0},
    "before": {"before": -1},
    "winograd with stride": {"form": "winograd2", "stride": 2},
    "winograd of 1×1": {"form": "winograd4", "kernel": 1},
    "winograd without a border": {"form": "winograd2", "before": 0},
    "winograd of two": {"form": "winograd2", "more": "x"},
    "winograd to another size": {"form": "winograd2", "y": "free"},
    "up to the same size": {"form": "up_direct"},
    "up with stride": {"form": "up_winograd", "stride": 2},
    "bfloat16 products": {"product": BFLOAT16},
    "half products": {"product": 1},
    "a product": {"product": 9},
    "int8 of too many channels": {"x": "huge", "product": INT8},
    "F(4×4) in int8": {"form": "winograd4", "product": INT8},
    "no weight": {"weight": 0},
    "no bias": {"bias": 0},
    "no rows": {"rows": 0},
    "not written": {"residual": "unwritten"},
    "onto itself": {"y": "x"},
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
def test_what_cannot_be_is_refused(wrong):
    op = OneOp("", FLOAT32, x=normal(1, 16, 4, 4, seed=0))
    weight, bias, y = torch.zeros(16 * 32 * 9), torch.zeros(1, 16), op.buffer(16, 4, 4)
    places = {
        "x": op.at["x"],
        "small": op.buffer(16, 2, 2),
        "free": op.buffer(16, 2, 2),
        "huge": op.buffer(32784, 4, 4),
        "unwritten": op.buffer(16, 4, 4),
    }
    op.convolve(places["small"], weight, bias, x=op.at["x"], kernel=1, stride=2)
    good = {
        "name": "layer",
        "x": op.at["x"],
        "more": -1,
        "residual": -1,
        "y": y,
        "weight": weight.data_ptr(),
        "bias": bias.data_ptr(),
        "rows": 1,
        "kernel": 3,
        "stride": 1,
        "before": 1,
        "form": "direct",
        "product": FLOAT32,
        "scale": 1.0,
    }
    bad = {k: places.get(v, v) for k, v in wrong.items()}
    with refused("convolve", "layer"):
        op.program.convolve(*(good | bad).values())
    op.program.convolve(*good.values())  # and after that, all is as it was
    assert not op.answer(y, 16, 4, 4).run().any()


def test_float32_products_of_bfloat16_are_refused():
    op = OneOp("", BFLOAT16, x=normal(1, 16, 4, 4, seed=0))
    y = op.buffer(16, 4, 4)
    with refused("convolve"):
        op.convolve(y, torch.zeros(16, 16, 3, 3), torch.zeros(1, 16), x=op.at["x"], product=FLOAT32)


def test_padded_channels_are_those_of_the_layout():
    """The helper's own law: what it spreads apart, its layout finds again."""
    v = torch.arange(23.0)[None]
    spread = apart(v, 1, [20, 3])
    assert spread.shape[1] == padded(20) + padded(3)
    assert torch.equal(torch.cat([spread[:, :20], spread[:, 32:35]], 1), v)
    assert float(spread.sum()) == float(v.sum())
