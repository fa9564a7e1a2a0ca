from __future__ import annotations

import hashlib

import numpy as np
import torch

from kdgen.data import load
from kdgen.data.digits import FILE


def test_digits_are_the_uci_test_split():
    images = load("digits")
    assert images.shape == (1, 8, 8)
    assert torch.bincount(images.labels).tolist() == [
        178,
        182,
        177,
        183,
        181,
        182,
        181,
        179,
        174,
        180,
    ]
    assert images.classes == 10
    assert images.class_names == tuple("0123456789")


def test_the_asset_holds_what_its_attribution_says():
    with np.load(FILE, allow_pickle=False) as file:
        content = file["images"].tobytes() + file["labels"].tobytes()
    digest = hashlib.sha256(content).hexdigest()
    assert digest == "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"
    notes = FILE.with_suffix(".md").read_text(encoding="utf-8")
    for fact in (digest, "10.24432/C50P49", "CC BY 4.0", "Alpaydin", "Kaynak"):
        assert fact in notes


def test_the_asset_is_at_most_100_kilobytes():
    assert FILE.stat().st_size <= 100_000


def test_ink_is_scaled_to_0_to_255_and_rounded():
    with np.load(FILE, allow_pickle=False) as file:
        ink = file["images"].astype(float)
    expected = np.floor(ink * 255 / 16 + 0.5)
    assert np.array_equal(load("digits").pixels[:, 0].numpy(), expected)


def test_digits_are_the_same_everywhere():
    assert load("digits").digest == (
        "a4d4c160ae09c08470482f1c3fe7388cf342044ded16637981a75d9a48f832a4"
    )


def test_digits_come_in_another_size_with_three_channels_or_without_labels():
    images = load("digits", size=16, channels=3, labels=False)
    assert images.shape == (3, 16, 16)
    assert images.labels is None
    assert torch.equal(images.pixels[:, 0], images.pixels[:, 2])
    assert torch.equal(load("digits", channels=3).pixels[:, 1:2], load("digits").pixels)
