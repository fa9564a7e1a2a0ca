"""The embedded data set: real handwritten digits, 8×8 (assets/digits.md)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from kdgen.data.images import Images

FILE = Path(__file__).parents[1] / "assets" / "digits.npz"
INK = 16  # the darkest value in the file


def load_digits() -> Images:
    """1,797 images, 1×8×8, 10 classes; 0 … 16 scaled to 0 … 255."""
    with np.load(FILE, allow_pickle=False) as file:
        ink, labels = file["images"].astype(np.int64), file["labels"].astype(np.int64)
    grey = ((ink * 255 + INK // 2) // INK).astype(np.uint8)  # (N, 8, 8), rounded
    names = tuple(str(k) for k in range(10))
    return Images(
        torch.from_numpy(grey[:, None]), torch.from_numpy(labels), 10, "digits", class_names=names
    )
