"""A chain is its sampler: the same images from a table of numbers."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from kdgen import nets, noise, samplers
from kdgen.denoiser import TIMES, Denoiser, Sampling
from kdgen.fast.chain import Chain, plan, single
from kdgen.schedules import EDM, Cosine, Flow, LinearVP, NoiseSchedule

SHAPE = (3, 4, 4)


class Wavy(nn.Module):
    """A network that minds every number it is given, in float64."""

    shape, classes = SHAPE, 0

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        turn = (time.double() / 300).view(-1, 1, 1, 1)
        return self.gain * torch.tanh(x + turn) + 0.3 * torch.sin(3 * x - turn)


def denoiser(schedule: NoiseSchedule, kind: str) -> Denoiser:
    return Denoiser(Wavy(), schedule, kind)


def walked(model: Denoiser, chain: Chain, z: Tensor, seed: int) -> Tensor:
    """The chain by its definition, in float64."""
    x = chain.start * z
    for k, move in enumerate(chain.moves):
        before = x
        for e in move:
            t = torch.full((1,), e.t, dtype=torch.float64)
            time = TIMES[model.time](model.schedule, t).expand(len(x))
            p, q, a, b = e.row
            x0 = p * x + q * model.net(e.size * x, time)
            x0 = x0 if chain.clip is None else x0.clamp(-chain.clip, chain.clip)
            x = a * x + b * x0 + e.keep * before
            if e.fresh:
                n = noise.normal(seed, noise.Stream.CHURN + k, torch.arange(len(z)), SHAPE)
                x = x + e.fresh * n
    return x


CASES = [
    (Cosine(), "v", Sampling("ddim", 4, clip=1.0)),
    (LinearVP(), "eps", Sampling("ddim", 5, "quad")),
    (LinearVP(), "residual", Sampling("ddim", 1)),
    (EDM(), "edm", Sampling("ddim", 4, "karras")),
    (Flow(), "velocity", Sampling("ddim", 3, clip=0.8)),
    (Cosine(), "v", Sampling("ancestral", 4, clip=1.0)),
    (LinearVP(), "eps", Sampling("ancestral", 3, "stride")),
    (EDM(), "edm", Sampling("heun", 5, "karras")),
    (LinearVP(), "eps", Sampling("heun", 4, "uniform")),
    (Cosine(), "x0", Sampling("heun", 1, "uniform")),
    (Flow(), "velocity", Sampling("velocity_heun", 4)),
    (LinearVP(), "v", Sampling("velocity_heun", 3, clip=1.0)),
    (EDM(), "consistency", Sampling("few_step", times=(1.0, 0.02, 0.001))),
    (LinearVP(), "score", Sampling("few_step", times=(0.9,), clip=1.0)),
    (Flow(), "x0", Sampling("few_step", times=(1.0, 0.5))),
]


@pytest.mark.parametrize(("schedule", "kind", "how"), CASES, ids=str)
def test_a_chain_makes_the_images_of_its_sampler(schedule, kind: str, how: Sampling):
    model = denoiser(schedule, kind)
    z = torch.randn(2, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = samplers.sample(model, z, None, how, seed=5)
    chain = plan(model, how)
    assert chain is not None
    found = walked(model, chain, z, 5)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6 * expected.abs().max().item())


@pytest.mark.parametrize(("schedule", "kind", "how"), CASES, ids=str)
def test_a_chain_knows_its_cost_and_its_times(schedule, kind: str, how: Sampling):
    chain = plan(denoiser(schedule, kind), how)
    assert chain is not None
    assert len(chain.evaluations) == samplers.evaluations(schedule, how)
    assert list(chain.times) == sorted(set(chain.times))
    known = samplers.sampled_times(schedule, how)
    assert known is None or sorted(known) == list(chain.times)


@pytest.mark.parametrize(("schedule", "kind", "how"), CASES, ids=str)
def test_all_moves_but_the_last_are_alike(schedule, kind: str, how: Sampling):
    chain = plan(denoiser(schedule, kind), how)
    assert chain is not None
    forms = {tuple((e.keep, e.fresh > 0) for e in move) for move in chain.moves[:-1]}
    assert len(forms) <= 1
    assert len(chain.moves[-1]) == 1
    assert chain.moves[-1][0].fresh == 0


@pytest.mark.parametrize("sampler", ["dpm", "rk45"])
def test_what_is_no_chain_is_not_taken_for_one(sampler: str):
    assert plan(denoiser(Cosine(), "v"), Sampling(sampler, 4)) is None


def test_two_images_at_once_are_no_chain(lively: Callable[..., nn.Module]):
    net = nets.preset("tiny8", out_channels=2)
    assert plan(Denoiser(net, Cosine(), "both"), Sampling("ddim", 4)) is None


def test_heun_needs_a_finite_start():
    with pytest.raises(ValueError, match="alpha is 0 at the first time"):
        plan(denoiser(Flow(), "velocity"), Sampling("heun", 4, "uniform"))


def test_single_evaluations_are_predictions():
    model = denoiser(EDM(), "edm")
    x = torch.randn(2, *SHAPE, dtype=torch.float64) * 3
    for move in single(model, (0.3, 0.05)).moves:
        (e,) = move
        p, q, a, b = e.row
        assert (a, b) == (0.0, 1.0)
        time = TIMES[model.time](model.schedule, torch.tensor([e.t], dtype=torch.float64)).expand(2)
        x0 = p * x + q * model.net(e.size * x, time)
        torch.testing.assert_close(x0, model(x, e.t).x0, rtol=1e-12, atol=1e-12)
        assert math.isfinite(e.size)
