"""The rules for every op on every backend: it touches nothing but its tensors, keeps NaN and
infinity where they belong, and gives the same bits however many threads work on it."""

from __future__ import annotations

import math
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kdgen import kernels
from kdgen.kernels import layout, native

FAST = ["native", "sdpa", "triton", "cuda"]
BAND = 64  # elements on either side of a guarded tensor
PATTERN = 0x5A
EMPTY = torch.empty  # the true one
FAR = 2**61 + 12345  # poison for integers: an index or a step that gives other numbers
CHEAP = ("native", "cuda")  # their examples are walked through whole
LEARNING = (
    kernels.group_norm_silu,
    kernels.attention,
    kernels.bias_residual,
    kernels.ddim_update,
)
STEPS = (
    kernels.scale_input,
    kernels.ddim_update,
    kernels.ddim_update_uint8,
    kernels.chain_step,
    kernels.chain_step_uint8,
    kernels.to_uint8,
)  # their examples have three channels
ALLOCATES = "torch's own attention allocates inside torch, where no band can be put around"
per_op = pytest.mark.parametrize("op", kernels.OPS, ids=lambda op: op.name)
per_backend = pytest.mark.parametrize("backend", FAST)


def examples_of(op, backend, device):
    """In float32, where the backend takes it: attention in CUDA C++ is for tensor cores only."""
    halves = op is kernels.attention and backend == "cuda"
    return op.examples(torch.bfloat16 if halves else torch.float32, device)


def dense(value):
    """A copy as the op sees it: its own layout, nothing between the elements."""
    if not isinstance(value, Tensor):
        return value
    return value.clone(memory_format=layout.of(value) if value.ndim > 1 else torch.preserve_format)


# ---- nothing but its tensors ----------------------------------------------------------------


class Guards:
    """Allocates tensors with guard bands around them, and looks whether a band was touched."""

    def __init__(self, device):
        self.device, self.buffers = device, []

    def around(self, shape, dtype, strides=None):
        count, size = max(1, torch.Size(shape).numel()), dtype.itemsize
        room = (count + 2 * BAND) * size
        raw = EMPTY(room, dtype=torch.uint8, device=self.device).fill_(PATTERN)
        self.buffers.append((raw, size))
        inside = raw[BAND * size : (BAND + count) * size].view(dtype)
        if strides is None:
            return inside[: torch.Size(shape).numel()].view(shape)
        return inside.as_strided(shape, strides)

    def like(self, x, form=torch.preserve_format):
        return self.around(x.shape, x.dtype, strides(x.shape, form) or x.stride())

    def intact(self):
        for raw, size in self.buffers:
            band = BAND * size
            yield bool((raw[:band] == PATTERN).all() and (raw[-band:] == PATTERN).all())


def sizes(shape):
    return torch.Size([shape] if isinstance(shape, int) else shape)


def strides(shape, form):
    """Those of a dense tensor; None for torch.preserve_format."""
    if form is torch.preserve_format:
        return None
    return EMPTY(tuple(shape), device="meta", memory_format=form).stride()


@pytest.fixture
def guarded(monkeypatch, device):
    """Inside, whatever ops allocate has guard bands."""

    @contextmanager
    def enter():
        guards = Guards(device)

        def empty(shape, dtype=torch.float32, memory_format=torch.contiguous_format, **_):
            return guards.around(sizes(shape), dtype, strides(sizes(shape), memory_format))

        def like(x, memory_format=torch.preserve_format, **_):
            return guards.like(x, memory_format)

        def new_empty(self, shape, dtype=None, **_):
            return guards.around(sizes(shape), dtype or self.dtype)

        with monkeypatch.context() as patch:
            patch.setattr(torch, "empty", empty)
            patch.setattr(torch, "empty_like", like)
            patch.setattr(Tensor, "new_empty", new_empty)
            yield guards

    return enter


def embedded(x, spread=1, offset=BAND):
    """The same values in the middle of poison; with a `spread`, also between its elements."""
    if not isinstance(x, Tensor):
        return x
    apart = tuple(s * spread for s in x.stride())
    reach = sum((n - 1) * s for n, s in zip(x.shape, apart, strict=True))
    poison = math.nan if x.is_floating_point() else FAR
    room = torch.full((reach + 1 + 2 * offset,), poison, dtype=x.dtype, device=x.device)
    return room.as_strided(x.shape, apart, offset).copy_(x)


