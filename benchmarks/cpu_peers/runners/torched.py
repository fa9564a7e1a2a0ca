"""What the contestants in torch share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .. import networks
from ..case import Array
from . import Call, Job

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Answer = Callable[..., Tensor]


def network(job: Job) -> networks.AtTime:
    torch.set_num_threads(job.threads)
    dtype = DTYPES[job.variant.dtype]
    return networks.at_time(networks.load(job.folder), job.case.time, dtype)


class Torched:
    """Any callable of tensors."""

    def __init__(self, answer: Answer, note: str = "", dtype: str = "") -> None:
        self.answer, self.note, self.dtype = answer, note, dtype

    def call(self, x: Array, label: Array | None) -> Call:
        given = networks.tensors(x, label)

        @torch.inference_mode()
        def run() -> Array:
            y: Array = self.answer(*given).numpy()
            return y

        return run
