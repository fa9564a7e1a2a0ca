"""One network: its contestants prepared and started one after the other, then timed in turns."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..roofs import Roofs
from . import networks, rounds
from .process import Failed, Process, command
from .record import Record
from .rounds import PAUSE
from .variants import Variant

HANG = 20.0  # a round that takes so many times what it took at first has hung
# OpenVINO and NNCF report their use to their makers, unless they believe to be in somebody's CI.
QUIET = {"CI": "true", "NNCF_CI": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1"}
# One memory state for all timings: large blocks stay in the heap instead of being mapped anew.
STILL = {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "4294967296"}
ROOFS = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}


@dataclass(frozen=True)
class Plan:
    variants: Sequence[Variant]
    batches: Sequence[int]
    rounds: int
    threads: int
    budget: (
        float  # seconds: of every step of a contestant's way to its first round, and of the rest
    )
    tiny: bool = False  # roofs that say nothing


@dataclass
class Contestant:
    """One that is ready; `seconds` of a call at each batch that it can do."""

    variant: Variant
    process: Process
    seconds: dict[int, float] = field(default_factory=dict)


def measure(name: str, plan: Plan, record: Record, scratch: Path, facts: Mapping[str, Any]) -> None:
    """Everything about one network, noted as soon as it is known; `facts` about the run with it."""
    folder = scratch / name
    case = networks.write(name, folder, plan.batches)
    record.network(name, {**facts, "flops": case.flops, "parameters": case.parameters})
    with ExitStack() as stack:
        _note_roofs(name, plan, record)
        ready = []
        for variant in plan.variants:
            found = _admitted(variant, name, plan, record, folder, stack)
            ready += [found] if found else []
        _race(ready, name, plan, record)
        for contestant in ready:
            _finish(contestant, name, record)
        _note_roofs(name, plan, record)


def _admitted(
    variant: Variant, name: str, plan: Plan, record: Record, folder: Path, stack: ExitStack
) -> Contestant | None:
    """Prepared, started and warm at every batch that it can do; None, and its row says why."""
    say(f"{name}: {variant.title}")
    work = folder / variant.name
    work.mkdir(exist_ok=True)
    said = {
        "variant": variant.name,
        "folder": str(folder),
        "work": str(work),
        "threads": plan.threads,
        "batches": list(plan.batches),
    }
    try:
        if variant.made:
            record.variant(name, variant.name, preparation=_prepared(said, plan, work))
        process = Process(command(said), _environment(plan, work), _log(work))
        stack.callback(process.stop)
        process.answer(plan.budget)
        record.variant(name, variant.name, start=process.age)
    except Failed as why:
        say(f"  {why}")
        record.variant(name, variant.name, failed=str(why))
        return None
    contestant = Contestant(variant, process)
    for batch in plan.batches:
        _warm(contestant, batch, name, plan, record)
    return contestant if contestant.seconds else None


def _prepared(said: dict[str, Any], plan: Plan, work: Path) -> float:
    """Seconds for what is made once before, in a process of its own."""
    process = Process(command(said, "--prepare"), _environment(plan, work), _log(work))
    try:
        process.answer(plan.budget * len(plan.batches))
        return process.age
    finally:
        process.stop()


def _warm(contestant: Contestant, batch: int, name: str, plan: Plan, record: Record) -> None:
    """Ready at this batch, and its error known; or the reason noted."""
    variant = contestant.variant.name
    try:
        if contestant.seconds:  # what the smaller ones took tells what this one will
            known, seconds = max(contestant.seconds.items())
            if why := rounds.too_slow(seconds * batch / known, plan.rounds, plan.budget):
                raise Failed(why)
        found = contestant.process.ask(plan.budget, "warm", batch=batch)
        if why := rounds.too_slow(found["seconds"], plan.rounds, plan.budget):
            raise Failed(why)
    except Failed as why:
        say(f"  batch {batch}: {why}")
        record.batch(name, variant, batch, failed=str(why))
        return
    contestant.seconds[batch] = found["seconds"]
    record.batch(name, variant, batch, error=found["error"])
    record.variant(name, variant, **found["said"])
    say(f"  batch {batch}: {batch / found['seconds']:.1f} images/s, error {found['error']:.1e}")


def _race(ready: Sequence[Contestant], name: str, plan: Plan, record: Record) -> None:
    """Rounds in turns; a contestant that fails at a batch has no figure there."""
    seconds: dict[tuple[str, int], list[float]] = defaultdict(list)
    before = -1
    for k, contestant, batch in rounds.turns(ready, plan.batches, plan.rounds):
        if k != before:
            say(f"{name}: round {k + 1} of {plan.rounds}")
            before = k
        if batch not in contestant.seconds:
            continue
        key = contestant.variant.name, batch
        try:
            seconds[key].append(_round(contestant, batch))
        except Failed as why:
            say(f"  {contestant.variant.title}, batch {batch}: {why}")
            record.batch(name, *key, failed=str(why))
            del contestant.seconds[batch], seconds[key]
    for (variant, batch), found in seconds.items():
        record.batch(name, variant, batch, seconds=found)


def _round(contestant: Contestant, batch: int) -> float:
    once = contestant.seconds[batch]
    calls = rounds.calls(once)
    time.sleep(PAUSE)
    limit = 60 + HANG * (calls + 1) * once
    said = contestant.process.ask(limit, "round", batch=batch, calls=calls)
    return float(said["seconds"])


def _finish(contestant: Contestant, name: str, record: Record) -> None:
    try:
        memory = contestant.process.ask(60, "memory")["bytes"]
        record.variant(name, contestant.variant.name, memory=memory)
    except Failed as why:  # its figures stand
        record.variant(name, contestant.variant.name, note=f"afterwards {why}")
    contestant.process.stop()


def _note_roofs(name: str, plan: Plan, record: Record) -> None:
    """Before and after the rounds: the better of the two counts."""
    roofs = Roofs(torch.device("cpu"), tiny=plan.tiny)
    wanted = {dtype for v in plan.variants for dtype in v.dtypes}
    record.roofs(name, {k: roofs.gemm(dtype) for k, dtype in ROOFS.items() if k in wanted})
    record.write()


def _environment(plan: Plan, work: Path) -> dict[str, str]:
    """The same for all; a compiler finds nothing of an earlier run."""
    return {
        **STILL,
        **QUIET,
        "OMP_NUM_THREADS": str(plan.threads),
        "TORCHINDUCTOR_CACHE_DIR": str(work / "inductor"),
    }


def _log(work: Path) -> Path:
    return work.with_suffix(".log")


def say(line: str) -> None:
    print(line, flush=True)
