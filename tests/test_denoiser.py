"""The one place where units are converted: round trips, loss weights, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from kdgen import nets
from kdgen.denoiser import (
    READERS,
    SIGMA_DATA,
    SIGMA_MIN,
    TIMES,
    Denoiser,
    Guided,
    Levels,
    Prediction,
    Sampling,
    times,
)
from kdgen.nets import exact
from kdgen.schedules import EDM, Cosine, Flow, LinearVP, NoiseSchedule

SCHEDULES = [LinearVP(), Cosine(), EDM(), Flow()]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda q: q.name)
every_kind = pytest.mark.parametrize("kind", READERS)


class Says(nn.Module):
    """A network that always says the same, and remembers what it was asked."""

    classes = 0

    def __init__(self, raw: Tensor) -> None:
        super().__init__()
        self.raw, self.shape = nn.Parameter(raw), tuple(raw.shape[1:])

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        self.x, self.time, self.label = x, time, label
        return self.raw


def draw(n: int = 1, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    r = torch.Generator().manual_seed(n)
    x0, eps = torch.randn(2, n, 3, 4, 4, generator=r, dtype=dtype)
    return x0.clamp(-1, 1), eps


def encode(kind: str, x0: Tensor, eps: Tensor, q: Levels) -> Tensor:
    """The network output that means (x0, eps): the table of conversions, read backwards, of the
    state at unit power (v, score) or in EDM's coordinates."""
    a, s = q.alpha, q.sigma
    x_t = a * x0 + s * eps
    y, sigma, size = x_t / a, s / a, (a**2 + s**2).sqrt()
    c_skip = SIGMA_DATA**2 / (sigma**2 + SIGMA_DATA**2)
    c_out = sigma * SIGMA_DATA / (sigma**2 + SIGMA_DATA**2).sqrt()
    above = sigma - SIGMA_MIN
    kept = SIGMA_DATA**2 / (above**2 + SIGMA_DATA**2)
    return {
        "x0": x0,
        "eps": eps,
        "v": (a * eps - s * x0) / size,
        "both": torch.cat([x0, eps], 1),
        "velocity": eps - x0,
        "score": -eps * size / s,
        "edm": (x0 - c_skip * y) / c_out,
        "consistency": (x0 - kept * y) / (c_out * above / sigma),
        "residual": x_t / size - x0,
    }[kind]


