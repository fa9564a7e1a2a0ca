"""Whether a folded denoiser says what the original said."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from kdgen import kernels, memory
from kdgen.denoiser import Denoiser, Prediction
from kdgen.errors import KdgenError
from kdgen.fold.folded import Folded
from kdgen.fold.opaque import Opaque, opaque
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
    deepest level with 2×2 pixels, or of their own where a part is opaque; `times` are by default
    the first, the middle and the last.
    Weights rounded to the dtype of a network differ by its precision: give their `tolerance`.
    Raises `FoldError` when the error is larger, or not a number, and where an opaque part fails.
    """
    plain, other = _wide(original), _wide(folded)
    chosen = _some(folded.times) if times is None else list(times)
    strange = opaque(folded.net)
    side = folded.shape[-1] if strange else 2 ** len(original.net.facts.mult)  # type: ignore[union-attr, arg-type]
    # Whatever was insisted on: few backends know float64.
    with kernels.use("reference"), _blaming(strange):
        errors = [_error(plain, other, t, side) for t in chosen]
    worst = _largest(errors)
    if not worst <= tolerance:
        names = ", ".join(name for name, count in folded.places.items() if count)
        names += f"; beside parts of somebody's own: {_listed(strange)}" if strange else ""
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


@contextmanager
def _blaming(strange: list[Opaque]) -> Iterator[None]:
    """What these parts raise, as a `FoldError`."""
    try:
        yield
    except Exception as error:
        if not strange or memory.ran_out(error):
            raise
        raise FoldError(
            f"fold.check: {_listed(strange)}: {type(error).__name__}: {error}; expected functions "
            "of the image alone, that take float64, too. Undo the change, or leave out folding."
        ) from error


def _listed(strange: list[Opaque]) -> str:
    return ", ".join(f"{part.name} {part.why}" for part in strange)


def _error(plain: Denoiser, other: Denoiser, t: float, side: int) -> float:
    x_t, label = _inputs(plain, t, side)
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


def _inputs(denoiser: Denoiser, t: float, side: int) -> tuple[Tensor, Tensor | None]:
    """x_t (2, C, R, R) of its usual size, and labels: some class, and none."""
    net = denoiser.net
    device = next(net.parameters()).device
    r = torch.Generator().manual_seed(0)
    x = torch.randn(2, denoiser.shape[0], side, side, generator=r, dtype=torch.float64)
    alpha, sigma = denoiser.schedule.levels(t)
    x = (x * (alpha**2 + sigma**2) ** 0.5).to(device)
    classes = denoiser.classes
    return x, torch.tensor([classes // 2, -1], device=device) if classes else None
