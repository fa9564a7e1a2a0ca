"""Training a teacher: the loss of Ho et al. 2020 and its relatives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kdgen.denoiser import Denoiser
from kdgen.methods import Batch, Nets
from kdgen.methods.diffusion import Diffusion
from kdgen.nets import exact
from kdgen.schedules import Cosine, LinearVP

SHAPE = (3, 8, 8)


def answers(batch: Callable[..., Batch]) -> Iterator[tuple[Diffusion, Nets, Batch]]:
    """Data that is one grey image: the network that always says it is right."""
    for error in ("eps", "x0", "v", "truncated"):
        for discrete, antithetic in ((None, True), (1000, False)):
            student = Denoiser(exact.Affine(SHAPE, 0.0, 0.25), LinearVP(), "x0")
            drawn = batch(shape=SHAPE)
            # Float32 leaves ten digits less of eps where there is hardly any noise: stay above.
            drawn = replace(drawn, x0=torch.full_like(drawn.x0, 0.25), u=drawn.u.clamp(0.1, 0.9))
            method = Diffusion(error, discrete, antithetic=antithetic)
            yield method, Nets({"student": student}), drawn


def seen_times(method: Diffusion, u: Tensor, batch: Callable[..., Batch]) -> Tensor:
    """The t that a loss draws from u."""
    student = Denoiser(exact.Affine((1, 1, 1)), LinearVP(), "x0")
    times: list[Tensor] = []
    student.register_forward_pre_hook(lambda _, args: times.append(args[1]))
    drawn = batch(n=len(u), shape=(1, 1, 1))
    method.loss("main", Nets({"student": student}), replace(drawn, u=u[:, None].expand(-1, 4)))
    return times[0]


def test_discrete_times_are_ddpms_indices(batch: Callable[..., Batch]):
    u = torch.tensor([2**-25, 0.00099, 0.0011, 0.5, 0.9999, 1 - 2**-24])
    t = seen_times(Diffusion(discrete=1000), u, batch)
    torch.testing.assert_close(1000 * t - 1, torch.tensor([0.0, 0, 1, 500, 999, 999]))


def test_discrete_times_are_drawn_equally_often(batch: Callable[..., Batch]):
    u = (torch.arange(4000) + 0.5) / 4000
    t = seen_times(Diffusion(discrete=8), u, batch)
    values, counts = t.unique(return_counts=True)
    assert torch.equal(values, torch.arange(1, 9) / 8)
    assert (counts == 500).all()


def test_continuous_times_are_never_zero(batch: Callable[..., Batch]):
    t = seen_times(Diffusion(), torch.tensor([2**-25, 0.3, 1 - 2**-24]), batch)
    assert t[0] == 1
    assert t[2] > 0


@pytest.mark.parametrize("n", [1, 2, 1000])
def test_antithetic_partners_have_mirrored_indices(n: int, batch: Callable[..., Batch]):
    """Song et al. 2020, the released code: i and n - 1 - i."""
    u = torch.rand(64, generator=torch.Generator().manual_seed(0))
    t = seen_times(Diffusion(discrete=n, antithetic=True), u, batch)
    index = n * t - 1
    torch.testing.assert_close(index[0::2] + index[1::2], torch.full((32,), n - 1.0))
    assert torch.equal(t[0::2], seen_times(Diffusion(discrete=n), u, batch)[0::2])


def test_antithetic_times_are_mirrored_and_never_zero(batch: Callable[..., Batch]):
    u = torch.tensor([0.25, 0.9, 2**-25, 0.5, 1 - 2**-24, 0.5])
    t = seen_times(Diffusion(antithetic=True), u, batch)
    torch.testing.assert_close(t, torch.tensor([0.75, 0.25, 1.0, 2**-24, 2**-24, 1.0]))
    assert (t > 0).all()


def test_antithetic_partners_find_each_other_by_their_index(batch: Callable[..., Batch]):
    """Wherever they stand in the batch; without its partner an image keeps its own time."""
    student = Denoiser(exact.Affine((1, 1, 1)), LinearVP(), "x0")
    times: list[Tensor] = []
    student.register_forward_pre_hook(lambda _, args: times.append(args[1]))
    drawn = batch(n=8, shape=(1, 1, 1))
    order = torch.tensor([5, 7, 2, 0, 4, 1])  # 3 and 6 are elsewhere
    part = {name: getattr(drawn, name)[order] for name in ("x0", "z", "eps", "u", "index")}
    method, roles = Diffusion(antithetic=True), Nets({"student": student})
    method.loss("main", roles, replace(drawn, **part))
    t = 1 - drawn.u[:, 0]
    expected = [1 - t[4], t[7], t[2], t[0], t[4], 1 - t[0]]
    torch.testing.assert_close(times[0], torch.stack(expected))


@pytest.mark.parametrize("error", ["eps", "x0", "v"])
def test_the_loss_is_the_mean_square_of_its_unit(error: str, batch: Callable[..., Batch]):
    student = Denoiser(exact.Affine(SHAPE, 0.5, 0.1), Cosine(), "v")
    drawn = batch(shape=SHAPE, dtype=torch.float64)
    student.double()
    t = 1 - drawn.u[:, 0]
    alpha, sigma = (c.view(-1, 1, 1, 1) for c in Cosine().alpha_sigma(t))
    x_t = alpha * drawn.x0 + sigma * drawn.eps
    raw = 0.5 * x_t + 0.1
    guess = {
        "eps": sigma * x_t + alpha * raw,
        "x0": alpha * x_t - sigma * raw,
        "v": raw,
    }[error]
    truth = {"eps": drawn.eps, "x0": drawn.x0, "v": alpha * drawn.eps - sigma * drawn.x0}[error]
    expected = (guess - truth).square().mean((1, 2, 3))
    loss = Diffusion(error=error).loss("main", Nets({"student": student}), drawn)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-8)


def test_no_network_beats_the_exact_one(batch: Callable[..., Batch]):
    """On Gaussian data: the posterior mean has the least squared error, s²c²/V of it in x0."""
    schedule, shape = Cosine(), (1, 32, 32)
    drawn = batch(n=64, shape=shape)
    drawn = replace(drawn, x0=0.3 + 0.5 * drawn.z, u=torch.full_like(drawn.u, 0.5))
    alpha, sigma = schedule.levels(0.5)
    floor = (sigma * 0.5) ** 2 / ((alpha * 0.5) ** 2 + sigma**2)

    def loss(teacher: exact.Mixture) -> float:
        return Diffusion(error="x0").loss("main", Nets({"student": teacher}), drawn).mean().item()

    best = loss(exact.gaussian(schedule, shape))
    assert best == pytest.approx(floor, rel=0.02)
    for mean, std in ((0.2, 0.5), (0.4, 0.5), (0.3, 0.4), (0.3, 0.6)):
        assert loss(exact.gaussian(schedule, shape, mean, std)) > best


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_labels_are_dropped_by_their_own_uniform(share: float, batch: Callable[..., Batch]):
    seen: list[Tensor] = []
    student = Denoiser(exact.Affine(SHAPE), Cosine(), "x0")
    student.register_forward_pre_hook(lambda _, args: seen.append(args[2]))
    drawn = batch(shape=SHAPE, classes=3)
    drawn = replace(drawn, u=(torch.arange(8.0)[:, None].expand(-1, 4) + 0.5) / 8)
    Diffusion(label_dropout=share).loss("main", Nets({"student": student}), drawn)
    dropped = int(8 * share)
    assert (seen[0][:dropped] == -1).all()
    assert torch.equal(seen[0][dropped:], drawn.label[dropped:])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"error": "score"}, "unknown error 'score'; expected eps, x0, v, truncated"),
        ({"discrete": 0}, "discrete is 0"),
        ({"label_dropout": 1.5}, "label_dropout 1.5"),
    ],
    ids=str,
)
def test_impossible_options_are_refused(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Diffusion(**options)
