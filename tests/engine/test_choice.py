"""Which form a layer takes, and what happens when a plan is less exact than its class allows."""

from __future__ import annotations

import math
import weakref
from itertools import pairwise

import pytest
import torch

from kdgen.engine import cost
from kdgen.engine.choice import (
    BOUNDS,
    CANDIDATES,
    DIRECT,
    Candidate,
    Plan,
    planned,
    plans,
    settled,
)
from kdgen.engine.padding import padded
from kdgen.engine.steps import NONE, Buffer, Convolve, Input, Output, Trace

F32, BF16, INT8 = torch.float32, torch.bfloat16, torch.int8


class Made:
    """Of a plan."""


def one(
    c_in: int, c_out: int, side: int, *, doubled: bool = False, kernel: int = 3, stride: int = 1
) -> Trace:
    """A network of a single convolution."""
    weight = torch.empty(padded(c_out), padded(c_in), kernel, kernel, device="meta")
    y = side * (1 + doubled) // stride
    layer = Convolve(
        "layer",
        0,
        1,
        weight,
        torch.empty(1, padded(c_out), device="meta"),
        stride=stride,
        before=kernel // 2,
        doubled=doubled,
    )
    buffers = (Buffer(side, side, (c_in,)), Buffer(y, y, (c_out,)))
    steps = (Input("input", 0, c_in), layer, Output("output", 1, c_out))
    return Trace(buffers, steps, 1)


def joined(*traces: Trace) -> Trace:
    """All their convolutions, side by side."""
    found = [layer for trace in traces for layer in trace.steps if isinstance(layer, Convolve)]
    assert {(layer.x, layer.y) for layer in found} == {(0, 1)}
    buffers = tuple(buffer for trace in traces for buffer in trace.buffers)
    moved = tuple(
        Convolve(f"layer {k}", 2 * k, 2 * k + 1, layer.weight, layer.bias, before=1)
        for k, layer in enumerate(found)
    )
    return Trace(buffers, moved, 1)


def seconds(trace: Trace, form: str, product: torch.dtype = F32) -> float:
    (layer,) = (step for step in trace.steps if isinstance(step, Convolve))
    return cost.convolution(layer, trace.buffers[1], form, product, product)


def form(trace: Trace, candidate: Candidate) -> str:
    (layer,) = (found for found in planned(trace, candidate).layers if found.form)
    return layer.form


@pytest.mark.parametrize("name", cost.FORMS)
@pytest.mark.parametrize("product", [F32, BF16], ids=str)
def test_more_work_costs_more(name: str, product: torch.dtype):
    doubled = name.startswith("up")
    for sizes in (
        [(c, 64, 16) for c in (16, 32, 128, 512)],
        [(64, c, 16) for c in (16, 32, 128, 512)],
        [(64, 64, side) for side in (4, 8, 16, 64)],
    ):
        costs = [seconds(one(*size, doubled=doubled), name, product) for size in sizes]
        assert all(0 < less < more for less, more in pairwise(costs))


def test_the_table_says_what_was_measured():
    """128 to 128 channels at 32×32 on two Zen4 cores, in GFLOP/s of direct work: within a fifth."""
    work = 2 * 9 * 128 * 128 * 32 * 32
    measured = {
        ("direct", F32): 215,
        ("direct", BF16): 426,
        ("winograd2", F32): 417,
        ("winograd2", BF16): 754,
        ("winograd4", F32): 628,
        ("winograd4", BF16): 1124,
    }
    for (name, product), speed in measured.items():
        predicted = 2 * work / seconds(one(128, 128, 32), name, product) / 1e9
        assert predicted == pytest.approx(speed, rel=0.2), (name, product)


def test_wide_layers_take_larger_tiles_where_they_may():
    wide, small = one(256, 256, 16), one(256, 256, 32)
    narrow = CANDIDATES["bf16"][0]
    assert form(wide, Candidate(F32, F32)) == "winograd4"
    assert form(wide, narrow) == "winograd4"
    assert form(small, narrow) == "winograd2"  # 32×32 is beyond what the class may
    assert form(small, Candidate(BF16, BF16)) == "winograd4"
    assert form(wide, Candidate(BF16, BF16, largest=0)) == "winograd2"
    assert form(wide, DIRECT) == "direct"


def test_large_tiles_can_be_kept_for_layers_that_read_many_channels():
    few = Candidate(BF16, BF16, narrowest=384)
    assert form(one(384, 128, 32), few) == "winograd4"
    assert form(one(256, 256, 16), few) == "winograd2"
    assert form(one(384, 128, 32), Candidate(BF16, BF16, largest=16, narrowest=384)) == "winograd2"


