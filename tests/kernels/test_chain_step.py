"""A step of a chain whose coefficients lie in a table on the device."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses import FakeTensorMode

from kdgen import kernels
from kdgen.kernels import chain_step, chain_step_uint8, ddim_update, to_uint8
from kdgen.schedules import Cosine

ALL = ["reference", "native", "triton"]
per_backend = pytest.mark.parametrize("backend", ALL)
BOTH = pytest.mark.parametrize("op", [chain_step, chain_step_uint8], ids=lambda op: op.name)
STEP = torch.tensor(1)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def table(*rows):
    return torch.tensor(rows)


@per_backend
def test_it_is_a_conversion_and_then_a_step(backend, need):
    """The coefficients of eps-prediction on a cosine path."""
    q, t, s = Cosine(), 0.7, 0.4
    (alpha, sigma), (a, b) = q.levels(t), q.coefficients(t, s)
    rows = table((9.0, 9.0, 9.0, 9.0), (1 / alpha, -sigma / alpha, a, b))
    x0, eps = normal(2, 3, 4, 4).clamp(-0.9, 0.9), normal(2, 3, 4, 4, seed=1)
    x_t = alpha * x0 + sigma * eps
    need(chain_step, backend, (x_t, eps, rows, STEP))
    with kernels.use(backend):
        got = chain_step(x_t, eps, rows, STEP, 1.0)
    torch.testing.assert_close(got, ddim_update.reference(x_t, x0, a, b), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        got, q.levels(s)[0] * x0 + q.levels(s)[1] * eps, rtol=1e-4, atol=1e-5
    )


@per_backend
@pytest.mark.parametrize("clip", [None, 0.3])
@pytest.mark.parametrize("raw", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_step_with_bytes_is_the_step_and_then_bytes(backend, clip, raw, need):
    args = (normal(2, 3, 5, 4), normal(2, 3, 5, 4, seed=1).to(raw), normal(4, 4, seed=2), STEP)
    need(chain_step_uint8, backend, args)
    with kernels.use(backend):
        step = chain_step(*args, clip)
        assert step.dtype == torch.float32  # a low answer does not lower the chain
        assert torch.equal(chain_step_uint8(*args, clip), to_uint8(step))


@per_backend
@BOTH
def test_a_step_outside_the_table_takes_its_nearest_row(op, backend, need):
    x_t, raw, rows = normal(2, 3, 4, 4), normal(2, 3, 4, 4, seed=1), normal(3, 4, seed=2)
    need(op, backend, (x_t, raw, rows, STEP))
    with kernels.use(backend):
        first, _, last = (op(x_t, raw, rows, torch.tensor(k)) for k in range(3))
        for k in (3, 2**31, 2**62):
            assert torch.equal(op(x_t, raw, rows, torch.tensor(k)), last)
            assert torch.equal(op(x_t, raw, rows, torch.tensor(-k)), first)


@per_backend
@BOTH
@pytest.mark.parametrize("wide", [4, 8])
def test_the_first_channels_of_a_wider_answer_are_read_in_place(op, backend, wide, need):
    last = torch.channels_last
    x_t = normal(2, 3, 4, 5).contiguous(memory_format=last)
    raw = normal(2, wide, 4, 5, seed=1).contiguous(memory_format=last)
    rows = normal(2, 4, seed=2)
    need(op, backend, (x_t, raw[:, :3], rows, STEP))
    with kernels.use(backend):
        dense = raw[:, :3].contiguous(memory_format=last)
        assert torch.equal(op(x_t, raw[:, :3], rows, STEP), op(x_t, dense, rows, STEP))
        assert torch.equal(op(x_t[:1], raw[1:, :3], rows, STEP), op(x_t[:1], dense[1:], rows, STEP))


@pytest.mark.parametrize("low", [torch.float32, torch.float16])
@BOTH
def test_native_has_the_bits_of_the_reference(op, low, need):
    """Float32 without contraction: the same operations, rounded alike; also beyond one block."""
    args = (normal(2, 3, 61, 53), normal(2, 3, 61, 53, seed=1).to(low), normal(2, 4, seed=2), STEP)
    need(op, "native", args)
    for x_t in (args[0], args[0].contiguous(memory_format=torch.channels_last)):
        with kernels.use("native"):
            assert torch.equal(op(x_t, *args[1:], 0.9), op.reference(x_t, *args[1:], 0.9))


@BOTH
def test_the_step_is_never_read_on_the_host(op):
    """A fake tensor has no value to read: the registered op and the definition do not ask."""
    with FakeTensorMode() as mode:
        args = [mode.from_tensor(v) for v in (normal(2, 3, 4, 4), normal(2, 3, 4, 4), normal(5, 4))]
        step = mode.from_tensor(STEP)
        assert op(*args, step, 1.0).shape == op.reference(*args, step, 1.0).shape


def test_one_call_serves_a_chain_whose_step_moves():
    """The counter is advanced in place, as in a captured graph."""
    rows, step = normal(6, 4, seed=2) / 3, torch.zeros((), dtype=torch.int64)
    x = same = normal(1, 3, 4, 4)
    raw = normal(1, 3, 4, 4, seed=1)
    for k in range(6):
        p, q, a, b = rows[k].tolist()
        x = chain_step(x, raw, rows, step)
        same = ddim_update(same, p * same + q * raw, a, b)
        step += 1
    torch.testing.assert_close(x, same)


def test_a_gradient_comes_from_the_definition():
    x_t, raw = (normal(2, 3, 2, seed=s).double().requires_grad_() for s in (0, 1))
    rows = normal(2, 4, seed=2).double()
    assert torch.autograd.gradcheck(lambda *a: chain_step(*a, rows, STEP, 0.9), (x_t, raw))
    with kernels.use("native"), pytest.raises(ValueError, match="has no gradient"):
        chain_step(x_t.float(), raw.float(), rows.float(), STEP)


WRONG = [
    (lambda x: chain_step(x[0, 0, 0], x, x, STEP), r"x_t has shape \(4,\); expected \(N, C, …\)"),
    (lambda x: chain_step(x, x[:1], x, STEP), r"raw has shape \(1, 3, 4, 4\); expected \(2, 3"),
    (lambda x: chain_step(x, x, x[0, 0, :0], STEP), r"table has shape \(0, 4\); expected \(1, 4\)"),
    (lambda x: chain_step(x, x, x[0, 0, :, :3], STEP), r"table .*\(4, 3\); expected \(4, 4\)"),
    (lambda x: chain_step(x, x, x[0, 0], 1), "step is a int; expected a tensor"),
    (lambda x: chain_step(x, x, x[0, 0], STEP.int()), "step has dtype int32; expected int64"),
    (lambda x: chain_step(x, x, x[0, 0], STEP[None]), r"step has shape \(1,\); expected \(\)"),
    (lambda x: chain_step(x, x, x[0, 0], STEP.to("meta")), "step is on meta; expected cpu"),
    (lambda x: chain_step(x, x, x[0, 0], STEP, 0.0), "clip is 0.0; expected a number above 0"),
]


@pytest.mark.parametrize(("call", "message"), WRONG)
def test_a_wrong_argument_is_named(call, message):
    with pytest.raises(ValueError, match="^chain_step: " + message):
        call(torch.zeros(2, 3, 4, 4))
    with pytest.raises(ValueError, match=r"^chain_step_uint8: x_t has shape \(2, 3\); expected"):
        chain_step_uint8(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(1, 4), STEP)


@pytest.mark.gpu
def test_one_graph_serves_the_whole_chain():
    device = torch.device("cuda")
    rows, raw = (normal(6, 4) / 3).to(device), normal(4, 3, 8, 8, seed=1).to(device)
    start = normal(4, 3, 8, 8).to(device)
    step = torch.zeros((), dtype=torch.int64, device=device)
    want = start
    for k in range(6):
        want = chain_step(want, raw, rows, torch.tensor(k, device=device))
    x = start.clone()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):  # compiles
        chain_step(x, raw, rows, step)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        x.copy_(chain_step(x, raw, rows, step))
        step.add_(1)
    for _ in range(6):
        graph.replay()
    assert torch.equal(x, want)
