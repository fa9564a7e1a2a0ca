"""Many image files to one array, or one error that lists everything that is wrong with them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from kdgen.data.decode import Decoded, Pixels, Unreadable, decode
from kdgen.data.offenders import listing, quoted
from kdgen.errors import DataError

SMALLEST = 4  # pixels a side
SKIPPABLE = 0.01  # the share of unreadable files that skip_bad forgives
BLOCK = 64  # images decoded between two looks at the results
THREADS_PAY = 128 * 128  # pixels; smaller images decode faster in one thread
NOTHING = (0, 0)  # a size that no image has: only headers are read


@dataclass(frozen=True)
class Reading:
    """How to read images; see `kdgen.data.load`."""

    size: int | None = None
    channels: int | None = None
    labels: bool = True
    skip_bad: bool = False
    max_bytes: int = 16 << 30
    progress: bool = True

    def __post_init__(self) -> None:
        if self.size is not None and not SMALLEST <= self.size <= 4096:
            raise ValueError(
                f"load: size is {self.size}; expected {SMALLEST} … 4096. "
                "Pass size=None to keep the images' own."
            )
        if self.channels not in (None, 1, 3):
            raise ValueError(
                f"load: channels is {self.channels}; expected 1 or 3. "
                "Pass channels=None to keep the images' own."
            )


class Gathered(NamedTuple):
    """pixels uint8 (n, C, H, W); the places (n,) of their names in the list; what was left out."""

    pixels: Pixels
    places: NDArray[np.int64]
    skipped: tuple[str, ...]


def gather(
    where: str, names: Sequence[str], read: Callable[[str], bytes], reading: Reading
) -> Gathered:
    """Decodes each name once. `read` may raise Unreadable or OSError."""
    pile = _Pile(where, len(names), reading)

    def attempt(name: str) -> Decoded | str:
        try:
            return decode(read(name), pile.wanted, reading.size, reading.channels)
        except Unreadable as error:
            return str(error)
        except OSError as error:
            return error.strerror or str(error)

    hidden = None if reading.progress else True  # None: shown on terminals only
    bar = tqdm(total=len(names), desc="reading images", delay=2, leave=False, disable=hidden)
    with bar, warnings.catch_warnings(), ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for block in _blocks(pile):
            some = names[block.start : block.stop]
            results = pool.map(attempt, some) if pile.large else map(attempt, some)
            for place, name, result in zip(block, some, results, strict=True):
                pile.add(place, name, result)
            bar.update(len(some))
    return pile.gathered()


def _blocks(pile: _Pile) -> Iterator[range]:
    """One by one until one could be read, since it decides about the others; then in blocks."""
    start = 0
    while start < pile.n:
        stop = min(pile.n, start + (BLOCK if pile.started else 1))
        yield range(start, stop)
        start = stop


@dataclass
class _Pile:
    """What was read so far."""

    where: str
    n: int
    reading: Reading
    started: bool = False
    large: bool = False
    wanted: tuple[int, int] | None = None  # decode this size only; None: any
    pixels: Pixels = field(default_factory=lambda: np.empty((0, 1, 0, 0), np.uint8))
    places: list[int] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)
    sizes: dict[tuple[int, int], list[str]] = field(default_factory=dict)

    def add(self, place: int, name: str, result: Decoded | str) -> None:
        if isinstance(result, str):
            self.bad.append(f"{quoted(name)} ({result})")
            return
        if not self.started:
            self._start(result)
        if self.reading.size is None:
            self.sizes.setdefault(result.size, []).append(name)
            if len(self.sizes) > 1:
                self.wanted = NOTHING  # refused already; go on to count
        if result.pixels is not None and self.wanted != NOTHING:
            self._store(place, result.pixels)

    def _start(self, first: Decoded) -> None:
        self.started = True
        width, height = first.size
        self.large = width * height >= THREADS_PAY
        if self.reading.size is None:
            usable = width == height and width >= SMALLEST
            self.wanted = first.size if usable else NOTHING
        if first.pixels is not None and self.wanted != NOTHING:
            side = first.pixels.shape[0]
            self._check_room(first.pixels.shape[2], side)
            self.pixels = np.empty((self.n, first.pixels.shape[2], side, side), np.uint8)

    def _store(self, place: int, image: Pixels) -> None:
        if image.shape[2] > self.pixels.shape[1]:  # the first colour image after grey ones
            self._check_room(3, image.shape[0])
            self.pixels = np.repeat(self.pixels, 3, axis=1)
        self.pixels[place] = image.transpose(2, 0, 1)
        self.places.append(place)

    def _check_room(self, channels: int, side: int) -> None:
        need, most = self.n * channels * side * side, self.reading.max_bytes
        if need > most:
            raise DataError(
                f"{self.where}: {self.n:,} images of {channels}×{side}×{side} need "
                f"{need / 2**20:,.1f} MiB; expected at most {most / 2**20:,.1f} MiB. "
                "Pass a smaller size= or a larger max_bytes=."
            )

    def gathered(self) -> Gathered:
        self._check_bad()
        self._check_sizes()
        places = np.array(self.places, np.int64)
        pixels = self.pixels if len(places) == self.n else self.pixels[places]
        return Gathered(pixels, places, tuple(self.bad))

    def _check_bad(self) -> None:
        count = len(self.bad)
        if not count or (self.reading.skip_bad and count <= SKIPPABLE * self.n):
            return
        hint = "Repair or remove them, or pass skip_bad=True to leave them out."
        if count > SKIPPABLE * self.n:
            hint = f"Repair or remove them; skip_bad=True leaves out at most {SKIPPABLE:.0%}."
        raise DataError(
            f"{self.where}: {count:,} of {self.n:,} images unreadable: {listing(self.bad)}; "
            f"expected PNG, JPEG, WebP, BMP or GIF files. {hint}"
        )

    def _check_sizes(self) -> None:
        if len(self.sizes) > 1:
            rare_last = sorted(self.sizes.items(), key=lambda item: -len(item[1]))
            counts = [f"{w}×{h}: {len(of):,} ({quoted(of[0])})" for (w, h), of in rare_last]
            raise DataError(
                f"{self.where}: images of {len(counts):,} sizes: {listing(counts)}; "
                "expected one size. Pass size= to crop and resize all to one square."
            )
        for (width, height), names in self.sizes.items():
            if width != height or width < SMALLEST:
                raise DataError(
                    f"{self.where}: images are {width}×{height} ({quoted(names[0])}); expected "
                    f"squares of at least {SMALLEST}×{SMALLEST}. Pass size= to crop and resize."
                )
