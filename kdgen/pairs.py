"""Teacher pairs (z, image), made once: sharded, resumable, verified.

Pair i is a function of (teacher weights, sampling, seed, i) alone, so only the image is stored; z
and class are drawn again from their address. A store is a directory with `plan.json` and one
verified checkpoint directory per shard.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdgen import checkpoint, durable, kernels, noise, samplers, solvers
from kdgen.denoiser import Denoiser, Guided, Sampling
from kdgen.errors import CheckpointError, DataError, NonFiniteError
from kdgen.lock import Lock
from kdgen.rows import padded

PLAN, FILE = "plan.json", "pairs.safetensors"
DTYPES = {"float16": torch.float16, "float32": torch.float32, "uint8": torch.uint8}


@dataclass(frozen=True)
class Plan:
    """All that the pairs depend on.

    `dtype` is how images are stored: float16 rounds them by at most 2⁻¹², uint8 by at most 1/255.
    """

    count: int
    teacher: str  # SHA-256 of its weights and config
    sampling: dict[str, Any]
    shape: tuple[int, int, int]
    classes: int
    seed: int = 0
    shard: int = 8192
    dtype: str = "float16"
    at: int | None = None  # the evaluation whose predicted x0 is kept; None: the finished image

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        if self.count < 1 or self.shard < 1:
            raise ValueError(
                f"pairs: count is {self.count}, shard {self.shard}; expected at least 1. Raise it."
            )
        if self.dtype not in DTYPES:
            raise ValueError(
                f"pairs: dtype is {self.dtype!r}; expected {', '.join(DTYPES)}. Pick one."
            )

    @property
    def how(self) -> Sampling:
        """The way the teacher makes them."""
        return Sampling(**self.sampling)

    @property
    def shards(self) -> int:
        return -(-self.count // self.shard)

    def indices(self, k: int) -> Tensor:
        """The pairs of shard k."""
        first = k * self.shard
        return noise.addresses(first, min(self.shard, self.count - first))

    def z(self, index: Tensor) -> Tensor:
        """The noise of pairs index (n,), float32 (n, C, H, W)."""
        return noise.normal(self.seed, noise.Stream.PAIR_Z, index, self.shape)

    def label(self, index: Tensor) -> Tensor | None:
        """Their classes (n,), or None."""
        if not self.classes:
            return None
        return noise.classes(self.seed, noise.Stream.PAIR_LABEL, index, self.classes)


def plan(
    teacher: Denoiser,
    count: int,
    *,
    sampling: Sampling | None = None,
    seed: int = 0,
    shard: int = 8192,
    dtype: str = "float16",
    at: int | None = None,
) -> Plan:
    """What `generate` would make; `sampling` defaults to the teacher's own.

    With `at`, the clean image predicted at that evaluation of a DDIM chain, from 0 at the noise
    end. ValueError when the sampling is not deterministic, or `at` is not on its chain.
    """
    chosen = sampling or teacher.sampling
    samplers.check_deterministic(chosen, "pairs")
    if at is not None and (chosen.sampler != "ddim" or not 0 <= at < chosen.steps):
        raise ValueError(
            f"pairs: at is {at} on {chosen.steps} steps of {chosen.sampler!r}; expected an "
            "evaluation of a 'ddim' chain, 0 … steps − 1. Correct one."
        )
    weights = checkpoint.tensors_digest(teacher.state_dict())
    identity = checkpoint.digest({"weights": weights, "config": teacher.config()})
    facts = teacher.shape, teacher.classes, seed, shard, dtype, at
    return Plan(count, identity, chosen.config(), *facts)


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
        for k in range(wanted.shards):
            if not _intact(root, k, wanted):
                yield from _make(root, k, teacher, wanted, batch)
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
        len(wanted.indices(k)) for k in range(wanted.shards) if not (root / _shard(k)).exists()
    )
    size = missing * math.prod(wanted.shape) * DTYPES[wanted.dtype].itemsize
    if (free := checkpoint.free(root)) < size:
        raise CheckpointError(
            f"{root}: {free / 1e6:,.1f} MB free; expected {size / 1e6:,.1f} MB for the pairs. Free "
            "space, choose another directory, or make fewer pairs."
        )


def _make(root: Path, k: int, teacher: Denoiser, wanted: Plan, batch: int) -> Iterator[int]:
    """Make shard k, yielding the number of pairs done after all but its last batch."""
    parts, index = [], wanted.indices(k)
    for first in range(0, len(index), batch):
        if first:
            yield int(index[first])
        part = index[first : first + batch]
        parts.append(_stored(teach(teacher, wanted, part), wanted.dtype))
    images = torch.cat(parts)
    try:
        durable.remove(root / _shard(k))  # it did not verify
        checkpoint.write(root / _shard(k), {FILE: {"x0": images}}, _facts(k, wanted))
    except OSError as error:
        size = images.numel() * images.element_size()
        raise checkpoint.refused(root / _shard(k), error, size) from error


@torch.no_grad()
def teach(teacher: Denoiser, wanted: Plan, index: Tensor) -> Tensor:
    """The images of pairs index (n,), float32 in [-1, 1] on the CPU."""
    training, device = teacher.training, next(iter(teacher.state_dict().values())).device
    lanes = padded(index)
    label = wanted.label(lanes)
    z, label = wanted.z(lanes).to(device), None if label is None else label.to(device)
    try:
        images = _drawn(teacher.eval(), wanted, z, label)[: len(index)]
    finally:
        teacher.train(training)
    if not images.isfinite().all():
        raise NonFiniteError(
            f"pairs: the teacher's images {int(index[0])} … {int(index[-1])} are not finite; "
            "expected numbers. Check its weights, or sample it with more steps."
        )
    return images.clamp(-1, 1).cpu()


def _drawn(teacher: Denoiser, wanted: Plan, z: Tensor, label: Tensor | None) -> Tensor:
    how = wanted.how
    if wanted.at is None:
        return samplers.sample(teacher, z, label, how)
    guided = teacher if how.guidance == 1.0 else Guided(teacher, how.guidance)
    return solvers.prediction_along(
        guided, z, how.steps, wanted.at, label, grid=how.grid, clip=how.clip
    )


def _stored(x0: Tensor, dtype: str) -> Tensor:
    if dtype == "uint8":
        return kernels.to_uint8(x0).permute(0, 3, 1, 2).contiguous()
    return x0.to(DTYPES[dtype])


class PairStore:
    """A finished store, in memory: a source of (z, x0, label) for `fit`.

    Raises DataError when shards are missing, CheckpointError when one is damaged.
    """

    kind = "pairs"

    def __init__(self, path: str | Path) -> None:
        root = Path(path)
        self.plan = _read_plan(root)
        dtype = DTYPES[self.plan.dtype]
        self._x0 = torch.empty(self.plan.count, *self.plan.shape, dtype=dtype)
        for k in range(self.plan.shards):  # one by one: a store may fill half of the memory
            self._x0[self.plan.indices(k)] = self._read(root, k)
        self.name, self.shape, self.classes = str(root), self.plan.shape, self.plan.classes
        self.digest = checkpoint.tensors_digest({"x0": self._x0})

    def __len__(self) -> int:
        return self.plan.count

    def __repr__(self) -> str:
        size = "×".join(map(str, self.shape))
        return f"{self.name}: {len(self):,} pairs, {size}, {self.plan.dtype}"

    def take(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """(z, x0, label) of the pairs index (n,): float32 (n, C, H, W) twice, int64 (n,) or
        None."""
        x0 = self._x0[index]
        x0 = x0.float() / 127.5 - 1 if x0.dtype == torch.uint8 else x0.float()
        return self.plan.z(index), x0, self.plan.label(index)

    def _read(self, root: Path, k: int) -> Tensor:
        if not durable.whole(root / _shard(k)).exists():
            raise DataError(
                f"{root}: shard {k} of {self.plan.shards} is missing; expected all. "
                "Run the command that made the pairs again: it goes on where it stopped."
            )
        found = checkpoint.read(root / _shard(k))
        if not _fits(found, k, self.plan):
            raise DataError(
                f"{found.path}: holds pairs of another plan; expected those of {root / PLAN}. Run "
                "the command that made the pairs again."
            )
        return found.read(FILE)["x0"]


def _shard(k: int) -> str:
    return f"shard-{k:05d}"


def _intact(root: Path, k: int, wanted: Plan) -> bool:
    try:
        found = checkpoint.read(root / _shard(k)).verify()
    except CheckpointError:
        return False
    return _fits(found, k, wanted)


def _fits(shard: checkpoint.Checkpoint, k: int, wanted: Plan) -> bool:
    """Whether its facts say that it is shard k of this plan."""
    return checkpoint.canonical(shard.facts) == checkpoint.canonical(_facts(k, wanted))


def _facts(k: int, wanted: Plan) -> dict[str, Any]:
    return {"plan": asdict(wanted), "first": k * wanted.shard, "count": len(wanted.indices(k))}


def _agree(root: Path, wanted: Plan) -> None:
    """Write the plan, or insist that the one there is the same."""
    if not (root / PLAN).exists():
        durable.replace_file(root / PLAN, checkpoint.canonical(asdict(wanted)))
        return
    there = asdict(_read_plan(root))
    mine = asdict(wanted)
    if changed := [f"{n} {there[n]} -> {mine[n]}" for n in mine if there[n] != mine[n]]:
        raise DataError(
            f"{root}: holds other pairs ({'; '.join(changed)}); expected the same plan. Choose "
            "another directory."
        )


def _read_plan(root: Path) -> Plan:
    try:
        return Plan(**json.loads((root / PLAN).read_bytes()))
    except FileNotFoundError:
        raise DataError(
            f"{root}: no {PLAN}; expected a store of pairs. Make one with kdgen.pairs."
        ) from None
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            f"{root / PLAN}: {error}; expected a plan. Delete the directory and make it again."
        ) from error
