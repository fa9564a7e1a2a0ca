"""Tiles of images through a device and back, so that it never waits for the host.

While the network works on tile k, a second stream draws the noise of k + 1 and carries the bytes of
k − 1 home. Two places for everything: one being filled, one being emptied. Every tile has the same
size, whatever is asked for, so the same kernels run, and an image's bits depend on no one's batch.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kdgen.fast.driver import Driver, Event, Stream

# (z (T, C, H, W), label (T,) or None, index (T,)) -> uint8 (T, H, W, C), which the next call may
# overwrite.
Compute = Callable[[Tensor, Tensor | None, Tensor], Tensor]
Tiles = Generator[Tensor, None, None]
Draw = Callable[[Tensor], Tensor]  # index (T,) -> z (T, C, H, W)


@dataclass
class _Place:
    """One of the two: what goes in, what comes out, and up to where each has come."""

    index: Tensor
    z: Tensor
    label: Tensor | None
    images: Tensor  # on the device
    home: Tensor  # on the host, pinned
    drawn: Event | None = None
    computed: Event | None = None
    home_at: Event | None = None


@dataclass
class Ring:
    """`tiles` yields the images of one request; several requests may take turns."""

    driver: Driver
    draw: Draw
    compute: Compute
    tile: int
    shape: tuple[int, int, int]  # (C, H, W)
    device: torch.device
    places: tuple[_Place, ...] = field(init=False, default=())

    def tiles(self, n: int, first: int, labels: Tensor | None) -> Tiles:
        """uint8 (≤ tile, H, W, C) on the host, in order, n images in all; each is the caller's."""
        self.places = tuple(self._place(labels) for _ in range(2))
        work, side = self.driver.current(), self.driver.stream()
        side.wait(work.record())  # labels, and the memory of the places, come from there
        begins = range(0, n, self.tile)
        try:
            self._draw(side, 0, first, labels)
            for k, begin in enumerate(begins):
                self._compute(work, k)
                if begin + self.tile < n:
                    self._draw(side, k + 1, first + begin + self.tile, labels, begin + self.tile)
                self._carry(side, k)
                if k:
                    yield self._take(k - 1, self.tile)
            if n:
                yield self._take(len(begins) - 1, n - begins[-1])
        finally:
            side.synchronize()  # nothing is on its way into memory that is about to be let go
            self.places = ()

    def _place(self, labels: Tensor | None) -> _Place:
        c, h, w = self.shape
        count = self.tile
        last, here = torch.channels_last, self.device
        return _Place(
            torch.empty(count, dtype=torch.int64, device=here),
            torch.empty((count, c, h, w), device=here, memory_format=last),
            None if labels is None else torch.empty_like(labels[:1].expand(count).contiguous()),
            torch.empty((count, h, w, c), dtype=torch.uint8, device=here),
            self.driver.pinned((count, h, w, c)),
        )

    def _draw(
        self, side: Stream, k: int, first: int, labels: Tensor | None, begin: int = 0
    ) -> None:
        place = self.places[k % 2]
        if place.computed is not None:
            side.wait(place.computed)  # of k − 2, which read this noise

        def work() -> None:
            torch.arange(first, first + self.tile, out=place.index)
            place.z.copy_(self.draw(place.index))
            if labels is not None and place.label is not None:
                chosen = labels[begin : begin + self.tile]
                place.label.copy_(labels[-1:].expand(self.tile))
                place.label[: len(chosen)].copy_(chosen)

        side.submit(work)
        place.drawn = side.record()

    def _compute(self, work: Stream, k: int) -> None:
        place = self.places[k % 2]
        assert place.drawn is not None
        work.wait(place.drawn)
        if place.home_at is not None:
            work.wait(place.home_at)  # of k − 2, whose bytes were here
        work.submit(lambda: place.images.copy_(self.compute(place.z, place.label, place.index)))
        place.computed = work.record()

    def _carry(self, side: Stream, k: int) -> None:
        place = self.places[k % 2]
        assert place.computed is not None
        side.wait(place.computed)
        side.submit(lambda: place.home.copy_(place.images, non_blocking=True))
        place.home_at = side.record()

    def _take(self, k: int, count: int) -> Tensor:
        place = self.places[k % 2]
        assert place.home_at is not None
        place.home_at.synchronize()
        return place.home[:count].clone()


def regrouped(parts: Iterator[Tensor], sizes: Iterator[int]) -> Iterator[Tensor]:
    """The same rows in parts of these sizes; asks for no part before it is needed."""
    held: list[Tensor] = []
    have = 0
    for size in sizes:
        while have < size:
            held.append(next(parts))
            have += len(held[-1])
        rows = held[0] if len(held) == 1 else torch.cat(held)
        yield rows[:size]
        held, have = ([rows[size:]] if size < len(rows) else []), len(rows) - size
