"""Song et al. 2023 and Geng et al. 2024: one answer all along a path."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from kdgen import nets, samplers
from kdgen.denoiser import SIGMA_DATA, SIGMA_MIN, Denoiser, Sampling
from kdgen.methods import Batch, Nets
from kdgen.methods.consistency import Consistency
from kdgen.nets import exact
from kdgen.schedules import EDM, Cosine, LinearVP

SHAPE = (3, 8, 8)
PIXEL = (1, 1, 1)
MEAN, STD = 0.25, 0.5
TWO_STEPS = (1.0, 0.821 / 80)
# Of one Heun step for every interval of the N-level grid, for data of deviation 1/2.
GAINS = {18: 0.00659541349, 40: 0.00631106178, 80: 0.00626441665}


class Grey(nn.Module):
    """The network of an "edm" denoiser whose x0 is always the same grey."""

    classes = 0

    def __init__(self, shape: tuple[int, int, int], value: float) -> None:
        super().__init__()
        self.shape, self.value = shape, nn.Parameter(torch.tensor(value))

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        sigma = (4 * time).exp()[:, None, None, None]
        size = (sigma.square() + SIGMA_DATA**2).sqrt()
        return (self.value - SIGMA_DATA**2 / size * x) * size / (SIGMA_DATA * sigma)


def answers(batch: Callable[..., Batch]) -> Iterator[tuple[Consistency, Nets, Batch]]:
    """Data that is one grey image: straight paths, all to the same end."""
    drawn = batch(shape=SHAPE)
    drawn = replace(drawn, x0=torch.full_like(drawn.x0, 0.25))
    grey = Denoiser(exact.Affine(SHAPE, 0.0, 0.25), EDM(), "x0")
    teacher = exact.dataset(EDM(), torch.full((1, *SHAPE), 0.25))
    for method in (
        Consistency(points=3, mu=0.95, error="l1", times=TWO_STEPS),
        Consistency("ct", points=2, grown=4, error="huber", huber=0.03),
    ):
        roles = {"student": grey.copy(), "teacher": teacher, "target": grey.copy()}
        yield method, Nets({role: roles[role] for role in method.roles}), drawn
    # At a stage in which some pairs have an end at sigma 0: without one any constant will do.
    early = replace(drawn, progress=torch.tensor(0.0))
    yield (
        Consistency("ect", error="l2"),
        Nets({"student": Denoiser(Grey(SHAPE, 0.25), EDM(), "edm")}),
        early,
    )


class Lines(nn.Module):
    """f(y, sigma_k) = offset_k + gain_k·y at every level of the N-level grid, as the raw output of
    a denoiser of that parameterisation. Float64."""

    classes, shape = 0, PIXEL

    def __init__(self, form: str, gains: Tensor) -> None:
        super().__init__()
        self.form = form
        self.sigmas = levels(len(gains))
        self.gains = nn.Parameter(gains.clone())
        self.offsets = nn.Parameter(MEAN * (1 - gains))

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        k = ((4 * time)[:, None] - self.sigmas.log()).abs().argmin(1)
        sigma, gain, offset = (
            c[k][:, None, None, None] for c in (self.sigmas, self.gains, self.offsets)
        )
        if self.form == "x0":  # the step to sigma_min leaves a share of y
            y = x * (1 + sigma.square()).sqrt()
            left = self.sigmas[0] / sigma
            raw = (offset + gain * y - left * y) / (1 - left)
        else:
            y = x * (SIGMA_DATA**2 + sigma.square()).sqrt()
            above = sigma - SIGMA_MIN
            skip = SIGMA_DATA**2 / (above.square() + SIGMA_DATA**2)
            out = SIGMA_DATA * above / (SIGMA_DATA**2 + sigma.square()).sqrt()
            raw = (offset + gain * y - skip * y) / out
        return torch.where(k[:, None, None, None] == 0, 0, raw)  # where it does not count


def levels(n: int) -> Tensor:
    """(n,) sigma from 0.002 to 80, evenly in its seventh root."""
    low, high = SIGMA_MIN ** (1 / 7), 80 ** (1 / 7)
    return torch.linspace(low, high, n, dtype=torch.float64) ** 7


def chain(n: int, solver: str) -> Tensor:
    """(n,) the product of the solver's factors from sigma_min up to every level, on the exact ODE
    dy/dsigma = sigma/(c² + sigma²)·(y − m)."""
    gains = [1.0]
    for s, t in pairwise(levels(n).tolist()):
        slope, later = (x / (STD**2 + x * x) for x in (t, s))
        euler = 1 + (s - t) * slope
        heun = 1 + (s - t) / 2 * (slope + euler * later)
        gains.append(gains[-1] * (heun if solver == "heun" else euler))
    return torch.tensor(gains, dtype=torch.float64)


def design(batch: Callable[..., Batch], n: int) -> Batch:
    """For each of the n − 1 intervals four images whose x0 and eps have the moments of independent
    N(m, c²) and N(0, 1) exactly: enough for whatever is affine and squared."""
    drawn = batch(n=4 * (n - 1), shape=PIXEL, dtype=torch.float64)
    one, other = torch.tensor([[1.0, 1, -1, -1], [1, -1, 1, -1]], dtype=torch.float64)
    places = (torch.arange(n - 1, dtype=torch.float64) + 0.5) / (n - 1)
    x0, eps = (c.repeat(n - 1).view(-1, *PIXEL) for c in (MEAN + STD * one, other))
    return replace(drawn, x0=x0, eps=eps, u=places.repeat_interleave(4)[:, None])


def lines(form: str, gains: Tensor) -> Denoiser:
    return Denoiser(Lines(form, gains), EDM(), form).double()


@pytest.mark.parametrize("form", ["x0", "consistency"])
@pytest.mark.parametrize("n", sorted(GAINS))
def test_distillation_learns_the_product_of_the_teachers_steps(
    form: str, n: int, batch: Callable[..., Batch]
):
    """No more, no less: the loss of this f is 0 on every interval, and at sigma 80 it has the gain
    of the whole chain."""
    gains = chain(n, "heun")
    assert gains[-1].item() == pytest.approx(GAINS[n], rel=2e-9)
    teacher = exact.gaussian(EDM(), PIXEL, MEAN, STD).double()
    roles = Nets({"student": lines(form, gains), "teacher": teacher})
    loss = Consistency(points=n).loss("main", roles, design(batch, n))
    assert loss.max() < 1e-24
    other = Nets({"student": lines(form, chain(n, "euler")), "teacher": teacher})
    assert (Consistency(points=n).loss("main", other, design(batch, n)) > 1e-10).any()


@pytest.mark.parametrize("form", ["x0", "consistency"])
def test_training_without_a_teacher_learns_the_product_of_euler_steps(
    form: str, batch: Callable[..., Batch]
):
    """The mean of f(x_s) given x_t is Euler's, so this is where the gradient vanishes."""
    n = 18

    def slopes(solver: str) -> Tensor:
        student = lines(form, chain(n, solver))
        loss = Consistency("ct", points=n).loss(
            "main", Nets({"student": student}), design(batch, n)
        )
        loss.sum().backward()
        return torch.stack([student.net.gains.grad, student.net.offsets.grad])

    assert slopes("euler").abs().max() < 1e-12
    assert slopes("heun").abs().max() > 1e-3


