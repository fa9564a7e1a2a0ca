"""Catch-up distillation: laws of its steps, its fixed point on Gaussian data, its options."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from kdgen import nets, noise, samplers
from kdgen.denoiser import Denoiser, Sampling
from kdgen.methods import Batch, Nets
from kdgen.methods.catch_up import START, TABLES, CatchUp
from kdgen.nets import exact
from kdgen.nets.coupling import Coupling
from kdgen.schedules import Cosine, Flow, LinearVP

SHAPE = (3, 8, 8)
STD = 0.5


class Constant(nn.Module):
    """Says `offset` in every one of its outputs, whatever it sees."""

    def __init__(self, outputs: int, offset: float) -> None:
        super().__init__()
        self.shape, self.classes = SHAPE, 0
        self.facts = nets.UNetConfig(8, outputs=outputs)
        self.offset = nn.Parameter(torch.full((outputs * SHAPE[0], 1, 1), offset))

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        return (self.offset + 0 * x[:, :1]).contiguous()


def independent() -> Coupling:
    """An encoder that says N(0, 1) of every image."""
    return Coupling(Constant(2, 0.0))


def answers(batch: Callable[..., Batch]) -> Iterator[tuple[CatchUp, Nets, Batch]]:
    """Data that is one grey image: its paths are straight, and the velocity constant on each."""
    options = (
        {},
        {"table": "rk12", "law": "origin", "discrete": True, "scale": 32},
        {"table": "rk23", "law": "rule", "ramp": True},
        {"table": "rk34", "coupling": True},
        {"table": "rk34_corrected", "target": "ema"},
    )
    for option in options:
        method = CatchUp(**option)
        student = Denoiser(Constant(method.heads, 0.25), Flow(), "x0")
        roles = {"student": student, "target": student.copy(), "encoder": independent()}
        drawn = batch(shape=SHAPE)
        # A step from as near to the data as here leaves float32 enough digits of the velocity.
        u = drawn.u.clamp(0.3, 0.95)
        drawn = replace(drawn, x0=torch.full_like(drawn.x0, 0.25), u=u)
        yield method, Nets({role: roles[role] for role in method.roles}), drawn


# The steps.


def follow(table: str, h: float, rate: Callable[[float], float], area: float) -> list[float]:
    """Where each step of a table lands on dx/dt = rate(t)·x from x(1) = 1, less the truth;
    `area` is ∫ rate from 0 to 1."""

    def slope(x: Tensor, t: Tensor) -> Tensor:
        return rate(t.item()) * x

    one = torch.ones(1, 1, dtype=torch.float64)
    t, step = torch.ones(1, dtype=torch.float64), torch.full((1,), h, dtype=torch.float64)
    landed = TABLES[table].positions(slope, one, t, step)
    truth = [math.exp(area * ((1 - i * h) ** 2 - 1)) for i in range(1, len(landed) + 1)]
    if area == 0:
        truth = [math.exp(-i * h) for i in range(1, len(landed) + 1)]
    return [abs(x.item() - y) for x, y in zip(landed, truth, strict=True)]


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("rk12", (2,)),
        ("rk23", (3, 2)),
        ("rk34", (3, 2, 2)),
        ("rk34_corrected", (4, 3, 3)),
    ],
)
@pytest.mark.parametrize("moving", [False, True], ids=["autonomous", "moving"])
def test_every_step_has_its_local_order(table: str, expected: tuple[int, ...], moving: bool):
    """Measured on dx/dt = x and on dx/dt = t·x, whose solutions are exponentials."""
    rate, area = ((lambda t: t), 0.5) if moving else ((lambda t: 1.0), 0.0)
    coarse, fine = (follow(table, h, rate, area) for h in (1e-2, 5e-3))
    found = [math.log2(a / b) for a, b in zip(coarse, fine, strict=True)]
    assert found == pytest.approx(expected, abs=0.15)


def test_a_known_first_slope_is_not_taken_again():
    seen: list[float] = []

    def slope(x: Tensor, t: Tensor) -> Tensor:
        seen.append(t.item())
        return x

    x, t, h = torch.ones(1, 1), torch.ones(1), torch.full((1,), 0.25)
    fresh = TABLES["rk34"].positions(slope, x, t, h)
    assert seen == [1.0, 0.75, 0.5]
    given = TABLES["rk34"].positions(slope, x, t, h, first=x)
    assert seen[3:] == [0.75, 0.5]
    assert all(torch.equal(a, b) for a, b in zip(fresh, given, strict=True))


# The fixed point.


def best(t: float) -> float:
    """The optimal velocity at x is best(t)·x for data N(0, c²): Liu et al. 2022's flow."""
    return (t - (1 - t) * STD**2) / (t**2 + (1 - t) ** 2 * STD**2)


