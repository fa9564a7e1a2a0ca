"""A network to run, as the workers find it on the disk. Knows numpy only: not every worker has, or
should have to import, torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
CALIBRATION = 32  # images that post-training quantisation looks at
_FACTS = "facts.json"


@dataclass(frozen=True)
class Case:
    """`time` is the number that the network embeds; `flops` are an image's, unfolded."""

    name: str
    time: float
    shape: tuple[int, int, int]  # (C, H, W) of an image
    classes: int
    flops: float
    parameters: int

    def write(self, folder: Path) -> None:
        (folder / _FACTS).write_text(json.dumps(asdict(self)))


def read(folder: Path) -> Case:
    facts = json.loads((folder / _FACTS).read_text())
    return Case(**{**facts, "shape": tuple(facts["shape"])})


def draw(case: Case, n: int, seed: int) -> tuple[Array, Array | None]:
    """Normal images (n, C, H, W) float32, and classes (n,) int64 where the network has some."""
    r = np.random.default_rng(seed)
    x = r.standard_normal((n, *case.shape), dtype=np.float32)
    return x, r.integers(case.classes, size=n) if case.classes else None


def inputs(case: Case, batch: int) -> tuple[Array, Array | None]:
    """What everybody is timed and judged on."""
    return draw(case, batch, seed=batch)


def calibration(case: Case) -> Iterator[tuple[Array, Array | None]]:
    """Images one by one, of the distribution that is timed, none of them among those."""
    x, label = draw(case, CALIBRATION, seed=10_007)
    for k in range(CALIBRATION):
        yield x[k : k + 1], None if label is None else label[k : k + 1]


def reference(folder: Path, batch: int) -> Path:
    """The file of what torch answers in float32."""
    return folder / f"reference-{batch}.npy"


def error(out: Array, folder: Path, batch: int) -> float:
    """‖out − reference‖/‖reference‖, in float64. ValueError for another shape."""
    return relative(out, np.load(reference(folder, batch), allow_pickle=False))


def relative(out: Array, expected: Array) -> float:
    """In the L2 norm of everything together, summed in float64."""
    if out.shape != expected.shape:
        raise ValueError(f"the output is {out.shape}; expected {expected.shape}")
    exact = expected.astype(np.float64)
    return float(np.linalg.norm(out.astype(np.float64) - exact) / np.linalg.norm(exact))
