"""Known answers and laws of the single measures, and what they refuse."""

import json
import math

import pytest
import torch

from kdgen.errors import MetricError
from kdgen.metrics import (
    Measure,
    agreement,
    as_uint8,
    frechet,
    frechet_distance,
    mmd,
    moments,
    pca,
    ratio,
    table,
)
from kdgen.metrics.floors import real_sets
from kdgen.metrics.frechet import Moments
from kdgen.metrics.neighbours import nearest, precision_recall
from kdgen.metrics.spectra import histogram_distance, sliced_wasserstein, spectrum_distance


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pictures(n: int = 60, size: int = 8, channels: int = 1, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, channels, size, size), generator=generator).to(torch.uint8)


# Fréchet distance ----------------------------------------------------------------------------


def test_frechet_distance_of_gaussians_with_commuting_covariances_is_the_closed_form():
    axes, _ = torch.linalg.qr(normal(12, 12))
    first, second = normal(12, seed=1).square(), normal(12, seed=2).square()
    shift = normal(12, seed=3)
    a = Moments(100, torch.zeros(12).double(), axes * first @ axes.T)
    b = Moments(100, shift, axes * second @ axes.T)
    expected = shift.square().sum() + (first.sqrt() - second.sqrt()).square().sum()
    assert frechet(a, b) == pytest.approx(float(expected), rel=1e-10)


def test_frechet_distance_of_general_gaussians_is_the_trace_formula():
    x, y = normal(50, 6) @ normal(6, 6, seed=1), normal(50, 6, seed=2) @ normal(6, 6, seed=3)
    a, b = moments(x), moments(y)
    roots = torch.linalg.eigvals(a.covariance @ b.covariance).real.clamp(min=0).sqrt()
    trace = (a.covariance + b.covariance).trace() - 2 * roots.sum()
    expected = (a.mean - b.mean).square().sum() + trace
    assert frechet(a, b) == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("rank", [3, 16])
def test_frechet_distance_of_a_set_to_itself_is_zero_even_when_singular(rank):
    x = 100 * normal(40, rank) @ normal(rank, 16, seed=1)
    assert frechet_distance(x, x.flip(0)) < 1e-6


def test_frechet_distance_is_symmetric_and_ignores_the_order_of_rows():
    x, y = normal(50, 5), 1 + 2 * normal(50, 5, seed=1)
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(y, x), rel=1e-12)
    shuffled = y[torch.randperm(50, generator=torch.Generator().manual_seed(0))]
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(x, shuffled), rel=1e-12)


def test_moments_of_shards_merge_to_the_moments_of_the_whole():
    x = 5 + normal(90, 4)
    whole, merged = moments(x), moments(x[:11]).merge(moments(x[11:70])).merge(moments(x[70:]))
    assert merged.n == whole.n
    torch.testing.assert_close(merged.mean, whole.mean)
    torch.testing.assert_close(merged.covariance, whole.covariance)


def test_too_few_images_for_the_features_are_refused_with_the_numbers():
    with pytest.raises(MetricError, match=r"n=5 .* 5 features.*expected n > 5.*MMD"):
        frechet_distance(normal(5, 5), normal(5, 5))


def test_different_n_is_refused():
    with pytest.raises(MetricError, match="50 against 49"):
        frechet_distance(normal(50, 3), normal(49, 3))


def test_principal_components_keep_the_largest_variances_and_clamp_to_the_dimension():
    x = normal(500, 5) * torch.tensor([1.0, 9.0, 3.0, 0.1, 0.0])
    fitted = pca(x, 2)
    assert fitted.basis.abs().argmax(0).tolist() == [1, 2]
    torch.testing.assert_close(fitted.basis.T @ fitted.basis, torch.eye(2, dtype=torch.float64))
    assert pca(x, 64).components == 5
    distances = torch.cdist(pca(x)(x), pca(x)(x))
    torch.testing.assert_close(distances, torch.cdist(x, x), atol=1e-5, rtol=1e-6)


# MMD -----------------------------------------------------------------------------------------


def test_mmd_equals_its_definition_as_a_double_sum():
    x, y = normal(7, 3), normal(7, 3, seed=1)
    k = lambda a, b: (float(a @ b) / 3 + 1) ** 3  # noqa: E731
    pairs = [(i, j) for i in range(7) for j in range(7) if i != j]
    within = sum(k(x[i], x[j]) + k(y[i], y[j]) for i, j in pairs) / 42
    cross = sum(k(a, b) for a in x for b in y) / 49
    assert mmd(x, y).value == pytest.approx(within - 2 * cross, rel=1e-9)


