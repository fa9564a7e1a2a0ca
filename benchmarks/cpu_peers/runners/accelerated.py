"""kdgen's own engine, by accuracy class."""

from __future__ import annotations

import inspect
import re

import torch

import kdgen

from .. import networks
from . import Job, Refused, Runner
from .torched import Torched


def start(job: Job) -> Runner:
    known = inspect.signature(kdgen.accelerate).parameters
    if absent := [name for name in ("accuracy", "engine") if name not in known]:
        raise Refused(f"kdgen.accelerate has no {' and no '.join(absent)}=; this kdgen is too old")
    torch.set_num_threads(job.threads)
    net = networks.load(job.folder)
    fast = kdgen.accelerate(
        net, job.case.time, accuracy=job.variant.mode, engine="native", images=0
    )
    return Torched(fast, *chosen(fast.explain()))


def chosen(explained: str) -> tuple[str, str]:
    """What it computes with, and the dtype of its products: the narrowest that there is."""
    found = re.search(r"^ *network +([^;\n]*)", explained, re.MULTILINE)
    if not found:
        return "", ""
    words = {"int8": "int8", "bfloat16": "bf16"}
    return found[1], next((d for word, d in words.items() if word in found[1]), "fp32")
