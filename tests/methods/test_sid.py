"""Zhou et al. 2024: a generator follows the difference of two scores.

Most laws here are of Gaussian data N(m, c²) and a generator a·z + b, whose scores are known: with
p = c²/(c² + sigma²) and r = a²/(a² + sigma²), the two denoisers at x_t are m + p·(x_t − m) and
b + r·(x_t − b).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from kdgen import samplers
from kdgen.denoiser import Denoiser, Sampling
from kdgen.methods import Batch, Nets
from kdgen.methods.sid import Sid
from kdgen.nets import UNet, UNetConfig, exact
from kdgen.schedules import EDM, Cosine, Flow, LinearVP, NoiseSchedule
from kdgen.training import Ema, Training, fit

MEAN, STD = 0.3, 0.5
# An affine network sees sigma·z at unit power; its gain for x_g = a·z + b is a times this.
SEEN = math.hypot(1, 2.5) / 2.5
SQUARE = (1, 2, 2)


def generator(a: float, b: float, shape: tuple[int, int, int] = SQUARE) -> Denoiser:
    """x_g = a·z + b at sigma_init = 2.5."""
    student = Denoiser(exact.Affine(shape), EDM(), "x0").double()
    with torch.no_grad():  # rounding to float32 would show in the closed forms
        student.net.gain.fill_(a * SEEN)
        student.net.offset.fill_(b)
    return student


def gaussian(mean: float, std: float, shape: tuple[int, int, int] = SQUARE) -> exact.Mixture:
    return exact.Mixture(EDM(), torch.full((1, *shape), mean, dtype=torch.float64), std)


def optimal(a: float, b: float, shape: tuple[int, int, int] = SQUARE) -> Nets:
    """The roles with both scores exact, in float64."""
    fake = gaussian(b, a, shape)
    return Nets(
        {"student": generator(a, b, shape), "teacher": gaussian(MEAN, STD, shape), "fake": fake}
    )


def at(sigma: float, t_max: float = 0.8) -> float:
    """The uniform at which the generator's noise law gives sigma."""
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    return (sigma ** (1 / 7) - low) / (high - low) / t_max


def expectation(sigma: float) -> Batch:
    """One image of four pixels whose mean is an expectation over z and n, for what is quadratic in
    them: all signs of (z, n) have the moments of two normals up to the second."""
    z = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64).view(1, *SQUARE)
    n = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64).view(1, *SQUARE)
    return Batch(
        x0=torch.empty(0),
        z=z,
        eps=n,
        u=torch.full((1, 13), at(sigma), dtype=torch.float64),
        progress=torch.tensor(0.0),
        label=None,
        index=torch.arange(1),
    )


def gradient(alpha: float, a: float, b: float, sigma: float) -> tuple[float, float, float]:
    """(E L, dL/da, dL/db) of the loss without its weight, from the method itself."""
    roles = optimal(a, b)
    loss = Sid(alpha=alpha, weighted=False).loss("generator", roles, expectation(sigma)).mean()
    net = roles.student.net
    d_gain, d_offset = torch.autograd.grad(loss, [net.gain, net.offset])
    return loss.item(), d_gain.item() * SEEN, d_offset.item()


def closed(alpha: float, a: float, b: float, sigma: float) -> tuple[float, float, float]:
    p, r = (v**2 / (v**2 + sigma**2) for v in (STD, a))
    gap, away = p - r, MEAN - b
    value = (1 - alpha) * (gap**2 * (a**2 + sigma**2) + (1 - p) ** 2 * away**2)
    d_a = 2 * a * gap * ((1 - alpha) * gap - (1 - r))
    d_b = (1 - p) * away * (2 * (1 - alpha) * gap - (1 - r))
    return value, d_a, d_b


def fisher(a: float, b: float, sigma: float) -> tuple[float, float]:
    """Gradient of E||f_phi − f_psi||² with f_psi at its optimum for every (a, b)."""
    at = torch.tensor([a, b], dtype=torch.float64, requires_grad=True)
    p, r = STD**2 / (STD**2 + sigma**2), at[0] ** 2 / (at[0] ** 2 + sigma**2)
    value = (p - r) ** 2 * (at[0] ** 2 + sigma**2) + (1 - p) ** 2 * (MEAN - at[1]) ** 2
    d_a, d_b = torch.autograd.grad(value, at)[0].tolist()
    return d_a, d_b


