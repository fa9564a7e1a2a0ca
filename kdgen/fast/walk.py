"""The program of a generator: noise in, bytes out, without a question to the host.

`Walk` runs a `Chain`, one fused update after every network call. What is no chain runs as its
sampler does it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from kdgen import kernels, noise, samplers
from kdgen.denoiser import TIMES, Denoiser, Sampling
from kdgen.fast import aligned
from kdgen.fast.chain import Chain


class Program(Protocol):
    """(z (B, C, H, W) float32, label (B,) or None, index (B,)) -> uint8 (B, H, W, C)."""

    def __call__(self, z: Tensor, label: Tensor | None, index: Tensor) -> Tensor: ...


class Sampled:
    """A sampler as it is, and its images as bytes."""

    def __init__(self, denoiser: Denoiser, how: Sampling, seed: int) -> None:
        self.denoiser, self.how, self.seed = denoiser, how, seed

    def __call__(self, z: Tensor, label: Tensor | None, index: Tensor) -> Tensor:
        how = self.how
        images = samplers.sample(self.denoiser, z, label, how, seed=self.seed, index=index)
        return kernels.to_uint8(images)


class Walk:
    """A chain, by a denoiser whose network it may pad.

    `step` is one move, for whoever captures only that: all but the last are alike, and which it is
    arrives as a tensor, `places[k]`.
    """

    def __init__(
        self, denoiser: Denoiser, chain: Chain, seed: int, dtype: torch.dtype, guidance: float = 1.0
    ) -> None:
        if guidance != 1.0 and not denoiser.classes:
            raise ValueError(
                "FastGenerator: the denoiser has no classes; expected a conditional one to guide. "
                "Leave guidance at 1."
            )
        self.denoiser, self.chain, self.seed = denoiser, chain, seed
        self.dtype, self.guidance = dtype, guidance
        self.device = next(denoiser.parameters()).device
        moves = [[*m, *[m[0]] * (len(chain.moves[0]) - len(m))] for m in chain.moves]
        columns = list(zip(*moves, strict=True))  # one for each place within a move
        # (moves, 4), then (moves,) each
        self.rows = [self._table([e.row for e in column]) for column in columns]
        self.times = [self._table(self._numbers([e.t for e in column])) for column in columns]
        self.sizes = [self._table([e.size for e in column]) for column in columns]
        self.fresh = self._table([m[-1].fresh for m in chain.moves])
        self.places = torch.arange(len(moves), device=self.device)
        self.resized = any(e.size != 1.0 for e in chain.evaluations)
        alike = aligned.worthwhile(self.device, dtype)
        self.channels = aligned.align(denoiser.net) if alike else 0

    def _table(self, values: Sequence[object] | Tensor) -> Tensor:
        return torch.as_tensor(values, dtype=torch.float32).to(self.device)

    def _numbers(self, times: list[float]) -> Tensor:
        """What the network embeds for them."""
        t = torch.tensor(times, dtype=torch.float64)
        return TIMES[self.denoiser.time](self.denoiser.schedule, t)

    def __call__(self, z: Tensor, label: Tensor | None, index: Tensor) -> Tensor:
        x = self.begin(z)
        for k in range(len(self.chain.moves) - 1):
            x = self.step(x, label, self.noise(k, index), self.places[k])
        return self.land(x, label)

    def begin(self, z: Tensor) -> Tensor:
        """The first state."""
        return z if self.chain.start == 1.0 else z * self.chain.start

    def noise(self, k: int, index: Tensor) -> Tensor | None:
        """What move k adds, unit; None where it adds nothing."""
        if not any(e.fresh for e in self.chain.moves[k]):
            return None
        return noise.normal(self.seed, noise.Stream.CHURN + k, index, self.denoiser.shape)

    def step(self, x: Tensor, label: Tensor | None, fresh: Tensor | None, place: Tensor) -> Tensor:
        """One move, any but the last: they are alike."""
        before, move = x, self.chain.moves[0]
        for j, evaluation in enumerate(move):
            raw = self._raw(x, label, j, place)
            x = kernels.chain_step(x, raw, self.rows[j], place, self.chain.clip)
            if evaluation.keep:
                x = x + evaluation.keep * before
        if fresh is not None:
            x = x + self.fresh.index_select(0, place.view(1)) * fresh
        return x

    def land(self, x: Tensor, label: Tensor | None) -> Tensor:
        """The last move, to bytes."""
        place = self.places[-1]
        raw = self._raw(x, label, 0, place)
        return kernels.chain_step_uint8(x, raw, self.rows[0], place, self.chain.clip)

    def _raw(self, x: Tensor, label: Tensor | None, j: int, place: Tensor) -> Tensor:
        """The network's output, guided."""
        time = self.times[j].index_select(0, place.view(1))
        seen = self._seen(x, j, place)
        if self.guidance == 1.0:
            return self._output(seen, time, label)
        assert label is not None
        labels = torch.cat([label, torch.full_like(label, -1)])
        both = self._output(torch.cat([seen, seen]), time, labels)
        with_label, without = both.float().chunk(2)
        return torch.lerp(without, with_label, self.guidance)  # reading it is linear

    def _seen(self, x: Tensor, j: int, place: Tensor) -> Tensor:
        """At the network's size, in its dtype and with its channels."""
        if self.resized:
            return kernels.scale_input(x, self.sizes[j], place, self.dtype, self.channels or None)
        if self.channels:
            return kernels.scale_input(x, 1.0, None, self.dtype, self.channels)
        return x.to(self.dtype)

    def _output(self, x: Tensor, time: Tensor, label: Tensor | None) -> Tensor:
        """Of the last head."""
        raw: Tensor = self.denoiser.net(x, time.expand(len(x)), label)
        if self.channels:
            return raw[:, : self.denoiser.shape[0]]
        return raw.chunk(self.denoiser.heads, dim=1)[-1]
