"""Augmentation that the network is told about: labels say exactly what was done."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import functional as F

from kdgen import noise
from kdgen.data.augment import LABELS, UNIFORMS, augment

# Places of the uniforms.
ACROSS, UP, SCALE, TURN, STRETCH, MOVE = 0, 1, 2, 4, 6, 9
OFF, ON = 0.75, 0.25  # with p = 0.5


def draws(n: int = 8, shape: tuple[int, int, int] = (3, 8, 8)) -> tuple[Tensor, Tensor]:
    index = noise.addresses(0, n)
    return noise.normal(0, 0, index, shape), noise.uniform(0, 1, index, UNIFORMS)


def only(n: int, **values: float) -> Tensor:
    """Uniforms (n, UNIFORMS) with p = 0.5 that do nothing but what is said: `scale`, `right` and
    `down` as normal numbers, `turn` and `axis` as angles, `stretch` as a normal number."""
    u = torch.full((n, UNIFORMS), 0.5, dtype=torch.float64)  # for five deviations: nearly 1
    u[:, [ACROSS, UP, SCALE, TURN, STRETCH, MOVE]] = OFF
    places = {"scale": (SCALE, 3), "stretch": (STRETCH, 8), "right": (MOVE, 10), "down": (MOVE, 11)}
    for name, value in values.items():
        if name in places:
            gate, place = places[name]
            u[:, gate] = ON
            u[:, place] = torch.special.ndtr(torch.tensor(value, dtype=torch.float64))
        else:
            gate, place = {"turn": (TURN, 5), "axis": (STRETCH, 7)}[name]
            u[:, gate] = ON
            u[:, place] = value / (2 * math.pi) + 0.5
    return u


def test_doing_nothing_is_exact_and_labelled_with_zeros():
    x0, _ = draws()
    images, labels = augment(x0, only(8), 0.5)
    assert torch.equal(images, x0)
    assert torch.equal(labels, torch.zeros(8, LABELS))


def test_mirrors_keep_every_bit():
    x0, _ = draws(4)
    u = only(4)
    u[:, ACROSS] = torch.tensor([0.2, 0.8, 0.2, 0.8])
    u[:, UP] = torch.tensor([0.2, 0.2, 0.3, 0.8])  # below p/2, or not
    images, labels = augment(x0, u, 0.5)
    expected = [x0[0].flip(1, 2), x0[1].flip(1), x0[2].flip(2), x0[3]]
    assert torch.equal(images, torch.stack(expected))
    assert torch.equal(labels[:, :2], torch.tensor([[1.0, 1], [0, 1], [1, 0], [0, 0]]))
    assert not labels[:, 2:].any()


def test_without_probability_only_the_mirror_is_left():
    x0, u = draws(256)
    images, labels = augment(x0, u, 0.0)
    mirrored = u[:, ACROSS] < 0.5
    assert torch.equal(images, torch.where(mirrored[:, None, None, None], x0.flip(-1), x0))
    assert torch.equal(labels[:, 0], mirrored.float())
    assert not labels[:, 1:].any()


def test_a_shift_by_whole_pixels_moves_them():
    """One deviation is an eighth of the size: one pixel of eight."""
    x0, _ = draws()
    right, labels = augment(x0, only(8, right=1.0), 0.5)
    torch.testing.assert_close(right[..., 1:], x0[..., :-1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(right[..., 0], x0[..., 0], rtol=1e-4, atol=1e-5)  # reflected
    torch.testing.assert_close(labels, torch.eye(LABELS)[7].expand(8, -1))
    up, labels = augment(x0, only(8, down=-2.0), 0.5)
    torch.testing.assert_close(up[..., :-2, :], x0[..., 2:, :], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(labels, -2 * torch.eye(LABELS)[8].expand(8, -1))


@pytest.mark.parametrize("quarters", [1, -1])
def test_a_quarter_turn_moves_pixels_onto_pixels(quarters: int):
    x0, _ = draws()
    turned, labels = augment(x0, only(8, turn=quarters * math.pi / 2), 0.5)
    expected = torch.rot90(x0, -quarters, (2, 3))  # a positive angle is clockwise
    torch.testing.assert_close(turned, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(labels[:, 3:5], torch.tensor([[-1.0, quarters]]).expand(8, -1))


def test_five_deviations_of_the_scale_double_an_image():
    x0, _ = draws()
    doubled, labels = augment(x0, only(8, scale=5.0), 0.5)
    large = F.interpolate(x0, scale_factor=2, mode="bicubic", align_corners=False)
    torch.testing.assert_close(doubled, large[..., 4:-4, 4:-4], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(labels, 5 * torch.eye(LABELS)[2].expand(8, -1))


def transform(row: Tensor, axis: float, size: tuple[int, int]) -> Tensor:
    """(3, 3) of what the labels of one image say, from pixels of the original to the result's, both
    from the centre; `axis` of the stretch, of which the labels leave two readings."""

    def rotation(angle: float) -> Tensor:
        c, s = math.cos(angle), math.sin(angle)
        return torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1]], dtype=torch.float64)

    def diagonal(x: float, y: float) -> Tensor:
        return torch.diag(torch.tensor([x, y, 1], dtype=torch.float64))

    _, _, n, cosine, sine, along, beside, right, down = row.tolist()
    pull = along * math.cos(axis) + beside * math.sin(axis)
    moved = torch.eye(3, dtype=torch.float64)
    moved[:2, 2] = torch.tensor([right * size[1] / 8, down * size[0] / 8])
    stretched = rotation(axis) @ diagonal(2 ** (0.2 * pull), 2 ** (-0.2 * pull)) @ rotation(-axis)
    return (
        moved
        @ stretched
        @ rotation(math.atan2(sine, cosine + 1))
        @ diagonal(2 ** (0.2 * n), 2 ** (0.2 * n))
    )


@pytest.mark.parametrize("size", [(32, 32), (24, 40)], ids=str)
def test_the_labels_say_where_every_pixel_came_from(size: tuple[int, int]):
    """An image of its own coordinates becomes the image of the inverse transform. Cubic
    convolution with a = −3/4 is off by s(1 − s)(1 − 2s)/2 < 0.0482 pixels on a ramp."""
    height, width = size
    rows, columns = torch.meshgrid(
        torch.arange(height) - (height - 1) / 2,
        torch.arange(width) - (width - 1) / 2,
        indexing="ij",
    )
    x0 = torch.stack([columns, rows])
    _, u = draws(24)
    u[:, [ACROSS, UP]] = OFF
    images, labels = augment(x0.expand(24, -1, -1, -1), u, 0.8)
    assert (labels[:, 2:] != 0).any(0).all()
    grid = torch.stack([columns, rows, torch.ones_like(rows)]).double().flatten(1)
    checked = 0
    for image, row, draw in zip(images, labels, u, strict=True):
        axis = math.pi * (2 * draw[7].item() - 1)
        came = (transform(row, axis, size).inverse() @ grid)[:2]
        edge = torch.tensor([[width / 2 - 2.5], [height / 2 - 2.5]])
        inside = (came.abs() < edge).all(0)
        assert ((image.flatten(1) - came)[:, inside]).abs().max() < 0.049
        checked += int(inside.sum())
    assert checked > 24 * height * width / 4


@pytest.mark.parametrize("p", [0.12, 0.5])
def test_every_operation_is_used_with_its_probability(p: float):
    steps = (torch.arange(4096) + 0.5) / 4096
    u = torch.stack([steps.roll(97 * k * k) for k in range(UNIFORMS)], dim=1)
    _, labels = augment(torch.zeros(4096, 1, 2, 2), u, p)
    shares = (labels != 0).float().mean(0).tolist()
    expected = [0.5, p / 2] + [p] * 7
    assert shares == pytest.approx(expected, abs=2e-3)


def test_each_image_has_its_own_augmentation():
    x0, u = draws(8)
    order = torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])
    for whole, turned in zip(augment(x0, u, 0.9), augment(x0[order], u[order], 0.9), strict=True):
        assert torch.equal(whole[order], turned)


def test_autocast_does_not_move_a_pixel():
    x0, u = draws()
    with torch.autocast("cpu", torch.bfloat16):
        images, labels = augment(x0, u, 0.9)
    assert torch.equal(images, augment(x0, u, 0.9)[0])
    assert torch.equal(labels, augment(x0, u, 0.9)[1])


def test_augment_reads_no_value():
    x0, u = draws()
    with FakeTensorMode() as mode:
        images, labels = augment(mode.from_tensor(x0), mode.from_tensor(u), 0.5)
    assert isinstance(images, FakeTensor)
    assert (images.shape, labels.shape) == (x0.shape, (8, LABELS))
