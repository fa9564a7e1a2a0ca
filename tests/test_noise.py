"""Addresses: what is drawn depends on where, not on when or with whom."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdgen import noise
from kdgen.noise import Stream

SHAPE = (2, 3, 5)
seeds = st.integers(0, 2**64 - 1)


@given(seed=seeds, first=st.integers(0, 2**40), cut=st.integers(0, 7))
def test_a_batch_is_its_parts_put_together(seed: int, first: int, cut: int):
    index = noise.addresses(first, 7)
    whole = noise.normal(seed, Stream.SAMPLE, index, SHAPE)
    parts = [noise.normal(seed, Stream.SAMPLE, part, SHAPE) for part in (index[:cut], index[cut:])]
    assert torch.equal(whole, torch.cat(parts))


@given(seed=seeds)
def test_an_image_does_not_depend_on_its_place(seed: int):
    index = torch.tensor([5, 1, 1, 9])
    drawn = noise.normal(seed, Stream.PAIR_Z, index, SHAPE)
    assert torch.equal(drawn[[3, 0]], noise.normal(seed, Stream.PAIR_Z, index[[3, 0]], SHAPE))
    assert torch.equal(drawn[1], drawn[2])


def test_streams_and_seeds_are_independent():
    index = noise.addresses(0, 256)
    draws = [
        noise.normal(seed, stream, index, (64,)).flatten()
        for seed, stream in ((0, 0), (0, 1), (1, 0), (2**32, 0))
    ]
    correlations = torch.corrcoef(torch.stack(draws)) - torch.eye(4)
    assert correlations.abs().max() < 5 / 128  # five standard deviations of 256·64 draws


def test_every_purpose_has_its_own_stream():
    assert len({int(s) for s in Stream}) == len(Stream.__members__)
    assert max(s for s in Stream if s != Stream.CHURN) < Stream.CHURN


def test_normals_have_the_shape_and_the_moments_of_normals():
    x = noise.normal(3, Stream.TRAIN_EPS, noise.addresses(0, 500), SHAPE)
    assert x.shape == (500, *SHAPE)
    assert x.dtype == torch.float32
    assert abs(x.mean()) < 0.04
    assert x.std() == pytest.approx(1, abs=0.03)


@given(seed=seeds, count=st.integers(1, 1000))
def test_classes_are_classes(seed: int, count: int):
    drawn = noise.classes(seed, Stream.LABEL, noise.addresses(0, 200), count)
    assert drawn.dtype == torch.int64
    assert drawn.min() >= 0
    assert drawn.max() < count


def test_every_class_is_drawn_about_as_often():
    drawn = noise.classes(0, Stream.LABEL, noise.addresses(0, 10_000), 10)
    assert drawn.bincount(minlength=10).min() > 850  # five standard deviations below 1000


def test_uniforms_are_strictly_inside():
    u = noise.uniform(0, Stream.TRAIN_U, noise.addresses(0, 5000), 4)
    assert u.shape == (5000, 4)
    assert u.min() > 0
    assert u.max() < 1


def test_no_address_gives_no_noise():
    assert noise.normal(0, 0, noise.addresses(0, 0), SHAPE).shape == (0, *SHAPE)


def test_addresses_count_from_the_first():
    assert noise.addresses(2**33, 3).tolist() == [2**33, 2**33 + 1, 2**33 + 2]
