"""Folded networks on a GPU: as exact as the original, and captured in a graph."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from kdgen import fold

pytestmark = pytest.mark.gpu
MANY = [1.0, 0.25, 0.7]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_rounding_hurts_no_more_than_in_the_original(family: Any, dtype: torch.dtype):
    plain = family.denoiser().cuda()
    folded = fold.fold(plain, [0.7], folds=fold.KNOWN, dtype=dtype)
    x_t = plain.schedule.start(torch.randn(64, *plain.shape, device="cuda"), 0.7)
    label = family.labels(64)
    label = None if label is None else label.cuda()
    rounded = copy.deepcopy(plain).to(dtype)
    with torch.no_grad():
        exact = copy.deepcopy(plain).double()(x_t.double(), 0.7, label).x0
        before, after = (
            (d(x_t, 0.7, label).x0.double() - exact).square().mean().sqrt()
            for d in (rounded, folded)
        )
    assert 0 < after < 1.5 * before


@pytest.mark.parametrize("times", [[0.7], MANY], ids=str)
def test_a_graph_replays_what_it_captured(family: Any, times: list[float]):
    folded = fold.fold(family.denoiser().cuda(), times, folds=fold.KNOWN, dtype=torch.bfloat16)
    x_t = torch.randn(8, *folded.shape, device="cuda")
    t = torch.full((8,), 0.7, device="cuda")
    label = family.labels(8)
    label = None if label is None else label.cuda()
    with torch.no_grad():
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                folded(x_t, t, label)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            said = folded(x_t, t, label).x0
        x_t.normal_()
        graph.replay()
        torch.testing.assert_close(said, folded(x_t, t, label).x0, rtol=0.05, atol=0.05)
