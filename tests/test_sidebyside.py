"""Jobs in processes of their own, as if they had been done one after the other."""

from __future__ import annotations

import os
from functools import partial

import pytest
import torch

from kdgen import sidebyside
from kdgen.errors import UsageError


def refuse(message: str) -> None:
    raise UsageError(message)


def test_one_worker_is_this_process() -> None:
    assert sidebyside.run([os.getpid, os.getpid], 1) == [os.getpid()] * 2
    assert sidebyside.run([], 4) == []


@pytest.mark.slow
def test_workers_answer_in_the_order_of_the_jobs_and_share_the_cores() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        jobs = [os.getpid, partial(pow, 2, 5), torch.get_num_threads, partial(pow, 3, 2)]
        child, first, threads, second = sidebyside.run(jobs, 2)
    finally:
        torch.set_num_threads(before)
    assert child != os.getpid()
    assert (first, threads, second) == (32, 1, 9)


@pytest.mark.slow
def test_the_first_error_is_raised_as_it_was() -> None:
    with pytest.raises(UsageError, match="not this teacher"):
        sidebyside.run([partial(refuse, "not this teacher"), partial(pow, 2, 2)], 2)


def test_a_gpu_is_given_one_worker_and_a_cpu_one_a_core() -> None:
    assert sidebyside.usual(torch.device("cuda")) == 1
    assert sidebyside.usual(torch.device("cpu")) == os.cpu_count()
