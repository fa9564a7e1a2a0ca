"""torch as it comes, channels last."""

from __future__ import annotations

from . import Job, Runner
from .torched import Torched, network


def start(job: Job) -> Runner:
    return Torched(network(job))
