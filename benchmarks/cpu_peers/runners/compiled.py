"""torch.compile with inductor, weights frozen; for every batch anew, with its size known."""

from __future__ import annotations

import torch
from torch._inductor import config

from . import Job, Runner
from .torched import Torched, network


def start(job: Job) -> Runner:
    config.freezing = True  # takes effect where no gradients are asked for
    mode = "max-autotune" if job.variant.mode == "autotune" else "default"
    return Torched(torch.compile(network(job), mode=mode, dynamic=False))