def answers(batch: Callable[..., Batch]) -> Iterator[tuple[Sid, Nets, Batch]]:
    """One image is all the data there is, and the generator makes it."""
    shape = (3, 8, 8)
    for path, q in (("edm", EDM()), ("teacher", LinearVP())):
        roles = {
            "student": Denoiser(exact.Affine(shape, 0.0, 0.25), q, "x0"),
            "teacher": exact.dataset(q, torch.full((1, *shape), 0.25)),
            "fake": Denoiser(exact.Affine(shape, 0.0, 0.25), q, "x0"),
        }
        for weighted in (True, False):
            yield Sid(path=path, weighted=weighted), Nets(roles), batch(shape=shape)


# The gradient, with the fake at its optimum


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 1.2])
@pytest.mark.parametrize(
    ("a", "b", "sigma"), [(0.8, -0.4, 0.7), (0.125, -0.8, 0.05), (5.0, 1.0, 1.0), (0.3, 0.3, 20.0)]
)
def test_loss_and_gradient_have_their_closed_forms(alpha: float, a: float, b: float, sigma: float):
    assert gradient(alpha, a, b, sigma) == pytest.approx(
        closed(alpha, a, b, sigma), rel=1e-10, abs=1e-12
    )


@pytest.mark.parametrize(
    ("alpha", "d_a", "d_b"),
    [(1.0, 0.158558, -0.200993), (1.2, 0.141845, -0.158621), (0.0, 0.242122, -0.412850)],
)
def test_the_gradient_at_one_point_in_numbers(alpha: float, d_a: float, d_b: float):
    _, *found = gradient(alpha, 0.8, -0.4, 0.7)
    assert found == pytest.approx([d_a, d_b], abs=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 1.2, 2.0])
@pytest.mark.parametrize("sigma", [0.05, 1.0, 20.0])
def test_the_data_are_a_fixed_point_for_every_alpha(alpha: float, sigma: float):
    assert gradient(alpha, STD, MEAN, sigma) == pytest.approx((0.0, 0.0, 0.0), abs=1e-12)


@pytest.mark.parametrize(("a", "b", "sigma"), [(0.8, -0.4, 0.7), (0.2, 0.9, 0.1), (5.0, 1.0, 1.0)])
def test_alpha_one_half_is_half_the_gradient_of_the_fisher_divergence(
    a: float, b: float, sigma: float
):
    _, *found = gradient(0.5, a, b, sigma)
    assert [2 * g for g in found] == pytest.approx(fisher(a, b, sigma), rel=1e-10)


def test_the_gradient_of_the_fisher_divergence_in_numbers():
    assert fisher(0.8, -0.4, 0.7) == pytest.approx((0.400680, -0.613842), abs=1e-6)


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_up_to_alpha_one_every_step_leads_towards_the_data(alpha: float):
    for a in (0.05, 0.4, 0.6, 5.0):
        for b in (-0.8, 0.2, 0.4, 2.0):
            for sigma in (0.05, 0.7, 20.0):
                _, d_a, d_b = gradient(alpha, a, b, sigma)
                assert d_a * (a - STD) > 0, (a, b, sigma)
                assert d_b * (b - MEAN) > 0, (a, b, sigma)


def test_alpha_above_one_leads_away_where_the_generator_varies_much_more_than_the_data():
    """dL/da has the wrong sign where r − p > 5·(1 − r), dL/db where r − p > 2.5·(1 − r)."""
    assert gradient(1.2, 5.0, 1.0, 1.0)[1] == pytest.approx(-0.86698, abs=1e-5)
    assert gradient(1.0, 5.0, 1.0, 1.0)[1] == pytest.approx(0.29290, abs=1e-5)
    for a in (0.6, 1.0, 1.5, 2.0, 2.5, 3.0, 5.0):
        p, r = STD**2 / (STD**2 + 1), a**2 / (a**2 + 1)
        _, d_a, d_b = gradient(1.2, a, 1.0, 1.0)
        assert (d_a < 0) == (r - p > 5 * (1 - r)), a
        assert (d_b < 0) == (r - p > 2.5 * (1 - r)), a