def test_training_without_a_teacher_keeps_a_loss_that_distillation_has_not(
    batch: Callable[..., Batch],
):
    """One eps tells only so much: (slope of f at s)²·Var(x0 | x_t)·(1 − s/t)² is left."""
    n = 18
    gains, sigma = chain(n, "euler"), levels(n)
    roles = Nets({"student": lines("x0", gains)})
    loss = Consistency("ct", points=n).loss("main", roles, design(batch, n)).view(-1, 4).mean(1)
    low, high = sigma[:-1], sigma[1:]
    unknown = STD**2 * high.square() / (STD**2 + high.square())
    floor = gains[:-1].square() * unknown * (1 - low / high).square()
    torch.testing.assert_close(loss, floor, rtol=1e-9, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("form", ["edm", "v", "eps", "x0", "velocity", "both"])
def test_the_student_is_the_identity_at_the_least_noise(
    form: str, dtype: torch.dtype, batch: Callable[..., Batch], lively: Callable[..., nn.Module]
):
    net = nets.preset("tiny8", channels=3, out_channels=6 if form == "both" else 3)
    teacher = Denoiser(net, EDM(), form)
    method = Consistency()
    student = lively(method.student(teacher), seed=1).to(dtype).eval()
    x = batch(shape=SHAPE, dtype=dtype).x0
    t = student.schedule.ramp(torch.zeros(8, dtype=dtype))
    assert torch.equal(method.image(student, x, t, None), x)
    near = (method.image(student, x, 1.0001 * t, None) - x).abs().max()  # no jump behind the end
    far = (method.image(student, x, 100 * t, None) - x).abs().max()
    assert near < 1e-3 < 0.1 < far


def test_a_network_is_asked_nothing_infinite_where_there_is_no_noise(batch: Callable[..., Batch]):
    drawn = batch(shape=SHAPE)
    asked: list[Tensor] = []
    student = Denoiser(exact.Affine(SHAPE), EDM(), "edm")
    student.net.register_forward_pre_hook(lambda _, args: asked.extend(args[:2]))
    image = Consistency("ect").image(student, drawn.x0, torch.zeros(8), None)
    assert torch.equal(image, drawn.x0)
    assert all(x.isfinite().all() for x in asked)


def test_the_grid_grows_from_s0_to_s1_plus_one():
    method = Consistency("ct", points=2, grown=150, mu=0.9)
    progress = torch.linspace(0, 1, 1001)
    n = torch.stack([method.levels(p) for p in progress])
    assert (n[0], n[-1]) == (2, 151)
    assert (n.diff() >= 0).all()
    assert torch.equal(n, n.round())
    # Appendix C at a quarter of the way: ceil(sqrt((151² − 4)/4 + 4) − 1) + 1
    assert method.levels(torch.tensor(0.25)) == math.ceil(math.sqrt((151**2 - 4) / 4 + 4) - 1) + 1


@pytest.mark.parametrize(("s0", "mu"), [(2, 0.9), (10, 0.95), (5, 0.5)])
def test_the_target_is_kept_longer_as_the_grid_grows(s0: int, mu: float):
    method = Consistency("ct", points=s0, grown=150, mu=mu)
    assert method.keeps(0.0) == pytest.approx(mu ** (s0 / (s0 - 1)))
    assert method.keeps(1.0) == pytest.approx(mu ** (s0 / 150))
    kept = [method.keeps(k / 100) for k in range(101)]
    assert kept == sorted(kept)


def test_a_fixed_grid_keeps_the_same_share_of_the_target():
    assert Consistency(mu=0.95).keeps(0.0) == Consistency(mu=0.95).keeps(1.0) == 0.95
    assert Consistency("ct", points=2, grown=150).keeps(0.3) == 0


@pytest.mark.parametrize("progress", [0.0, 0.3, 0.9999])
def test_pairs_are_neighbours_of_the_grid_of_that_moment(
    progress: float, batch: Callable[..., Batch]
):
    method = Consistency("ct", points=3, grown=9)
    asked: list[Tensor] = []
    student = Denoiser(exact.Affine(PIXEL), EDM(), "x0").double()
    student.register_forward_pre_hook(lambda _, args: asked.append(args[1]))
    drawn = batch(n=512, shape=PIXEL, dtype=torch.float64)
    u = (torch.arange(512, dtype=torch.float64)[:, None] + 0.5) / 512
    drawn = replace(drawn, u=u, progress=torch.tensor(progress, dtype=torch.float64))
    method.loss("main", Nets({"student": student}), drawn)
    grid = levels(int(method.levels(drawn.progress)))
    later, earlier = (80 * t for t in asked)
    values, counts = later.unique(return_counts=True)
    torch.testing.assert_close(values, grid[1:])
    assert counts.max() - counts.min() <= 1
    place = torch.searchsorted(grid * (1 - 1e-9), later, right=True) - 1
    beyond = place > 1  # the first pair ends where f is known
    torch.testing.assert_close(earlier[beyond], grid[place - 1][beyond])


def test_at_first_easy_tuning_denoises_all_but_the_noisiest():
    """8·sigmoid(−sigma) = 1 at ln 7; below, the pair ends at the data itself."""
    method = Consistency("ect")
    sigma = torch.tensor(
        [1e-3, 1.0, math.log(7) - 1e-6, math.log(7) + 1e-3, 80], dtype=torch.float64
    )
    share = method.nearness(sigma, torch.tensor(0.0))
    assert share[:3].tolist() == [0, 0, 0]
    assert share[3:].tolist() == pytest.approx(
        [1 - (1 + 8 / (1 + math.exp(math.log(7) + 1e-3))) / 2, 0.5]
    )


@pytest.mark.parametrize(("progress", "halvings"), [(0.0, 1), (0.124, 1), (0.125, 2), (1.0, 8)])
def test_easy_tuning_halves_the_gap_at_every_stage(progress: float, halvings: int):
    share = Consistency("ect").nearness(torch.tensor([80.0]), torch.tensor(progress))
    assert share.item() == pytest.approx(1 - 2.0**-halvings)


@pytest.mark.parametrize("deviations", [-1.0, 0.0, 1.0])
def test_easy_tunings_levels_are_log_normal(deviations: float, batch: Callable[..., Batch]):
    """About exp(−1.1) = 0.33; with the other sign it would be 3."""
    asked: list[Tensor] = []
    student = Denoiser(Grey(SHAPE, 0.25), EDM(), "edm")
    student.register_forward_pre_hook(lambda _, args: asked.append(args[1]))
    drawn = batch(shape=SHAPE)
    share = torch.special.ndtr(torch.tensor(deviations)).item()
    drawn = replace(drawn, u=torch.full_like(drawn.u, share))
    Consistency("ect").loss("main", Nets({"student": student}), drawn)
    expected = torch.full((8,), math.exp(-1.1 + 2 * deviations))
    torch.testing.assert_close(80 * asked[0], expected)


def test_easy_tunings_loss_is_the_norm_over_the_gap(batch: Callable[..., Batch]):
    drawn = replace(batch(shape=SHAPE, dtype=torch.float64), progress=torch.tensor(0.0))
    student = Denoiser(Grey(SHAPE, 0.25), EDM(), "edm").double()
    sigma = (-1.1 + 2 * torch.special.ndtri(drawn.u[:, 0])).exp()
    share = Consistency("ect").nearness(sigma, drawn.progress)
    assert (share == 0).any()
    assert (share > 0).any()
    to_data = (0.25 - drawn.x0).flatten(1).norm(dim=1)
    expected = torch.where(share == 0, to_data / sigma, 0.0)  # elsewhere f is the same grey
    loss = Consistency("ect").loss("main", Nets({"student": student}), drawn)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["cd", "ct", "ect"])