@per_backend
@per_op
def test_what_lies_between_and_around_the_inputs_is_never_read(op, backend, device, served):
    """Every tensor, parameters, tables and counters too, lies at an odd place, twice as far apart
    as it needs to, in poison; not apart where a backend takes channels last alone."""
    for example in served(op, backend, examples_of(op, backend, device)):
        args = tuple(embedded(a, spread=2, offset=3) for a in example.args)
        if op.by_name[backend].serves(*op.bind(*args)):
            args = tuple(embedded(a, offset=3) for a in example.args)
        assert not op.by_name[backend].serves(*op.bind(*args)), example.name
        with kernels.use(backend):
            got, want = op(*args), op(*map(dense, args))
        assert torch.equal(got, want), example.name
        assert not (got.is_floating_point() and got.isnan().any()), example.name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@per_backend
@per_op
def test_nothing_around_the_outputs_is_written(op, backend, dtype, device, served, guarded):
    if backend == "sdpa":
        pytest.skip(ALLOCATES)
    examples = op.examples(dtype, device)
    for example in served(op, backend, examples if backend in CHEAP else examples[-2:]):
        with kernels.use(backend):
            want = op(*example.args)
        with guarded() as guards, kernels.use(backend):
            got = op(*(embedded(a) for a in example.args))
        assert guards.buffers
        assert all(guards.intact()), example.name
        assert torch.equal(got, want), example.name


def pixel(value, n):
    """One pixel of the first of `n` images."""
    if not isinstance(value, Tensor) or not value.ndim or len(value) != n:
        return value
    return value[:1] if value.ndim < 3 else value[:1].flatten(2)[..., :1].view(1, -1, 1, 1)


@per_backend
@pytest.mark.parametrize("op", STEPS, ids=lambda op: op.name)
def test_nothing_behind_a_pack_that_is_not_full_is_written(op, backend, device, served, guarded):
    for example in served(op, backend, op.examples(torch.float32, device)):
        args = tuple(pixel(a, len(example.args[0])) for a in example.args)
        with guarded() as guards, kernels.use(backend):
            got = op(*args)
        assert guards.buffers
        assert all(guards.intact()), example.name
        rounding = 1e-2 if got.is_floating_point() else 1  # of bfloat16, or one grey level
        torch.testing.assert_close(got, op.reference(*args), rtol=1e-2, atol=rounding)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("op", LEARNING, ids=lambda op: op.name)
def test_nothing_around_the_gradients_is_written(op, backend, device, served, guarded, grads):
    if backend == "sdpa":
        pytest.skip(ALLOCATES)
    examples = examples_of(op, backend, device)
    for example in served(op, backend, examples if backend in CHEAP else examples[-2:]):
        dy = torch.ones_like(op.reference(*example.args))
        with kernels.use(backend):
            want = grads(op, example.args, dy)
        with guarded() as guards, kernels.use(backend):
            got = grads(op, example.args, dy)
        assert all(guards.intact()), example.name
        for g, w in zip(got, want, strict=True):
            assert torch.equal(g, w), example.name


# ---- NaN and infinity -----------------------------------------------------------------------


def spoilt(args, which, values):
    """The arguments with some elements of float argument `which` replaced."""
    r = torch.Generator().manual_seed(which)
    x = args[which].clone(memory_format=torch.preserve_format)
    for value in values:
        place = tuple(int(torch.randint(n, (), generator=r)) for n in x.shape)
        x[place] = value
    return (*args[:which], x, *args[which + 1 :])


def floats(args):
    return [k for k, a in enumerate(args) if isinstance(a, Tensor) and a.is_floating_point()]


KINDS = (torch.isnan, torch.isposinf, torch.isneginf)


def same(got, want, name, kinds=KINDS):
    for kind in kinds:
        assert torch.equal(kind(got), kind(want)), f"{name}: {kind.__name__}"


@per_backend
@per_op
def test_nan_and_infinity_come_out_where_the_reference_has_them(op, backend, device, served):
    for example in served(op, backend, examples_of(op, backend, device)[1:4:2]):
        for which in floats(example.args):
            for values in ((math.nan,), (math.inf, -math.inf)):
                args = spoilt(example.args, which, values)
                with kernels.use(backend):
                    got = op(*args)
                want, name = op.reference(*args), f"{example.name}, argument {which}, {values}"
                if got.is_floating_point():
                    # The group norm multiplies its factors first: ∞ may turn into NaN, no more.
                    folds = op is kernels.group_norm_silu and math.inf in values
                    same(got, want, name, (torch.isfinite,) if folds else KINDS)
                else:
                    assert int((got.int() - want.int()).abs().max()) <= 1, name


