"""Run a generator: noise in by address, uint8 images out, as fast as the machine allows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from kdgen import fold, kernels, noise, samplers
from kdgen.denoiser import Denoiser, Guided, Sampling
from kdgen.errors import MemoryLimitError
from kdgen.rows import LANES, padded

CPU_OUT_OF_MEMORY = "DefaultCPUAllocator"  # how torch's message about it begins

MOST_ROWS = 4096  # of a folded table: beyond, it outgrows the network it is to speed up

Labels = int | Sequence[int] | Tensor | None


class Generator:
    """Images k = first, first + 1, … of a denoiser: functions of (weights, seed, k, its class).

    The images do not depend on `batch`: on one CPU and dtype they are equal to the bit. `dtype` is
    the network's (float32, bfloat16, float16); noise, steps and the final combination are float32.
    `how` defaults to the denoiser's own sampling. Without labels, a conditional denoiser draws a
    class for every image.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        seed: int = 0,
        batch: int = 256,
        dtype: torch.dtype = torch.float32,
        how: Sampling | None = None,
    ) -> None:
        if batch < 1:
            raise ValueError(
                f"Generator: batch is {batch}; expected at least 1. Ask for one or more."
            )
        if seed < 0:
            raise ValueError(f"Generator: seed is {seed}; expected 0 or more. Change it.")
        self.seed, self.batch, self.dtype = seed, batch, dtype
        self.how = how or denoiser.sampling
        self.device = next(denoiser.parameters()).device
        self.denoiser = self._prepare(denoiser)

    @property
    def nfe(self) -> int | None:
        """Network evaluations per image; None where the sampler decides as it goes."""
        if self.how.sampler == "rk45":
            return None
        return samplers.evaluations(self.denoiser.schedule, self.how)

    def __call__(self, n: int, *, first: int = 0, label: Labels = None) -> Tensor:
        """n images, uint8 (n, H, W, C) on the CPU. `label`: one class for all, one per image, or
        None."""
        c, h, w = self.denoiser.shape
        parts = list(self.batches(n, first=first, label=label))
        return torch.cat(parts) if parts else torch.empty(0, h, w, c, dtype=torch.uint8)

    def batches(self, n: int, *, first: int = 0, label: Labels = None) -> Iterator[Tensor]:
        """The same images, a batch at a time. Halves the batch when memory runs out."""
        labels = self.labels(n, first=first, label=label)
        done = 0
        while done < n:
            count = min(self.batch, n - done)
            chosen = None if labels is None else labels[done : done + count]
            images = self._try(first + done, count, chosen)
            if images is None:
                self._shrink(count)
                continue
            yield images
            done += count

    def labels(self, n: int, *, first: int = 0, label: Labels = None) -> Tensor | None:
        """The classes (n,) int64 of images first … first + n − 1, or None for an unconditional
        denoiser. Raises ValueError for labels that are not n classes."""
        classes = self.denoiser.classes
        if not classes:
            if label is not None:
                raise ValueError(
                    f"Generator: label is {_shown(label)}, but the model has no classes; expected "
                    "None. Leave it out."
                )
            return None
        if label is None:
            index = noise.addresses(first, n, self.device)
            return noise.classes(self.seed, noise.Stream.LABEL, index, classes)
        wanted = torch.as_tensor(label)
        if (
            wanted.is_floating_point()
            or wanted.dtype == torch.bool
            or wanted.shape not in ((), (n,))
        ):
            raise ValueError(
                f"Generator: label is {_shown(label)}; expected one integer, or one for each of "
                f"the {n} images. Pass those."
            )
        wanted = wanted.to(self.device, torch.int64).expand(n)
        if n and not (int(wanted.min()) >= 0 and int(wanted.max()) < classes):
            raise ValueError(
                f"Generator: label is {_shown(label)}; expected classes 0 … {classes - 1}. Choose "
                "one of them."
            )
        return wanted

    def _prepare(self, denoiser: Denoiser) -> Denoiser:
        copy = denoiser.copy().eval().requires_grad_(False)
        copy.net.to(self.dtype)
        return copy

    def _try(self, first: int, count: int, label: Tensor | None) -> Tensor | None:
        """None when memory ran out; deciding outside the `except` lets the failed frames go
        first."""
        try:
            return self._images(first, count, label)
        except RuntimeError as error:
            # torch has a type of its own for GPUs only.
            if not isinstance(error, torch.OutOfMemoryError) and CPU_OUT_OF_MEMORY not in str(
                error
            ):
                raise
            return None

    def _shrink(self, count: int) -> None:
        if count <= LANES:  # smaller batches are padded to as much
            raise MemoryLimitError(
                f"sample: {LANES} images do not fit on {self.device} in {self.dtype}; expected "
                "room for them. Free memory, use --dtype bf16, or sample on the CPU."
            )
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.batch = max(LANES, count // 2)

    @torch.inference_mode()
    def _images(self, first: int, count: int, label: Tensor | None) -> Tensor:
        index = padded(noise.addresses(first, count, self.device))
        z = noise.normal(self.seed, noise.Stream.SAMPLE, index, self.denoiser.shape)
        label = None if label is None else padded(label)
        return self._sample(z, label, index)[:count].cpu()

    def _sample(self, z: Tensor, label: Tensor | None, index: Tensor) -> Tensor:
        images = samplers.sample(self.denoiser, z, label, self.how, seed=self.seed, index=index)
        return kernels.to_uint8(images)


class FastGenerator(Generator):
    """The same images within one grey level, faster.

    The time embedding becomes tables (`fold.tabulate`) and the last DDIM step writes uint8.
    """

    def _prepare(self, denoiser: Denoiser) -> Denoiser:
        times = samplers.sampled_times(denoiser.schedule, self.how)
        if times is not None and len(times) * (denoiser.classes + 1) <= MOST_ROWS:
            denoiser = fold.tabulate(denoiser, sorted(set(times)))
        return super()._prepare(denoiser)

    def _sample(self, z: Tensor, label: Tensor | None, index: Tensor) -> Tensor:
        how = self.how
        if how.sampler != "ddim":
            return super()._sample(z, label, index)
        z = z.contiguous(memory_format=torch.channels_last)
        guided = self.denoiser if how.guidance == 1.0 else Guided(self.denoiser, how.guidance)
        return samplers.ddim(
            guided,
            z,
            how.steps,
            label,
            grid=how.grid,
            clip=how.clip,
            last=kernels.ddim_update_uint8,
        )


def generator(
    denoiser: Denoiser,
    *,
    fast: bool = True,
    seed: int = 0,
    batch: int = 256,
    dtype: torch.dtype = torch.float32,
    steps: int | None = None,
) -> Generator:
    """The fast or the plain generator of a denoiser; `steps` replaces the number of steps it is
    meant to take."""
    how = denoiser.sampling if steps is None else replace(denoiser.sampling, steps=steps)
    kind = FastGenerator if fast else Generator
    return kind(denoiser, seed=seed, batch=batch, dtype=dtype, how=how)


def _shown(label: object) -> str:
    text = repr(label)
    return text if len(text) <= 60 else text[:60] + "…"
