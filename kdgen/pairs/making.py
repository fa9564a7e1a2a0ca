"""Filling a store: shard by shard, under a lock, nothing twice."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from kdgen import checkpoint, durable, kernels
from kdgen.denoiser import Denoiser
from kdgen.errors import CheckpointError, DataError
from kdgen.lock import Lock
from kdgen.pairs.plans import DTYPES, Plan
from kdgen.pairs.store import FILE, PLAN, facts, fits, read_plan, shard
from kdgen.pairs.tutor import Tutor


def generate(
    path: str | Path, teacher: Denoiser, wanted: Plan, *, batch: int = 256
) -> Iterator[int]:
    """Fill the store at `path`, yielding the number of pairs done after every batch and shard.

    The pairs do not depend on `batch`. Shards that verify are kept, damaged ones are made again:
    the same call after a crash goes on. Raises DataError when the directory holds pairs of another
    plan or cannot be one, BusyError when another process fills it, CheckpointError when the disk
    refuses, NonFiniteError when the teacher gives no numbers.
    """
    if batch < 1:
        raise ValueError(f"pairs: batch is {batch}; expected at least 1. Ask for one or more.")
    root = Path(path)
    lock = _take(root)
    try:
        durable.clean(root)
        _agree(root, wanted)
        _check_space(root, wanted)
        tutor: Tutor | None = None
        for k in range(wanted.shards):
            if not _intact(root, k, wanted):
                tutor = tutor or Tutor(teacher, wanted)
                yield from _make(root, k, tutor, batch)
            yield min((k + 1) * wanted.shard, wanted.count)
    finally:
        lock.release()


def _take(root: Path) -> Lock:
    lock = Lock(root / ".lock")
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock.take()
    except OSError as error:
        raise DataError(
            f"{root}: {error.strerror}; expected a folder that can be written. Choose another."
        ) from error
    return lock


def _check_space(root: Path, wanted: Plan) -> None:
    missing = sum(
        len(wanted.indices(k)) for k in range(wanted.shards) if not (root / shard(k)).exists()
    )
    size = missing * math.prod(wanted.shape) * DTYPES[wanted.dtype].itemsize
    if (free := checkpoint.free(root)) < size:
        raise CheckpointError(
            f"{root}: {free / 1e6:,.1f} MB free; expected {size / 1e6:,.1f} MB for the pairs. Free "
            "space, choose another directory, or make fewer pairs."
        )


def _make(root: Path, k: int, tutor: Tutor, batch: int) -> Iterator[int]:
    """Make shard k, yielding the number of pairs done after all but its last batch."""
    wanted = tutor.wanted
    parts, index = [], wanted.indices(k)
    for first in range(0, len(index), batch):
        if first:
            yield int(index[first])
        part = index[first : first + batch]
        parts.append(_stored(tutor(part), wanted.dtype))
    images = torch.cat(parts)
    try:
        durable.remove(root / shard(k))  # it did not verify
        checkpoint.write(root / shard(k), {FILE: {"x0": images}}, facts(k, wanted))
    except OSError as error:
        size = images.numel() * images.element_size()
        raise checkpoint.refused(root / shard(k), error, size) from error


def _stored(x0: Tensor, dtype: str) -> Tensor:
    if dtype == "uint8":
        return kernels.to_uint8(x0).permute(0, 3, 1, 2).contiguous()
    return x0.to(DTYPES[dtype])


def _intact(root: Path, k: int, wanted: Plan) -> bool:
    try:
        found = checkpoint.read(root / shard(k)).verify()
    except CheckpointError:
        return False
    return fits(found, k, wanted)


def _agree(root: Path, wanted: Plan) -> None:
    """Write the plan, or insist that the one there is the same."""
    if not (root / PLAN).exists():
        durable.replace_file(root / PLAN, checkpoint.canonical(asdict(wanted)))
        return
    there = asdict(read_plan(root))
    mine = asdict(wanted)
    if changed := [f"{n} {there[n]} -> {mine[n]}" for n in mine if there[n] != mine[n]]:
        raise DataError(
            f"{root}: holds other pairs ({'; '.join(changed)}); expected the same plan. Choose "
            "another directory."
        )
