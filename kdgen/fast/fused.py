"""The fast generator: folded, fused, repeated by the device itself, and never waiting for the host.

On a GPU every image is made in a tile of one fixed size, so the same kernels run whatever `batch`
is asked for, and an image's bits depend on (weights, dtype, device, tile) alone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace as changed
from functools import partial

import torch
from torch import Tensor

from kdgen import fold, graph, memory, noise, samplers
from kdgen.denoiser import Denoiser, Sampling
from kdgen.engine import Network, Wish, taken
from kdgen.fast import explaining, replay
from kdgen.fast.chain import Chain, plan
from kdgen.fast.driver import Driver, driver_of
from kdgen.fast.plain import CPU_BATCH, Generator, Labels
from kdgen.fast.replay import Replay
from kdgen.fast.ring import Ring, Tiles, regrouped
from kdgen.fast.settings import repeatable
from kdgen.fast.walk import Program, Sampled, Walk

log = logging.getLogger("kdgen")

# Images of a tile for each multiprocessor: whole waves of work for the convolutions' tiles at every
# level of a 32×32 network, and little lost to the launch of small kernels. A prediction.
TILE = 4


class FastGenerator(Generator):
    """The same images within one grey level, faster.

    The time embedding becomes tables, a sampler's steps one fused update each, and the last one
    writes uint8. On a GPU the chain is a CUDA graph, from its second use on. `tile` is how many
    images the network sees there at once (default: a multiple of the device's multiprocessors);
    memory that runs out halves it, for good. `tuned` lets cuDNN measure its algorithms: see
    `settings.repeatable`.

    On a CPU the compiled engine runs the network, where it can: `engine` "native" insists on it
    (MissingError), "torch" leaves it out. `accuracy` is one of `engine.BOUNDS`, by default "fp32"
    for float32 and "bf16" for bfloat16. docs/engine.md says more.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        seed: int = 0,
        batch: int | None = None,
        dtype: torch.dtype = torch.float32,
        how: Sampling | None = None,
        tile: int | None = None,
        tuned: bool = False,
        engine: str = "auto",
        accuracy: str | None = None,
    ) -> None:
        if tile is not None and tile < 1:
            raise ValueError(
                f"FastGenerator: tile is {tile}; expected at least 1. Ask for one or more."
            )
        self.wish = Wish(engine, accuracy)
        self.device = next(denoiser.parameters()).device
        self.driver = self._driver()
        self.tile, self.tuned = tile or self._usual_tile(), tuned
        super().__init__(denoiser, seed=seed, batch=batch, dtype=dtype, how=how)
        self.program: Program = self._program(self.denoiser)
        self.ungraphed = self._unable()
        self.captured: Replay | None = None
        self._tiles = 0

    def batches(self, n: int, *, first: int = 0, label: Labels = None) -> Iterator[Tensor]:
        """The same images, a batch at a time. Halves the tile when memory runs out."""
        if self.driver is None:
            yield from super().batches(n, first=first, label=label)
            return
        labels = self.labels(n, first=first, label=label)
        done = 0
        while done < n:
            rest = None if labels is None else labels[done:]
            try:
                with closing(self._tiled(n - done, first + done, rest)) as parts:
                    for images in regrouped(parts, self._sizes(n - done)):
                        yield images
                        done += len(images)
            except RuntimeError as error:
                if not memory.ran_out(error):
                    raise
                self._said = str(error)
            if done < n:
                self._smaller()

    def warm_up(self, n: int, label: Labels = None) -> None:
        """Make what is needed for n images: the first of them, so that loading, choosing and
        capturing kernels is over before somebody looks at a clock."""
        if self.driver is None:
            super().warm_up(n, label)
        else:
            self._first(min(n, 2 * self.tile), label)

    def _driver(self) -> Driver | None:
        return driver_of(self.device)

    def _usual_tile(self) -> int:
        if self.device.type != "cuda":
            return CPU_BATCH
        return TILE * torch.cuda.get_device_properties(self.device).multi_processor_count

    def _usual_batch(self) -> int:
        return self.tile if self.driver is not None else super()._usual_batch()

    def _prepare(self, denoiser: Denoiser) -> Denoiser:
        chain = plan(denoiser, self.how)
        times = chain.times if chain else samplers.sampled_times(denoiser.schedule, self.how)
        self.unfolded = self._unfoldable(denoiser, times)
        if (found := self._taken(denoiser, times)) is not None:
            self.lanes = 1  # nothing in the engine depends on the batch
            return found
        if not self.unfolded and times is not None:
            try:
                denoiser = fold.fold(denoiser, times, folds=self._folds())
            except (ValueError, fold.FoldError) as error:  # not a network that folds understand
                self.unfolded = str(error)
        return super()._prepare(denoiser)

    def _taken(self, denoiser: Denoiser, times: Sequence[float] | None) -> Denoiser | None:
        """By the compiled engine; None where torch runs the network, `unengined` says why."""
        if self.unfolded or times is None:
            self.unengined = self.unfolded
            self.wish.leave(self.unfolded, self.dtype)
            return None
        found = taken(denoiser, times, self.wish, self.dtype, self.device)
        self.unengined = found.why
        return found.denoiser

    def _unfoldable(self, denoiser: Denoiser, times: Sequence[float] | None) -> str:
        if times is None:
            return f"{self.how.sampler} asks at times that nobody knows before"
        return fold.overgrown(times, denoiser.classes)

    def _folds(self) -> Sequence[str]:
        """Those that save something there."""
        return fold.KNOWN if self.device.type == "cuda" else fold.ALL

    def explain(self) -> str:
        """What runs, and what falls back and why, in lines for people."""
        return explaining.explain(self)

    def _program(self, denoiser: Denoiser) -> Program:
        chain: Chain | None = plan(denoiser, self.how)
        if chain is None:
            return Sampled(denoiser, self.how, self.seed)
        native = isinstance(denoiser.net, Network)  # which rounds for itself
        dtype = torch.float32 if native else self.dtype
        return Walk(denoiser, chain, self.seed, dtype, self.how.guidance)

    def _unable(self) -> str:
        """Why nothing is captured; "" when it may be."""
        if self.how.sampler == "rk45":
            return "rk45 reads its error on the host after every step"
        return graph.available(self.device)

    def _recorder(self) -> replay.Capture:
        return partial(graph.capture, where="sample")

    def _sample(self, z: Tensor, label: Tensor | None, index: Tensor) -> Tensor:
        return self.program(z.contiguous(memory_format=torch.channels_last), label, index)

    def _sizes(self, n: int) -> Iterator[int]:
        return (min(self.batch, n - k) for k in range(0, n, self.batch))

    def _tiled(self, n: int, first: int, labels: Tensor | None) -> Tiles:
        assert self.driver is not None
        shape = self.denoiser.shape
        ring = Ring(self.driver, self._draw, self._compute, self.tile, shape, self.device)
        return ring.tiles(n, first, labels)

    @torch.no_grad()
    def _draw(self, index: Tensor) -> Tensor:
        return noise.normal(self.seed, noise.Stream.SAMPLE, index, self.denoiser.shape)

    @torch.no_grad()
    def _compute(self, z: Tensor, label: Tensor | None, index: Tensor) -> Tensor:
        with repeatable(tuned=self.tuned):
            self._tiles += 1
            if self._tiles == 2 and not self.ungraphed:  # a single tile is over before it pays
                self._capture(z, label, index)
            run = self.program if self.captured is None else self.captured.run
            return run(z, label, index)

    def _capture(self, z: Tensor, label: Tensor | None, index: Tensor) -> None:
        try:
            self.captured = replay.captured(self.program, self._recorder(), z, label, index)
        except graph.CaptureError as error:
            self.ungraphed = str(error)
            log.warning("sample: no CUDA graph, kernels are launched one by one. %s", error)

    def _smaller(self) -> None:
        if self.tile <= 1:
            raise memory.refusal(self.tile, self.device, self.dtype, self._said)
        self.captured, self._tiles = None, 0
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.tile //= 2
        log.warning(
            "sample: out of memory (%s); %d images at once from now on.",
            memory.numbers(self.device, self._said),
            self.tile,
        )


def generator(
    denoiser: Denoiser,
    *,
    fast: bool = True,
    seed: int = 0,
    batch: int | None = None,
    dtype: torch.dtype = torch.float32,
    steps: int | None = None,
    engine: str = "auto",
    accuracy: str | None = None,
) -> Generator:
    """The fast or the plain generator of a denoiser; `steps` replaces the number of steps it is
    meant to take, `engine` and `accuracy` are for the fast one: ValueError beside the other."""
    if not fast and (engine != "auto" or accuracy is not None):
        raise ValueError(
            f"generator: engine is {engine!r}, accuracy {accuracy!r}, fast is False; expected them "
            "for the fast generator only. Pass fast=True, or leave them out."
        )
    how = denoiser.sampling if steps is None else changed(denoiser.sampling, steps=steps)
    if not fast:
        return Generator(denoiser, seed=seed, batch=batch, dtype=dtype, how=how)
    return FastGenerator(
        denoiser, seed=seed, batch=batch, dtype=dtype, how=how, engine=engine, accuracy=accuracy
    )
