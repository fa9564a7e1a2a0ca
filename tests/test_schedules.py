"""Laws of every schedule, and the published grids."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from kdgen import schedules
from kdgen.schedules import EDM, SCHEDULES, Cosine, Flow, LinearVP, NoiseSchedule, schedule

ALL = [LinearVP(), LinearVP(steps=50), Cosine(), EDM(), Flow()]
VARIANCE_PRESERVING = [q for q in ALL if q.variance_preserving]
every = pytest.mark.parametrize("q", ALL, ids=repr)

inside = st.floats(0.01, 0.99)  # times away from the ends


def images(seed: int = 0, n: int = 1) -> torch.Tensor:
    r = torch.Generator().manual_seed(seed)
    return torch.randn(n, 1, 2, 3, generator=r, dtype=torch.float64)


def at(t: float) -> torch.Tensor:
    return torch.tensor([t], dtype=torch.float64)


@pytest.mark.parametrize("q", VARIANCE_PRESERVING, ids=repr)
@given(t=st.floats(0, 1))
def test_variance_is_preserved(q: NoiseSchedule, t: float):
    alpha, sigma = q.levels(t)
    assert alpha**2 + sigma**2 == pytest.approx(1, abs=1e-14)


@every
@given(t=inside, s=inside)
def test_noise_grows_with_time(q: NoiseSchedule, t: float, s: float):
    s, t = sorted((s, t))
    (alpha_s, sigma_s), (alpha_t, sigma_t) = q.levels(s), q.levels(t)
    assert alpha_t <= alpha_s
    assert sigma_t >= sigma_s


@pytest.mark.parametrize(
    ("q", "start", "end"),
    [
        (LinearVP(), (1, 0), (math.sqrt(4.0358e-5), 1)),
        (Cosine(), (1, 4.5399930e-05), (4.5399930e-05, 1)),  # oracle O-5 (v)
        (EDM(), (1, 0), (1, 80)),
        (Flow(), (1, 0), (0, 1)),
    ],
    ids=repr,
)
def test_ends_are_the_published_ones(q: NoiseSchedule, start: tuple, end: tuple):
    assert q.levels(0.0) == pytest.approx(start, rel=1e-7, abs=1e-7)
    assert q.levels(1.0) == pytest.approx(end, rel=1e-4, abs=1e-12)


def test_linear_vp_has_ddpms_alpha_bar_at_every_index():
    """Ho et al. 2020: prod(1 - beta), as a plain product; and in float32 too."""
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    for dtype, tolerance in ((torch.float64, 1e-13), (torch.float32, 1e-6)):
        t = torch.arange(1, 1001, dtype=dtype) / 1000
        alpha, sigma = LinearVP().alpha_sigma(t)
        np.testing.assert_allclose(alpha.square(), alpha_bar, rtol=20 * tolerance)
        np.testing.assert_allclose(sigma.square(), 1 - alpha_bar, rtol=20 * tolerance)
    assert alpha_bar[[800, 990]] == pytest.approx([0.00150752, 4.84e-5], rel=1e-3)


@every
@given(t=inside)
def test_rates_are_the_derivatives(q: NoiseSchedule, t: float):
    time = at(t).requires_grad_()
    alpha, sigma = q.alpha_sigma(time)
    slopes = [
        torch.autograd.grad(v.sum(), time, retain_graph=True, allow_unused=True)[0]
        for v in (alpha, sigma)
        if v.requires_grad
    ]
    rates = [r for r, v in zip(q.rates(at(t)), (alpha, sigma), strict=True) if v.requires_grad]
    for rate, slope in zip(rates, slopes, strict=True):
        torch.testing.assert_close(rate, slope, rtol=1e-9, atol=1e-12)


@every
@given(t=inside)
def test_t_of_sigma_undoes_the_noise_to_signal_ratio(q: NoiseSchedule, t: float):
    alpha, sigma = q.levels(t)
    assert q.t_of_sigma(sigma / alpha) == pytest.approx(t, abs=1e-10)


@every
@given(t=inside, s=st.floats(0, 0.99))
def test_step_along_the_true_image_is_the_noised_image_of_that_time(
    q: NoiseSchedule, t: float, s: float
):
    x0, eps = images(0), images(1)
    moved = q.step(q.noise(x0, eps, at(t)), x0, t, s)
    expected = x0 if s == 0 else q.noise(x0, eps, at(s))
    torch.testing.assert_close(moved, expected, rtol=1e-9, atol=1e-9)


@every
@given(t=inside)
def test_step_lands_on_x0_at_time_zero(q: NoiseSchedule, t: float):
    x_t, x0 = images(0), images(1)
    assert torch.equal(q.step(x_t, x0, t, 0.0), x0)
    assert torch.equal(q.step(x_t, x0, at(t), at(0)), x0)


@every
@given(t=inside, s=inside)
def test_landing_undoes_step(q: NoiseSchedule, t: float, s: float):
    if abs(t - s) < 1e-3:
        return
    x_t, x0 = images(0, 2), images(1, 2)
    for times in ((t, s), (at(t).expand(2), at(s).expand(2))):
        landed = q.landing(x_t, q.step(x_t, x0, *times), *times)
        torch.testing.assert_close(landed, x0, rtol=1e-6, atol=1e-6)


@every
@given(t=inside, s=inside)
def test_coefficients_are_the_same_on_the_host_and_in_tensors(q: NoiseSchedule, t: float, s: float):
    a, b = q.coefficients(at(t), at(s))
    assert (a.item(), b.item()) == pytest.approx(q.coefficients(t, s), rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("q", ALL, ids=repr)
def test_float32_coefficients_do_not_cancel(q: NoiseSchedule):
    """1024 steps: b is a thousandth of alpha, and still has all its digits."""
    t = torch.arange(2, 1025, dtype=torch.float32) / 1024
    _, b = q.coefficients(t, t - 1 / 1024)
    _, exact = q.coefficients(t.double(), t.double() - 1 / 1024)
    torch.testing.assert_close(b.double(), exact, rtol=2e-7, atol=0)


@pytest.mark.parametrize("q", [LinearVP(), EDM(), Flow()], ids=repr)
def test_a_step_that_starts_without_noise_is_refused(q: NoiseSchedule):
    with pytest.raises(ValueError, match="expected noise"):
        q.coefficients(0.0, 0.5)


@pytest.mark.parametrize("q", VARIANCE_PRESERVING, ids=repr)
@given(t=inside, s=inside)
def test_ddim_is_euler_in_edm_coordinates(q: NoiseSchedule, t: float, s: float):
    """Oracle O-2: y = z/alpha, sigma/alpha."""
    x_t, x0 = images(0), images(1)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = q.levels(t), q.levels(s)
    y, now, then = x_t / alpha_t, sigma_t / alpha_t, sigma_s / alpha_s
    euler = y + (then - now) * (y - x0) / now
    torch.testing.assert_close(q.step(x_t, x0, t, s), alpha_s * euler, rtol=1e-12, atol=1e-12)


@given(t=inside, s=inside)
def test_ddim_is_velocity_euler_on_a_flow(t: float, s: float):
    """Oracle O-2: z + (s - t)·(eps - x0)."""
    x_t, x0 = images(0), images(1)
    eps = (x_t - (1 - t) * x0) / t
    expected = x_t + (s - t) * (eps - x0)
    torch.testing.assert_close(Flow().step(x_t, x0, t, s), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("q", "kind"), [(q, kind) for q in ALL for kind in q.grids], ids=lambda v: str(v)
)
@given(steps=st.integers(1, 50))
def test_grids_fall_from_the_noise_to_the_data(q: NoiseSchedule, kind: str, steps: int):
    times = q.grid(steps, kind)
    assert times.shape == (steps + 1,)
    assert times.dtype == np.float64
    assert times[-1] == pytest.approx(2.5e-5 if kind == "ramp" else 0)  # sigma_min/sigma_max
    assert times[0] <= 1
    assert (np.diff(times) <= 0).all()
    top = {"quad": 0.8, "stride": 1 - 1 / steps}.get(kind, 1)
    assert times[0] == pytest.approx(top, abs=2 / 50)


def test_quad_is_the_published_list():
    """Oracle O-3 and Luhman & Luhman 2021: 100 entries, 96 different ones, up to index 800."""
    indices = LinearVP().indices(100, "quad").tolist()
    assert indices[:8] == [0, 0, 0, 0, 1, 2, 2, 3]
    assert indices[-3:] == [768, 783, 800]
    assert len(set(indices)) == 96
    published = np.floor(np.linspace(0, math.sqrt(800), 100) ** 2 + 1e-9)
    assert indices == published.tolist()


def test_quad_with_one_step_starts_where_it_always_does():
    assert LinearVP().indices(1, "quad").tolist() == [800]


@pytest.mark.parametrize("steps", [1, 2, 10, 50, 100, 500, 1000])
def test_stride_is_song_et_als_range(steps: int):
    indices = LinearVP().indices(steps, "stride")
    assert indices.tolist() == list(range(0, 1000, 1000 // steps))


def test_stride_spans_the_schedule_where_steps_do_not_divide_it():
    indices = LinearVP().indices(600, "stride")
    assert len(set(indices.tolist())) == 600
    assert indices[-1] == 998


def test_karras_grid_is_the_published_one():
    """Oracle O-6: N = 18, rho = 7."""
    sigmas = 80 * EDM().grid(18, "karras")
    assert sigmas[1] == pytest.approx(57.58598472, rel=1e-10)
    assert sigmas[[0, 16, 17, 18]] == pytest.approx([80, 0.0075280, 0.002, 0], abs=3e-8)


@pytest.mark.parametrize(
    ("q", "steps", "kind", "message"),
    [
        (Cosine(), 0, "uniform", "steps is 0; expected at least 1"),
        (Cosine(), 4, "karras", "no grid 'karras'; expected uniform"),
        (LinearVP(), 1001, "quad", "1001 steps; expected at most the schedule's 1000"),
    ],
    ids=str,
)
def test_impossible_grids_are_refused(q: NoiseSchedule, steps: int, kind: str, message: str):
    with pytest.raises(ValueError, match=message):
        q.grid(steps, kind)


@every
def test_config_makes_the_same_schedule_again(q: NoiseSchedule):
    again = schedule(**json.loads(json.dumps(q.config())))
    assert again == q
    assert hash(again) == hash(q)


def test_an_unknown_schedule_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'linear'; expected linear_vp, cosine, edm, flow"):
        schedule("linear")
    assert set(SCHEDULES) == {"linear_vp", "cosine", "edm", "flow"}


@every
def test_snr_and_logsnr_agree(q: NoiseSchedule):
    t = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    torch.testing.assert_close(q.snr(t).log(), q.logsnr(t))


@every
def test_sampling_starts_at_the_noise_level_of_its_first_time(q: NoiseSchedule):
    z = images()
    assert torch.equal(q.start(z, 1.0), z * (80 if isinstance(q, EDM) else 1))


def test_a_table_made_under_fake_tensors_does_not_outlive_them():
    q = LinearVP(steps=7)  # no other test makes this table
    with FakeTensorMode():
        assert isinstance(q.alpha_sigma(torch.ones(2))[0], FakeTensor)
    assert type(q.alpha_sigma(torch.ones(2))[0]) is torch.Tensor


def test_levels_are_constants_under_fake_tensors_once_they_were_asked_for():
    here = LinearVP().levels(0.25)
    with FakeTensorMode():
        assert LinearVP().levels(0.25) == here


def test_levels_do_not_follow_the_default_device():
    with torch.device("meta"):
        assert schedules.Cosine(logsnr_max=7).levels(1.0)[1] == pytest.approx(1, abs=1e-3)
