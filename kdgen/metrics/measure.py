"""A measured number that carries what is needed to read it honestly."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kdgen.errors import MetricError

Better = Literal["lower", "higher", "near 1"]


@dataclass(frozen=True)
class Measure:
    """One number about a set of images, with its floor and its caveat.

    `floor` is the same measure with real images in place of the generated ones, at the same n;
    `floor_of` says how those two real sets were made. `half_floor` is the value between two
    disjoint halves of the data, at its own, smaller `half_n`. `spread` is one standard deviation.
    `features` identifies the feature extractor; numbers from different extractors do not compare.
    """

    name: str
    value: float
    spread: float | None
    floor: float
    n: int
    seed: int
    caveat: str
    better: Better = "lower"
    floor_of: str = "real against real"
    half_floor: float | None = None
    half_n: int | None = None
    interval: tuple[float, float] | None = None
    features: str = ""
    meaningful: bool = True

    def __post_init__(self) -> None:
        optional = (self.spread, self.half_floor, *(self.interval or ()))
        for number in (self.value, self.floor, *(x for x in optional if x is not None)):
            if not math.isfinite(number):
                raise MetricError(f"{self.name}: got {number}; expected a finite number.")

    @property
    def kind(self) -> str:
        """The name without what stands in brackets: `FD[x, n=2]` is of kind `FD`."""
        return self.name.split("[", 1)[0].strip()


def check_comparable(a: Measure, b: Measure) -> None:
    """Raise MetricError unless both numbers mean the same thing: name, n and extractor."""
    for what, left, right in (
        ("the name", a.name, b.name),
        ("n", a.n, b.n),
        ("the feature extractor", a.features, b.features),
    ):
        if left != right:
            raise MetricError(
                f"compare: {what} is {left!r} on one side and {right!r} on the other; expected "
                "the same on both. Measure both with the same n and the same classifier."
            )


def ratio(a: Measure, b: Measure) -> float:
    """a / b, refused when the two do not compare or b is not positive."""
    check_comparable(a, b)
    if b.value <= 0:
        raise MetricError(f"ratio: {b.name} is {b.value}; expected a positive denominator.")
    return a.value / b.value


def jackknife(statistic: Callable[[Tensor], float], x: Tensor, blocks: int = 10) -> float:
    """Standard deviation of `statistic(x)` by leaving out one block of rows at a time.

    A bootstrap would add duplicates, which distances between sets read as a fault; leaving out does
    not. Blocks are strided, so that images sorted by class leave every class in every block.
    """
    blocks = min(blocks, len(x))
    block = torch.arange(len(x)) % blocks
    values = torch.tensor([statistic(x[block != i]) for i in range(blocks)], dtype=torch.float64)
    return float(((blocks - 1) * values.var(correction=0)).sqrt())