def test_a_right_answer_has_a_gradient(kind: str, batch: Callable[..., Batch]):
    """The norm has a kink where nothing differs: 0 is the slope there, not nan."""
    drawn = batch(shape=SHAPE)
    drawn = replace(drawn, x0=torch.full_like(drawn.x0, 0.25), eps=torch.zeros_like(drawn.eps))
    student = Denoiser(exact.Affine(SHAPE, 0.0, 0.25), EDM(), "x0")
    teacher = exact.dataset(EDM(), torch.full((1, *SHAPE), 0.25))
    method = Consistency(kind, error="huber")
    loss = method.loss("main", Nets({"student": student, "teacher": teacher}), drawn)
    assert loss.abs().max() == 0
    loss.sum().backward()
    assert student.net.offset.grad == 0


@pytest.mark.parametrize(
    ("error", "huber", "expected"),
    [
        ("l1", 0.0, 0.5),
        ("l2", 0.0, 0.25),
        ("huber", 0.0, 1.0),
        ("huber", 0.75, 1.25 - 0.75),
    ],
)
def test_errors_are_those_of_their_names(
    error: str, huber: float, expected: float, batch: Callable[..., Batch]
):
    """f is 0.5 off on each of four pixels."""
    shape = (1, 2, 2)
    drawn = batch(shape=shape, dtype=torch.float64)
    drawn = replace(drawn, x0=torch.zeros_like(drawn.x0), eps=torch.zeros_like(drawn.eps))
    net = exact.Affine(shape, 0.0, 0.5 / (1 - SIGMA_MIN / 80))
    student = Denoiser(net, EDM(), "x0").double()
    method = Consistency("ct", points=2, error=error, huber=huber)
    loss = method.loss("main", Nets({"student": student}), drawn)
    torch.testing.assert_close(
        loss, torch.full((8,), expected, dtype=torch.float64), rtol=1e-6, atol=0
    )