def test_the_loss_says_nothing_about_how_good_the_generator_is():
    """0 for any generator at alpha = 1; above it, lower for the worse of two."""
    worse, better = (0.8, -0.4, 0.7), (0.6, 0.2, 0.7)
    for place in (worse, better):
        assert gradient(1.0, *place)[0] == pytest.approx(0, abs=1e-12)
    assert gradient(1.2, *worse)[0] < gradient(1.2, *better)[0] < 0


def test_the_gap_alone_does_not_lead_to_the_data():
    """L1 = ||f_phi − f_psi||² is L(0) − L(1): dL1/da = 2a·(p − r)² shrinks every generator, and
    dL1/db drives the mean away while the generator varies less than the data."""

    def alone(a: float, b: float, sigma: float) -> tuple[float, float]:
        without, with_ = (gradient(alpha, a, b, sigma) for alpha in (0.0, 1.0))
        return without[1] - with_[1], without[2] - with_[2]

    for a, b in ((0.4, 0.2), (0.8, -0.4)):
        d_a, d_b = alone(a, b, 0.7)
        assert d_a > 0
        assert (d_b > 0) == (b < MEAN and a < STD)
    a, b = 0.45, 0.25
    for _ in range(200):
        steps = torch.tensor([alone(a, b, sigma) for sigma in (0.1, 0.7, 5.0)]).sum(0).tolist()
        a, b = a - 0.1 * steps[0], b - 0.1 * steps[1]
    assert STD - a > 0.1
    assert MEAN - b > 0.1


# Training


def noise(k: int, n: int, shape: tuple[int, int, int], dtype: torch.dtype = torch.float32) -> Batch:
    """Batch number k."""
    r = torch.Generator().manual_seed(k)
    return Batch(
        x0=torch.empty(0),
        z=torch.randn(n, *shape, generator=r, dtype=dtype),
        eps=torch.randn(n, *shape, generator=r, dtype=dtype),
        u=torch.rand(n, 13, generator=r, dtype=dtype).clamp(1e-6, 1 - 1e-6),
        progress=torch.tensor(0.0),
        label=None,
        index=torch.arange(n),
    )


def trained(
    method: Sid, start: tuple[float, float], pixels: int, n: int, steps: int
) -> tuple[float, float]:
    """(a, b) after training against a fake that is always exact."""
    shape = (1, 1, pixels)
    student, fake = generator(*start, shape).float(), exact.gaussian(EDM(), shape)
    teacher, net = exact.gaussian(EDM(), shape, MEAN, STD), student.net
    roles = Nets({"student": student, "teacher": teacher, "fake": fake})
    adam = torch.optim.Adam(student.parameters(), lr=0.02, betas=(0.0, 0.999))
    for k in range(steps):
        if k == int(0.7 * steps):
            adam.param_groups[0]["lr"] *= 0.05
        fake.std = abs(net.gain.item()) / SEEN
        fake.means.fill_(net.offset.item())
        adam.zero_grad()
        method.loss("generator", roles, noise(k, n, shape)).mean().backward()
        adam.step()
    return net.gain.item() / SEEN, net.offset.item()


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.2])
@pytest.mark.parametrize("start", [(0.125, -0.8), (5.0, 1.0)], ids=["narrow", "wide"])
def test_training_against_the_exact_fake_reaches_the_data(alpha: float, start: tuple[float, float]):
    """Also where alpha = 1.2 begins with the wrong sign at small sigma: others outweigh it."""
    assert trained(Sid(alpha=alpha), start, 64, 16, 1500) == pytest.approx((STD, MEAN), abs=1e-4)


def test_one_pixel_is_too_few_for_the_weight_at_alpha_above_one():
    """1/|x_g − f_phi| of a single pixel has no finite mean; with it the generator stays as wide as
    it began, without it the same steps reach the data."""
    a, _ = trained(Sid(alpha=1.2), (5.0, 1.0), 1, 128, 1000)
    assert a > 3
    plain = trained(Sid(alpha=1.2, weighted=False), (5.0, 1.0), 1, 128, 1000)
    assert plain == pytest.approx((STD, MEAN), abs=0.02)


