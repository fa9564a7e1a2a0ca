"""Where images go: they come back as they were, or leave no trace."""

from __future__ import annotations

import json
import os
import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from kdgen import data, writers
from kdgen.errors import UsageError
from kdgen.writers import GRID_LIMIT, writer

NAMES = ["grid.png", "array.npz", "archive.zip", "folder"]
every_kind = pytest.mark.parametrize("name", NAMES)


def pictures(n: int = 7, channels: int = 3) -> Tensor:
    r = torch.Generator().manual_seed(n)
    return torch.randint(0, 256, (n, 8, 8, channels), generator=r, dtype=torch.uint8)


def write(path: Path, images: Tensor, labels: Tensor | None = None, parts: int = 3) -> str:
    target = writer(path)
    for k in range(0, len(images), parts):
        target.add(images[k : k + parts], None if labels is None else labels[k : k + parts])
    return target.close()


LABELS = torch.tensor([2, 0, 1, 1, 2, 0, 0])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("labels", [None, LABELS], ids=["plain", "labelled"])
@pytest.mark.parametrize("name", ["archive.zip", "folder"])
def test_what_is_written_can_be_trained_on(
    tmp_path: Path, name: str, labels: Tensor | None, channels: int
):
    said = write(tmp_path / name, pictures(channels=channels), labels)
    assert str(tmp_path / name) in said
    images = data.load(tmp_path / name, progress=False)
    back = images.pixels.permute(0, 2, 3, 1)
    assert torch.equal(back, pictures(channels=channels))
    assert (images.labels is None) == (labels is None)
    if labels is not None:
        assert torch.equal(images.labels, labels)
        assert images.classes == 3


@pytest.mark.parametrize("labels", [None, LABELS], ids=["plain", "labelled"])
def test_an_array_is_openais_layout(tmp_path: Path, labels: Tensor | None):
    write(tmp_path / "a.npz", pictures(), labels)
    with np.load(tmp_path / "a.npz") as file:
        assert set(file) == ({"arr_0"} if labels is None else {"arr_0", "labels"})
        np.testing.assert_array_equal(file["arr_0"], pictures())
        assert file["arr_0"].dtype == np.uint8
        if labels is not None:
            np.testing.assert_array_equal(file["labels"], labels)
            assert file["labels"].dtype == np.int64


def test_a_zip_is_edms_layout(tmp_path: Path):
    write(tmp_path / "a.zip", pictures(), LABELS)
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        entries = archive.infolist()
        assert entries[0].filename == "00000/img00000000.png"
        assert all(e.compress_type == zipfile.ZIP_STORED for e in entries)
        listed = json.loads(archive.read("dataset.json"))["labels"]
        assert listed[0] == ["00000/img00000000.png", 2]
        # What `unzip` makes of it can be read.
        assert all(stat.S_IMODE(e.external_attr >> 16) == 0o644 for e in entries)
    write(tmp_path / "b.zip", pictures())
    with zipfile.ZipFile(tmp_path / "b.zip") as archive:
        assert json.loads(archive.read("dataset.json")) == {"labels": None}


@pytest.mark.parametrize("name", ["array.npz", "archive.zip", "grid.png"])
def test_equal_images_are_equal_bytes_however_they_came(tmp_path: Path, name: str):
    write(tmp_path / "one" / name, pictures(), LABELS, parts=1)
    write(tmp_path / "other" / name, pictures(), LABELS, parts=7)
    assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_shows_every_image(tmp_path: Path, channels: int):
    write(tmp_path / "g.png", pictures(4, channels))
    with Image.open(tmp_path / "g.png") as picture:
        assert picture.mode == {1: "L", 3: "RGB"}[channels]
        seen = np.asarray(picture).reshape(picture.height, picture.width, channels)
    for image in pictures(4, channels):
        corner = image[0, 0].numpy()
        assert (seen == corner).all(-1).any()


def test_a_grid_stops_where_nobody_could_see_more(tmp_path: Path):
    many = torch.zeros(GRID_LIMIT + 5, 1, 1, 1, dtype=torch.uint8)
    assert write(tmp_path / "g.png", many, parts=50).endswith(f"(the first {GRID_LIMIT})")


@every_kind
def test_nothing_is_there_before_close_and_nothing_after_abort(tmp_path: Path, name: str):
    target = writer(tmp_path / name)
    target.add(pictures(), LABELS)
    assert not (tmp_path / name).exists()
    target.abort()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["array.npz", "archive.zip", "folder"])
def test_a_close_that_fails_leaves_nothing(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
):
    target = writer(tmp_path / name)
    target.add(pictures(), LABELS)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        target.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["grid.png", "array.npz"])
def test_nothing_to_write_is_an_error(tmp_path: Path, name: str):
    with pytest.raises(ValueError, match="no images were added"):
        writer(tmp_path / name).close()
    assert list(tmp_path.iterdir()) == []


@every_kind
def test_folders_on_the_way_are_made(tmp_path: Path, name: str):
    write(tmp_path / "new" / "deep" / name, pictures())
    assert (tmp_path / "new" / "deep" / name).exists()


@pytest.mark.parametrize("name", ["grid.png", "array.npz", "archive.zip"])
def test_a_file_is_replaced_whole(tmp_path: Path, name: str):
    write(tmp_path / name, pictures(3))
    before = (tmp_path / name).read_bytes()
    target = writer(tmp_path / name)
    target.add(pictures(5), None)
    assert (tmp_path / name).read_bytes() == before
    target.close()
    assert (tmp_path / name).read_bytes() != before
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_an_empty_folder_is_filled_and_a_full_one_refused(tmp_path: Path):
    (tmp_path / "out").mkdir()
    write(tmp_path / "out", pictures())
    assert len(list((tmp_path / "out").iterdir())) == 7
    with pytest.raises(UsageError, match="expected an empty folder or none"):
        writer(tmp_path / "out")


def test_leftovers_of_a_killed_run_are_replaced(tmp_path: Path):
    for name in ("folder", "archive.zip"):
        writer(tmp_path / name).add(pictures(), None)  # and then the process died
        write(tmp_path / name, pictures(3))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["archive.zip", "folder"]
    assert len(data.load(tmp_path / "folder", progress=False)) == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("samples.jpg", r"ends in .jpg; expected .png, .npz, .zip or a folder name"),
        ("full", "expected an empty folder or none"),
        ("full.png", "is not a file; expected one or none"),
        ("file/samples.png", "expected a place that can be written"),
        ("file", "expected an empty folder or none"),
    ],
)
def test_names_that_cannot_be_written_are_refused(tmp_path: Path, name: str, message: str):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "full.png").mkdir()
    (tmp_path / "file").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match=message):
        writer(tmp_path / name)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(tmp_path: Path):
    tmp_path.chmod(0o500)
    with pytest.raises(UsageError, match="Permission denied"):
        writer(tmp_path / "a.zip")


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_gives_its_pixels_back(tmp_path: Path, channels: int):
    image = pictures(1, channels)[0]
    (tmp_path / "a.png").write_bytes(writers.png(image))
    with Image.open(tmp_path / "a.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture).reshape(8, 8, channels), image)