def test_the_target_is_asked_where_there_is_one(batch: Callable[..., Batch]):
    drawn = replace(batch(shape=SHAPE), u=torch.full((8, 1), 0.9))  # the noisier of two intervals
    drawn = replace(drawn, x0=torch.zeros_like(drawn.x0))
    student, target = (Denoiser(exact.Affine(SHAPE, 0.0, c), EDM(), "x0") for c in (0.0, 0.3))
    own = Consistency("ct", points=3).loss("main", Nets({"student": student}), drawn)
    assert own.max() < 1e-12
    method = Consistency("ct", points=3, mu=0.9, error="l1")
    other = method.loss("main", Nets({"student": student, "target": target}), drawn)
    expected = 0.3 * (1 - SIGMA_MIN / levels(3)[1].item())  # the step stops at sigma_min
    torch.testing.assert_close(other, torch.full((8,), expected), rtol=1e-5, atol=0)


@pytest.mark.parametrize("mu", [0.0, 0.9])
def test_both_sides_of_a_pair_drop_the_same(
    mu: float, batch: Callable[..., Batch], lively: Callable[..., nn.Module]
):
    """Two times that are nearly one: with the same masks, nearly one answer."""
    size = nets.UNetConfig(8, width=8, mult=(1, 2), blocks=1, attention=(4,), dropout=0.5)
    method = Consistency("ect", mu=mu, dropout=0.5, stages=20)
    roles = method.cast(lively(Denoiser(nets.UNet(size), EDM(), "edm")))
    seen: list[Tensor] = []
    for role in roles.values():
        role.train(role is roles.student)
        role.net.register_forward_hook(lambda *args: seen.append(args[2].detach()))
    drawn = replace(batch(shape=SHAPE), progress=torch.tensor(1.0))
    torch.manual_seed(0)
    for _ in range(2):
        method.loss("main", roles, drawn)
    first, its_pair, second, _ = seen
    assert (its_pair - first).abs().max() < 0.01 * (second - first).abs().max()


