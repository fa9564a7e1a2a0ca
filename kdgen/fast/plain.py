"""The plain generator: what `--fast` is measured against, and the bookkeeping both share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from kdgen import kernels, memory, noise, samplers
from kdgen.denoiser import Denoiser, Sampling
from kdgen.fast.settings import repeatable
from kdgen.rows import LANES, padded

CPU_BATCH = 256

Labels = int | Sequence[int] | Tensor | None


class Generator:
    """Images k = first, first + 1, … of a denoiser: functions of (weights, seed, k, its class).

    The images do not depend on `batch`: on one CPU and dtype they are equal to the bit. `dtype` is
    the network's (float32, bfloat16, float16); noise, steps and the final combination are float32.
    `how` defaults to the denoiser's own sampling. Without labels, a conditional denoiser draws a
    class for every image. `batch` is at most so many images a network call; None is a good number
    for the device.
    """

    lanes = LANES  # every batch is padded to a multiple of it

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        seed: int = 0,
        batch: int | None = None,
        dtype: torch.dtype = torch.float32,
        how: Sampling | None = None,
    ) -> None:
        if batch is not None and batch < 1:
            raise ValueError(
                f"Generator: batch is {batch}; expected at least 1. Ask for one or more."
            )
        if seed < 0:
            raise ValueError(f"Generator: seed is {seed}; expected 0 or more. Change it.")
        self.how = how or denoiser.sampling
        self.device = next(denoiser.parameters()).device
        self.seed, self.batch, self.dtype = seed, batch or self._usual_batch(), dtype
        self._said = ""  # by the allocator, when it last refused
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

    def warm_up(self, n: int, label: Labels = None) -> None:
        """Make a few of n images, so that loading kernels is not counted as sampling."""
        self._first(min(n, LANES), label)

    def _first(self, count: int, label: Labels) -> None:
        some = label[:count] if isinstance(label, Tensor) and label.dim() else label
        for _ in self.batches(count, label=some):
            pass

    def _prepare(self, denoiser: Denoiser) -> Denoiser:
        copy = denoiser.copy().eval().requires_grad_(False)
        copy.net.to(self.dtype)
        return copy

    def _usual_batch(self) -> int:
        return CPU_BATCH

    def _try(self, first: int, count: int, label: Tensor | None) -> Tensor | None:
        """None when memory ran out; deciding outside the `except` lets the failed frames go
        first."""
        try:
            return self._images(first, count, label)
        except (RuntimeError, MemoryError) as error:
            if not memory.ran_out(error):
                raise
            self._said = str(error)
            return None

    def _shrink(self, count: int) -> None:
        if count <= self.lanes:  # smaller batches are padded to as much
            raise memory.refusal(self.lanes, self.device, self.dtype, self._said)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.batch = max(self.lanes, count // 2)

    @torch.inference_mode()
    def _images(self, first: int, count: int, label: Tensor | None) -> Tensor:
        index = padded(noise.addresses(first, count, self.device), self.lanes)
        z = noise.normal(self.seed, noise.Stream.SAMPLE, index, self.denoiser.shape)
        label = None if label is None else padded(label, self.lanes)
        with repeatable():  # float32 is float32 here too
            return self._sample(z, label, index)[:count].cpu()

    def _sample(self, z: Tensor, label: Tensor | None, index: Tensor) -> Tensor:
        images = samplers.sample(self.denoiser, z, label, self.how, seed=self.seed, index=index)
        return kernels.to_uint8(images)


def _shown(label: object) -> str:
    text = repr(label)
    return text if len(text) <= 60 else text[:60] + "…"
