"""Grids: every image at its place, enlarged exactly, the same bytes every time."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from kdgen.grid import grid, png, save_png, side_by_side


@pytest.fixture
def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (7, 8, 8, 1), generator=generator).to(torch.uint8)


def test_every_pixel_is_enlarged_to_a_square_at_its_place(images):
    picture = np.asarray(grid(images, columns=3, scale=4, pad=2))
    for i in range(7):
        top, left = 2 + (i // 3) * 34, 2 + (i % 3) * 34
        cell = picture[top : top + 32, left : left + 32]
        assert (cell == np.kron(images[i, :, :, 0].numpy(), np.ones((4, 4)))).all()


def test_what_no_image_covers_is_background(images):
    picture = np.asarray(grid(images[:1] * 0, scale=1, pad=3, background=200))
    assert picture.shape == (14, 14)
    assert (picture == 200).sum() == 14 * 14 - 64


def test_channels_first_and_last_give_the_same_grid():
    x = torch.arange(2 * 3 * 8 * 8).remainder(256).to(torch.uint8).view(2, 3, 8, 8)
    assert png(grid(x)) == png(grid(x.permute(0, 2, 3, 1)))
    assert grid(x).mode == "RGB"


def test_small_images_become_visible_and_large_ones_stay(images):
    assert grid(images[:1], pad=0).size == (48, 48)
    assert grid(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), pad=0).size == (64, 64)


def test_the_png_decodes_to_the_same_pixels_and_the_bytes_repeat(images):
    picture = grid(images)
    content = png(picture)
    assert content == png(grid(images))
    assert (np.asarray(Image.open(io.BytesIO(content))) == np.asarray(picture)).all()


def test_saving_replaces_the_file_and_leaves_nothing_else(images, tmp_path):
    path = tmp_path / "new" / "grid.png"
    save_png(grid(images), path)
    save_png(grid(255 - images), path)
    assert path.read_bytes() == png(grid(255 - images))
    assert [p.name for p in path.parent.iterdir()] == ["grid.png"]


def test_a_failed_save_keeps_the_old_file(images, tmp_path, monkeypatch):
    path = tmp_path / "grid.png"
    save_png(grid(images), path)
    before = path.read_bytes()

    def full(fd, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.write", full)
    with pytest.raises(OSError, match="No space"):
        save_png(grid(255 - images), path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["grid.png"]


def test_titled_panels_stand_side_by_side_with_their_images_aligned(images):
    picture = side_by_side({"teacher": images, "student, one step": images}, columns=4, scale=6)
    single = np.asarray(grid(images, columns=4, scale=6).convert("RGB"))
    pixels = np.asarray(picture)
    panels = pixels[-single.shape[0] :]
    left, right = panels[:, : single.shape[1]], panels[:, -single.shape[1] :]
    assert (left == single).all()
    assert (right == single).all()
    assert (pixels[: -single.shape[0]] < 128).any(), "no title was drawn"


@pytest.mark.parametrize(
    "bad",
    [
        torch.zeros(2, 8, 8, 1),
        torch.zeros(0, 1, 8, 8, dtype=torch.uint8),
        torch.zeros(2, 8, 8, dtype=torch.uint8),
        torch.zeros(2, 4, 8, 8, dtype=torch.uint8),
    ],
    ids=["float", "no images", "three dimensions", "four channels"],
)
def test_what_is_not_a_set_of_uint8_images_is_refused(bad):
    with pytest.raises(ValueError, match="expected uint8"):
        grid(bad)


def test_panels_of_different_length_are_refused(images):
    with pytest.raises(ValueError, match="equal numbers"):
        side_by_side({"a": images, "b": images[:3]})