class Bins(nn.Module):
    """gain·x + offset, both piecewise linear in ln sigma: what Gaussian data need."""

    classes, count = 0, 16

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.shape = shape
        self.gain = nn.Parameter(torch.zeros(self.count))
        self.offset = nn.Parameter(torch.zeros(self.count))

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        low, high = math.log(0.002) / 4, math.log(80) / 4
        place = (time - low) / (high - low) * (self.count - 1)
        hats = (1 - (place[:, None] - torch.arange(self.count)).abs()).clamp(min=0)
        gain, offset = ((hats @ c)[:, None, None, None] for c in (self.gain, self.offset))
        return gain * x + offset


@pytest.mark.parametrize(
    ("method", "q"),
    [(Sid(), EDM()), (Sid(path="teacher", t_min=0.02), LinearVP())],
    ids=["edm", "teacher"],
)
def test_training_with_a_fake_that_learns_reaches_the_data(method: Sid, q: NoiseSchedule):
    """All three begin as the denoiser of N(0, 0.5²), so the generator as N(0, 0.09615²)."""
    shape = (1, 8, 8)
    roles = method.cast(Denoiser(Bins(shape), q, "edm", time="log_sigma"))
    roles["teacher"] = exact.gaussian(q, shape, MEAN, STD)
    training = Training(
        500, batch=64, lr=0.02, decay="cosine", betas=(0.0, 0.999), ema=Ema.constant(0.95)
    )
    *_, step = fit(method, roles, None, training)
    assert step.ema.sampling == method.sampling(roles.student)
    z = torch.tensor([1.0, -1.0])[:, None, None, None].expand(2, *shape)
    up, down = samplers.sample(step.ema, z, how=replace(step.ema.sampling, clip=None))
    # Off by at most 0.0084 (edm, 8 seeds) and 0.0038 (teacher, 6 seeds).
    assert (up - down).mean().item() / 2 == pytest.approx(STD, abs=0.02)
    assert (up + down).mean().item() / 2 == pytest.approx(MEAN, abs=0.02)


# Noise levels and weights


def levels(method: Sid, phase: str, u: list[float], q: NoiseSchedule | None = None) -> Tensor:
    """The times at which the fake is asked when these are the uniforms."""
    roles = Nets({n: Denoiser(exact.Affine(SQUARE), q or EDM(), "x0").double() for n in Sid.roles})
    seen: list[Tensor] = []
    roles.fake.register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    one = expectation(1.0)
    several = {n: getattr(one, n).expand(len(u), -1, -1, -1) for n in ("z", "eps")}
    given = torch.tensor(u, dtype=torch.float64)[:, None].expand(-1, 13)
    method.loss(phase, roles, replace(one, u=given, **several))
    return seen[0]


def test_the_generator_is_judged_on_the_ramp_up_to_t_max():
    shares = torch.tensor([0.0, 0.4, 0.8])
    expected = torch.tensor([0.002, 0.965417, 24.408342], dtype=torch.float64)
    found = 80 * levels(Sid(), "generator", (shares / 0.8).tolist())
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    assert 80 * levels(Sid(t_max=1.0), "generator", [1.0]).item() == pytest.approx(80)
    assert 80 * levels(Sid(t_min=0.4), "generator", [0.0]).item() == pytest.approx(0.965417)


def test_the_fake_learns_at_log_normal_levels():
    """The quantiles of exp(N(-1.2, 1.2²)); what no teacher has seen is cut off."""
    u = [0.5, 0.5 * (1 + math.erf(1 / math.sqrt(2))), 0.5 * (1 - math.erf(1 / math.sqrt(2)))]
    found = 80 * levels(Sid(), "fake", [*u, 1 - 1e-9, 1e-9])
    expected = [math.exp(-1.2), 1.0, math.exp(-2.4), 80.0, 0.002]
    assert found.tolist() == pytest.approx(expected, rel=1e-6)


def test_on_the_teachers_path_both_phases_draw_times_uniformly():
    method = Sid(path="teacher", t_min=0.02, t_max=0.98)
    for phase in method.phases:
        found = levels(method, phase, [0.0, 0.5, 1.0], LinearVP())
        assert found.tolist() == pytest.approx([0.02, 0.5, 0.98])


