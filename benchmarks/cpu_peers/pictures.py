"""Images a second against error, a panel for every network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .figures import Results, networks
from .variants import VARIANTS, Variant

LEAST = 1e-7  # errors below, zero among them, stand here: two float32 runs differ by as much
OURS, THEIRS, QUIET = "#0b6e4f", "#8a8f98", "#d9dce1"
GAP = 0.045  # of the height, between two labels


def draw(document: dict[str, Any], path: Path) -> None:
    """A PNG. Each contestant is a dot at its largest batch, and a line over all batches."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    panels = [r for r in networks(document) if _dots(r)]
    if not panels:
        return
    figure, axes = plt.subplots(1, len(panels), figsize=(5.2 * len(panels), 5.0), squeeze=False)
    for axis, results in zip(axes[0], panels, strict=True):
        _panel(axis, results)
    axes[0][0].set_ylabel("images/s", fontsize=9)
    figure.tight_layout(w_pad=2.5)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, metadata={"Software": None})
    plt.close(figure)


Dot = tuple[Variant, float, list[float]]  # error, rates by batch


def _dots(results: Results) -> list[Dot]:
    found = []
    for variant in VARIANTS:
        figures = [f for b in results.batches if (f := results.figure(variant.name, b))]
        if figures:
            rates = [f.rate.middle for f in figures]
            found.append((variant, max(figures[-1].error, LEAST), rates))
    return found


def _panel(axis: Any, results: Results) -> None:
    dots = _dots(results)
    top = 1.12 * max(max(rates) for _, _, rates in dots)
    axis.set(xscale="log", xlim=(LEAST / 2, 20), ylim=(0, top))
    axis.set_xticks([10.0**k for k in range(-7, 1)], ["0", *(f"1e{k}" for k in range(-6, 1))])
    axis.minorticks_off()
    axis.set_title(results.name, loc="left", fontsize=11, fontweight="bold")
    axis.set_xlabel(
        f"error against torch fp32 (dot: batch {results.batches[-1]}, line: all batches)",
        fontsize=8,
    )
    axis.grid(axis="y", color=QUIET, linewidth=0.6)
    axis.tick_params(labelsize=8, length=0)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.spines["bottom"].set_color(QUIET)
    heights = apart([rates[-1] / top for _, _, rates in dots], [e for _, e, _ in dots])
    for (variant, error, rates), height in zip(dots, heights, strict=True):
        colour = OURS if variant.ours else THEIRS
        axis.plot([error, error], [min(rates), max(rates)], color=colour, linewidth=1, alpha=0.5)
        axis.plot(error, rates[-1], "o", color=colour, markersize=6 if variant.ours else 4)
        axis.annotate(
            variant.title,
            (error, rates[-1]),
            (error * 1.6, height * top),
            color=colour,
            fontsize=7,
            va="center",
            fontweight="bold" if variant.ours else "normal",
            arrowprops={
                "arrowstyle": "-",
                "color": QUIET,
                "linewidth": 0.6,
                "relpos": (0, 0.5),
                "shrinkA": 1,
                "shrinkB": 3,
            },
        )


def apart(heights: Sequence[float], errors: Sequence[float]) -> list[float]:
    """Heights of labels, in their order, so far from one another that all can be read; only labels
    whose errors are within a factor of 100 could touch."""
    placed: dict[int, float] = {}
    for k in sorted(range(len(heights)), key=lambda k: heights[k]):
        height = heights[k]
        near = [h for j, h in placed.items() if 1e-2 < errors[j] / errors[k] < 1e2]
        if near:
            height = max(height, max(near) + GAP)
        placed[k] = height
    return [placed[k] for k in range(len(heights))]
