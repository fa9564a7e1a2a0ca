"""What every method is given: images, noise and uniforms for eight images."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from kdgen import noise
from kdgen.methods import Batch


def make_batch(
    n: int = 8,
    shape: tuple[int, int, int] = (3, 8, 8),
    classes: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Batch:
    index = noise.addresses(0, n)
    x0, z, eps = (noise.normal(0, k, index, shape).to(dtype) for k in range(3))
    return Batch(
        x0=x0.clamp(-1, 1),
        z=z,
        eps=eps,
        u=noise.uniform(0, 3, index, 4).to(dtype),
        progress=torch.tensor(0.5),
        label=noise.classes(0, 4, index, classes) if classes else None,
        index=index,
    )


@pytest.fixture
def batch() -> Callable[..., Batch]:
    return make_batch
