"""Squared errors are one error under different weights: Salimans & Ho 2022, §4."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kdgen.denoiser import Levels, Prediction
from kdgen.methods.errors import ERRORS, check_error, error
from kdgen.schedules import EDM, Cosine, Flow, LinearVP, NoiseSchedule

ALL = [LinearVP(), Cosine(), EDM(), Flow()]
every = pytest.mark.parametrize("q", ALL, ids=repr)


def predictions(q: NoiseSchedule, t: Tensor) -> tuple[Prediction, Prediction]:
    """(guess, answer) about one x_t, in float64."""
    r = torch.Generator().manual_seed(0)
    x0, eps, wrong = torch.randn(3, len(t), 3, 4, 4, generator=r, dtype=torch.float64)
    x_t, levels = q.noise(x0, eps, t), Levels(q, t, x0)
    return Prediction(x_t, wrong, levels), Prediction(x_t, x0, levels, eps=eps)


@every
@pytest.mark.parametrize(
    ("name", "weight"),
    [
        ("constant", lambda snr: torch.ones_like(snr)),
        ("snr", lambda snr: snr),
        ("truncated", lambda snr: snr.clamp(min=1)),
        ("snr+1", lambda snr: snr + 1),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_an_error_is_that_of_x0_times_its_weight(q: NoiseSchedule, name: str, weight):
    """On every path, and from the noisiest time to the cleanest."""
    t = torch.tensor([0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99], dtype=torch.float64)
    guess, answer = predictions(q, t)
    plain = (guess.x0 - answer.x0).square().mean((1, 2, 3))
    torch.testing.assert_close(
        error(guess, answer, name), weight(q.snr(t)) * plain, rtol=1e-9, atol=0
    )


@every
def test_truncated_is_the_larger_of_the_two_means(q: NoiseSchedule):
    t = torch.linspace(0.001, 0.999, 41, dtype=torch.float64)
    guess, answer = predictions(q, t)
    x0, eps = error(guess, answer, "x0"), error(guess, answer, "eps")
    assert torch.equal(error(guess, answer, "truncated"), torch.maximum(x0, eps))
    assert (x0 > eps).any()
    assert (eps > x0).any()


def test_truncated_on_edms_path_is_the_weight_of_the_consistency_papers():
    """max(1/sigma², 1): Song et al. 2023's progressive distillation."""
    sigma = torch.tensor([0.002, 0.5, 1.0, 3.0, 80.0], dtype=torch.float64)
    guess, answer = predictions(EDM(), sigma / 80)
    weighted = error(guess, answer, "truncated") / error(guess, answer, "constant")
    torch.testing.assert_close(weighted, (1 / sigma**2).clamp(min=1), rtol=1e-9, atol=0)


@pytest.mark.parametrize("t", [1.0, 1e-12])
@pytest.mark.parametrize("name", sorted(ERRORS))
def test_a_weight_is_never_formed(t: float, name: str):
    """Where it would be 0 or beyond float32, its unit still has its own plain error."""
    zero = torch.zeros(1, 1, 2, 2)
    levels = Levels(Flow(), torch.tensor([t]), zero)
    answer = Prediction(zero, zero, levels, eps=zero)
    guess = Prediction(zero, zero + 0.1, levels, eps=zero + 0.1)
    torch.testing.assert_close(error(guess, answer, name), torch.tensor([0.01]))


@pytest.mark.parametrize(("unit", "name"), [("x0", "constant"), ("eps", "snr"), ("v", "snr+1")])
def test_a_unit_is_another_name_for_its_weight(unit: str, name: str):
    guess, answer = predictions(Cosine(), torch.tensor([0.2, 0.8], dtype=torch.float64))
    assert torch.equal(error(guess, answer, unit), error(guess, answer, name))


def test_an_unknown_weight_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"Any: unknown error 'edm'; expected eps, x0, v, trunc"):
        check_error("Any", "error", "edm")
    for name in ERRORS:
        check_error("Any", "error", name)