@per_backend
@pytest.mark.parametrize("op", LEARNING, ids=lambda op: op.name)
def test_gradients_are_finite_where_those_of_the_reference_are(op, backend, device, served, grads):
    for example in served(op, backend, examples_of(op, backend, device)[1:3]):
        dy = torch.ones_like(op.reference(*example.args))
        dy = spoilt((dy,), 0, (math.inf, math.nan))[0]
        with kernels.use(backend):
            got = grads(op, example.args, dy)
        for g, w in zip(got, grads(op.reference, example.args, dy), strict=True):
            same(g, w, example.name, (torch.isfinite,))


# ---- threads --------------------------------------------------------------------------------


def enlarged(args, least=40_000):
    """The images again and again, until several threads are worth while."""
    first = next(a for a in args if isinstance(a, Tensor))
    size = args[3] if first.dtype is torch.int64 else first[0].numel()  # a draw's, or an image's
    times = -(-least // (len(first) * size))

    def more(a):
        if not isinstance(a, Tensor) or not a.ndim or len(a) != len(first):
            return a
        form = layout.of(a) if a.ndim > 1 else torch.contiguous_format
        return a.repeat(times, *[1] * (a.ndim - 1)).contiguous(memory_format=form)

    return tuple(map(more, args))


def answers(op, args, grads):
    """Of the compiled part: what the op says, and the gradients of one that has them."""
    with kernels.use("native"):
        y = op(*args)
        return [y, *(grads(op, args, torch.ones_like(y)) if op in LEARNING else [])]


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.skipif(bool(native.why), reason=native.why or "loaded")
@per_op
def test_threads_do_not_change_a_bit(op, threads, grads):
    for example in op.examples(torch.float32, torch.device("cpu")):
        args = enlarged(example.args)
        runs = []
        for count in (1, 2, 3):
            threads(count)
            runs.append(answers(op, args, grads))
        for other in runs[1:]:
            assert all(map(torch.equal, runs[0], other)), example.name


# ---- torch's defaults -----------------------------------------------------------------------


@pytest.mark.skipif(bool(native.why), reason=native.why or "loaded")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@per_op
def test_torchs_defaults_change_no_bit(op, dtype, default_dtype, grads):
    """Where memory got the default's size instead of its own, the compiled part wrote past it."""
    for example in op.examples(torch.float32, torch.device("cpu")):
        runs = []
        for default, device in ((torch.float32, "cpu"), (dtype, "meta")):
            default_dtype(default)
            with torch.device(device):
                runs.append(answers(op, example.args, grads))
        assert all(map(torch.equal, *runs)), example.name
        assert all(a.dtype is b.dtype for a, b in zip(*runs, strict=True)), example.name


# ---- offsets beyond 32 bits -----------------------------------------------------------------


def available():
    """Bytes of memory that can be had."""
    with open("/proc/meminfo") as file:
        found = dict(line.split(":") for line in file)
    return int(found["MemAvailable"].split()[0]) * 1024


@pytest.mark.slow
@pytest.mark.skipif(bool(native.why), reason=native.why or "loaded")
def test_the_compiled_kernels_reach_beyond_two_billion_values():
    """Zeros that nobody wrote take no memory; the last image is written, and alone it is small."""
    if not Path("/proc/meminfo").exists() or available() < 6 * 2**30:
        pytest.skip("needs 6 GiB of memory")
    n, size = 683, 1024
    x = torch.zeros(n, size, size, 3, dtype=torch.bfloat16).permute(0, 3, 1, 2)
    x[-1:].copy_(torch.linspace(-1, 1, 3 * size * size).view(1, 3, size, size))
    table, step = torch.rand(3, 4), torch.tensor(1)
    assert x.numel() > 2**31
    with kernels.use("native"):
        many = kernels.chain_step_uint8(x, x, table, step)
        alone = kernels.chain_step_uint8(x[-1:], x[-1:], table, step)
    assert torch.equal(many[-1:], alone)
    assert alone.float().std() > 10


@pytest.mark.gpu
@per_op
def test_the_last_image_beyond_two_billion_values_is_right(op, need):
    """Its offsets do not fit 32 bits; alone, they do."""
    device = torch.device("cuda")
    args = op.examples(torch.bfloat16, device)[1].args
    need(op, "triton", args)
    many = enlarged(args, 2**31 + 100_000)
    with kernels.use("triton"):
        y, alone = op(*many), op(*args)
    assert y[: -len(alone)].numel() > 2**31 - 100_000
    assert torch.equal(y[-len(alone) :], alone)
    assert torch.equal(y[: len(alone)], alone)