def test_large_tiles_can_be_kept_for_layers_that_save_enough():
    trace = one(256, 256, 16)
    share = seconds(trace, "winograd4", BF16) / seconds(trace, "winograd2", BF16)
    for worth, expected in ((share + 0.01, "winograd4"), (share - 0.01, "winograd2")):
        assert form(trace, Candidate(BF16, BF16, worth=worth)) == expected


def test_a_tile_that_the_image_does_not_fill_is_paid_in_full():
    """4×4 outputs of a map of 5×5 are four tiles."""
    assert seconds(one(64, 64, 5), "winograd4") > seconds(one(64, 64, 4), "winograd4")
    assert seconds(one(64, 64, 8), "winograd4") < 1.3 * seconds(one(64, 64, 5), "winograd4")


def test_weights_that_few_pixels_share_are_paid_for():
    """At 4×4 pixels, F(4×4) reads four times the weights of a direct layer for a quarter of its
    products; at 1×1 there is nothing that could pay for it."""
    assert form(one(512, 512, 1), Candidate(F32, F32)) == "direct"


def test_doublings_take_nine_products_for_four_pixels():
    trace = one(256, 256, 8, doubled=True)
    assert form(trace, Candidate(F32, F32)) == "up_winograd"
    assert form(trace, DIRECT) == "up_direct"


@pytest.mark.parametrize("facts", [{"kernel": 1}, {"stride": 2}, {"kernel": 5}], ids=str)
def test_other_convolutions_are_direct(facts: dict[str, int]):
    assert form(one(256, 256, 16, **facts), Candidate(F32, F32)) == "direct"


def test_a_concatenation_is_direct():
    (layer,) = (s for s in one(64, 64, 16).steps if isinstance(s, Convolve))
    two = Convolve("two", 0, 2, layer.weight, layer.bias, more=1, before=1)
    buffers = (*(Buffer(16, 16, (32,)),) * 2, Buffer(16, 16, (64,)))
    assert cost.forms(two, Trace(buffers, (two,), 1)) == ("direct",)
    assert two.residual == NONE


MIXED = joined(*(one(c, c, side) for c, side in ((128, 32), (256, 16), (256, 8), (512, 4))))


def dtypes(plan: Plan) -> set[torch.dtype]:
    return {layer.product for layer in plan.layers if layer.form} | {plan.activations}


def test_exact_is_direct_in_float32():
    (plan,) = plans(MIXED, "exact", fast_bf16=True)
    assert {layer.form for layer in plan.layers} == {"direct"}
    assert dtypes(plan) == {F32}


@pytest.mark.parametrize("fast", [True, False])
def test_float32_stays_float32(fast: bool):
    assert all(dtypes(plan) == {F32} for plan in plans(MIXED, "fp32", fast_bf16=fast))


@pytest.mark.parametrize("accuracy", ["bf16", "fastest"])
def test_bfloat16_is_taken_only_where_it_is_fast(accuracy: str):
    assert dtypes(plans(MIXED, accuracy, fast_bf16=True)[0]) == {BF16}
    slow = plans(MIXED, accuracy, fast_bf16=False)
    assert all(dtypes(plan) == {F32} for plan in slow)
    wide = plans(MIXED, "fp32", fast_bf16=False)
    assert [plan.signature for plan in slow] == [plan.signature for plan in wide]


def test_only_the_fastest_takes_large_tiles_of_bfloat16_everywhere():
    def sides(accuracy: str) -> set[int]:
        """Of the narrow layers that any plan of a class takes them for."""
        return {
            MIXED.buffers[layer.step.y].height  # type: ignore[union-attr]
            for plan in plans(MIXED, accuracy, fast_bf16=True)
            for layer in plan.layers
            if layer.form == "winograd4" and layer.product is BF16
        }

    assert (max(sides("bf16")), max(sides("fastest"))) == (16, 32)


@pytest.mark.parametrize("accuracy", BOUNDS)
def test_what_is_expected_to_be_the_fastest_comes_first(accuracy: str):
    found = plans(MIXED, accuracy, fast_bf16=True)
    times = [plan.seconds for plan in found]
    assert times == sorted(times)
    assert len({plan.signature for plan in found}) == len(found)
    assert (len(found) == 1) == (accuracy == "exact")


def test_classes_that_admit_more_are_no_slower():
    times = [plans(MIXED, name, fast_bf16=True)[0].seconds for name in BOUNDS]
    assert list(BOUNDS) == ["exact", "fp32", "bf16", "fastest"]
    assert all(slow > fast for slow, fast in pairwise(times))


