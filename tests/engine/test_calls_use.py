"""Networks with a part of somebody's own behind the fast generator and `kdgen.accelerate`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from strangers import STRANGERS, Lively, folded, with_engine

import kdgen
from kdgen import engine
from kdgen.denoiser import Sampling
from kdgen.engine import Network
from kdgen.fast import FastGenerator


@with_engine
@pytest.mark.parametrize(
    "how", [Sampling("ddim", 1), Sampling("few_step", times=(1.0, 0.4))], ids=lambda h: h.sampler
)
@pytest.mark.parametrize("classes", [0, 3])
def test_the_fast_generator_makes_the_images_of_torch_and_says_who_does_what(
    lively: Lively, how: Sampling, classes: int
):
    for stranger in STRANGERS[:4:2]:
        model = stranger.denoiser(lively, classes=classes).copy(sampling=how)
        ours = kdgen.generator(model, seed=5, engine="auto")
        theirs = kdgen.generator(model, seed=5, engine="torch")
        assert isinstance(ours, FastGenerator)
        found, expected = ours(11).int(), theirs(11).int()
        assert (found - expected).abs().max() <= 1
        assert found.float().std() > 20
        said = ours.explain()
        assert f"fell back   {stranger.named}: torch, because it is a Mixer" in said
        assert any(
            line.split()[4:6] == ["torch", "x1"] for line in said.splitlines() if "Mixer" in line
        )
        for ours.batch in (1, 3):
            assert torch.equal(ours(11).int(), found)


@with_engine
@torch.no_grad()
@pytest.mark.parametrize("t", [1.0, (1.0, 0.5)], ids=str)
def test_an_accelerated_network_with_a_stranger_is_itself(lively: Lively, t: Any):
    for stranger in STRANGERS[:8:3]:
        model = stranger.denoiser(lively, classes=3)
        fast = kdgen.accelerate(model, t, engine="native")
        assert isinstance(fast.denoiser.net, Network)
        assert fast.report is not None
        assert fast.report.accelerated.l2 < 1e-5
        assert f"fell back  {stranger.named}: torch, because it is a" in fast.explain()


@with_engine
def test_the_part_that_runs_is_a_copy(lively: Lively, inputs: Any):
    model = STRANGERS[1].denoiser(lively)
    made = folded(model.train())
    net, given = engine.network(made, "fp32"), inputs(made)
    before = net(*given.all)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert torch.equal(net(*given.all), before)
    assert all(p.requires_grad for p in model.parameters())
