"""Whether a folded denoiser says what the original said."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kdgen import kernels
from kdgen.denoiser import Denoiser, Prediction
from kdgen.errors import KdgenError
from kdgen.fold.folded import Folded
from kdgen.fold.readings import reading

TOLERANCE = 1e-10
_MOST = 3  # times that are tried
_LITTLE = 1e-4  # of x0: its rounding is 1e-12 of that


class FoldError(KdgenError):
    """A folded network that does not compute what the original does."""


@torch.no_grad()
def check(
    original: Denoiser,
    folded: Folded,
    times: Sequence[float] | None = None,
    *,
    tolerance: float = TOLERANCE,
) -> float:
    """The largest error of the folded denoiser's x0, as a share of what the network contributes.

    Both run in float64, in copies, on two random images of the lowest resolution that reaches the
    deepest level with 2×2 pixels; `times` are by default the first, the middle and the last.
    Weights rounded to the dtype of a network differ by its precision: give their `tolerance`.
    Raises `FoldError` when the error is larger, or not a number.
    """
    plain, other = _wide(original), _wide(folded)
    chosen = _some(folded.times) if times is None else list(times)
    with kernels.use("reference"):  # whatever was insisted on: few backends know float64
        errors = [_error(plain, other, t) for t in chosen]
    worst = _largest(errors)
    if not worst <= tolerance:
        names = ", ".join(name for name, count in folded.places.items() if count)
        raise FoldError(
            f"fold.check: the folded network is {worst:.1e} away from the original ({names}); "
            f"expected at most {tolerance:.0e}. Leave out folds until it holds, and report it."
        )
    return worst


def _wide(denoiser: Denoiser) -> Denoiser:
    """In float64; a copy unless it is ready as it is."""
    ready = all(p.dtype is torch.float64 for p in denoiser.parameters())
    if ready and not denoiser.training:
        return denoiser
    return copy.deepcopy(denoiser).double().eval()


def _some(times: Sequence[float]) -> list[float]:
    places = {0, len(times) // 2, len(times) - 1}
    return [times[k] for k in sorted(places)][:_MOST]


def _error(plain: Denoiser, other: Denoiser, t: float) -> float:
    x_t, label = _inputs(plain, t)
    p = reading(plain, t).x0[0]
    pairs = zip(plain.outputs(x_t, t, label), other.outputs(x_t, t, label), strict=True)
    return _largest([_share(one, two, p) for one, two in pairs])


def _largest(errors: list[float]) -> float:
    """Of which one that is no number is the largest."""
    return max(errors, key=lambda e: math.inf if math.isnan(e) else e)


def _share(expected: Prediction, said: Prediction, p: float) -> float:
    """The error, relative to the network's part of x0, or to a little of x0 where there is next to
    none."""
    part = (expected.x0 - p * expected.x_t).abs().max()
    size = torch.maximum(part, _LITTLE * expected.x0.abs().max())
    return ((said.x0 - expected.x0).abs().max() / size).item()


def _inputs(denoiser: Denoiser, t: float) -> tuple[Tensor, Tensor | None]:
    """x_t (2, C, R, R) of its usual size, and labels: some class, and none."""
    net = denoiser.net
    device = next(net.parameters()).device
    side = 2 ** len(net.facts.mult)  # type: ignore[union-attr, arg-type]
    r = torch.Generator().manual_seed(0)
    x = torch.randn(2, denoiser.shape[0], side, side, generator=r, dtype=torch.float64)
    alpha, sigma = denoiser.schedule.levels(t)
    x = (x * (alpha**2 + sigma**2) ** 0.5).to(device)
    classes = denoiser.classes
    return x, torch.tensor([classes // 2, -1], device=device) if classes else None
