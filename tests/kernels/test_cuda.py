"""The CUDA kernels beyond the rules for every backend: tiles, barriers, and what they say no to.

Without a GPU they run emulated, in several orders of threads: a missing barrier shows itself as
other bits.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdgen import kernels
from kdgen.kernels import attention, cuda, group_norm_silu, philox_normal, philox_uint32

ROOT = Path(__file__).parents[2]
LAST = torch.channels_last
RISING, FALLING, SHUFFLED = 0, 1, 9


@pytest.fixture
def orders(emulated):
    """Runs something in several orders of threads, where those are ours to choose; twice else."""

    def run(call, *choices):
        found = []
        for order in choices if emulated else (RISING, RISING):
            if emulated:
                emulated.schedule(order)
            found.append(call())
        if emulated:
            emulated.schedule(RISING)
        return found

    return run


def same(runs):
    """Whether all runs gave the same bits; the first of them."""
    for other in runs[1:]:
        for a, b in zip(runs[0], other, strict=True):
            assert a is b is None or torch.equal(a, b)
    return runs[0]


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---- every op -------------------------------------------------------------------------------

LEARNING = (group_norm_silu, attention, kernels.bias_residual, kernels.ddim_update)


@pytest.mark.parametrize("op", kernels.OPS, ids=lambda op: op.name)
def test_no_op_depends_on_the_order_of_its_threads(op, device, served, orders, grads):
    dtype = torch.bfloat16 if op is attention else torch.float32
    for example in served(op, "cuda", op.examples(dtype, device)):

        def run(args=example.args):
            with kernels.use("cuda"):
                y = op(*args)
                return [y, *(grads(op, args, torch.ones_like(y)) if op in LEARNING else [])]

        same(orders(run, RISING, FALLING, SHUFFLED))


# ---- group norm -----------------------------------------------------------------------------

# n, channels, those of x, height and width, groups: what they are chosen for.
NORMS = {
    "one slab": (2, 32, 32, 8, 8, 8),
    "a seam in a group": (1, 384, 256, 8, 8, 32),
    "a part of a slab": (1, 72, 72, 16, 16, 9),
    "odd rows": (2, 48, 32, 7, 5, 2),
    "wide groups": (1, 256, 256, 4, 4, 1),
    "twice past an image": (1, 64, 32, 64, 48, 16),
    "no space": (2, 64, 64, 1, 1, 8),
    "groups of one channel": (1, 16, 16, 4, 4, 16),
}


def norm_arguments(shape, dtype, device):
    n, channels, first, height, width, groups = shape
    x = normal(n, channels, height, width) * 1.5 - 2.3
    whole = x.to(device, dtype).contiguous(memory_format=LAST)
    x, more = (v.contiguous(memory_format=LAST) for v in (whole[:, :first], whole[:, first:]))
    weight, bias = 1 + normal(channels, seed=1) / 2, normal(channels, seed=2)
    film = [normal(n, channels, seed=s).to(device) for s in (3, 4, 5)]
    parameters = (weight.to(device), bias.to(device))
    return (x, *parameters, groups, 1e-6, *film, True, more if first < channels else None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("shape", NORMS.values(), ids=NORMS)
def test_norms_of_every_cut_are_right_in_any_order_of_threads(
    shape, dtype, device, need, orders, wide, grads, as_accurate
):
    args = norm_arguments(shape, dtype, device)
    need(group_norm_silu, "cuda", args)
    dy = normal(shape[0], shape[1], *shape[3:5], seed=6).to(device, dtype)

    def run():
        with kernels.use("cuda"):
            return [group_norm_silu(*args), *grads(group_norm_silu, args, dy)]

    got = same(orders(run, RISING, FALLING, SHUFFLED))
    reference = group_norm_silu.reference
    own = [reference(*args), *grads(reference, args, dy)]
    exact = [reference(*wide(args)), *grads(reference, wide(args), dy.double())]
    for g, o, e in zip(got, own, exact, strict=True):
        as_accurate(g, o, e)


@given(
    size=st.integers(1, 5000),
    width=st.sampled_from([1, 2, 3, 4, 6, 8, 12, 16, 24, 48, 96]),
    groups=st.integers(1, 64),
    seam=st.integers(1, 64),
    itemsize=st.sampled_from([2, 4]),
    tiles=st.sampled_from([1, 2]),
)
def test_slabs_are_of_whole_packs_and_fit_the_memory(
    emulated, size, width, groups, seam, itemsize, tiles
):
    plan = (emulated or cuda.module).group_norm_plan if emulated or cuda.module else None
    if plan is None:
        pytest.skip(cuda.why)
    pack, channels = 16 // itemsize, width * groups
    first = min(channels, seam * pack)
    count, rows, per_slab = plan(size, channels, first, groups, itemsize, tiles)
    whole = channels % pack == 0 and first % pack == 0
    if not whole:
        assert count == 0
        return
    assert count == 0 or 1 <= per_slab <= groups
    if count:
        wide = per_slab * width
        assert wide % pack == 0  # every slab starts at a pack, and so the last one ends with one
        assert (count - 1) * per_slab < groups <= count * per_slab
        assert wide * itemsize <= 256 * 16
        assert wide == channels or wide * itemsize >= 32  # a memory sector
        assert 1 <= rows <= size
        assert rows * wide * itemsize * tiles <= 100 << 10
    else:
        assert channels * itemsize > 256 * 16  # only what one row of threads cannot hold


# ---- attention ------------------------------------------------------------------------------

# batch, channels, height and width, heads, scale
ATTENTIONS = {
    "less than a tile": (2, 48, 5, 5, 3, 0.4),
    "a tile and one more": (1, 64, 5, 13, 1, None),
    "several tiles of keys": (1, 64, 9, 15, 1, None),
    "the widest head": (1, 256, 5, 8, 1, None),
    "a head between": (1, 96, 4, 9, 1, None),
    "steep scores": (1, 64, 4, 10, 1, 2.0),
    "the other way round": (1, 64, 4, 6, 1, -0.2),
    "one token": (2, 16, 1, 1, 1, None),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("shape", ATTENTIONS.values(), ids=ATTENTIONS)
def test_attention_of_every_cut_is_right_in_any_order_of_threads(
    shape, dtype, device, need, orders, wide, grads, as_accurate
):
    batch, channels, height, width, heads, scale = shape
    qkv = normal(batch, height, width, 3 * channels).to(device, dtype).movedim(-1, 1)
    args = (*qkv.chunk(3, 1), heads, scale)
    need(attention, "cuda", args)
    dout = normal(batch, channels, height, width, seed=1).to(device, dtype)

    def run():
        with kernels.use("cuda"):
            return [attention(*args), *grads(attention, args, dout)]

    got = same(orders(run, RISING, SHUFFLED))
    reference = attention.reference
    own = [reference(*args), *grads(reference, args, dout)]
    exact = [reference(*wide(args)), *grads(reference, wide(args), dout.double())]
    for g, o, e in zip(got, own, exact, strict=True):
        as_accurate(g, o, e)


def test_slices_of_one_tensor_are_not_copied():
    qkv = torch.zeros(2, 4, 4, 3 * 64, dtype=torch.bfloat16).movedim(-1, 1)
    for part in qkv.chunk(3, 1):
        tokens = cuda._tokens(part)
        assert tokens.data_ptr() == part.data_ptr()
        assert tokens.stride() == (16 * 192, 192, 1)


def test_what_packs_cannot_follow_is_copied():
    odd = torch.zeros(2, 4, 4, 68, dtype=torch.bfloat16)[..., 4:].movedim(-1, 1)
    tokens = cuda._tokens(odd)
    assert tokens.data_ptr() % 16 == 0
    assert tokens.is_contiguous()


# ---- numbers by address ---------------------------------------------------------------------


def test_words_are_those_of_the_definition_and_normals_nearly(device, need):
    args = (2**64 - 3, 5, torch.tensor([0, 7, 2**32 + 1], device=device), 37)
    need(philox_uint32, "cuda", args)
    with kernels.use("cuda"):
        words, z = philox_uint32(*args), philox_normal(*args)
    assert torch.equal(words, philox_uint32.reference(*args))
    torch.testing.assert_close(z, philox_normal.reference(*args), rtol=3e-7, atol=0)


# ---- no, politely ---------------------------------------------------------------------------


def image(*shape, dtype=torch.bfloat16, form=LAST):
    return torch.zeros(shape, dtype=dtype).contiguous(memory_format=form)


def norm_reason(x, groups=4, more=None):
    channels = x.shape[1] + (0 if more is None else more.shape[1])
    return cuda.unable_to_norm(
        x, torch.ones(channels), torch.ones(channels), groups, 1e-6, None, None, None, True, more
    )


def test_reasons_name_what_is_in_the_way(emulated):
    if not emulated:
        pytest.skip(cuda.why or "needs the emulated kernels")
    assert norm_reason(image(2, 32, 4, 4)) == ""
    assert "channels last" in norm_reason(image(2, 32, 4, 4, form=torch.contiguous_format))
    assert "float64" in norm_reason(image(2, 32, 4, 4, dtype=torch.float64))
    assert "multiples of 8" in norm_reason(image(2, 20, 4, 4))
    assert "12 + 12 channels" in norm_reason(image(2, 12, 4, 4), more=image(2, 12, 4, 4))
    assert "at most 1024" in norm_reason(image(1, 8192, 2, 2), groups=1)
    q = image(2, 64, 4, 4)
    assert cuda.unable_to_attend(q, q, q, 2) == ""
    assert "expected float16 or bfloat16" in cuda.unable_to_attend(q.float(), q, q, 2)
    assert cuda.unable_to_scale(q, 0.5, None, torch.float16, 128) == ""
    assert "dtype is float64" in cuda.unable_to_scale(q, 0.5, None, torch.float64)
    assert "expected fewer than 2**31" in cuda.unable_to_scale(q, 0.5, None, None, 2**27)
    assert "a head has 4 channels" in cuda.unable_to_attend(q, q, q, 16)
    wide = image(1, 512, 2, 2)
    assert "a head has 512 channels" in cuda.unable_to_attend(wide, wide, wide, 1)


def test_the_module_that_runs_on_gpus_refuses_a_cpu(monkeypatch):
    class Built:
        emulated = False

    monkeypatch.setattr(cuda, "module", Built)
    assert cuda.unable(torch.zeros(1)) == "the tensor is on cpu; expected cuda"


def test_an_old_gpu_is_refused_with_its_capability(monkeypatch):
    class Built:
        emulated = False

    monkeypatch.setattr(cuda, "module", Built)
    monkeypatch.setattr(cuda, "_capability", lambda index: (7, 5))
    assert "capability 7.5; expected 8.0" in cuda.unable_on(torch.device("cuda", 0))


def test_without_the_module_the_reason_is_why(monkeypatch):
    monkeypatch.setattr(cuda, "module", None)
    monkeypatch.setattr(cuda, "why", "the CUDA part did not load (gone)")
    x = torch.zeros(1, 1, 1, 1)
    with (
        pytest.raises(ValueError, match=r"cuda was asked for .* did not load \(gone\)"),
        kernels.use("cuda"),
    ):
        kernels.to_uint8(x)


def test_it_never_volunteers_on_a_cpu():
    for op in kernels.OPS:
        assert op.choose(*op.examples(torch.float32, torch.device("cpu"))[0].args).name != "cuda"


def test_a_wrong_number_is_refused_by_the_binding(emulated):
    module = emulated or cuda.module
    if module is None:
        pytest.skip(cuda.why)
    with pytest.raises(ValueError, match="draw is unknown"):
        module.philox(0, 0, 16, 16, 1, 1, 7, 0, 0)
    with pytest.raises(ValueError, match="an address is 0"):
        module.step(0, 0, 16, 0, 0, 1.0, 0.0, 0.0, 1, 1, 1, True, False, 0, 0, 0)
    with pytest.raises(ValueError, match="dtype is 9; expected 0"):
        module.step(16, 0, 16, 0, 0, 1.0, 0.0, 0.0, 1, 1, 1, True, False, 9, 0, 0)
    with pytest.raises(ValueError, match="a step needs a table"):
        module.scale_input(16, 16, 0, 16, 0, 1.0, 1, 3, 1, True, 8, 0, 0, 0, 0)
    with pytest.raises(ValueError, match="fewer channels than x"):
        module.scale_input(16, 16, 0, 0, 0, 1.0, 1, 3, 1, True, 2, 0, 0, 0, 0)
    strides = (16, 8, 8) * 3
    with pytest.raises(ValueError, match="a head has 12 channels; expected a multiple of 8"):
        module.attention_forward(*strides, 16, 16, 1.0, 1, 1, 1, 12, 2, 0, 0)
    with pytest.raises(ValueError, match=r"dtype is 0 \(float32\)"):
        module.attention_forward(*strides, 16, 16, 1.0, 1, 1, 1, 16, 0, 0, 0)
    with pytest.raises(ValueError, match="no multiple of 16"):
        module.attention_forward(8, 8, 8, *strides[3:], 16, 16, 1.0, 1, 1, 1, 16, 2, 0, 0)


def test_the_module_imports_without_torch_and_without_a_driver(tmp_path):
    code = "from kdgen import _cuda; print(_cuda.emulated, _cuda.archs, _cuda.devices())"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    if "No module named" in done.stderr or "cannot import name" in done.stderr:
        pytest.skip("the CUDA kernels are not built here")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("False 80-real")
