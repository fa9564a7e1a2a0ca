"""How far a prediction is from the answer: squared errors in x0, eps or v, which are one error
under different weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kdgen.denoiser import Prediction
from kdgen.methods.base import per_image_mean


def _x0(guess: Prediction, answer: Prediction) -> Tensor:
    return per_image_mean((guess.x0 - answer.x0).square())


def _eps(guess: Prediction, answer: Prediction) -> Tensor:
    return per_image_mean((guess.eps - answer.eps).square())


def _v(guess: Prediction, answer: Prediction) -> Tensor:
    # v of the state at unit size: on a path that does not preserve variance, v alone would weigh
    # (alpha² + sigma²)·(SNR + 1).
    return per_image_mean((guess.v - answer.v).square() / guess.levels.power)


def _truncated(guess: Prediction, answer: Prediction) -> Tensor:
    return torch.maximum(_x0(guess, answer), _eps(guess, answer))


# By their weight on the squared error of x0, SNR = alpha²/sigma² (Salimans & Ho 2022,
# arXiv:2202.00512, §4), and by the unit in which that is the plain squared error.
ERRORS: dict[str, Callable[[Prediction, Prediction], Tensor]] = {
    "eps": _eps,
    "x0": _x0,
    "v": _v,
    "truncated": _truncated,  # max(SNR, 1)
    "snr": _eps,
    "constant": _x0,
    "snr+1": _v,
}


def error(guess: Prediction, answer: Prediction, weight: str) -> Tensor:
    """Weighted squared error of x0 per pixel, (B,); both predictions are of the same x_t.

    `weight` is one of `ERRORS`. No weight is ever formed: each comes from the unit it belongs to,
    so "snr" stays finite as sigma falls to 0, and "snr+1" where alpha is 0. On any path "truncated"
    is the larger of "constant" and "snr", in EDM's coordinates max(1/sigma², 1).
    """
    return ERRORS[weight](guess, answer)


def check_error(where: str, what: str, weight: str) -> None:
    """ValueError for an unknown weight."""
    if weight not in ERRORS:
        raise ValueError(
            f"{where}: unknown {what} {weight!r}; expected {', '.join(ERRORS)}. Pick one."
        )