@pytest.mark.parametrize(
    ("form", "kind", "expected"),
    [
        ("edm", "cd", "consistency"),
        ("edm", "ct", "consistency"),
        ("edm", "ect", "edm"),
        ("v", "cd", "v"),
        ("eps", "ect", "eps"),
    ],
)
def test_the_student_lives_on_edms_path(form: str, kind: str, expected: str):
    teacher = Denoiser(nets.preset("tiny8", dropout=0.2), LinearVP(), form, time="index")
    method = Consistency(kind, times=TWO_STEPS)
    student = method.student(teacher)
    assert (student.schedule, student.parameterisation) == (EDM(), expected)
    assert student.net.facts.dropout == 0
    assert student.sampling == Sampling("few_step", 2, clip=1.0, times=TWO_STEPS)
    assert samplers.evaluations(student.schedule, student.sampling) == 2
    assert replace(method, dropout=0.3).student(teacher).net.facts.dropout == 0.3
    method.check(method.cast(teacher))


def test_the_student_keeps_its_teachers_levels():
    """Where they do not end at the published one, neither does the published form fit."""
    teacher = Denoiser(nets.preset("tiny8"), EDM(sigma_max=10.0, sigma_min=0.01), "edm")
    student = Consistency().student(teacher)
    assert (student.schedule, student.parameterisation) == (teacher.schedule, "edm")


@pytest.mark.parametrize(
    ("options", "roles", "cost"),
    [
        ({}, ("student", "teacher"), 6),
        ({"mu": 0.95}, ("student", "teacher", "target"), 6),
        ({"kind": "ct", "mu": 0.9}, ("student", "target"), 4),
        ({"kind": "ect"}, ("student",), 4),
    ],
    ids=str,
)
def test_roles_and_cost_follow_the_kind(options: dict, roles: tuple[str, ...], cost: float):
    assert (Consistency(**options).roles, Consistency(**options).cost()) == (roles, cost)


def network(schedule: EDM | Cosine, form: str) -> Denoiser:
    return Denoiser(nets.preset("tiny8"), schedule, form)


@pytest.mark.parametrize(
    ("kind", "student", "teacher", "message"),
    [
        ("cd", (Cosine(), "v"), (EDM(), "edm"), "a schedule is cosine; expected edm"),
        ("cd", (EDM(), "v"), (Cosine(), "v"), "a schedule is cosine; expected edm"),
        ("cd", (EDM(), "v"), (EDM(10.0), "v"), "the teacher's schedule is"),
        ("cd", (EDM(), "v"), (EDM(), "residual"), "the teacher's parameterisation is 'residual'"),
        ("cd", (EDM(), "v"), (EDM(), "consistency"), "the teacher's parameterisation is"),
        ("ct", (EDM(), "residual"), None, "the student's parameterisation is 'residual'"),
        ("ect", (EDM(), "x0"), None, "the student's parameterisation is 'x0'"),
    ],
    ids=str,
)
def test_denoisers_that_do_not_fit_are_refused(
    kind: str, student: tuple, teacher: tuple | None, message: str
):
    roles = {"student": network(*student)}
    if teacher:
        roles["teacher"] = network(*teacher)
    with pytest.raises(ValueError, match=message):
        Consistency(kind).check(Nets(roles))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "icm"}, "unknown kind 'icm'; expected cd, ct, ect"),
        ({"error": "lpips"}, "unknown error 'lpips'; expected None, l1, l2, huber"),
        ({"points": 1}, "points = 1"),
        ({"points": 10, "grown": 5}, "grown = 5"),
        ({"mu": 1.0}, "mu = 1.0"),
        ({"kind": "ect", "shrink": 1.0}, "shrink = 1.0"),
        ({"kind": "ect", "shrink": 256.0}, "stages = 8; expected"),
        ({"times": (0.5, 1.0)}, "times = "),
        ({"times": ()}, "times = "),
        ({"huber": -1.0}, "huber = -1.0"),
    ],
    ids=str,
)
def test_impossible_options_are_refused(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Consistency(**options)
