"""How torch's libraries choose their algorithms, for the time of a call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.backends import cudnn


@contextmanager
def repeatable(*, tuned: bool = False) -> Iterator[None]:
    """cuDNN chooses by shape alone, among algorithms that always give the same bits, and float32
    means float32.

    `tuned` lets it measure first: often faster, but another process may find another algorithm,
    and so other last bits. cuBLAS chooses by shape on one stream.
    """
    before = cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32
    matmul = torch.backends.cuda.matmul.allow_tf32
    try:
        cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32 = not tuned, tuned, False
        torch.backends.cuda.matmul.allow_tf32 = False
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32 = before
        torch.backends.cuda.matmul.allow_tf32 = matmul
