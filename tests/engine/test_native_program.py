"""`Program` as a whole: buffers, rows, memory, and what it refuses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from one_op import (
    BFLOAT16,
    DTYPES,
    FLOAT32,
    ISAS,
    OneOp,
    integers,
    needs_native,
    normal,
    numbers,
    per_other_isa,
    per_storage,
    refused,
    same_bits,
    stored,
)

from kdgen.kernels import native

pytestmark = needs_native


def program(isa: str = "", guarded: bool = True) -> Any:
    return native.module.Program(isa=isa, guarded=guarded)


def identity() -> torch.Tensor:
    return torch.eye(16)


def chain(
    isa: str, steps: int, n: int = 3, rows: int = 1, guarded: bool = True
) -> tuple[OneOp, torch.Tensor]:
    """Layers after one another, each reading the last two buffers, and what comes of integers."""
    op = OneOp(isa, FLOAT32, guarded=guarded, x=integers(n, 16, 5, 6, seed=0, most=8))
    last, before = op.at["x"], op.at["x"]
    chosen = numbers(n, rows)
    want = [op.parts["x"].double()] * 2
    for k in range(steps):
        y = op.buffer(16, 5, 6)
        bias = torch.arange(rows * 16.0).view(rows, 16) + k
        op.convolve(y, identity(), bias, x=last, residual=before, kernel=1, scale=0.5)
        last, before = y, last
        shift = bias[[0] * n if chosen is None else chosen.tolist()][:, :, None, None]
        want.append((want[-1] + shift + want[-2]) * 0.5)
    return op.answer(last, 16, 5, 6), want[-1]


@pytest.mark.parametrize("isa", ISAS)
def test_it_says_on_what_it_runs(isa):
    made = program(isa)
    assert made.isa == isa
    assert made.fast_bf16 == (isa == "avx512_bf16")
    assert made.fast_int8 == (isa in ("avx512_vnni", "avx512_bf16"))
    assert program().isa in ISAS


def test_an_unknown_instruction_set_is_refused():
    with pytest.raises(ValueError, match=r"'sse9'; expected one of .*baseline"):
        program("sse9")


@per_other_isa
@per_storage
def test_what_goes_in_comes_out(isa, storage):
    for size in [(1, 1), (5, 7)]:
        for channels in (1, 3, 16, 37):
            op = OneOp(isa, storage, x=normal(3, channels, *size, seed=1))
            y = op.answer(op.at["x"], channels, *size).run(threads=2)
            assert torch.equal(y, op.parts["x"])


@per_other_isa
@per_storage
def test_channels_beyond_those_of_the_images_are_zero(isa, storage):
    made, x, out = program(isa), normal(2, 4, 3, 5, seed=0), torch.full((2, 4, 3, 16), math.nan)
    buffer = made.buffer(4, 3, 16, storage)
    made.input(buffer, 5)
    made.output(buffer, 16)
    made.run(x.data_ptr(), 0, out.data_ptr(), 2, 1)
    assert torch.equal(out[..., :5], stored(x, storage))
    assert not out[..., 5:].any()


@per_other_isa
def test_bfloat16_is_rounded_to_even_and_keeps_what_is_not_finite(isa):
    bits = torch.arange(0, 2**16, dtype=torch.int64) << 16
    halves = torch.cat([bits + 0x7FFF, bits + 0x8000, bits + 0x8001, bits])
    values = halves.to(torch.int32).view(torch.float32).view(1, 1, 512, 512)
    # The instruction for it takes numbers below the least normal one for zero.
    values = torch.where(values.abs() < 2.0**-126, 0.0, values)
    op = OneOp(isa, BFLOAT16, x=torch.zeros(1, 1, 512, 512))
    y = op.answer(op.at["x"], 1, 512, 512).run(values.permute(0, 2, 3, 1))
    want = values.bfloat16().float()
    assert torch.equal(y.isnan(), want.isnan())
    assert torch.equal(y[~y.isnan()], want[~y.isnan()])


@per_other_isa
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("guarded", [False, True])
def test_many_layers_share_their_memory_without_harm(isa, rows, guarded):
    """More buffers than are ever needed at once: each is read after others have been written."""
    op, want = chain(isa, steps=9, rows=rows, guarded=guarded)
    assert torch.equal(op.run(rows=numbers(3, rows)).double(), want)
    same_bits(op, numbers(3, rows))


@per_other_isa
def test_a_program_runs_again_with_another_batch(isa):
    op, want = chain(isa, steps=3, n=5)
    for n, threads in [(1, 1), (5, 3), (2, 2), (5, 1)]:
        y = op.run(op.images[:n], threads=threads)
        assert torch.equal(y.double(), want[:n])


def test_memory_is_planned_from_first_write_to_last_read():
    """A longer chain needs no more of it. Bands are apart, so without them."""
    short, long = (chain("", steps, guarded=False)[0].program for steps in (6, 30))
    assert 0 < short.workspace(1, 1) == long.workspace(1, 1)
    assert short.workspace(1, 1) >= 3 * 5 * 6 * 16 * 4  # a layer's two inputs and its answer


@per_other_isa
def test_no_images_are_no_work(isa):
    op, _ = chain(isa, steps=2, n=0)
    assert op.run().shape == (0, 16, 5, 6)
    op.program.run(0, 0, 0, 0, 1)


def test_weights_are_packed_by_the_call():
    """The tensors may go, or change, after it."""
    op = OneOp("", FLOAT32, x=integers(1, 16, 4, 4, seed=0))
    y, weight, bias = op.buffer(16, 4, 4), identity(), torch.zeros(1, 16)
    before = op.program.packed
    op.convolve(y, weight, bias, x=op.at["x"], kernel=1)
    assert op.program.packed >= before + weight.numel() * 4
    weight.fill_(math.nan)
    bias.fill_(math.nan)
    assert torch.equal(op.answer(y, 16, 4, 4).run(), op.parts["x"])


def test_a_profile_names_every_step():
    op, _ = chain("", steps=4)
    out = torch.empty(3, 5, 6, 16)
    found = op.program.profile(op.images.data_ptr(), 0, out.data_ptr(), 3)
    assert [name for name, _ in found].count("layer") == 4
    assert all(seconds >= 0 for _, seconds in found)
    assert torch.equal(out.permute(0, 3, 1, 2), op.run())  # and it computes what a run computes


# ---- what is wrong --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong", [(0, 4, 16, 0), (4, -1, 16, 0), (4, 4, 0, 0), (4, 4, 17, 0), (4, 4, 16, 1)], ids=str
)
def test_a_buffer_that_cannot_be_is_refused(wrong):
    with refused("buffer"):
        program().buffer(*wrong)


def test_an_input_or_output_that_cannot_be_is_refused():
    made = program()
    buffer = made.buffer(4, 4, 16, FLOAT32)
    for where, call in (("input", made.input), ("output", made.output)):
        for wrong in [(99, 3), (-1, 3), (buffer, 0), (buffer, 17)]:
            with refused(where):
                call(*wrong)
    with refused("output"):
        made.output(buffer, 3)  # nobody has written it
    made.input(buffer, 3)
    with refused("input"):
        made.input(buffer, 3)


def test_a_run_that_cannot_be_is_refused():
    op, _ = chain("", steps=1, rows=3)
    images, out = op.images, torch.zeros(3, 5, 6, 16)
    rows = torch.zeros(3, dtype=torch.int32)
    good = {"images": images.data_ptr(), "rows": rows.data_ptr(), "out": out.data_ptr()}
    good |= {"n": 3, "threads": 1}
    for wrong in [{"images": 0}, {"rows": 0}, {"out": 0}, {"n": -1}, {"threads": 0}]:
        with refused("run"):
            op.program.run(*(good | wrong).values())
    for number in (3, -1):  # beside a table of three rows
        rows[1] = number
        with refused("run"):
            op.program.run(*good.values())
    assert not out.any()
    rows.fill_(2)
    op.program.run(*good.values())
    assert out.any()


def test_a_program_without_input_or_output_is_refused():
    made, room = program(), torch.zeros(4 * 4 * 16)
    arguments = (room.data_ptr(), 0, room.data_ptr(), 1, 1)
    with refused("run"):
        made.run(*arguments)
    made.input(made.buffer(4, 4, 16, FLOAT32), 16)
    with refused("run"):
        made.run(*arguments)


# ---- sizes beyond 32 bits -------------------------------------------------------------------


def huge(side: int, storage: int = FLOAT32) -> Any:
    """A layer from one buffer to another, nothing of which is allocated."""
    made = program(guarded=False)
    x, y = (made.buffer(side, side, 16, storage) for _ in range(2))
    made.input(x, 16)
    weight, bias = torch.zeros(16, 16, 3, 3), torch.zeros(1, 16)
    where = (weight.data_ptr(), bias.data_ptr())
    made.convolve("layer", x, -1, -1, y, *where, 1, 3, 1, 1, "direct", storage, 1.0)
    made.output(y, 16)
    return made


@pytest.mark.parametrize("side", [5_000, 40_000, 10_000_000])
@pytest.mark.parametrize("n", [1, 3, 2**40])
def test_the_memory_of_a_huge_image_is_counted_or_refused(side, n):
    """Both buffers live at once, so that is the least; a number that wrapped around is less."""
    least = 2 * side * side * 16 * 4
    assert least > 2**31
    try:
        found = huge(side).workspace(n, 1)
    except ValueError as error:
        assert "expected" in str(error)  # noqa: PT017
    else:
        assert found >= least


@pytest.mark.parametrize("side", [2**31 - 1, 2**40])
def test_an_image_that_no_memory_could_hold_is_refused(side):
    with pytest.raises((ValueError, TypeError)):
        huge(side).workspace(1, 1)


def available() -> int:
    """Bytes of memory that can be had."""
    with open("/proc/meminfo") as file:
        found = dict(line.split(":") for line in file)
    return int(found["MemAvailable"].split()[0]) * 1024


@pytest.mark.slow
def test_images_beyond_two_billion_values_are_right():
    """Zeros that nobody wrote take no memory; the last image is written, and alone it is small."""
    if not Path("/proc/meminfo").exists() or available() < 4 * 2**30:
        pytest.skip("needs 4 GiB of memory")
    channels, side, n = 64, 128, 2_100
    made = program(guarded=False)
    x, y = made.buffer(side, side, 64, FLOAT32), made.buffer(side, side, 16, FLOAT32)
    made.input(x, channels)
    weight, bias = torch.ones(16, channels), torch.zeros(1, 16)
    where = (weight.data_ptr(), bias.data_ptr())
    made.convolve("layer", x, -1, -1, y, *where, 1, 1, 1, 0, "direct", FLOAT32, 1.0)
    made.output(y, 1)
    images = torch.zeros(n, side, side, channels)
    images[-1] = normal(side, side, channels, seed=0)
    assert images.numel() > 2**31
    many, alone = torch.empty(n, side, side), torch.empty(1, side, side)
    made.run(images.data_ptr(), 0, many.data_ptr(), n, torch.get_num_threads())
    made.run(images[-1:].data_ptr(), 0, alone.data_ptr(), 1, 1)
    assert torch.equal(many[-1:], alone)
    assert float(alone.std()) > 1
    assert not many[:-1].any()


@per_other_isa
@per_storage
def test_a_call_reads_an_image_and_writes_an_image(isa, storage):
    op = OneOp(isa, storage, x=integers(5, 20, 3, 4, seed=0))
    y = op.buffer(20, 3, 4)

    def doubled(read: memoryview, written: memoryview) -> None:
        x, room = (torch.frombuffer(m, dtype=DTYPES[storage]) for m in (read, written))
        assert len(x) == len(room) == 3 * 4 * 32
        room.copy_(2 * x)

    op.program.call("call", op.at["x"], y, doubled)
    op.answer(y, 20, 3, 4)
    for threads in (1, 2, 3):
        assert torch.equal(op.run(threads=threads), 2 * op.parts["x"])
    same_bits(op)


@pytest.mark.parametrize(("x", "y"), [(-1, 1), (0, -1), (0, 7), (1, 0), (0, 0)])
def test_a_call_needs_a_buffer_that_is_written_and_another(x, y):
    op = OneOp("", FLOAT32, x=integers(1, 16, 3, 4, seed=0))
    op.buffer(16, 3, 4)
    with refused("call"):
        op.program.call("call", x, y, lambda read, written: None)