def test_mmd_of_one_distribution_scatters_around_zero_and_of_two_does_not():
    same = [mmd(normal(100, 8, seed=2 * i), normal(100, 8, seed=2 * i + 1), 0) for i in range(40)]
    values = torch.tensor([m.value for m in same])
    assert abs(float(values.mean())) < 3 * float(values.std()) / math.sqrt(40)
    assert min(m.value for m in same) < 0
    shifted = mmd(normal(100, 8), normal(100, 8, seed=1) + 0.5)
    assert shifted.interval[0] > 0
    assert shifted.interval[0] < shifted.value < shifted.interval[1]


def test_the_mmd_interval_of_one_distribution_contains_zero_and_repeats():
    found = mmd(normal(200, 8), normal(200, 8, seed=1))
    assert found.interval[0] < 0 < found.interval[1]
    assert found == mmd(normal(200, 8), normal(200, 8, seed=1))


# Neighbours ----------------------------------------------------------------------------------


def test_precision_sees_outliers_and_recall_sees_a_missing_mode():
    real = torch.cat([normal(50, 2), normal(50, 2, seed=1) + 100])
    one_mode = normal(100, 2, seed=2)
    precision, recall = precision_recall(real, one_mode)
    assert precision > 0.9
    assert recall <= 0.5
    outliers = torch.cat([real[:50] + 1e-6, normal(50, 2, seed=3) * 1e4 + 1e6])
    assert precision_recall(real, outliers)[0] == 0.5


def test_nearest_finds_the_distance_and_leaves_out_a_rows_own_place():
    points = torch.tensor([[0.0], [1.0], [4.0]])
    assert nearest(torch.tensor([[3.0]]), points).tolist() == [1.0]
    assert nearest(points, points, own=torch.arange(3)).tolist() == [1.0, 1.0, 3.0]


# Pixels --------------------------------------------------------------------------------------


def test_histogram_distance_is_the_number_of_grey_levels_of_a_shift():
    x = pictures() // 2
    assert histogram_distance(x, x + 7) == pytest.approx(7)
    assert histogram_distance(x, x.flip(0, 2)) == 0


def test_spectrum_distance_ignores_position_and_measures_a_gain_in_decibel():
    x = pictures() // 4 + 20
    assert spectrum_distance(x, x.roll((3, 2), (2, 3))) == pytest.approx(0, abs=1e-9)
    assert spectrum_distance(x, x * 2) == pytest.approx(20 * math.log10(2), abs=0.01)


def test_sliced_wasserstein_of_a_shift_is_the_mean_projection_of_it():
    x = pictures(200, 4) // 2
    value, spread = sliced_wasserstein(x, x + 10)
    expected = 10 * 4 * math.sqrt(2 / math.pi) / 4  # |projection| of a shift of length 10·√16
    assert value == pytest.approx(expected, abs=4 * spread)
    assert sliced_wasserstein(x, x.flip(0)) == (0, 0)


def test_one_bad_channel_is_seen_in_colour_images():
    x = pictures(channels=3) // 2
    red = x.clone()
    red[:, 0] += 30
    assert histogram_distance(x, red) == pytest.approx(10)


# What may enter ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "text"),
    [
        (
            torch.rand(4, 1, 8, 8) * 2 - 1,
            r"float32 in \[-\d\.\d\d, \d\.\d\d\].*value_range=\(-1, 1\)",
        ),
        (torch.full((4, 1, 8, 8), math.nan), "NaN"),
        (torch.zeros(4, 8, 8, 3, dtype=torch.uint8), r"permute\(0, 3, 1, 2\)"),
        (torch.zeros(4, 2, 8, 8, dtype=torch.uint8), "1 or 3 channels"),
        (torch.zeros(4, 8, 8, dtype=torch.uint8), r"expected \(N, C, H, W\)"),
        (torch.zeros(1, 1, 8, 8, dtype=torch.uint8), "at least 2 images"),
        (torch.zeros(4, 1, 8, 8, dtype=torch.int64), "int64"),
        ([[1, 2]], "list"),
    ],
    ids=["float", "NaN", "NHWC", "2 channels", "3-d", "one image", "int64", "list"],
)
def test_anything_but_uint8_nchw_is_refused_in_words(images, text):
    with pytest.raises(MetricError, match=text):
        as_uint8(images)


@pytest.mark.parametrize("low_high", [(-1, 1), (0, 1), (0, 255), (-0.5, 0.5)], ids=str)
def test_floats_of_a_stated_range_round_trip_exactly(low_high):
    low, high = low_high
    levels = torch.arange(256).to(torch.uint8).view(4, 1, 8, 8)
    floats = low + (high - low) * levels.float() / 255
    assert (as_uint8(floats, low_high) == levels).all()


def test_floats_outside_the_stated_range_are_refused_and_never_wrapped():
    with pytest.raises(MetricError, match=r"outside value_range=\(-1, 1\).*Clamp"):
        as_uint8(torch.full((4, 1, 8, 8), 1.2), (-1, 1))


# Agreement -----------------------------------------------------------------------------------


