from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kdgen.data import load
from kdgen.errors import DataError

Picture = Callable[..., bytes]
Folder = Callable[[dict[str, bytes]], Path]


def refusal(path: Path, **options) -> str:
    with pytest.raises(DataError) as caught:
        load(path, **options)
    assert caught.value.exit_code == 3
    text = str(caught.value)
    assert "; expected " in text  # <where>: <what>; expected <what>. <What to do.>
    assert text.endswith(".")
    return text


def array(data: bytes) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(io.BytesIO(data)))).permute(2, 0, 1)


def test_images_are_found_in_all_folders_and_sorted_by_name(picture: Picture, folder: Folder):
    names = ["b.png", "a/c.png", "a/b/z.PNG", "c.bmp"]
    files = {name: picture(k, format=name[-3:].upper()) for k, name in enumerate(names)}
    images = load(folder(files))
    assert images.name == "images"
    assert images.labels is None
    expected = [files[name] for name in ("a/b/z.PNG", "a/c.png", "b.png", "c.bmp")]
    assert torch.equal(images.pixels, torch.stack([array(data) for data in expected]))


def test_one_channel_only_if_all_images_are_grey(picture: Picture, folder: Folder):
    grey = {f"{k:03d}.png": picture(k, mode="L") for k in range(150)}
    path = folder(grey)
    assert load(path).shape == (1, 8, 8)
    alone = load(path).pixels
    (path / "100.png").write_bytes(picture(7))
    mixed = load(path)
    assert mixed.shape == (3, 8, 8)
    for channel in range(3):
        assert torch.equal(mixed.pixels[:100, channel], alone[:100, 0])
        assert torch.equal(mixed.pixels[101:, channel], alone[101:, 0])
    assert torch.equal(mixed.pixels[100], array(picture(7)))


def test_large_images_read_by_threads_keep_their_order(picture: Picture, folder: Folder):
    files = {f"{k:02d}.png": picture(k, 128) for k in range(20)}
    images = load(folder(files))
    assert torch.equal(images.pixels, torch.stack([array(data) for data in files.values()]))


def test_several_top_folders_are_classes_in_the_order_of_their_names(
    picture: Picture, folder: Folder
):
    files = {"dog/1.png": picture(1), "cat/2.png": picture(2), "cat/deep/3.png": picture(3)}
    path = folder(files)
    images = load(path)
    assert images.class_names == ("cat", "dog")
    assert images.labels.tolist() == [0, 0, 1]
    assert load(path, labels=False).labels is None


def test_one_top_folder_and_numbered_folders_are_not_classes(picture: Picture, folder: Folder):
    path = folder({f"0000{k}/img0000{k}000.png": picture(k) for k in range(3)})
    assert load(path).labels is None
    assert load(path / "00001").labels is None


def test_dataset_json_beats_folder_names(picture: Picture, folder: Folder):
    files = {"a/1.png": picture(1), "b/2.png": picture(2)}
    labels = json.dumps({"labels": [["b/2.png", 0], ["a/1.png", 1]]}).encode()
    images = load(folder({**files, "dataset.json": labels}))
    assert images.labels.tolist() == [1, 0]
    assert images.class_names is None


def test_images_beside_class_folders_are_refused(picture: Picture, folder: Folder):
    path = folder({"a/1.png": picture(), "b/1.png": picture(), "stray.png": picture()})
    assert "1 images beside 2 class folders: stray.png" in refusal(path)
    assert len(load(path, labels=False)) == 3


def test_hidden_files_and_other_files_are_not_images(picture: Picture, folder: Folder):
    files = {name: b"x" for name in (".a.png", ".git/b.png", "__MACOSX/c.png", "notes.txt")}
    assert len(load(folder({**files, "a.png": picture()}))) == 1


def test_a_folder_without_images_is_refused(folder: Folder):
    assert "no images" in refusal(folder({"notes.txt": b"x"}))


def test_unreadable_images_are_listed_with_reasons_and_count(picture: Picture, folder: Folder):
    path = folder({f"{k:02d}.png": picture(k) for k in range(30)})
    (path / "03.png").write_bytes(b"")
    (path / "04.png").write_bytes(b"text, really")
    (path / "05.png").write_bytes(picture(5)[:100])
    (path / "scan.tiff").write_bytes(b"II*\x00")
    text = refusal(path)
    assert "4 of 31 images unreadable: 03.png (zero bytes), 04.png (not PNG" in text
    assert "scan.tiff (not PNG" in text