def caught_up(n: int, weights: tuple[float, float] = (1.0, 1.0)) -> list[float]:
    """The velocity k_i·x at t = i/n on which catch-up training with steps of 1/n comes to rest:
    w1·(k_i − k_{i−1}·(1 − h·k_i)) + w2·(k_i − best(t_i)) = 0. At i = 1 the step would reach the
    data, and the target is the straight velocity in both terms."""
    w1, w2 = weights
    k = [best(0.0), best(1 / n)]
    for i in range(2, n + 1):
        k.append((w1 * k[-1] + w2 * best(i / n)) / (w1 + w2 + w1 / n * k[-1]))
    return k


class Slopes(nn.Module):
    """velocity = k(t)·x, one number for each time i/n."""

    def __init__(self, k: list[float]) -> None:
        super().__init__()
        self.shape, self.classes = (1, 1, 1), 0
        self.k = nn.Parameter(torch.tensor(k, dtype=torch.float64))

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        return self.k[(time * (len(self.k) - 1)).round().long()].view(-1, 1, 1, 1) * x


def slopes(k: list[float]) -> Denoiser:
    return Denoiser(Slopes(k), Flow(), "velocity", time="raw")


def second_moments(n: int, batch: Callable[..., Batch]) -> Batch:
    """At every time i/n the four images ±c with the noise ±1: on networks that are linear in x a
    quadratic loss knows the data by its second moments, and these are N(0, c²)'s."""
    drawn = batch(n=4 * n, shape=(1, 1, 1), dtype=torch.float64)
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    x0, eps = (signs.repeat(n, 1)[:, k].view(-1, 1, 1, 1) for k in (0, 1))
    i = torch.arange(n, dtype=torch.float64).repeat_interleave(4)
    u = torch.stack([(i + 0.5) / n, torch.full_like(i, 0.5)], dim=1)
    return replace(drawn, x0=STD * x0, eps=eps, u=u)


def gradient(method: CatchUp, student: Denoiser, drawn: Batch) -> Tensor:
    """Of the sum over all times, for the weight of every time but 0."""
    student.zero_grad()
    method.loss("main", Nets({"student": student}), drawn).sum().backward()
    return student.net.k.grad[1:] / 4


@pytest.mark.parametrize(
    ("n", "end"),
    # Were the first step not to reach the data, the first would be 0.9787583704.
    [(16, 0.9787601128), (64, 0.9958300036), (256, 0.9990078931)],
)
def test_training_rests_at_the_fixed_point(n: int, end: float, batch: Callable[..., Batch]):
    assert caught_up(n)[-1] == pytest.approx(end, abs=1e-10)
    method = CatchUp(law="origin", discrete=True, scale=n)
    rest = gradient(method, slopes(caught_up(n)), second_moments(n, batch))
    assert rest.abs().max() < 1e-12
    flow = [best(i / n) for i in range(n + 1)]
    assert gradient(method, slopes(flow), second_moments(n, batch)).abs().max() > 1e-3


@pytest.mark.parametrize("weights", [(1.0, 3.0), (2.0, 0.5), (0.0, 1.0)])
def test_the_fixed_point_follows_the_weights(
    weights: tuple[float, float], batch: Callable[..., Batch]
):
    method = CatchUp(law="origin", discrete=True, scale=32, weights=weights)
    rest = gradient(method, slopes(caught_up(32, weights)), second_moments(32, batch))
    assert rest.abs().max() < 1e-12