def test_identical_images_agree_at_the_rounding_limit_and_chance_does_not():
    x = pictures(30)
    psnr, ssim, mse = agreement(x, x)
    assert psnr.value == pytest.approx(10 * math.log10(255**2 * 12))
    assert (ssim.value, mse.value) == (pytest.approx(1), 0)
    assert psnr.floor < 12
    assert ssim.floor < 0.5
    assert mse.floor > 0.3


def test_psnr_of_a_known_error_is_the_formula():
    x = pictures() // 2
    assert agreement(x + 10, x)[0].value == pytest.approx(20 * math.log10(25.5))


def test_chance_compares_within_the_label():
    x = pictures(40) // 8
    labels = torch.arange(40) % 2
    x[labels == 1] += 200
    inside, across = agreement(x, x, labels)[2].floor, agreement(x, x)[2].floor
    assert inside < 0.1 < across


def test_agreement_is_marked_when_the_method_does_not_follow_the_ode():
    x = pictures()
    for measure in agreement(x, x, follows_ode=False):
        assert not measure.meaningful
        assert measure.caveat.startswith("Not meaningful")
    assert "(not meaningful)" in table(agreement(x, x, follows_ode=False))


# Floors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [30, 50, 51, 80, 100])
@pytest.mark.parametrize("labelled", [False, True])
def test_real_sets_have_n_images_in_the_shares_of_the_classes(n, labelled):
    labels = torch.arange(100) % 3
    sets = real_sets(100, n, labels if labelled else None, seed=0)
    assert len(sets.match.unique()) == n
    for index in (sets.match, *(i for pair in sets.pairs for i in pair)):
        assert len(index) == n
        if labelled:
            assert (
                torch.bincount(labels[index]) - torch.bincount(labels) * n / 100
            ).abs().max() < 1
    first, second = (set(half.tolist()) for half in sets.halves)
    assert not first & second
    assert len(first) == len(second) >= min(n, 48)
    assert ("disjoint" in sets.how) == (2 * n <= 100 and not (labelled and n == 50))


def test_the_floor_from_resamples_is_that_of_fresh_draws_at_equal_n():
    """The claim behind the floor at equal n, checked where fresh draws can be had."""
    n, d = 800, 16
    fresh = [frechet_distance(normal(n, d, seed=i), normal(n, d, seed=i + 50)) for i in range(8)]
    data = normal(n, d, seed=99)
    pairs = [p for seed in range(2) for p in real_sets(n, n, None, seed).pairs]
    resampled = [frechet(moments(data[a]), moments(data[b])) for a, b in pairs]
    assert sum(resampled) / 8 == pytest.approx(sum(fresh) / 8, rel=0.15)


# Results -------------------------------------------------------------------------------------


def measure(**changes) -> Measure:
    known = dict(name="FD[x, n=9]", value=3.0, spread=0.5, floor=1.0, n=9, seed=0, caveat="a|b <c>")
    return Measure(**(known | changes))


def test_a_ratio_needs_the_same_name_n_and_extractor():
    assert ratio(measure(value=6.0), measure()) == 2
    for other in (measure(name="MMD"), measure(n=8), measure(features="other")):
        with pytest.raises(MetricError, match="expected the same on both"):
            ratio(measure(), other)
    with pytest.raises(MetricError, match="positive"):
        ratio(measure(), measure(value=-1.0))


@pytest.mark.parametrize("broken", [{"value": math.nan}, {"floor": math.inf}, {"spread": math.nan}])
def test_a_number_that_is_not_finite_never_becomes_a_measure(broken):
    with pytest.raises(MetricError, match="finite"):
        measure(**broken)


def test_json_is_strict_and_complete():
    found = json.loads(table([measure()], "json"), parse_constant=pytest.fail)
    [entry] = found["runs"]["value"]
    assert entry["caveat"] == "a|b <c>"
    assert {"name", "value", "spread", "floor", "floor_of", "n", "seed", "better"} <= set(entry)


def test_runs_stand_beside_each_other_and_keep_floor_and_caveat_in_every_style():
    runs = {"teacher": [measure()], "student": [measure(value=-1234.5, spread=None)]}
    for style in ("text", "markdown", "html"):
        text = table(runs, style)
        assert "3.00 ± 0.50" in text
        assert "−1234" in text
        assert "none is FID" in text
        assert "Seed 0" in text
    assert "a\\|b" in table(runs, "markdown")
    assert "&lt;c&gt;" in table(runs, "html")


def test_runs_that_do_not_compare_are_refused():
    with pytest.raises(MetricError, match=r"n is 9 .* 8"):
        table({"a": [measure()], "b": [measure(n=8)]})
    with pytest.raises(ValueError, match="different measures"):
        table({"a": [measure()], "b": []})
    with pytest.raises(ValueError, match="expected text, markdown, html or json"):
        table([measure()], "latex")
