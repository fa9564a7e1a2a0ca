"""A store on disk, and as a source to learn from."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdgen import checkpoint, durable
from kdgen.errors import DataError
from kdgen.pairs.plans import DTYPES, Plan

PLAN, FILE = "plan.json", "pairs.safetensors"


class PairStore:
    """A finished store, in memory: a source of (z, x0, label) for `fit`.

    Raises DataError when shards are missing, CheckpointError when one is damaged.
    """

    kind = "pairs"

    def __init__(self, path: str | Path) -> None:
        root = Path(path)
        self.plan = read_plan(root)
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
        if not durable.whole(root / shard(k)).exists():
            raise DataError(
                f"{root}: shard {k} of {self.plan.shards} is missing; expected all. "
                "Run the command that made the pairs again: it goes on where it stopped."
            )
        found = checkpoint.read(root / shard(k))
        if not fits(found, k, self.plan):
            raise DataError(
                f"{found.path}: holds pairs of another plan; expected those of {root / PLAN}. Run "
                "the command that made the pairs again."
            )
        return found.read(FILE)["x0"]


def shard(k: int) -> str:
    """The directory of shard k."""
    return f"shard-{k:05d}"


def fits(shard: checkpoint.Checkpoint, k: int, wanted: Plan) -> bool:
    """Whether its facts say that it is shard k of this plan."""
    return checkpoint.canonical(shard.facts) == checkpoint.canonical(facts(k, wanted))


def facts(k: int, wanted: Plan) -> dict[str, Any]:
    """What shard k says of itself."""
    return {"plan": asdict(wanted), "first": k * wanted.shard, "count": len(wanted.indices(k))}


def read_plan(root: Path) -> Plan:
    """Of the store at `root`. DataError where there is none that can be read."""
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