def test_at_most_ten_offenders_are_listed(picture: Picture, folder: Folder):
    text = refusal(folder({f"{k:02d}.png": b"" for k in range(12)}))
    assert text.count("zero bytes") == 10
    assert "and 2 more" in text


def test_skip_bad_leaves_out_one_percent_and_says_so(picture: Picture, folder: Folder):
    files = {f"{'ab'[k % 2]}/{k:03d}.png": picture(k) for k in range(200)}
    path = folder(files)
    (path / "a/100.png").write_bytes(b"")
    (path / "b/101.png").write_bytes(b"text")
    images = load(path, skip_bad=True)
    kept = [name for name in sorted(files) if name not in ("a/100.png", "b/101.png")]
    assert torch.equal(images.pixels, torch.stack([array(files[name]) for name in kept]))
    assert images.labels.tolist() == [int(name[0] == "b") for name in kept]
    assert [name.split(" ")[0] for name in images.skipped] == ["a/100.png", "b/101.png"]


def test_skip_bad_stops_beyond_one_percent(picture: Picture, folder: Folder):
    path = folder({f"{k:03d}.png": picture(k) for k in range(100)})
    for name in ("000.png", "050.png"):
        (path / name).write_bytes(b"")
    assert "at most 1%" in refusal(path, skip_bad=True)


def test_mixed_sizes_are_counted_and_size_unites_them(picture: Picture, folder: Folder):
    files = {f"{k:03d}.png": picture(k) for k in range(70)}
    path = folder({"000.png": picture(0, 16), **files, "wide.png": picture(9, (20, 10))})
    (path / "000.png").write_bytes(picture(0, 16))
    text = refusal(path)
    assert "3 sizes: 8×8: 69 (001.png), 16×16: 1 (000.png), 20×10: 1 (wide.png)" in text
    assert "size=" in text
    assert load(path, size=12).pixels.shape == (71, 3, 12, 12)


@pytest.mark.parametrize("size", [(16, 8), (1, 1), (3, 3)])
def test_oblong_and_tiny_images_are_refused(picture: Picture, folder: Folder, size):
    path = folder({"a.png": picture(0, size), "b.png": picture(1, size)})
    text = refusal(path)
    assert f"{size[0]}×{size[1]} (a.png)" in text
    assert load(path, size=8).shape == (3, 8, 8)


def test_what_does_not_fit_in_memory_is_refused_before_it_is_read(picture: Picture, folder: Folder):
    path = folder({f"{k}.png": picture(k, 64) for k in range(100)})
    assert "need 1.2 MiB; expected at most 1.0 MiB" in refusal(path, max_bytes=1 << 20)
    assert len(load(path, max_bytes=1 << 20, size=32)) == 100


def test_names_from_files_are_printed_safely(picture: Picture, folder: Folder):
    text = refusal(folder({"\x1b[31mred\n.png": b"", f"{'x' * 200}.png": b""}))
    assert text.isprintable()
    assert "x" * 100 not in text


def test_a_pipe_is_not_waited_for_and_a_dead_link_is_named(picture: Picture, folder: Folder):
    path = folder({"a.png": picture()})
    os.mkfifo(path / "pipe.png")
    (path / "link.png").symlink_to(path / "nowhere.png")
    text = refusal(path)
    assert "link.png (No such file or directory), pipe.png (not a regular file)" in text


def test_linked_folders_are_not_followed(picture: Picture, folder: Folder):
    path = folder({"a.png": picture()})
    (path / "loop").symlink_to(path)
    assert len(load(path)) == 1


def test_oversized_files_are_not_read(picture: Picture, folder: Folder):
    path = folder({"a.png": picture()})
    with (path / "b.png").open("wb") as file:
        file.truncate(1 << 30)  # sparse: takes no space
    assert "b.png (1,073,741,824 bytes, limit 67,108,864)" in refusal(path)


def test_one_image_is_a_data_set(picture: Picture, folder: Folder):
    assert len(load(folder({"a.png": picture()}))) == 1


@pytest.mark.parametrize("options", [{"size": 2}, {"size": 10**6}, {"channels": 2}])
def test_wishes_out_of_range_are_argument_mistakes(picture: Picture, folder: Folder, options):
    with pytest.raises(ValueError, match="expected"):
        load(folder({"a.png": picture()}), **options)