def test_the_fakes_loss_is_edms(batch: Callable[..., Batch]):
    """(sigma² + 0.25)/(0.5·sigma)² times the squared error of x0."""
    roles = Nets({n: Denoiser(exact.Affine(SQUARE, 0.4, 0.1), EDM(), "edm") for n in Sid.roles})
    drawn, sigma = replace(batch(shape=SQUARE), u=torch.full((8, 13), 0.5)), math.exp(-1.2)
    x_g = roles.student(2.5 * drawn.z, 2.5 / 80).x0
    guess = roles.fake(x_g + sigma * drawn.eps, sigma / 80).x0
    weight = (sigma**2 + 0.25) / (0.5 * sigma) ** 2
    expected = weight * (guess - x_g).square().flatten(1).mean(1)
    torch.testing.assert_close(Sid().loss("fake", roles, drawn), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("form", "unit"), [("eps", "eps"), ("score", "eps"), ("v", "v"), ("x0", "max")]
)
def test_on_the_teachers_path_the_fake_learns_in_its_own_unit(
    form: str, unit: str, batch: Callable[..., Batch]
):
    q, method = LinearVP(), Sid(path="teacher")
    roles = Nets({n: Denoiser(exact.Affine(SQUARE, 0.4, 0.1), q, form) for n in method.roles})
    drawn = batch(shape=SQUARE)
    t = 0.8 * drawn.u[:, 0]
    first = q.t_of_sigma(2.5)
    x_g = roles.student(q.levels(first)[1] * drawn.z, first).x0
    guess = roles.fake(q.noise(x_g, drawn.eps, t), t)
    alpha, sigma = (c.view(-1, 1, 1, 1) for c in q.alpha_sigma(t))
    errors = {
        "eps": guess.eps - drawn.eps,
        "v": guess.v - (alpha * drawn.eps - sigma * x_g),
        "x0": guess.x0 - x_g,
    }
    means = {n: e.square().flatten(1).mean(1) for n, e in errors.items()}
    means["max"] = torch.maximum(means["x0"], means["eps"])
    torch.testing.assert_close(method.loss("fake", roles, drawn), means[unit])


def test_the_weight_is_the_mean_distance_to_the_teachers_image_and_a_constant():
    roles, drawn = optimal(0.8, -0.4, (1, 4, 4)), noise(0, 8, (1, 4, 4), dtype=torch.float64)
    plain = Sid(weighted=False).loss("generator", roles, drawn)
    weighted = Sid().loss("generator", roles, drawn)
    t = EDM().ramp(0.8 * drawn.u[:, 0])
    x_g = 0.8 * drawn.z - 0.4
    distance = (x_g - roles.teacher(EDM().noise(x_g, drawn.eps, t), t).x0).abs().flatten(1).mean(1)
    torch.testing.assert_close(weighted, plain / distance)
    slopes = [torch.autograd.grad(x, roles.student.net.offset)[0] for x in (plain[0], weighted[0])]
    torch.testing.assert_close(slopes[1], slopes[0] / distance[0])


# The roles


def teacher(**options: object) -> Denoiser:
    size = UNetConfig(8, width=8, mult=(1, 2), blocks=1, attention=(4,), dropout=0.1)
    facts = {"schedule": Cosine(), "parameterisation": "v", **options}
    return Denoiser(UNet(size), **facts)


def test_all_three_start_from_the_teacher_with_its_dropout():
    known = teacher()
    roles = Sid().cast(known)
    Sid().check(roles)
    assert set(roles) == {"student", "teacher", "fake"}
    for role in roles.values():
        assert role.schedule == EDM()
        assert role.net.facts.dropout == 0.1
        assert role.net is not known.net
        for name, value in known.net.state_dict().items():
            assert torch.equal(value, role.net.state_dict()[name])


def test_the_teachers_path_keeps_its_schedule_and_edm_its_own_sigmas():
    method = Sid(path="teacher")
    roles = method.cast(teacher(schedule=LinearVP(), parameterisation="eps"))
    method.check(roles)
    assert {role.schedule for role in roles.values()} == {LinearVP()}
    wide = EDM(sigma_max=160.0)
    assert Sid().cast(teacher(schedule=wide, parameterisation="edm")).student.schedule == wide