def test_mixed_products_are_those_of_transformed_layers():
    candidate = Candidate(F32, BF16, largest=0)
    for trace, form, product in (
        (one(256, 256, 16), "winograd2", BF16),
        (one(256, 256, 16, kernel=1), "direct", F32),
        (one(256, 256, 8, doubled=True), "up_winograd", BF16),
    ):
        layer = planned(trace, candidate).layers[1]
        assert (layer.form, layer.product) == (form, product)


def test_int8_is_taken_only_by_the_fastest_and_only_where_it_is_fast():
    def has(accuracy: str, fast: bool) -> bool:
        found = plans(MIXED, accuracy, fast_bf16=False, fast_int8=fast)
        return any(INT8 in dtypes(plan) for plan in found)

    assert [has(name, True) for name in BOUNDS] == [False, False, False, True]
    assert not any(has(name, False) for name in BOUNDS)


@pytest.mark.parametrize("activations", [F32, BF16], ids=str)
def test_wide_layers_of_any_kind_multiply_in_int8(activations: torch.dtype):
    candidate = Candidate(activations, activations, rounded=True)
    for trace, form in (
        (one(256, 256, 8), "winograd2"),
        (one(256, 256, 16, kernel=1), "direct"),
        (one(256, 256, 16, stride=2), "direct"),
        (one(256, 256, 8, doubled=True), "up_winograd"),
    ):
        layer = planned(trace, candidate).layers[1]
        assert (layer.form, layer.product) == (form, INT8)


def test_images_and_what_rounding_does_not_speed_up_are_not_rounded():
    candidate = Candidate(F32, F32, rounded=True)
    for c_in, c_out in ((3, 256), (256, 3), (32, 32)):
        assert planned(one(c_in, c_out, 32), candidate).layers[1].product is F32


@pytest.mark.parametrize(("channels", "product"), [(31, F32), (32, INT8)])
def test_zeros_beside_its_channels_do_not_make_a_layer_wide(channels: int, product: torch.dtype):
    """As packed, 31 channels are 32."""
    candidate = Candidate(F32, F32, rounded=True)
    assert planned(one(channels, 512, 8), candidate).layers[1].product is product


def test_a_plan_that_misses_its_bound_is_given_up_for_the_next():
    found = plans(MIXED, "bf16", fast_bf16=True)
    measured = dict(zip(found, (2e-2, 1.2e-2, 9e-3, 1e-6), strict=False))
    tried: list[Plan] = []

    def attempt(plan: Plan) -> tuple[str, float]:
        tried.append(plan)
        return f"made {found.index(plan)}", measured[plan]

    end = settled(found, BOUNDS["bf16"], attempt)
    assert (end.plan, end.made, end.error) == (found[2], "made 2", 9e-3)
    assert tried == found[:3]
    assert [trial.error for trial in end.trials] == [2e-2, 1.2e-2, 9e-3]


def test_a_plan_within_its_bound_is_the_only_one_tried():
    found = plans(MIXED, "fastest", fast_bf16=True)
    end = settled(found, math.inf, lambda plan: (None, 0.5))
    assert (end.plan, len(end.trials)) == (found[0], 1)


@pytest.mark.parametrize("errors", [(3e-5, 2e-5, 4e-5), (math.nan, 2e-5, math.nan)], ids=str)
def test_when_none_keeps_the_bound_the_nearest_is_taken(errors: tuple[float, ...]):
    found = plans(MIXED, "fp32", fast_bf16=True)
    measured = dict(zip(found, errors, strict=True))
    end = settled(found, 1e-5, lambda plan: (plan, measured[plan]))
    assert end.plan is end.made is found[1]
    assert end.error == 2e-5
    assert len(end.trials) == 3


def test_nothing_that_was_made_is_kept_while_the_next_is():
    found = plans(MIXED, "fp32", fast_bf16=True)
    alive: weakref.WeakSet[Made] = weakref.WeakSet()

    def attempt(plan: Plan) -> tuple[Made, float]:
        assert not alive
        made = Made()
        alive.add(made)
        return made, 1.0

    assert settled(found, 0.5, attempt).made in alive


@pytest.mark.parametrize(("errors", "made"), [((3.0, 2.0, 1.0), 3), ((1.0, 2.0, 3.0), 4)])
def test_only_a_plan_that_was_given_up_is_made_again(errors: tuple[float, ...], made: int):
    found = plans(MIXED, "fp32", fast_bf16=True)
    measured, tried = dict(zip(found, errors, strict=True)), []

    def attempt(plan: Plan) -> tuple[Plan, float]:
        tried.append(plan)
        return plan, measured[plan]

    assert settled(found, 0.5, attempt).error == 1.0
    assert len(tried) == made