@every_schedule
@every_kind
@given(t=st.floats(0.02, 0.98))
def test_every_kind_gives_back_what_was_encoded(kind: str, schedule: NoiseSchedule, t: float):
    """Oracle O-11, float64, nearly the whole range of times."""
    x0, eps = draw()
    time = torch.tensor([t], dtype=torch.float64)
    q = Levels(schedule, time, x0)
    x_t = schedule.noise(x0, eps, time)
    guess = READERS[kind](x_t, encode(kind, x0, eps, q), q)
    torch.testing.assert_close(guess.x0, x0, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(guess.eps, eps, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(q.alpha * guess.x0 + q.sigma * guess.eps, x_t)


@every_schedule
@every_kind
def test_every_kind_gives_back_what_was_encoded_in_float32(kind: str, schedule: NoiseSchedule):
    """Oracle O-11: 1e-6 away from the singular ends."""
    x0, eps = draw(4, torch.float32)
    ratio = torch.tensor([0.3, 0.5, 1.0, 2.0], dtype=torch.float64)
    time = torch.tensor([schedule.t_of_sigma(r) for r in ratio.tolist()])
    q = Levels(schedule, time, x0)
    guess = READERS[kind](schedule.noise(x0, eps, time), encode(kind, x0, eps, q), q)
    torch.testing.assert_close(guess.x0, x0, rtol=0, atol=3e-6)
    torch.testing.assert_close(guess.eps, eps, rtol=0, atol=6e-6)


@pytest.mark.parametrize("time", TIMES)
@every_schedule
@every_kind
def test_a_denoiser_is_the_same_on_every_path(
    kind: str, schedule: NoiseSchedule, time: str, lively: Callable[..., nn.Module]
):
    """Equal images at equal sigma/alpha: Karras et al. 2022, eq. 4, and its relatives."""
    heads = 2 if kind == "both" else 1
    net = nets.UNet(nets.UNetConfig(8, 3, out_channels=3 * heads, width=8, mult=(1,)))
    home = Denoiser(lively(net).double(), LinearVP(), kind, time)
    if schedule.levels(1.0)[0] < 1e-3 and (kind in ("eps", "score") or time == "log_sigma"):
        pytest.skip("refused: infinite at the end of this path")
    away = home.copy(schedule=schedule)
    x0, eps = (F.pad(x, (2, 2, 2, 2)) for x in draw())
    ratio = torch.tensor([0.05, 0.7, 9.0], dtype=torch.float64).repeat_interleave(len(x0))
    y = x0.repeat(3, 1, 1, 1) + ratio.view(-1, 1, 1, 1) * eps.repeat(3, 1, 1, 1)
    guesses = []
    for d in (home, away):
        t = torch.tensor([d.schedule.t_of_sigma(r) for r in ratio.tolist()], dtype=torch.float64)
        alpha, _ = d.schedule.alpha_sigma(t)
        guesses.append(d(alpha.view(-1, 1, 1, 1) * y, t).x0)
    torch.testing.assert_close(*guesses, rtol=1e-4, atol=1e-5)


def test_an_index_of_other_betas_has_no_meaning_on_another_path():
    net = nets.UNet(nets.UNetConfig(8, channels=1, width=8, mult=(1,)))
    odd = Denoiser(net, LinearVP(steps=100), "eps")
    assert odd.copy(schedule=LinearVP(steps=100)).time == "index"
    with pytest.raises(ValueError, match="counts the steps of LinearVP"):
        odd.copy(schedule=EDM())


def test_a_consistency_model_is_the_identity_at_its_boundary():
    model = Denoiser(exact.Affine((1, 4, 4), 3.0, 1.0).double(), EDM(), "consistency")
    x_t = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(model(x_t, 0.002 / 80).x0, x_t, rtol=1e-12, atol=1e-12)


@every_schedule
@given(t=st.floats(0.02, 0.98))
def test_units_of_a_prediction_agree(schedule: NoiseSchedule, t: float):
    x0, eps = draw()
    time = torch.tensor([t], dtype=torch.float64)
    q = Levels(schedule, time, x0)
    guess = Prediction(schedule.noise(x0, eps, time), x0, q)
    torch.testing.assert_close(guess.v, q.alpha * eps - q.sigma * x0, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(guess.score, -eps / q.sigma, rtol=1e-8, atol=1e-8)
    slope = q.d_alpha * x0 + q.d_sigma * eps
    torch.testing.assert_close(guess.velocity, slope, rtol=1e-8, atol=1e-8)
    h = 1e-6
    ahead, behind = (schedule.noise(x0, eps, time + d) for d in (h, -h))
    if not isinstance(schedule, LinearVP):  # its slope jumps at every index
        torch.testing.assert_close(slope, (ahead - behind) / (2 * h), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("schedule", [LinearVP(), Cosine()], ids=lambda q: q.name)
@given(t=st.floats(0.02, 0.98))
def test_loss_weights_are_the_snr(schedule: NoiseSchedule, t: float):
    """Oracle O-1: eps-MSE / x0-MSE = SNR, v-MSE / x0-MSE = SNR + 1, their truncation the larger."""
    x0, eps = draw()
    time = torch.tensor([t], dtype=torch.float64)
    q = Levels(schedule, time, x0)
    x_t = schedule.noise(x0, eps, time)
    guess, truth = Prediction(x_t, x0 + 0.1 * eps.roll(1, -1), q), Prediction(x_t, x0, q)

    def error(unit: str) -> float:
        return (getattr(guess, unit) - getattr(truth, unit)).square().mean().item()

    snr = schedule.snr(time).item()
    assert error("eps") / error("x0") == pytest.approx(snr, rel=1e-9)
    assert error("v") / error("x0") == pytest.approx(snr + 1, rel=1e-9)
    assert max(error("eps"), error("x0")) / error("x0") == pytest.approx(max(snr, 1), rel=1e-9)


@every_schedule
@given(t=st.floats(0.02, 0.98))
def test_clip_rederives_eps(schedule: NoiseSchedule, t: float):
    """Oracle O-11: alpha·x0 + sigma·eps is still x_t."""
    x0, eps = draw()
    time = torch.tensor([t], dtype=torch.float64)
    q = Levels(schedule, time, x0)
    x_t = schedule.noise(x0, eps, time)
    clipped = Prediction(x_t, 3 * x0, q, eps=eps).clip(-0.5, 0.5)
    assert clipped.x0.abs().max() <= 0.5
    torch.testing.assert_close(q.alpha * clipped.x0 + q.sigma * clipped.eps, x_t)


@pytest.mark.parametrize("kind", ["eps", "score"])
@pytest.mark.parametrize("schedule", [Cosine(), Flow()], ids=lambda q: q.name)
def test_kinds_that_divide_by_alpha_are_refused_where_it_vanishes(
    kind: str, schedule: NoiseSchedule
):
    """Oracle O-11: eps raises where alpha(1) < 1e-3."""
    with pytest.raises(ValueError, match=rf"'{kind}' divides by alpha"):
        Denoiser(Says(torch.zeros(1, 3, 4, 4)), schedule, kind)


@pytest.mark.parametrize("kind", [k for k in READERS if k not in ("eps", "score")])
@every_schedule
def test_other_kinds_are_finite_at_time_one(kind: str, schedule: NoiseSchedule):
    raw = torch.randn(1, 6 if kind == "both" else 3, 4, 4)
    guess = Denoiser(Says(raw), schedule, kind)(torch.randn(1, 3, 4, 4), 1.0)
    for unit in ("x0", "eps", "v", "velocity", "score"):
        assert getattr(guess, unit).isfinite().all()


def test_an_infinite_time_is_refused():
    with pytest.raises(ValueError, match="'log_sigma' is infinite"):
        Denoiser(Says(torch.zeros(1, 3, 4, 4)), Flow(), "v", time="log_sigma")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parameterisation": "noise"}, "unknown parameterisation 'noise'; expected eps, x0, v"),
        ({"parameterisation": "v", "time": "clock"}, "unknown time 'clock'; expected index"),
    ],
    ids=str,
)
def test_unknown_names_list_the_known_ones(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Denoiser(Says(torch.zeros(1, 3, 4, 4)), Cosine(), **options)


@pytest.mark.parametrize(("kind", "channels"), [("both", 3), ("v", 6), ("v", 1)])
def test_a_network_with_the_wrong_number_of_channels_is_refused(kind: str, channels: int):
    denoiser = Denoiser(Says(torch.zeros(1, channels, 4, 4)), Cosine(), kind)
    with pytest.raises(ValueError, match="Set its out_channels to"):
        denoiser(torch.zeros(1, 3, 4, 4), 0.5)


def test_an_edm_network_that_says_zero_has_loss_one():
    """Oracle O-6: w·(D - x)² has mean 1 for data of standard deviation sigma_data, at every sigma.

    D - x is linear in the image and the noise, so its mean square is the sum of two squares.
    """
    denoiser = Denoiser(Says(torch.zeros(2, 1, 1, 1, dtype=torch.float64)), EDM(), "edm")
    for sigma in (0.002, 0.5, 3.0, 80.0):
        weight = (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2
        image, noise = torch.tensor([[SIGMA_DATA, 0], [0, 1.0]], dtype=torch.float64)
        x_t = (image + sigma * noise).view(2, 1, 1, 1)
        error = denoiser(x_t, sigma / 80).x0.flatten() - image
        assert weight * error.square().sum().item() == pytest.approx(1, rel=1e-12)


def test_an_edm_network_sees_unit_variance():
    net = Says(torch.zeros(1, 1, 1, 1))
    Denoiser(net, EDM(), "edm")(torch.full((1, 1, 1, 1), (80**2 + 0.25) ** 0.5), 1.0)
    assert net.x.item() == pytest.approx(1)
    assert net.time.item() == pytest.approx(torch.tensor(80.0).log().item() / 4)


def test_edm_on_a_flow_meets_its_limit_at_alpha_zero():
    denoiser = Denoiser(Says(torch.ones(1, 1, 1, 1, dtype=torch.float64)), Flow(), "edm")
    x_t = torch.full((1, 1, 1, 1), 0.7, dtype=torch.float64)
    near, there = (denoiser(x_t, t).x0.item() for t in (1 - 1e-9, 1.0))
    assert there == pytest.approx(near, abs=1e-8)
    assert there == SIGMA_DATA


@every_schedule
def test_residual_is_the_noise_minus_the_network(schedule: NoiseSchedule):
    raw, z = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    denoiser = Denoiser(Says(raw), schedule, "residual")
    guess = denoiser(schedule.start(z, 1.0), 1.0)
    torch.testing.assert_close(guess.x0, z - raw, rtol=0, atol=1e-3 if schedule == EDM() else 1e-6)


def test_ddpms_network_is_asked_with_its_own_indices():
    t = torch.arange(1, 1001, dtype=torch.float32) / 1000
    index = TIMES["index"](LinearVP(), t)
    torch.testing.assert_close(index, torch.arange(1000.0), rtol=0, atol=1e-4)
    assert index[-1] == 999


@pytest.mark.parametrize("name", TIMES)
def test_times_that_a_network_sees_rise(name: str):
    t = torch.linspace(0.01, 0.99, 50)
    assert (TIMES[name](Cosine(), t).diff() > 0).all()


def test_times_are_wide_and_beside_the_images():
    narrow = torch.zeros(3, 1, 2, 2, dtype=torch.bfloat16)
    assert times(0.3, narrow).dtype == torch.float32
    assert times(0.3, narrow).shape == times(torch.tensor(0.3), narrow).shape == (1,)
    assert times(torch.rand(3), narrow).shape == (3,)
    assert times(0.3, narrow.double()).dtype == torch.float64


@pytest.mark.parametrize("images", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("clock", [torch.float32, torch.float64], ids=str)
@every_kind
def test_predictions_are_float32_or_as_wide_as_the_images(
    kind: str, images: torch.dtype, clock: torch.dtype
):
    raw = torch.zeros(2, 6 if kind == "both" else 3, 4, 4, dtype=torch.bfloat16)
    t = torch.full((2,), 0.5, dtype=clock)
    guess = Denoiser(Says(raw), LinearVP(), kind)(torch.zeros(2, 3, 4, 4, dtype=images), t)
    expected = torch.promote_types(images, torch.float32)
    for unit in ("x0", "eps", "v", "velocity", "score"):
        assert getattr(guess, unit).dtype == expected


@pytest.fixture
def conditional(lively: Callable[..., nn.Module]) -> Denoiser:
    config = nets.UNetConfig(8, width=8, mult=(1, 2), blocks=1, attention=(4,), classes=3)
    return Denoiser(lively(nets.UNet(config)), Cosine(), "v", sampling=Sampling(steps=4, clip=1.0))


def test_a_float_time_is_a_time_for_every_image(conditional: Denoiser):
    x_t = torch.randn(2, 3, 8, 8)
    assert torch.equal(conditional(x_t, 0.25).x0, conditional(x_t, torch.tensor([0.25, 0.25])).x0)


def test_no_label_is_label_minus_one(conditional: Denoiser):
    x_t, nobody = torch.randn(2, 3, 8, 8), torch.tensor([-1, -1])
    assert torch.equal(conditional(x_t, 0.5).x0, conditional(x_t, 0.5, nobody).x0)
    assert not torch.equal(conditional(x_t, 0.5).x0, conditional(x_t, 0.5, nobody + 1).x0)


def test_predictions_are_float32_under_autocast(conditional: Denoiser):
    with torch.autocast("cpu", torch.bfloat16):
        guess = conditional(torch.randn(2, 3, 8, 8), 0.5)
    assert guess.x0.dtype == torch.float32
    assert guess.x0.isfinite().all()


def test_a_copy_shares_nothing_and_says_the_same(conditional: Denoiser):
    x_t = torch.randn(1, 3, 8, 8)
    before = conditional(x_t, 0.5).x0
    twin = conditional.eval().copy()
    assert not twin.training
    assert torch.equal(twin(x_t, 0.5).x0, before)
    with torch.no_grad():
        for p in twin.parameters():
            p.zero_()
    assert torch.equal(conditional(x_t, 0.5).x0, before)


def test_a_copy_may_change_what_the_output_means(conditional: Denoiser):
    other = conditional.copy(parameterisation="x0", sampling=Sampling(steps=1))
    assert (other.parameterisation, other.sampling.steps) == ("x0", 1)
    assert other.time == conditional.time
    assert conditional.parameterisation == "v"


def test_a_config_makes_the_same_denoiser_again(conditional: Denoiser):
    config = json.loads(json.dumps(conditional.config()))
    again = nets.denoiser(config)
    again.load_state_dict(conditional.state_dict())
    x_t = torch.randn(1, 3, 8, 8)
    assert torch.equal(again(x_t, 0.5).x0, conditional(x_t, 0.5).x0)
    assert again.config() == conditional.config()
    assert (again.shape, again.classes) == ((3, 8, 8), 3)


def test_guidance_runs_from_unconditional_to_beyond_the_class():
    """On an exact teacher: scale 0 forgets the class, 1 is the class, and it is linear between."""
    images = torch.randn(6, 1, 2, 2, dtype=torch.float64)
    teacher = exact.dataset(Cosine(), images, torch.arange(6) % 3)
    x_t, label = torch.randn(3, 1, 2, 2, dtype=torch.float64), torch.tensor([0, 1, 2])
    at = {w: Guided(teacher, w)(x_t, 0.6, label) for w in (0.0, 1.0, 3.0)}
    torch.testing.assert_close(at[0.0].x0, teacher(x_t, 0.6).x0)
    torch.testing.assert_close(at[1.0].x0, teacher(x_t, 0.6, label).x0)
    torch.testing.assert_close(at[3.0].x0, 3 * at[1.0].x0 - 2 * at[0.0].x0)
    q = at[3.0].levels
    torch.testing.assert_close(q.alpha * at[3.0].x0 + q.sigma * at[3.0].eps, x_t)


def test_guidance_is_one_call_of_twice_the_size(conditional: Denoiser):
    sizes: list[int] = []
    conditional.net.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    Guided(conditional, 2.0)(torch.randn(3, 3, 8, 8), 0.5, torch.tensor([0, 1, 2]))
    assert sizes == [6]


def test_guidance_wants_classes_and_labels(conditional: Denoiser):
    with pytest.raises(ValueError, match="has no classes"):
        Guided(Denoiser(Says(torch.zeros(1, 3, 4, 4)), Cosine(), "v"), 2.0)
    with pytest.raises(ValueError, match="label is None"):
        Guided(conditional, 2.0)(torch.randn(1, 3, 8, 8), 0.5)