def test_a_generator_is_sampled_the_way_it_is_trained():
    roles = Sid().cast(teacher())
    drawn = noise(0, 4, (3, 8, 8))
    assert roles.student.sampling == Sampling("few_step", 1, times=(2.5 / 80,), clip=1.0)
    assert samplers.evaluations(EDM(), roles.student.sampling) == 1
    images = Sid().generate(roles.student, drawn.z)
    torch.testing.assert_close(
        images, roles.student(2.5 * drawn.z, 2.5 / 80).x0.clamp(-1, 1), rtol=0, atol=1e-6
    )


def test_the_first_images_are_the_same_on_every_path(lively: Callable[[Denoiser], Denoiser]):
    known = lively(teacher()).eval()
    z = noise(0, 4, (3, 8, 8)).z
    edm, own = (Sid(path=path).student(known) for path in ("edm", "teacher"))
    assert own.schedule == Cosine()
    images = [Sid().generate(student, z) for student in (edm, own)]
    torch.testing.assert_close(*images, rtol=1e-4, atol=1e-4)


def test_the_first_images_of_gaussian_data_have_their_known_spread():
    """2.5·c²/(c² + 2.5²) = 0.09615: a network that puts out zeros is exact for data N(0, 0.5²)."""
    exactly = Denoiser(exact.Affine(SQUARE, 0.0, 0.0), EDM(), "edm").double()
    student = Sid().student(exactly)
    z = torch.tensor([1.0, -1.0], dtype=torch.float64)[:, None, None, None].expand(2, *SQUARE)
    assert Sid().generate(student, z).abs().max().item() == pytest.approx(0.09615, abs=1e-5)


@pytest.mark.parametrize("weighted", [True, False])
def test_the_generators_gradient_passes_through_frozen_denoisers_and_leaves_no_trace(
    weighted: bool, lively: Callable[[Denoiser], Denoiser]
):
    """A detached x_t would lose the part of the gradient that comes through the scores."""
    roles = Sid().cast(lively(teacher()).eval())
    lively(roles.fake, seed=1)
    roles.fake.net.requires_grad_(True)
    x_g: list[Tensor] = []
    roles.student.register_forward_hook(lambda _, __, out: x_g.append(out.x0))
    inputs: list[Tensor] = []
    for role in (roles.teacher, roles.fake):
        role.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    loss = Sid(weighted=weighted).loss("generator", roles, noise(0, 4, (3, 8, 8))).mean()
    through = torch.autograd.grad(loss, [x_g[0], *inputs], retain_graph=True)
    assert all(g.abs().max() > 0 for g in through)
    loss.backward()
    assert all(p.grad is None for role in (roles.teacher, roles.fake) for p in role.parameters())
    assert all(p.requires_grad for p in roles.fake.parameters())


def test_the_fake_phase_remembers_nothing_of_the_generator(batch: Callable[..., Batch]):
    roles = Sid().cast(teacher())
    Sid().loss("fake", roles, batch()).mean().backward()
    assert all(p.grad is None for p in roles.student.parameters())


def test_the_networks_are_asked_as_often_as_the_cost_says():
    roles, drawn = Sid().cast(teacher().eval()), noise(0, 2, (3, 8, 8))
    calls: list[str] = []
    for name, role in roles.items():
        role.net.register_forward_hook(lambda *_, name=name: calls.append(name))
    Sid().loss("fake", roles, drawn)
    assert calls == ["student", "fake"]
    calls.clear()
    Sid().loss("generator", roles, drawn)
    assert calls == ["student", "teacher", "fake"]
    # Once forward, the trained ones twice back, the frozen ones once, to their inputs.
    assert Sid().cost() == (1 + 3) + (3 + 2 + 2)


def test_the_fake_sees_changed_images_and_is_told_how():
    size = UNetConfig(8, width=8, mult=(1, 2), blocks=1, attention=(4,), augments=9)
    roles = Sid().cast(Denoiser(UNet(size), EDM(), "edm"))
    told: list[tuple] = []
    roles.fake.register_forward_pre_hook(lambda _, args: told.append(args))
    method, drawn = Sid(augment=0.5), noise(0, 64, (3, 8, 8))
    method.check(roles)
    method.loss("fake", roles, drawn)
    Sid().loss("fake", roles, drawn)
    (changed, t, _, labels), (plain, same, _, none) = told
    assert torch.equal(t, same)
    assert labels.shape == (64, 9)
    assert none is None
    still = (labels == 0).all(1)
    assert torch.equal(changed[still], plain[still])
    assert 0 < still.sum() < 64
    assert not torch.equal(changed[~still], plain[~still])


