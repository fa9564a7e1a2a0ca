"""Noise by address: the published vectors, the same bits everywhere, normals that are normal."""

from __future__ import annotations

import math

import pytest
import torch

from kdgen import kernels
from kdgen.kernels import philox_normal, philox_uint32, philox_uniform

ALL = ["reference", "native", "triton"]
ONES = 2**32 - 1
# Random123's known answers for Philox4x32-10: counter, key, words.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
per_backend = pytest.mark.parametrize("backend", ALL)


def signed(v: int) -> int:
    return v - 2**64 if v >= 2**63 else v


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_the_rounds_give_the_published_words(counter, key, words):
    from kdgen.kernels.philox import rounds

    got = rounds(tuple(torch.tensor(c) for c in counter), key)
    assert tuple(int(w) for w in got) == words


@per_backend
@pytest.mark.parametrize(("counter", "key", "words"), KNOWN[:1])
def test_the_zero_address_gives_the_published_words(backend, counter, key, words, need):
    args = (0, 0, torch.tensor([0]), 4)
    need(philox_uint32, backend, args)
    with kernels.use(backend):
        assert tuple(philox_uint32(*args)[0].tolist()) == words


@per_backend
def test_key_index_and_stream_reach_their_words_of_the_counter(backend, need):
    """Built from the rounds, which the published vectors pin, with every word different."""
    from kdgen.kernels.philox import rounds

    low, high, stream, key = 0x85A308D3, 0x93198A2E, 0x83707344, (0xA4093822, 0xA99F31D0)
    index, seed = torch.tensor([signed(low | high << 32)]), key[0] | key[1] << 32
    need(philox_uint32, backend, (seed, stream, index, 12))
    with kernels.use(backend):
        got = philox_uint32(seed, stream, index, 12).view(3, 4)
    for quad in range(3):
        counter = tuple(torch.tensor(c) for c in (quad, low, high, stream))
        assert got[quad].tolist() == [int(w) for w in rounds(counter, key)]


@pytest.mark.parametrize("backend", ["native", "triton"])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 255, 256, 257, 1030])
def test_words_and_uniforms_are_bit_equal_on_every_backend(backend, size, need):
    args = (2**63 + 12345, 7, torch.tensor([0, 3, -1, 2**40]), size)
    for op in (philox_uint32, philox_uniform):
        need(op, backend, args)
        with kernels.use(backend):
            assert torch.equal(op(*args), op.reference(*args))


def ulps(a, b):
    """Distance in float32 steps."""

    def rank(v):
        bits = v.view(torch.int32).long()
        return torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits)

    return int((rank(a) - rank(b)).abs().max())


@pytest.mark.parametrize("backend", ["native", "triton"])
def test_normals_agree_within_two_ulp(backend, need):
    args = (9, 3, torch.arange(200), 1001)
    need(philox_normal, backend, args)
    with kernels.use(backend):
        assert ulps(philox_normal(*args), philox_normal.reference(*args)) <= 2


def test_the_definition_keeps_its_digits_at_the_corners_of_the_word():
    """Words next to 0 and 2³², where a logarithm loses digits first."""
    words = torch.tensor([0, 1, 2, 2**30 - 1, 2**30, 2**31 - 1, 2**31, 3 * 2**30, ONES - 1, ONES])
    exact = [math.sqrt(-2 * math.log1p(-((2**32 - w - 0.5) / 2**32))) for w in words.tolist()]
    u = (words.double() + 0.5) * 2**-32
    got = (-2 * u.log()).sqrt()
    torch.testing.assert_close(got, torch.tensor(exact, dtype=torch.float64), rtol=1e-9, atol=0)


@per_backend
def test_normals_have_the_moments_of_a_normal(backend, need):
    n = 1000 if backend != "triton" else 250
    args = (1, 2, torch.arange(n), 1000)
    need(philox_normal, backend, args)
    with kernels.use(backend):
        z = philox_normal(*args).double().flatten()
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (6, 15, 10170)):
        spread = math.sqrt(variance / z.numel())
        assert abs(float((z**power).mean()) - moment) < 4 * spread, power
    pairs = z.view(-1, 2)
    assert abs(float((pairs[:, 0] * pairs[:, 1]).mean())) < 4 / math.sqrt(len(pairs))
    assert 3.9 < float(z.abs().max()) < 6.7  # √(-2 ln 2⁻³³) bounds it


def test_uniforms_fill_the_open_interval_evenly():
    u = philox_uniform(3, 0, torch.arange(100), 10_000).double()
    assert 0 < float(u.min()) < 1e-5
    assert 1 - 1e-5 < float(u.max()) < 1
    counts = torch.histc(u.float(), 64, 0, 1)
    chi = float(((counts - 15625) ** 2 / 15625).sum())
    assert chi < 63 + 4 * math.sqrt(2 * 63)


def test_the_last_uniform_is_below_one(monkeypatch):
    """Word 2³² - 1 rounds up to 1 when it is scaled carelessly."""
    from kdgen.kernels import philox

    monkeypatch.setattr(philox, "words_reference", lambda *_: torch.tensor([[0, ONES]]))
    u = philox.uniform_reference(0, 0, torch.tensor([0]), 2)
    assert 0 < u[0, 0] < u[0, 1] < 1


@per_backend
def test_a_value_depends_on_its_address_only(backend, need):
    index = torch.tensor([5, 2**33, 9])
    need(philox_normal, backend, (1, 2, index, 50))
    with kernels.use(backend):
        z = philox_normal(1, 2, index, 50)
        assert torch.equal(philox_normal(1, 2, index.flip(0), 50), z.flip(0))
        assert torch.equal(philox_normal(1, 2, index[1:2], 33), z[1:2, :33])
        assert torch.equal(philox_normal(1, 2, torch.stack([index, index], 1)[:, 0], 50), z)


@pytest.mark.parametrize(
    "other", [(1, 3, 7), (2, 2, 7), (1, 2, 8), (1 + 2**32, 2, 7), (1, 2, 7 + 2**32)]
)
def test_every_part_of_the_address_counts(other):
    seed, stream, index = other
    here = philox_uint32(1, 2, torch.tensor([7]), 64)
    there = philox_uint32(seed, stream, torch.tensor([index]), 64)
    assert not bool((here == there).any())


def test_threads_do_not_change_a_bit(need):
    args = (1, 2, torch.arange(7), 5000)
    need(philox_normal, "native", args)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(philox_normal(*args))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], r) for r in results)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((-1, 0, torch.tensor([0]), 4), r"seed is -1; expected 0 <= seed < 2\*\*64"),
        ((2**64, 0, torch.tensor([0]), 4), "seed is 18446744073709551616"),
        ((0, 2**32, torch.tensor([0]), 4), "stream is 4294967296"),
        ((0, 0, torch.tensor([0]), -4), "size is -4"),
        ((0, 0, torch.tensor([0.0]), 4), "index has dtype float32; expected int64"),
        ((0, 0, torch.tensor(0), 4), r"index has shape \(\); expected \(n,\)"),
        ((0, 0, 3, 4), "index is a int; expected a tensor"),
    ],
)
def test_a_wrong_argument_is_named(args, message):
    with pytest.raises(ValueError, match=rf"^philox_normal: .*{message}"):
        philox_normal(*args)
