from __future__ import annotations

import pytest
import torch

from kdgen.data import Images


def some(n: int = 10, classes: int = 3) -> Images:
    generator = torch.Generator().manual_seed(n)
    pixels = torch.randint(0, 256, (n, 3, 4, 4), generator=generator, dtype=torch.uint8)
    labels = torch.arange(n) % classes if classes else None
    return Images(pixels, labels, classes, "some")


def test_take_maps_0_to_minus_1_and_255_to_1_exactly():
    values = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    x0, label = Images(values, None, 0, "ramp").take(torch.tensor([0]))
    assert label is None
    assert x0.dtype == torch.float32
    assert x0.min() == -1
    assert x0.max() == 1
    assert torch.equal(x0, values / 127.5 - 1)
    assert torch.equal(((x0 + 1) * 127.5).round().to(torch.uint8), values)


def test_take_returns_images_and_labels_in_the_order_asked_for():
    images, index = some(), torch.tensor([7, 0, 7])
    x0, label = images.take(index)
    assert torch.equal(label, torch.tensor([1, 0, 1]))
    assert torch.equal(x0[0], x0[2])
    assert torch.equal(x0[1], images.pixels[0] / 127.5 - 1)


def test_take_leaves_the_pixels_alone():
    images = some()
    before = images.pixels.clone()
    images.take(torch.arange(10))[0].zero_()
    assert torch.equal(images.pixels, before)


def test_take_of_no_images_has_their_shape():
    x0, label = some().take(torch.empty(0, dtype=torch.int64))
    assert x0.shape == (0, 3, 4, 4)
    assert label.shape == (0,)


def test_shape_and_length_and_text():
    images = some(1200)
    assert images.shape == (3, 4, 4)
    assert len(images) == 1200
    assert repr(images) == "some: 1,200 images, 3×4×4, 3 classes"


def test_digest_depends_on_every_pixel_label_and_the_shape_but_not_on_the_name():
    def variant(change) -> str:
        parts = {"pixels": some().pixels, "labels": some().labels, "classes": 3, "name": "some"}
        return Images(**(parts | change)).digest

    pixels, labels = some().pixels.clone(), some().labels.clone()
    pixels[9, 2, 3, 3] ^= 1
    labels[9] = 1
    changes = [
        {"pixels": pixels},
        {"labels": labels},
        {"labels": None, "classes": 0},
        {"classes": 4},
        {"pixels": some().pixels.reshape(10, 3, 2, 8)},
    ]
    digests = [some().digest, *map(variant, changes)]
    assert len(set(digests)) == len(digests)
    assert variant({"name": "other"}) == some().digest


def test_digest_does_not_depend_on_memory_layout():
    images = some()
    strided = Images(
        images.pixels.contiguous(memory_format=torch.channels_last), images.labels, 3, ""
    )
    assert strided.digest == images.digest


def test_split_gives_disjoint_parts_that_cover_everything_and_depend_on_the_seed():
    images = Images(torch.arange(100, dtype=torch.uint8).reshape(100, 1, 1, 1), None, 0, "count")
    first, second = images.split(seed=1, fraction=0.3)
    assert (len(first), len(second)) == (30, 70)
    both = torch.cat([first.pixels, second.pixels]).flatten()
    assert torch.equal(both.sort().values, images.pixels.flatten())
    assert torch.equal(images.split(1, 0.3)[0].pixels, first.pixels)
    assert not torch.equal(images.split(2, 0.3)[0].pixels, first.pixels)


@pytest.mark.parametrize("fraction", [0.0, 1.0, 0.001, -1.0])
def test_split_refuses_an_empty_part(fraction: float):
    with pytest.raises(ValueError, match="fraction"):
        some().split(0, fraction)


def test_subset_keeps_classes_and_names():
    images = Images(some().pixels, some().labels, 3, "some", class_names=("a", "b", "c"))
    part = images.subset(torch.tensor([3, 1]))
    assert torch.equal(part.labels, torch.tensor([0, 1]))
    assert part.class_names == ("a", "b", "c")
    assert part.classes == 3


def test_to_keeps_the_digest():
    images = some()
    assert images.to("cpu").digest == images.digest


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_take_on_the_gpu_gives_the_same_images():
    images, index = some(), torch.tensor([3, 1])
    x0, label = images.to("cuda").take(index)
    expected, labels = images.take(index)
    torch.testing.assert_close(x0.cpu(), expected, rtol=0, atol=2**-23)
    assert torch.equal(label.cpu(), labels)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"pixels": torch.zeros(10, 3, 4, 4)}, "uint8"),
        ({"pixels": torch.zeros(10, 4, 4, dtype=torch.uint8)}, "uint8"),
        ({"labels": torch.zeros(9, dtype=torch.int64)}, "int64"),
        ({"labels": torch.zeros(10)}, "int64"),
        ({"labels": torch.full((10,), 3)}, "0 … 2"),
        ({"labels": torch.full((10,), -1)}, "0 … 2"),
        ({"labels": None}, "labels"),
        ({"class_names": ("a",)}, "names"),
    ],
)
def test_images_refuses_parts_that_do_not_fit(change, word: str):
    parts = {"pixels": some().pixels, "labels": some().labels, "classes": 3, "name": "some"}
    with pytest.raises(ValueError, match=word):
        Images(**(parts | change))
