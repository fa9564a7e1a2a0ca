"""In which order contestants are timed, and for how long."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TypeVar

ROUND_SECONDS = 0.3  # a round repeats short calls until it lasts this long
PAUSE = 0.05  # seconds between two contestants: thread pools spin for a while before they sleep

T = TypeVar("T")


def turns(
    contestants: Sequence[T], batches: Sequence[int], rounds: int
) -> Iterator[tuple[int, T, int]]:
    """(round, contestant, batch): in every round each contestant once at every batch, and another
    one begins."""
    for k in range(rounds):
        first = k % max(1, len(contestants))
        for contestant in (*contestants[first:], *contestants[:first]):
            for batch in batches:
                yield k, contestant, batch


def calls(seconds: float) -> int:
    """In a round, of a call that takes so long, behind an untimed one."""
    return math.ceil(ROUND_SECONDS / seconds)


def too_slow(seconds: float, rounds: int, budget: float) -> str:
    """Why a batch is not timed; "" if all its rounds fit into the budget."""
    if rounds * (1 + calls(seconds)) * seconds <= budget:
        return ""
    return f"over the budget of {budget:.0f} s: a call takes about {seconds:.0f} s"
