"""The plan: what is measured, in which order, and for how long at most."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """`share` of the minutes given; the deadline of a stage is its share of what is planned."""

    name: str
    share: float
    what: str


# Shares follow the plan of 27 minutes on one H200: what decides comes first.
STAGES = (
    Stage("sanity", 1.5, "device, clocks, power limit, versions; matrix product and copy roofs"),
    Stage("correct", 5.0, "pytest -m gpu, then compute-sanitizer over the kernels"),
    Stage("kernels", 6.0, "every op and backend against torch eager, torch.compile, SDPA, apex"),
    Stage("convolutions", 1.5, "cuDNN's share of the roof; upsampling as a transposed convolution"),
    Stage("images", 7.0, "50,000 images: kdgen, torch eager, torch.compile, diffusers; batch 1"),
    Stage("training", 4.0, "a step at batch 512, peak memory, the loss beside float32"),
    Stage("profile", 2.0, "ncu on the slow kernels: bytes moved, sectors, occupancy, spills"),
)
BY_NAME = {s.name: s for s in STAGES}


def chosen(names: str) -> list[Stage]:
    """Of a comma-separated list, in the plan's order; all for "". ValueError for unknown names."""
    wanted = [n.strip() for n in names.split(",") if n.strip()]
    for name in wanted:
        if name not in BY_NAME:
            raise ValueError(
                f"benchmarks.gpu: stage is {name!r}; expected some of {', '.join(BY_NAME)}."
            )
    return [s for s in STAGES if not wanted or s.name in wanted]


def deadlines(stages: list[Stage], minutes: float) -> dict[str, float]:
    """Seconds for every stage: the minutes, shared out."""
    total = sum(s.share for s in stages)
    return {s.name: 60 * minutes * s.share / total for s in stages}
