"""Teacher pairs (z, image), made once: sharded, resumable, verified.

Pair i is a function of (teacher weights, sampling, seed, i) alone, so only the image and its class are stored; z is drawn
again from its address. A store is a directory with `plan.json` and one verified checkpoint directory per shard.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdgen import checkpoint, durable, noise, samplers
from kdgen.denoiser import Denoiser, Sampling
from kdgen.errors import CheckpointError, DataError
from kdgen.lock import Lock

PLAN, FILE = "plan.json", "pairs.safetensors"
DTYPES = {"float16": torch.float16, "float32": torch.float32, "uint8": torch.uint8}


@dataclass(frozen=True)
class Plan:
    """All that the pairs depend on. `dtype` is how images are stored; float16 rounds them by at most 2⁻¹²."""

    count: int
    teacher: str  # SHA-256 of its weights and config
    sampling: dict[str, Any]
    shape: tuple[int, int, int]
    classes: int
    seed: int = 0
    shard: int = 8192
    dtype: str = "float16"

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
        return (
            noise.classes(self.seed, noise.Stream.PAIR_LABEL, index, self.classes)
            if self.classes
            else None
        )


def plan(
    teacher: Denoiser,
    count: int,
    *,
    sampling: Sampling | None = None,
    seed: int = 0,
    shard: int = 8192,
    dtype: str = "float16",
) -> Plan:
    """What `generate` would make; `sampling` defaults to the teacher's own."""
    weights = checkpoint.tensors_digest(teacher.state_dict())
    identity = checkpoint.digest({"weights": weights, "config": teacher.config()})
    how = (sampling or teacher.sampling).config()
    return Plan(count, identity, how, teacher.shape, teacher.classes, seed, shard, dtype)


def generate(
    path: str | Path, teacher: Denoiser, wanted: Plan, *, batch: int = 256
) -> Iterator[int]:
    """Fill the store at `path`, yielding the number of pairs done after every batch and verified shard.

    Shards that verify are kept, damaged ones are made again: the same call after a crash goes on. Raises DataError when the
    directory holds pairs of another plan, BusyError when another process fills it.
    """
    root = Path(path)
    root.mkdir(parents=True, exist_ok=True)
    lock = Lock(root / ".lock")
    lock.take()
    try:
        _agree(root, wanted)
        for k in range(wanted.shards):
            done = k * wanted.shard
            if not _intact(root, k, wanted):
                yield from (done + n for n in _make(root, k, teacher, wanted, batch))
            yield done + len(wanted.indices(k))
    finally:
        lock.release()


def _make(root: Path, k: int, teacher: Denoiser, wanted: Plan, batch: int) -> Iterator[int]:
    images, index = [], wanted.indices(k)
    for part in index.split(batch):
        images.append(_stored(teach(teacher, wanted, part), wanted.dtype))
        if len(part) == batch:
            yield len(images) * batch
    durable.clean(root, _shard(k))
    facts = {"plan": asdict(wanted), "first": int(index[0]), "count": len(index)}
    checkpoint.write(root / _shard(k), {FILE: {"x0": torch.cat(images)}}, facts)


@torch.no_grad()
def teach(teacher: Denoiser, wanted: Plan, index: Tensor) -> Tensor:
    """The images of pairs index (n,), float32 in [-1, 1] on the CPU."""
    device = next(teacher.parameters()).device
    label = wanted.label(index)
    images = samplers.sample(
        teacher.eval(),
        wanted.z(index).to(device),
        None if label is None else label.to(device),
        Sampling(**wanted.sampling),
        seed=wanted.seed,
        index=index.to(device),
    )
    return images.clamp(-1, 1).cpu()


def _stored(x0: Tensor, dtype: str) -> Tensor:
    if dtype == "uint8":
        return ((x0 + 1) * 127.5).round().to(torch.uint8)
    return x0.to(DTYPES[dtype])


class PairStore:
    """A finished store, in memory: a source of (z, x0, label) for `fit`.

    Raises DataError when shards are missing, CheckpointError when one is damaged.
    """

    kind = "pairs"

    def __init__(self, path: str | Path) -> None:
        root = Path(path)
        self.plan = _read_plan(root)
        shards = [self._read(root, k) for k in range(self.plan.shards)]
        self._x0 = torch.cat(shards)
        self.name, self.shape, self.classes = str(root), self.plan.shape, self.plan.classes
        self.digest = checkpoint.tensors_digest({"x0": self._x0})

    def __len__(self) -> int:
        return self.plan.count

    def __repr__(self) -> str:
        return (
            f"{self.name}: {len(self):,} pairs, {'×'.join(map(str, self.shape))}, {self.plan.dtype}"
        )

    def take(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """(z, x0, label) of the pairs index (n,): float32 (n, C, H, W) twice, int64 (n,) or None."""
        x0 = self._x0[index]
        x0 = x0.float() / 127.5 - 1 if x0.dtype == torch.uint8 else x0.float()
        return self.plan.z(index), x0, self.plan.label(index)

    def _read(self, root: Path, k: int) -> Tensor:
        if not durable.whole(root / _shard(k)).exists():
            raise DataError(
                f"{root}: shard {k} of {self.plan.shards} is missing; expected all. "
                "Run the command that made the pairs again: it goes on where it stopped."
            )
        return checkpoint.read(root / _shard(k)).read(FILE)["x0"]


def _shard(k: int) -> str:
    return f"shard-{k:05d}"


def _intact(root: Path, k: int, wanted: Plan) -> bool:
    try:
        found = checkpoint.read(root / _shard(k)).verify()
    except CheckpointError:
        return False
    return Plan(**found.facts["plan"]) == wanted


def _agree(root: Path, wanted: Plan) -> None:
    """Write the plan, or insist that the one there is the same."""
    if not (root / PLAN).exists():
        durable.replace_file(root / PLAN, checkpoint.canonical(asdict(wanted)))
        return
    there = asdict(_read_plan(root))
    mine = asdict(wanted)
    if changed := [f"{n} {there[n]} -> {mine[n]}" for n in mine if there[n] != mine[n]]:
        raise DataError(
            f"{root}: holds other pairs ({'; '.join(changed)}); expected the same plan. Choose another directory."
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
