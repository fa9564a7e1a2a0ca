"""AOTInductor: compiled once, by size of the batch, into packages that a process only loads."""

from __future__ import annotations

from pathlib import Path

import torch
from torch._inductor import aoti_compile_and_package, aoti_load_package

from .. import networks
from ..case import Array, inputs
from . import Call, Job, Runner
from .torched import Torched, network


def prepare(job: Job) -> None:
    net = network(job)
    for batch in job.batches:
        given = networks.tensors(*inputs(job.case, batch))
        with torch.no_grad():
            program = torch.export.export(net, given)
            aoti_compile_and_package(
                program,
                package_path=str(_package(job, batch)),
                inductor_configs={"freezing": True},
            )


def start(job: Job) -> Runner:
    torch.set_num_threads(job.threads)
    return Packaged(job)


class Packaged:
    note = dtype = ""

    def __init__(self, job: Job) -> None:
        self.job = job

    def call(self, x: Array, label: Array | None) -> Call:
        loaded = aoti_load_package(str(_package(self.job, len(x))))
        return Torched(loaded).call(x, label)


def _package(job: Job, batch: int) -> Path:
    return job.work / f"batch-{batch}.pt2"