def test_the_fixed_point_lags_behind_the_flow_by_a_step_of_its_acceleration():
    """To first order k − k* is −(w1/w2)·h·(k*' + k*²), the material derivative along a path."""
    t, c2 = 0.5, STD**2
    power, d_power = t**2 + (1 - t) ** 2 * c2, 2 * t - 2 * (1 - t) * c2
    slope = (1 + c2) / power - (t - (1 - t) * c2) * d_power / power**2
    lag = -(slope + best(t) ** 2)
    found = [caught_up(n)[n // 2] - best(t) for n in (256, 512)]
    assert found[0] == pytest.approx(-0.010190, abs=1e-6)
    assert lag / 256 == pytest.approx(-0.010000, abs=1e-6)
    rest = [abs(k - lag / n) for k, n in zip(found, (256, 512), strict=True)]
    assert math.log2(rest[0] / rest[1]) == pytest.approx(2, abs=0.05)


def test_without_a_step_it_is_flow_matching(batch: Callable[..., Batch]):
    """As h vanishes the student agrees with itself, and only x1 − x0 teaches it."""
    drawn, flow = second_moments(16, batch), [best(i / 16) for i in range(17)]
    t = torch.arange(1, 17, dtype=torch.float64).repeat_interleave(4)[:, None] / 16
    drawn = replace(drawn, u=((t - START) / (1 - START)).expand(-1, 2))
    method = CatchUp(scale=10**12, law="origin", weights=(1.0, 0.0))
    for k in (flow, [0.3] * 17):
        assert gradient(method, slopes(k), drawn).abs().max() < 1e-9
    method = replace(method, weights=(0.0, 1.0))
    assert gradient(method, slopes(flow), drawn).abs().max() < 1e-9
    assert gradient(method, slopes([0.3] * 17), drawn).abs().max() > 0.1


# The loss.


def flowing(outputs: int, lively: Callable[..., nn.Module]) -> Denoiser:
    size = nets.UNetConfig(8, width=8, mult=(1, 2), blocks=1, attention=(4,), outputs=outputs)
    denoiser = Denoiser(nets.UNet(size), Flow(), "velocity", time="thousandths")
    return lively(denoiser).double().eval()


@pytest.mark.parametrize("table", TABLES)
def test_the_loss_is_the_papers(
    table: str, lively: Callable[..., nn.Module], batch: Callable[..., Batch]
):
    """Written out once more for each table, on images far enough from the data."""
    method = CatchUp(table=table, weights=(0.7, 1.3))
    student, drawn = flowing(method.heads, lively), batch(shape=SHAPE, dtype=torch.float64)
    drawn = replace(drawn, u=drawn.u.clamp(0.25, 0.95))
    t = START + (1 - START) * drawn.u[:, 0]
    h = drawn.u[:, 1] / 16
    wide = h.view(-1, 1, 1, 1)
    x = (1 - t).view(-1, 1, 1, 1) * drawn.x0 + t.view(-1, 1, 1, 1) * drawn.eps

    def v(x: Tensor, t: Tensor) -> Tensor:
        return student.outputs(x, t)[0].velocity

    k1 = v(x, t)
    k2 = v(x - wide * k1, t - h)
    if table == "rk12":
        places = [x - wide * k1]
    elif table == "rk23":
        places = [x - wide / 2 * (k1 + k2), x - wide * (k1 + k2)]
    elif table == "rk34":
        k3 = v(x - wide * (7 / 4 * k1 + 1 / 4 * k2), t - 2 * h)
        mean = 5 / 12 * k1 + 2 / 3 * k2 - 1 / 12 * k3
        places = [x - wide * mean, x - 2 * wide * mean, x - 3 * wide * mean]
    else:
        k3 = v(x - wide * (4 * k1 - 2 * k2), t - 2 * h)
        places = [
            x - wide * (5 / 12 * k1 + 2 / 3 * k2 - 1 / 12 * k3),
            x - wide / 3 * (k1 + 4 * k2 + k3),
            x - wide * 3 / 4 * (k1 + 3 * k3),
        ]
    expected = torch.zeros(8, dtype=torch.float64)
    for i, (head, place) in enumerate(zip(student.outputs(x, t), places, strict=True), 1):
        later = v(place, t - i * h)
        expected += 0.7 * (head.velocity - later).square().mean((1, 2, 3))
        expected += 1.3 * (head.velocity - (drawn.eps - drawn.x0)).square().mean((1, 2, 3))
    loss = method.loss("main", Nets({"student": student}), drawn)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("table", TABLES)
def test_near_the_data_both_terms_are_flow_matching(
    table: str, lively: Callable[..., nn.Module], batch: Callable[..., Batch]
):
    """Where the table's last step would pass t = 1e-5, and only there."""
    student, drawn = flowing(TABLES[table].heads, lively), batch(shape=SHAPE)
    student.float()
    edge = TABLES[table].heads / 16
    t = torch.tensor([1e-6, 0.3 * edge, 0.9 * edge, 0.999 * edge, 1.001 * edge, 0.5, 0.7, 1 - 1e-6])
    drawn = replace(drawn, u=t[:, None].expand(-1, 2))
    roles = Nets({"student": student})
    catch_up, flow = (
        CatchUp(table=table, law="origin", weights=w).loss("main", roles, drawn)
        for w in ((1.0, 0.0), (0.0, 1.0))
    )
    same = (catch_up - flow).abs() < 1e-6
    assert same.tolist() == [True] * 4 + [False] * 4


def seen_times(method: CatchUp, u: Tensor, batch: Callable[..., Batch]) -> tuple[Tensor, Tensor]:
    """(t, h) that a loss draws from u (B, 2), as the network sees them."""
    student = Denoiser(exact.Affine((1, 1, 1)), Flow(), "velocity", time="raw").double().eval()
    times: list[Tensor] = []
    student.net.register_forward_pre_hook(lambda _, args: times.append(args[1]))
    drawn = replace(batch(n=len(u), shape=(1, 1, 1), dtype=torch.float64), u=u)
    method.loss("main", Nets({"student": student}), drawn)
    return times[0], times[0] - times[-1]


def test_steps_are_drawn_by_their_law(batch: Callable[..., Batch]):
    places = (torch.arange(64, dtype=torch.float64) + 0.5) / 64
    u = torch.cartesian_prod(0.2 + 0.8 * places[::8], places)
    for law in ("uniform", "rule", "origin"):
        t, h = seen_times(CatchUp(law=law), u, batch)
        torch.testing.assert_close(t, START + (1 - START) * u[:, 0], rtol=0, atol=1e-12)
        expected = {"uniform": u[:, 1] / 16, "rule": t / 16, "origin": torch.full_like(t, 1 / 16)}
        torch.testing.assert_close(h, expected[law], rtol=0, atol=1e-12)


def test_discrete_steps_stay_on_the_grid(batch: Callable[..., Batch]):
    places = (torch.arange(48, dtype=torch.float64) + 0.5) / 48
    u = torch.cartesian_prod(places, places)
    for law in ("uniform", "origin"):
        t, h = seen_times(CatchUp(law=law, scale=8, discrete=True), u, batch)
        assert torch.equal(t.unique(), torch.arange(1, 9) / 8)
        assert (t.unique(return_counts=True)[1] == 48 * 6).all()
        inside = h < t - 1e-3  # the others are seen at 1e-5, and not used
        counts = 8 * h[inside]
        torch.testing.assert_close(counts, counts.round(), rtol=0, atol=1e-9)
        assert counts.round().unique().tolist() == ([1.0] if law == "origin" else [*range(1, 8)])


def test_a_ramp_moves_the_weight(lively: Callable[..., nn.Module], batch: Callable[..., Batch]):
    student, drawn = flowing(2, lively), batch(shape=SHAPE, dtype=torch.float64)
    for progress in (0.0, 0.25, 1.0):
        drawn = replace(drawn, progress=torch.tensor(progress))
        ramp = CatchUp(table="rk23", ramp=True, weights=(0.5, 1.5))
        level = CatchUp(table="rk23", weights=(progress, 3 * (1 - progress)))
        found, expected = (m.loss("main", Nets({"student": student}), drawn) for m in (ramp, level))
        torch.testing.assert_close(found, expected)


# Targets, dropout and cost.


def calls(method: CatchUp, dropout: float, batch: Callable[..., Batch]) -> dict[str, int]:
    """Forward passes of one loss, by role, as the loop runs it."""
    size = nets.UNetConfig(8, width=8, mult=(1, 2), blocks=1, dropout=dropout)
    roles = method.cast(Denoiser(nets.UNet(size), Cosine(), "v"))
    counted = dict.fromkeys(method.roles, 0)

    def count(role: str) -> Callable[..., None]:
        return lambda *_: counted.update({role: counted[role] + 1})

    for role in method.roles:
        roles[role].net.register_forward_hook(count(role))
        roles[role].train(role in method.trained("main"))
    method.loss("main", roles, batch(shape=SHAPE))
    return counted


@pytest.mark.parametrize(("table", "steps"), [("rk12", 1), ("rk23", 2), ("rk34", 3)])
def test_what_a_step_costs(table: str, steps: int, batch: Callable[..., Batch]):
    """Five, seven and nine evaluations, the backward pass counted as two; one less without
    dropout, where the student need not be asked twice at the same place."""
    method = CatchUp(table=table)
    assert (method.cost(dropout=True), method.cost()) == (3 + 2 * steps, 2 + 2 * steps)
    assert calls(method, 0.1, batch) == {"student": 1 + 2 * steps}
    assert calls(method, 0.0, batch) == {"student": 2 * steps}
    averaged = replace(method, target="ema")
    for dropout in (0.0, 0.1):
        assert calls(averaged, dropout, batch) == {"student": 1, "target": 2 * steps}
        assert averaged.cost(dropout > 0) == 3 + 2 * steps


def test_the_student_teaches_itself_as_it_is_and_the_average_teaches_without_dropout(
    batch: Callable[..., Batch], lively: Callable[..., nn.Module]
):
    size = nets.UNetConfig(8, width=8, mult=(1, 2), blocks=1, dropout=0.5)
    flow = lively(Denoiser(nets.UNet(size), Flow(), "velocity"))
    drawn = replace(batch(shape=SHAPE), u=torch.full((8, 2), 0.5))
    for target, quiet in (("online", False), ("ema", True)):
        method = CatchUp(target=target)
        roles = method.cast(flow)
        for role in method.roles:
            roles[role].train(role == "student")
        later: list[Tensor] = []
        seen = roles[method.roles[-1]]
        seen.net.register_forward_hook(lambda _, args, y, later=later: later.append(y))
        for seed in (1, 2):
            torch.manual_seed(seed)
            method.loss("main", roles, drawn)
        half = len(later) // 2
        assert torch.equal(later[half - 1], later[-1]) == quiet
        assert len({y.requires_grad for y in later}) == (1 if target == "ema" else 2)


def test_the_average_keeps_what_it_is_told():
    assert CatchUp().keeps(0.5) == 0.9999
    assert CatchUp(keep=0.99, target="ema").keeps(0.1) == 0.99


# The learned coupling.


def test_a_coupling_that_says_nothing_costs_nothing(batch: Callable[..., Batch]):
    drawn = replace(batch(shape=SHAPE), u=torch.full((8, 2), 0.5))
    roles = Nets({"student": Denoiser(Constant(1, 0.1), Flow(), "x0"), "encoder": independent()})
    found = CatchUp(coupling=True).loss("main", roles, drawn)
    assert torch.equal(found, CatchUp().loss("main", roles, drawn))


def test_a_coupling_moves_the_noise(batch: Callable[..., Batch]):
    """x1 is m + e^(logvar/2)·eps wherever eps was, beside the divergence."""
    roles = Nets({"student": Denoiser(Constant(1, 0.1), Flow(), "x0"), "encoder": independent()})
    drawn = replace(batch(shape=SHAPE), u=torch.full((8, 2), 0.5))
    mean, logvar = 0.4, -0.6
    with torch.no_grad():
        roles.encoder.net.offset[:3], roles.encoder.net.offset[3:] = mean, logvar
    moved = replace(drawn, eps=mean + math.exp(logvar / 2) * drawn.eps)
    found = CatchUp(coupling=True).loss("main", roles, drawn)
    divergence = 0.5 * (-1 - logvar + mean**2 + math.exp(logvar))
    expected = CatchUp().loss("main", roles, moved) + 20 * divergence
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("logvar", [-1.0, 0.0, 0.7])
def test_the_divergence_has_its_closed_form(logvar: float, batch: Callable[..., Batch]):
    """½·mean(−1 − logvar + m² + e^logvar): 0 at N(0, 1), with slope ½·(e^logvar − 1)/d in one
    pixel's logvar and m/d in its mean."""
    roles = Nets({"student": Denoiser(Constant(1, 0.1), Flow(), "x0"), "encoder": independent()})
    with torch.no_grad():
        roles.encoder.net.offset[:3], roles.encoder.net.offset[3:] = 0.3, logvar
    method = CatchUp(coupling=True, weights=(0.0, 0.0), beta=2.0)
    loss = method.loss("main", roles, batch(shape=SHAPE))
    expected = -1 - logvar + 0.3**2 + math.exp(logvar)
    torch.testing.assert_close(loss, torch.full((8,), expected))
    loss[0].backward()
    means, logvars = roles.encoder.net.offset.grad.flatten().chunk(2)
    torch.testing.assert_close(means, torch.full((3,), 2 * 0.3 / 3))
    torch.testing.assert_close(logvars, torch.full((3,), (math.exp(logvar) - 1) / 3))


def test_the_encoder_learns_through_its_noise(
    batch: Callable[..., Batch], lively: Callable[..., nn.Module]
):
    """Through x_t and x1 − x0: a student that says 0 pulls the mean to x0."""
    still = Denoiser(Constant(1, 0.0), Flow(), "velocity")
    roles = Nets({"student": still, "encoder": independent()})
    drawn = replace(batch(shape=SHAPE), u=torch.full((8, 2), 0.5))
    method = CatchUp(coupling=True, beta=0.0, weights=(0.0, 1.0))
    method.loss("main", roles, drawn).mean().backward()
    pull = 2 * (drawn.eps - drawn.x0).mean((0, 2, 3)) / 3
    torch.testing.assert_close(roles.encoder.net.offset.grad[:3].flatten(), pull)
    seeing = flowing(1, lively).float()
    through = Nets({"student": seeing, "encoder": independent()})
    method.loss("main", through, drawn).mean().backward()
    assert not torch.allclose(through.encoder.net.offset.grad[:3].flatten(), pull, rtol=0.1)


# What suits the method.


def teacher(**options: object) -> Denoiser:
    size = nets.UNetConfig(8, width=8, mult=(1, 2), blocks=1, dropout=0.1)
    return Denoiser(nets.UNet(replace(size, **options)), Cosine(), "v", sampling=Sampling(steps=3))


@pytest.mark.parametrize("table", TABLES)
def test_a_student_is_its_teacher_on_straight_paths(table: str, lively: Callable[..., nn.Module]):
    """With an output for every step, of which the first says what the teacher says."""
    method, source = CatchUp(table=table), lively(teacher()).eval()
    roles = method.cast(source)
    method.check(roles)
    student = roles.student
    assert (student.heads, student.schedule) == (method.heads, Flow())
    assert student.net.facts.dropout == 0.1
    x = torch.randn(2, *SHAPE)
    t = Cosine().t_of_sigma(0.4 / 0.6)
    size = sum(Cosine().levels(t))
    expected = source(size * x, t).x0
    torch.testing.assert_close(student.outputs(x, 0.4)[0].x0, expected, rtol=0, atol=1e-4)


def test_the_roles_are_what_the_options_need():
    assert CatchUp().roles == ("student",)
    assert CatchUp(target="ema").roles == ("student", "target")
    both = CatchUp(coupling=True, target="ema")
    assert both.roles == ("student", "target", "encoder")
    assert both.trains == {"main": ("student", "encoder")}
    roles = both.cast(teacher())
    assert set(roles) == set(both.roles)
    assert isinstance(roles.encoder, Coupling)


def test_fifteen_evaluations_are_eight_intervals():
    heun = CatchUp(solver="velocity_heun", steps=8)
    how = heun.sampling(teacher())
    assert (how.sampler, how.steps, how.grid) == ("velocity_heun", 8, "uniform")
    assert samplers.evaluations(Flow(), how) == 15
    assert samplers.evaluations(Flow(), CatchUp().sampling(teacher())) == 16


@pytest.mark.parametrize("solver", ["ddim", "velocity_heun", "dpm", "rk45"])
def test_a_flow_can_be_sampled_by_every_solver(solver: str):
    """On Gaussian data, whose flow takes z to m + c·z; Euler's 64 steps shrink it by 1% or so."""
    flow = exact.gaussian(Flow(), SHAPE, 0.3, 0.5)
    z = noise.normal(0, 0, noise.addresses(0, 4), SHAPE)
    images = samplers.sample(flow, z, None, CatchUp(solver=solver, steps=64).sampling(flow))
    torch.testing.assert_close(images, 0.3 + 0.5 * z, rtol=0, atol=0.05)


@pytest.mark.parametrize("form", ["residual", "consistency"])
def test_a_one_step_generator_is_refused(form: str):
    student = CatchUp().student(teacher()).copy(parameterisation=form)
    with pytest.raises(ValueError, match=f"read as '{form}'.* Start from the teacher"):
        CatchUp().check(Nets({"student": student}))


@pytest.mark.parametrize(("phi", "gain"), [(0.75, None), (None, 0.75), (0.75, 0.25)])
def test_a_student_without_its_phi_is_refused(phi: float | None, gain: float | None):
    net = teacher().net.copy(skip_gain=gain)
    student = Denoiser(net, Flow(), "velocity", time="raw")
    with pytest.raises(ValueError, match="a catch-up checkpoint without its phi"):
        CatchUp(phi=phi).check(Nets({"student": student}))
    CatchUp(phi=gain).check(Nets({"student": student}))


def test_unsuitable_students_are_refused():
    elsewhere = Nets({"student": teacher()})
    with pytest.raises(ValueError, match="the student is on cosine; expected flow"):
        CatchUp().check(elsewhere)
    flow = teacher().copy(schedule=Flow())
    with pytest.raises(ValueError, match="has 1 outputs; expected 3 for rk34"):
        CatchUp(table="rk34").check(Nets({"student": flow}))
    with pytest.raises(ValueError, match="time is 'angle' for a network with skip_gain"):
        flow.copy(net=teacher().net.copy(skip_gain=0.75))
    affine = Denoiser(exact.Affine(SHAPE), Flow(), "velocity")
    with pytest.raises(ValueError, match="no encoder is known beside a Affine"):
        CatchUp(coupling=True).cast(affine)
    noisy = Denoiser(teacher().net, LinearVP(), "eps")
    with pytest.raises(ValueError, match="'eps' divides by alpha"):
        CatchUp().student(noisy)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"table": "rk45"}, "unknown table 'rk45'; expected rk12, rk23, rk34, rk34_corrected"),
        ({"law": "log"}, "unknown law 'log'; expected uniform, rule, origin"),
        ({"target": "teacher"}, "unknown target 'teacher'; expected online, ema"),
        ({"solver": "heun"}, "unknown solver 'heun'; expected ddim, velocity_heun, dpm, rk45"),
        ({"law": "rule", "discrete": True}, "discrete with law 'rule'"),
        ({"scale": 0}, "scale is 0"),
        ({"weights": (1.0, -1.0)}, "expected at least 1, and two weights of at least 0"),
        ({"keep": 1.0}, "keep is 1.0"),
        ({"beta": -1.0}, "beta -1.0"),
    ],
    ids=str,
)
def test_impossible_options_are_refused(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        CatchUp(**options)


def test_training_straightens_what_one_step_sees():
    """On Gaussian data one Euler step of the flow itself gives the mean; what has caught up with
    steps of h keeps part of the deviation, the more the longer they are."""
    gains = [1 - caught_up(n)[-1] for n in (256, 64, 16)]
    assert all(0 < a < b for a, b in pairwise(gains))
    for n in (256, 64, 16):
        z = torch.ones(1, 1, 1, 1, dtype=torch.float64)
        image = samplers.ddim(slopes(caught_up(n)), z, 1)
        assert image.item() == pytest.approx(1 - caught_up(n)[-1], abs=1e-12)
