"""Liu et al. 2022: flows along straight lines, straightened by their own pairs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from kdgen import nets, samplers
from kdgen.denoiser import Denoiser, Prediction, Sampling
from kdgen.methods import Batch, Nets
from kdgen.methods.reflow import Reflow
from kdgen.metrics.straightness import straightness
from kdgen.nets import exact
from kdgen.schedules import EDM, Cosine, Flow, LinearVP, NoiseSchedule, expand

SHAPE = (3, 8, 8)
MEAN, STD = 0.25, 0.5  # exact in float32


class Straight(nn.Module):
    """The velocity that is the same all along each path to mean + std·z: (1 − std)·z − mean."""

    classes = 0

    def __init__(self, shape: tuple[int, int, int], mean: float, std: float) -> None:
        super().__init__()
        self.shape = shape
        self.mean, self.std = nn.Parameter(torch.tensor(mean)), nn.Parameter(torch.tensor(std))

    def forward(
        self, x: Tensor, time: Tensor, label: Tensor | None = None, augment: Tensor | None = None
    ) -> Tensor:
        t = expand(time.to(x), x)
        z = (x - (1 - t) * self.mean) / (t + (1 - t) * self.std)
        return (1 - self.std) * z - self.mean


def straight(std: float = STD, mean: float = MEAN, sampling: Sampling | None = None) -> Denoiser:
    return Denoiser(Straight(SHAPE, mean, std), Flow(), "velocity", "raw", sampling)


def pairs(drawn: Batch) -> Batch:
    """Made by the exact flow of Gaussian data: x0 = m + c·z."""
    return replace(drawn, x0=MEAN + STD * drawn.z)


def answers(batch: Callable[..., Batch]) -> Iterator[tuple[Reflow, Nets, Batch]]:
    drawn = batch(shape=SHAPE)
    grey = Denoiser(exact.Affine(SHAPE, 0.0, 0.25), Flow(), "x0")
    # Float32 leaves fewer digits of a velocity where there is hardly any noise: stay above.
    images = replace(drawn, x0=torch.full_like(drawn.x0, 0.25), u=drawn.u.clamp(0.1, 0.9))
    teacher = exact.dataset(Cosine(), torch.full((1, *SHAPE), 0.25), sampling=Sampling(steps=3))
    for error in ("l2", "huber"):
        yield Reflow("flow", 3, error), Nets({"student": grey}), images
        yield Reflow("reflow", 3, error), Nets({"student": straight()}), pairs(drawn)
        yield Reflow("distill", 2, error), Nets({"student": straight()}), pairs(drawn)
    one_step = Denoiser(exact.Affine(SHAPE, 1 - STD, -MEAN), Flow(), "velocity")
    yield Reflow("distill"), Nets({"student": one_step}), pairs(drawn)
    roles = {"student": grey.copy(), "teacher": teacher}
    yield Reflow("reflow", 3, online=True), Nets(roles), replace(images, x0=torch.empty(0))


# Gaussian data in closed form


def exact_flow() -> exact.Mixture:
    return exact.gaussian(Flow(), SHAPE, MEAN, STD).double()


def noise(batch: Callable[..., Batch], n: int = 8) -> Tensor:
    z: Tensor = batch(n=n, shape=SHAPE, dtype=torch.float64).z
    return z


def test_the_first_flow_has_the_known_velocity(batch: Callable[..., Batch]):
    """v = −m + [(t − (1 − t)c²)/(t² + (1 − t)²c²)]·(x − (1 − t)m)."""
    x, t = noise(batch), torch.linspace(0.1, 1, 8, dtype=torch.float64)
    v = exact_flow()(x, t).velocity
    t = expand(t, x)
    slope = (t - (1 - t) * STD**2) / (t**2 + (1 - t) ** 2 * STD**2)
    torch.testing.assert_close(v, slope * (x - (1 - t) * MEAN) - MEAN)


def test_one_step_of_the_first_flow_collapses_to_the_mean(batch: Callable[..., Batch]):
    x0 = samplers.ddim(exact_flow(), noise(batch), 1)
    torch.testing.assert_close(x0, torch.full_like(x0, MEAN), rtol=0, atol=1e-12)


def test_many_steps_of_the_first_flow_find_its_map(batch: Callable[..., Batch]):
    """x0 = m + c·z, and ten times the steps leave a tenth of the error."""
    z = noise(batch)
    errors = [
        (samplers.ddim(exact_flow(), z, steps) - MEAN - STD * z).abs().max().item()
        for steps in (100, 1000)
    ]
    assert errors[1] < 5e-3
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.05)


def test_no_flow_beats_the_exact_one(batch: Callable[..., Batch]):
    """Its squared error is that of x0 over t², s²c²/V at t = ½ being the least possible."""
    drawn = batch(n=64, shape=(1, 32, 32))
    drawn = replace(drawn, x0=MEAN + STD * drawn.z, u=torch.full_like(drawn.u, 0.5))
    method = Reflow("flow", t_min=1e-9)

    def loss(mean: float, std: float) -> float:
        student = exact.gaussian(Flow(), (1, 32, 32), mean, std)
        return method.loss("main", Nets({"student": student}), drawn).mean().item()

    variance = (0.5 * STD) ** 2 + 0.5**2
    assert loss(MEAN, STD) == pytest.approx((0.5 * STD) ** 2 / variance / 0.5**2, rel=0.02)
    for mean, std in ((0.15, 0.5), (0.35, 0.5), (0.25, 0.4), (0.25, 0.6)):
        assert loss(mean, std) > loss(MEAN, STD)


# Straightened


@pytest.mark.parametrize("kind", ["reflow", "distill"])
@pytest.mark.parametrize("error", ["l2", "huber"])
def test_the_flow_through_its_own_pairs_is_straight(
    kind: str, error: str, batch: Callable[..., Batch]
):
    """At the optimum nothing is left of the loss, one step is exact, and straightness is 0."""
    drawn = pairs(batch(shape=SHAPE, dtype=torch.float64))
    student = straight().double()
    method = Reflow(kind, error=error)
    assert method.loss("main", Nets({"student": student}), drawn).max() < 1e-20
    one = samplers.ddim(student, drawn.z, 1)
    torch.testing.assert_close(one, drawn.x0, rtol=0, atol=1e-12)
    assert straightness(student, drawn.z, 10).max() < 1e-20
    assert straightness(exact_flow(), drawn.z, 10).min() > 1e-2


@pytest.mark.parametrize("kind", ["reflow", "distill"])
def test_training_on_pairs_finds_the_straight_flow(kind: str, batch: Callable[..., Batch]):
    drawn = pairs(batch(n=32, shape=SHAPE, dtype=torch.float64))
    student = straight(std=0.9, mean=0.0).double()
    method, roles = Reflow(kind), Nets({"student": student})
    adam = torch.optim.Adam(student.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.ExponentialLR(adam, 0.97)
    for _ in range(300):
        adam.zero_grad()
        method.loss("main", roles, drawn).mean().backward()
        adam.step()
        schedule.step()
    assert student.net.std.item() == pytest.approx(STD, abs=1e-3)
    assert student.net.mean.item() == pytest.approx(MEAN, abs=1e-3)


def test_distilling_one_step_gives_the_gain_of_the_pairs(batch: Callable[..., Batch]):
    """By least squares on what the loss compares at t = 1: v = (1 − c)·z − m."""
    drawn = pairs(batch(shape=SHAPE, dtype=torch.float64))
    seen: list[Prediction] = []
    student = Denoiser(exact.Affine(SHAPE, 0.0, 0.0), Flow(), "velocity").double()
    student.register_forward_hook(lambda *args: seen.append(args[2]))
    loss = Reflow("distill").loss("main", Nets({"student": student}), drawn)
    torch.testing.assert_close(loss, ((1 - STD) * drawn.z - MEAN).square().mean((1, 2, 3)))
    assert torch.equal(seen[0].x_t, drawn.z)


# Straightness


def curvature(top: float = 1.0) -> float:
    """∫ (d√V/dt − slope of its chord)² dt of the exact flow, V = t² + (1 − t)²c²: a fine sum."""
    t = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000 * top
    root = (t**2 + (1 - t) ** 2 * STD**2).sqrt()
    speed = (t - (1 - t) * STD**2) / root
    chord = (math.sqrt(top**2 + (1 - top) ** 2 * STD**2) - STD) / top
    return (speed - chord).square().mean().item()


@pytest.mark.parametrize("q", [Flow(), Cosine(), LinearVP(), EDM()], ids=repr)
def test_straightness_is_liu_et_als_integral_on_any_path(
    q: NoiseSchedule, batch: Callable[..., Batch]
):
    """Of the exact denoiser the velocity is −m + (d√V/dt)·z', z' its unit noise."""
    z = noise(batch)
    alpha, sigma = q.levels(1.0)
    top = sigma / (alpha + sigma)
    unit = (q.start(z, 1.0) - alpha * MEAN) / math.sqrt((alpha * STD) ** 2 + sigma**2)
    expected = curvature(top) * unit.square().mean((1, 2, 3))
    found = straightness(exact.gaussian(q, SHAPE, MEAN, STD).double(), z, 400)
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0)


def test_straightness_of_a_few_steps_is_their_mean_square_from_the_chord(
    batch: Callable[..., Batch],
):
    """Written out on a flow: x moves against v, and is compared with where it went."""
    z, model = noise(batch), exact_flow()
    x, velocities = z, []
    for t in (1.0, 0.75, 0.5, 0.25):
        velocities.append(model(x, t).velocity)
        x = x - 0.25 * velocities[-1]
    expected = sum((z - x - v).square().mean((1, 2, 3)) for v in velocities) / 4
    torch.testing.assert_close(straightness(model, z, 4), expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("q", [Flow(), Cosine(), EDM()], ids=repr)
def test_the_way_to_a_single_image_is_straight(q: NoiseSchedule, batch: Callable[..., Batch]):
    one = exact.dataset(q, torch.full((1, *SHAPE), 0.25)).double()
    assert straightness(one, noise(batch), 8).max() < 1e-20


def test_one_step_has_no_straightness(batch: Callable[..., Batch]):
    with pytest.raises(ValueError, match="steps is 1; expected at least 2"):
        straightness(exact_flow(), noise(batch), 1)


# The loss


@pytest.mark.parametrize(
    ("kind", "steps", "u", "expected"),
    [
        ("flow", None, [0.0, 0.5, 1.0], [1e-3, 0.5005, 1.0]),
        ("reflow", 4, [0.0, 0.5, 1.0], [1e-3, 0.5005, 1.0]),
        ("distill", None, [0.0, 0.5, 1 - 2**-24], [1.0, 1.0, 1.0]),
        ("distill", 4, [0.0, 0.26, 1 - 2**-24], [0.25, 0.5, 1.0]),
    ],
    ids=str,
)
def test_times_are_those_of_the_kind(
    kind: str, steps: int | None, u: list, expected: list, batch: Callable[..., Batch]
):
    seen: list[Tensor] = []
    student = Denoiser(exact.Affine((1, 1, 1)), Flow(), "velocity")
    student.register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    drawn = replace(batch(n=3, shape=(1, 1, 1)), u=torch.tensor(u)[:, None].expand(-1, 4))
    Reflow(kind, steps).loss("main", Nets({"student": student}), drawn)
    torch.testing.assert_close(seen[0], torch.tensor(expected))


@pytest.mark.parametrize(("error", "value"), [("l2", 0.49), ("huber", 0.5 * 0.49)])
def test_errors_are_means_of_the_velocitys(error: str, value: float, batch: Callable[..., Batch]):
    drawn = replace(batch(shape=SHAPE), z=torch.zeros(8, *SHAPE), x0=torch.zeros(8, *SHAPE))
    student = Denoiser(exact.Affine(SHAPE, 0.0, 0.7), Flow(), "velocity")
    loss = Reflow("reflow", error=error).loss("main", Nets({"student": student}), drawn)
    torch.testing.assert_close(loss, torch.full((8,), value))


def test_online_learns_from_what_a_store_would_hold(batch: Callable[..., Batch]):
    drawn = batch(shape=SHAPE)
    teacher = exact.gaussian(Flow(), SHAPE, 0.0, 0.3, sampling=Sampling("ddim", 20))
    roles = Nets({"student": straight(), "teacher": teacher})
    stored = replace(drawn, x0=samplers.sample(teacher, drawn.z).clamp(-1, 1))
    online = Reflow(online=True).loss("main", roles, replace(drawn, x0=torch.empty(0)))
    torch.testing.assert_close(online, Reflow().loss("main", roles, stored))


# Who takes part


@pytest.mark.parametrize(
    ("method", "roles", "data", "draws"),
    [
        (Reflow("flow"), ("student",), "images", ("eps", "u")),
        (Reflow("reflow"), ("student",), "pairs", ("z", "u")),
        (Reflow("distill"), ("student",), "pairs", ("z", "u")),
        (Reflow("reflow", online=True), ("student", "teacher"), "noise", ("z", "u")),
    ],
    ids=str,
)
def test_roles_and_data_follow_the_kind(method: Reflow, roles: tuple, data: str, draws: tuple):
    assert (method.roles, method.data, method.draws) == (roles, data, draws)


def test_online_flows_are_rounds():
    assert len(list(Reflow().rounds())) == 1
    assert len(list(Reflow(online=True, flows=3).rounds())) == 3


@pytest.mark.parametrize(
    ("kind", "steps", "sampling"),
    [
        ("flow", None, Sampling("ddim", 20)),
        ("reflow", 4, Sampling("ddim", 4)),
        ("distill", None, Sampling("ddim", 1, clip=1.0)),
        ("distill", 2, Sampling("ddim", 2, clip=1.0)),
    ],
    ids=str,
)
def test_the_student_takes_eulers_steps(kind: str, steps: int | None, sampling: Sampling):
    method = Reflow(kind, steps)
    student = method.student(Denoiser(nets.preset("tiny8", dropout=0.1), Cosine(), "v"))
    assert student.sampling == method.sampling(student) == sampling
    assert student.schedule == Flow()
    assert student.net.facts.dropout == 0


@pytest.mark.parametrize("form", ["v", "x0", "edm"])
def test_a_student_begins_as_its_teacher_on_a_straight_path(
    form: str, batch: Callable[..., Batch], lively: Callable[..., nn.Module]
):
    """The same guess at x0 from the same image in the same proportion to its noise."""
    teacher = lively(Denoiser(nets.preset("tiny8"), Cosine(), form))
    student = Reflow().student(teacher)
    x0, eps = batch(shape=teacher.shape).x0, batch(shape=teacher.shape).eps
    t = torch.tensor(0.4)
    alpha, sigma = Cosine().alpha_sigma(t)
    guess = student((alpha * x0 + sigma * eps) / (alpha + sigma), sigma / (alpha + sigma))
    expected = teacher(alpha * x0 + sigma * eps, t).x0
    torch.testing.assert_close(guess.x0, expected, rtol=1e-3, atol=1e-4)


def test_a_teacher_of_eps_lends_its_weights_to_a_velocity():
    teacher = Denoiser(nets.preset("tiny8"), LinearVP(), "eps")
    student = Reflow().student(teacher)
    assert (student.parameterisation, student.schedule) == ("velocity", Flow())
    for name, value in teacher.net.state_dict().items():
        assert torch.equal(value, student.net.state_dict()[name]), name


def test_a_teacher_of_log_sigma_lends_its_weights_to_a_finite_time():
    teacher = Denoiser(nets.preset("tiny8"), EDM(), "edm")
    student = Reflow().student(teacher)
    assert (teacher.time, student.time, student.parameterisation) == (
        "log_sigma",
        "thousandths",
        "edm",
    )
    assert student(torch.ones(1, *student.shape), 1.0).x0.isfinite().all()


def test_an_online_teacher_keeps_its_path_and_its_sampler():
    teacher = Denoiser(nets.preset("tiny8"), EDM(), "edm", sampling=Sampling("heun", 5, "karras"))
    assert set(Reflow().cast(teacher)) == {"student"}
    roles = Reflow(online=True).cast(teacher)
    assert (roles.teacher.schedule, roles.teacher.sampling) == (teacher.schedule, teacher.sampling)
    assert roles.teacher is not teacher
    Reflow(online=True).check(roles)
    given = straight()
    assert Reflow(online=True).cast(teacher, given).student is given


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "rectify"}, "unknown kind 'rectify'; expected flow, reflow, distill"),
        ({"error": "lpips"}, "unknown error 'lpips'; expected l2, huber"),
        ({"kind": "flow", "online": True}, "kind 'flow' is online"),
        ({"steps": 0}, "steps is 0"),
        ({"t_min": 0.0}, "t_min 0.0"),
        ({"flows": 0, "online": True}, "flows is 0"),
        ({"flows": 2}, "flows is 2, online False"),
    ],
    ids=str,
)
def test_impossible_options_are_refused(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Reflow(**options)


def test_a_student_on_a_bent_path_is_refused():
    student = Denoiser(exact.Affine(SHAPE), Cosine(), "v")
    with pytest.raises(ValueError, match=r"expected Flow\(\).*student.copy\(schedule=Flow\(\)\)"):
        Reflow().check(Nets({"student": student}))


def test_a_teacher_that_adds_noise_is_refused_online():
    teacher = exact.gaussian(Flow(), SHAPE, sampling=Sampling("ancestral", 3))
    with pytest.raises(ValueError, match="expected a deterministic sampler"):
        Reflow(online=True).check(Nets({"student": straight(), "teacher": teacher}))
