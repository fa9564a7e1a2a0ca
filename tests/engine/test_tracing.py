"""A trace says what its network says, whatever the network is made of."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from kdgen import engine, fold, nets
from kdgen.denoiser import Denoiser
from kdgen.engine import steps
from kdgen.engine.steps import NONE, Trace
from kdgen.engine.tracing import trace
from kdgen.schedules import Cosine, Flow

TOLERANCE = 1e-10  # of float64: the order of its sums, through some fifty layers
MANY = (1.0, 0.25, 0.6)


def error(reference: ModuleType, folded: fold.Folded, given: Any) -> float:
    """Of the steps, relative to the network's largest answer; in float64."""
    with torch.no_grad():
        expected = folded.net(*given.all)
        row = folded.net.embedding(given.time, given.label)  # type: ignore[operator]
        rows = row if folded.net.embedding.rows > 1 else None  # type: ignore[union-attr, operator]
        found = reference.run(trace(folded), given.x, rows)
    assert expected.std() > 1e-3
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("times", [(1.0,), MANY], ids=str)
@pytest.mark.parametrize("name", nets.PRESETS)
def test_the_steps_of_every_preset_say_what_it_says(
    folded: Callable[..., fold.Folded],
    inputs: Any,
    reference: ModuleType,
    name: str,
    times: tuple[float, ...],
):
    made = folded(name, times, torch.float64)
    assert error(reference, made, inputs(made)) < TOLERANCE


@pytest.mark.parametrize(
    "facts",
    [
        {"mult": (1, 1, 1)},
        {"mult": (2, 1), "resample": "block", "outputs": 3},
        {"mult": (2, 1), "resample": "block", "filter": (1, 3, 3, 1)},
        {"mult": (1, 2), "resample": "projected", "filter": (1, 3, 3, 1), "pyramid": True},
        {"mult": (1, 2), "resample": "block", "pyramid": True, "scale_shift": True},
        {"mult": (2,), "blocks": 3, "head_width": 4},
        {"mult": (1, 2), "down_padding": "around"},
        {"mult": (1, 2), "resample": "block", "filter": (1, 2, 5, 5, 2, 1)},
        {"mult": (1, 1), "width": 20, "classes": 2, "channels": 1, "out_channels": 17},
    ],
    ids=str,
)
@pytest.mark.parametrize("phi", [None, 0.3])
@pytest.mark.parametrize("folds", [engine.FOLDS, ("time",), (*engine.FOLDS, "late_bias")], ids=len)
def test_the_steps_of_any_network_say_what_it_says(
    lively: Callable[..., nn.Module],
    inputs: Any,
    reference: ModuleType,
    facts: dict[str, Any],
    phi: float | None,
    folds: tuple[str, ...],
):
    shape = {"width": 8, "blocks": 1, "attention": (4,), "norm_eps": 0.1}
    config = nets.UNetConfig(8, **shape | facts, skip_scale=0.5**0.5, skip_gain=phi)
    plain = Denoiser(lively(nets.UNet(config)), Flow(), "velocity", "raw").double().eval()
    for times in ((0.4,), (1.0, 0.4)):
        made = fold.fold(plain, times, folds=folds, check=False)
        assert error(reference, made, inputs(made)) < TOLERANCE


@pytest.mark.parametrize(("phi", "t"), [(0.0, 1.0), (1.0, 1.0)])
def test_a_gain_of_zero_stays(
    lively: Callable[..., nn.Module], inputs: Any, reference: ModuleType, phi: float, t: float
):
    config = nets.UNetConfig(8, width=8, mult=(1, 2), skip_gain=phi)
    plain = Denoiser(lively(nets.UNet(config)), Flow(), "velocity", "raw").double().eval()
    made = fold.fold(plain, [t], folds=engine.FOLDS, check=False)
    assert [s for s in trace(made).steps if isinstance(s, steps.Combine)]
    assert error(reference, made, inputs(made)) < TOLERANCE


def kinds(found: Trace, kind: type) -> list[Any]:
    return [step for step in found.steps if isinstance(step, kind)]


