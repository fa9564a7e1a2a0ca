"""Padding, which keeps an image's bits independent of its batch."""

from __future__ import annotations

import torch

from kdgen.rows import NUMBERS, padded


def test_padding_repeats_the_last_row_up_to_the_lanes():
    rows = torch.arange(11)
    assert padded(rows).tolist() == [*range(11), 10, 10, 10, 10, 10]
    assert padded(rows[:8]).tolist() == list(range(8))
    assert padded(rows[:0]).tolist() == []
    assert padded(rows, NUMBERS).tolist() == [*range(11), *[10] * 21]
