"""What the figures decide, by rules that were written down before there were any."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Rows = dict[str, dict[str, Any]]

NORM = "ops · group_norm_silu 128x32x32 · "
ENOUGH_OF_COPY = 0.7
POOR, GOOD = 0.55, 0.70  # of the matrix product roof, in cuDNN's convolutions
CLOSE = 1.05  # torch.compile within this of ours: not worth own kernels by default
HONEST = 1.15  # bytes counted by the hardware over bytes of the model


def verdicts(document: dict[str, Any]) -> list[str]:
    """A line for every rule that the rows have figures for."""
    rows: Rows = document["rows"]
    return [*_norm(rows), *_convolutions(rows), *_compiled(rows), *_upsampling(rows)]


def _norm(rows: Rows) -> Iterator[str]:
    """(a) below 70 % of copy bandwidth: look at sectors and occupancy before anything else."""
    for backend in ("triton", "cuda"):
        for key in (f"{NORM}{backend} · bf16 · batch 528",):
            if (row := rows.get(key)) and "seconds" in row:
                share = row["predicted"] / row["seconds"]
                what = "good" if share >= ENOUGH_OF_COPY else "look at sectors and occupancy first"
                yield f"(a) group norm, {backend}: {share:.0%} of the copy roof: {what}"


def _convolutions(rows: Rows) -> Iterator[str]:
    """(b) cuDNN below 55 % of the roof: own convolutions may pay; above 70 %: they do not."""
    for key, row in rows.items():
        if key.startswith("convolutions · 3x3") and "seconds" in row:
            share = row["predicted"] / row["seconds"]
            what = "own kernels may pay" if share < POOR else "between"
            what = "own kernels would not pay" if share > GOOD else what
            yield f"(b) {key.split(' · ')[1]}: {share:.0%} of the product roof: {what}"


def _compiled(rows: Rows) -> Iterator[str]:
    """(c) torch.compile within 5 % of ours: ours is not the default for that network."""
    for group, unit in (("images", "an image"), ("training", "a step")):
        ours, theirs = {}, {}
        for key, row in rows.items():
            parts = key.split(" · ")
            if parts[0] == group and len(parts) > 2 and "seconds" in row:
                into = theirs if parts[2].startswith("torch.compile") else ours
                if parts[2].startswith("torch.compile") or parts[2] in ("kdgen fast", "kdgen"):
                    into[parts[1]] = min(row["seconds"], into.get(parts[1], row["seconds"]))
        for case in ours.keys() & theirs.keys():
            ratio = theirs[case] / ours[case]
            what = (
                "own kernels stay the default" if ratio > CLOSE else "not worth being the default"
            )
            yield f"(c) {case}, {unit}: {ratio:.2f} times torch.compile: {what}"


def _upsampling(rows: Rows) -> Iterator[str]:
    """(d) the folded upsampling slower than two steps: do not fold it there."""
    for key, row in rows.items():
        if key.startswith("convolutions · up") and "folded" in key and "ratio" in row:
            what = "fold" if row["ratio"] > 1 else "keep the two steps"
            yield f"(d) {key.split(' · ')[1]}: folded is {row['ratio']:.2f} times two steps: {what}"