def test_every_step_has_a_name_of_its_own_that_says_where_it_is(
    folded: Callable[..., fold.Folded],
):
    for name in ("ncsnpp32", "adm64", "cud28"):
        made = folded(name, MANY)
        names = [step.name for step in trace(made).steps]
        assert len(set(names)) == len(names)
        modules = {n for n, _ in made.net.named_modules() if n}
        told = [name.split(" ")[0] for name in names if name not in ("input", "output")]
        assert set(told) <= modules


def test_a_residual_is_added_by_the_convolution(folded: Callable[..., fold.Folded]):
    found = trace(folded("adm64"))
    assert not kinds(found, steps.Combine)
    joined = [s for s in kinds(found, steps.Convolve) if s.residual != NONE]
    assert len(joined) == len([s for s in kinds(found, steps.Convolve) if "conv2" in s.name]) + len(
        kinds(found, steps.Attend)
    )


def test_the_input_of_an_identity_is_the_residual_itself(folded: Callable[..., fold.Folded]):
    found = trace(folded("ddpm32"))
    by_name = {step.name: step for step in found.steps}
    last = by_name["middle.0.conv2"]
    assert last.residual == by_name["middle.0.norm1"].x  # type: ignore[union-attr]


def test_a_doubling_and_its_convolution_are_one_step(folded: Callable[..., fold.Folded]):
    for name in ("ddpm32", "adm64"):
        found = trace(folded(name))
        assert len([s for s in kinds(found, steps.Convolve) if s.doubled]) == 1
    assert not [s for s in kinds(trace(folded("ncsnpp32")), steps.Convolve) if s.doubled]


def test_the_pixels_are_the_keys_of_a_merged_attention(folded: Callable[..., fold.Folded]):
    found = trace(folded("ddpm32"))
    for step in kinds(found, steps.Attend):
        assert (step.k_at, step.heads) == (0, 1)
        assert step.k != step.q == step.v
    assert all(s.q == s.k == s.v for s in kinds(trace(folded("adm64")), steps.Attend))


def test_padding_costs_no_copy_where_there_is_none(folded: Callable[..., fold.Folded]):
    made = folded("ddpm32")
    weight = {s.name: s for s in trace(made).steps}["middle.0.conv1"].weight  # type: ignore[union-attr]
    assert weight.data_ptr() == made.net.middle[0].conv1.weight.data_ptr()  # type: ignore[union-attr, index]


def test_tables_have_a_row_for_every_time_and_class(folded: Callable[..., fold.Folded]):
    for name, times, rows in (
        ("edm32-cond", MANY, 12),
        ("edm32-cond", (1.0,), 4),
        ("cud28", MANY, 3),
    ):
        found = trace(folded(name, times))
        assert found.rows == rows
        assert {len(s.bias) for s in kinds(found, steps.Convolve)} == {1, rows}
    assert {len(s.gain) for s in kinds(trace(folded("adm64")), steps.Normalise)} == {1, 4}


def refused(made: Denoiser, words: str) -> None:
    with pytest.raises(engine.Refused, match=words):
        trace(made)  # type: ignore[arg-type]


def test_what_is_not_folded_in_time_is_left_to_torch(families: Callable[..., Any]):
    plain = families("ddpm32").denoiser()
    refused(fold.fold(plain, [1.0], folds=("scales",), check=False), "fold 'time'")


@pytest.mark.parametrize("name", ["ddpm32", "adm64"])
def test_doublings_that_were_folded_are_left_to_torch(families: Callable[..., Any], name: str):
    made = fold.fold(families(name).denoiser(), [1.0], check=False)
    refused(made, "is a Enlarge; expected one of" if name == "ddpm32" else "fold 'up'")


def test_a_part_nobody_knows_is_named(folded: Callable[..., fold.Folded]):
    made = folded("ddpm32")
    made.net.middle[1] = nn.Tanh()  # type: ignore[index, operator]
    refused(made, "middle.1 is a Tanh; expected one of ResBlock")


def test_another_network_is_left_to_torch(lively: Callable[..., nn.Module]):
    net = nn.Conv2d(1, 1, 1)
    net.shape, net.classes = (1, 4, 4), 0  # type: ignore[assignment]
    refused(Denoiser(net, Cosine(), "v"), "is a Conv2d; expected a UNet")
