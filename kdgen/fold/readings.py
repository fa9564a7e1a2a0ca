"""Any parameterisation as numbers: x0 = p·x_t + q·raw at a time, a chain of steps as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kdgen.denoiser import Denoiser, Levels

_TOLERANCE = 1e-10


class Reading(NamedTuple):
    """Of a denoiser at one time: the network sees c_in·x_t, and each of x0 and eps is
    (p, q, …): p·x_t + q·raw, with a q for each image of the raw output ("both" has two)."""

    c_in: float
    x0: tuple[float, ...]
    eps: tuple[float, ...]


class Chain(NamedTuple):
    """Of a chain of steps: `rows` (steps, 4) of (p, q, a, b), x0 = p·x_t + q·raw and x_s = a·x_t +
    b·x0, and `c_in` (steps,), by which x_t is multiplied for the network. float64, on the CPU."""

    rows: Tensor
    c_in: Tensor


def reading(denoiser: Denoiser, t: float) -> Reading:
    """What `denoiser` does with its network at time t, in float64.

    Found by asking it. Raises ValueError for a parameterisation that is not linear in x_t and the
    raw output.
    """
    n = 1 + denoiser.parts
    # each number alone, and all at once
    probes = torch.cat([torch.eye(n), torch.tensor([[1.7, -0.6, 2.3]])[:, :n]]).double()
    x_t, raw = probes[:, :1, None, None], probes[:, 1:, None, None]
    q = Levels(denoiser.schedule, torch.tensor([t], dtype=torch.float64), x_t)
    said = denoiser.read(x_t, raw, q)
    answers = torch.stack([said.x0, said.eps]).flatten(1)  # (2, n + 1)
    expected = answers[:, :n] @ probes[-1]
    size = answers[:, :n].abs() @ probes[-1].abs()
    if not ((answers[:, n] - expected).abs() <= _TOLERANCE * size).all():
        raise ValueError(
            f"fold: parameterisation {denoiser.parameterisation!r} at t = {t} is not linear in x_t "
            "and the network's output; expected a linear one. Sample it without folding."
        )
    c_in = denoiser.scaled(torch.ones(1, 1, 1, 1, dtype=torch.float64), q).item()
    x0, eps = (tuple(row[:n]) for row in answers.tolist())
    return Reading(c_in, x0, eps)


def chain(denoiser: Denoiser, moves: Sequence[tuple[float, float]]) -> Chain:
    """The steps (t, s) of a deterministic sampler, e.g. `schedule.moves(steps, grid)`.

    A folded denoiser's rows follow what was folded. With guidance the same rows hold for the raw
    outputs blended. Raises ValueError for "both", whose x0 takes two outputs, unless "output" was
    folded.
    """
    if denoiser.parts != 1:
        raise ValueError(
            f"fold.chain: {denoiser.parameterisation!r} has {denoiser.parts} raw outputs; expected "
            "one. Fold for a single time, with the fold 'output', or sample step by step."
        )
    found = [reading(denoiser, t) for t, _ in moves]
    steps = [denoiser.schedule.coefficients(t, s) for t, s in moves]
    rows = [(*r.x0, *step) for r, step in zip(found, steps, strict=True)]
    return Chain(
        torch.tensor(rows, dtype=torch.float64).reshape(-1, 4),
        torch.tensor([r.c_in for r in found], dtype=torch.float64),
    )