def test_score_gap_is_the_distance_of_the_two_denoisers():
    """(p − r)²(a² + sigma²) + (1 − p)²(m − b)² where sigma is known; 0 at the data."""
    roles = optimal(0.8, -0.4)
    found = Sid().gauges(roles, expectation(0.7))["score_gap"]
    expected = closed(0.0, 0.8, -0.4, 0.7)[0]  # alpha 0 leaves the gap itself
    assert found.item() == pytest.approx(expected, rel=1e-6)
    assert Sid().gauges(optimal(STD, MEAN), expectation(0.7))["score_gap"].item() < 1e-20


@pytest.mark.parametrize(
    "known",
    [
        {"schedule": LinearVP(), "parameterisation": "residual"},
        {"schedule": EDM(), "parameterisation": "consistency"},
        {"sampling": Sampling("few_step", times=(0.5,))},
        {"sampling": Sampling("ddim", 1)},
    ],
    ids=["residual", "consistency", "few_step", "one_step"],
)
def test_a_teacher_without_a_score_is_refused(known: dict):
    with pytest.raises(ValueError, match="no score"):
        Sid().check(Sid().cast(teacher(**known)))


def test_roles_that_do_not_share_a_path_are_refused():
    roles = Sid().cast(teacher())
    with pytest.raises(ValueError, match="the fake is on Cosine"):
        Sid().check(Nets({**roles, "fake": teacher()}))
    with pytest.raises(ValueError, match="the student is on cosine; expected edm"):
        Sid().check(Sid(path="teacher").cast(teacher()))
    with pytest.raises(ValueError, match=r"sigma_init is 100.0; expected a sigma/alpha that edm"):
        Sid(sigma_init=100.0).check(roles)
    with pytest.raises(ValueError, match="takes 0 augmentation labels; expected 9"):
        Sid(augment=0.1).check(roles)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "flow"}, "unknown path 'flow'; expected edm, teacher"),
        ({"alpha": -0.1}, "alpha is -0.1"),
        ({"alpha": 2.5}, "alpha is 2.5"),
        ({"t_min": 0.9}, "t_min is 0.9, t_max 0.8"),
        ({"t_max": 1.5}, "t_max 1.5"),
        ({"sigma_init": 0.0}, "sigma_init is 0.0"),
        ({"p_std": 0.0}, "p_std is 0.0"),
        ({"augment": 1.5}, "augment is 1.5"),
    ],
    ids=str,
)
def test_settings_that_mean_nothing_are_refused(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Sid(**options)


def test_labels_reach_all_three(batch: Callable[..., Batch]):
    size = UNetConfig(8, width=8, mult=(1, 2), blocks=1, attention=(4,), classes=3)
    roles = Sid().cast(Denoiser(UNet(size), Flow(), "velocity"))
    drawn, seen = batch(classes=3), []
    for role in roles.values():
        role.register_forward_pre_hook(lambda _, args: seen.append(args[2]))
    for phase in Sid.phases:
        Sid().loss(phase, roles, drawn)
    assert len(seen) == 5
    assert all(label is drawn.label for label in seen)


def test_an_exact_denoiser_can_teach():
    """Frozen, and with a gradient through what it is asked about."""
    shape, angle = (2, 1, 1), torch.arange(8) * (math.pi / 4)
    ring = torch.stack([angle.cos(), angle.sin()], 1).view(8, *shape)
    roles = Sid().cast(Denoiser(exact.Affine(shape, 0.5, 0.1), EDM(), "edm"))
    roles["teacher"] = exact.Mixture(EDM(), ring, 0.1)
    Sid().check(roles)
    asked: list[Tensor] = []
    roles.teacher.register_forward_pre_hook(lambda _, args: asked.append(args[0]))
    loss = Sid().loss("generator", roles, noise(0, 32, shape)).mean()
    net = roles.student.net
    slopes = torch.autograd.grad(loss, [asked[0], net.gain, net.offset])
    assert all(slope.isfinite().all() and slope.abs().max() > 0 for slope in slopes)
