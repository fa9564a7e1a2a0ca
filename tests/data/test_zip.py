from __future__ import annotations

import io
import os
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kdgen.data import archive as archives
from kdgen.data import load
from kdgen.errors import DataError

Picture = Callable[..., bytes]
Zipped = Callable[..., Path]


def refusal(path: Path, **options) -> str:
    with pytest.raises(DataError) as caught:
        load(path, **options)
    text = str(caught.value)
    assert text.startswith(str(path))
    assert "; expected " in text
    assert text.isprintable()
    return text


def edm(picture: Picture, n: int = 6) -> dict[str, bytes]:
    return {f"00000/img{k:08d}.png": picture(k) for k in range(n)}


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_and_its_extracted_folder_are_the_same_data(
    picture: Picture, zipped: Zipped, tmp_path: Path, compression: int
):
    files = edm(picture)
    labels = {"labels": [[name, k % 3] for k, name in enumerate(files)], "classes": list("abc")}
    shuffled = dict(sorted(files.items(), reverse=True))  # the order in the zip is of no account
    path = zipped(shuffled, labels, compression)
    images = load(path)
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "out")
    assert images.name == "images"
    assert images.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert images.class_names == ("a", "b", "c")
    assert images.digest == load(tmp_path / "out").digest


@pytest.mark.parametrize("labels", [None, {"labels": None}, {}])
def test_labels_may_be_absent_or_null(picture: Picture, zipped: Zipped, labels):
    images = load(zipped(edm(picture), labels))
    assert images.labels is None
    assert images.classes == 0


def test_labels_false_ignores_even_a_broken_label_file(picture: Picture, zipped: Zipped):
    path = zipped(edm(picture), "{")
    assert "not JSON" in refusal(path)
    assert load(path, labels=False).labels is None


def test_nothing_is_written(picture: Picture, zipped: Zipped, tmp_path: Path):
    path = zipped(edm(picture), {"labels": None})
    before = sorted(os.walk(tmp_path))
    load(path)
    assert sorted(os.walk(tmp_path)) == before


@pytest.mark.parametrize("cut", [0, 1, 100, -1, -30])
def test_a_truncated_zip_is_refused(picture: Picture, zipped: Zipped, cut: int):
    path = zipped(edm(picture))
    path.write_bytes(path.read_bytes()[:cut])
    assert "not a readable zip" in refusal(path)


def test_a_zip_without_images_is_refused(zipped: Zipped):
    path = zipped({"notes.txt": b"x", "inner.zip": b"PK"})
    assert "no images among 2 entries" in refusal(path)


def test_a_wrong_checksum_is_named(picture: Picture, zipped: Zipped):
    path = zipped(edm(picture))
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 20] ^= 1
    path.write_bytes(data)
    assert "1 of 6 images unreadable: 00000/img00000000.png (wrong checksum)" in refusal(path)


def test_a_wrong_checksum_of_the_label_file_is_named(picture: Picture, zipped: Zipped):
    path = zipped(edm(picture), {"labels": None})
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"labels"', b'"lapels"'))
    assert "dataset.json is damaged (wrong checksum)" in refusal(path)


def patched(path: Path, offset: int, value: bytes) -> Path:
    """Overwrites a field of the first entry in the central directory."""
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02") + offset
    data[at : at + len(value)] = value
    path.write_bytes(data)
    return path


def test_encrypted_entries_are_refused(picture: Picture, zipped: Zipped):
    path = patched(zipped(edm(picture)), 8, struct.pack("<H", 1))
    assert "img00000000.png (encrypted)" in refusal(path)


def test_unknown_compression_is_refused(picture: Picture, zipped: Zipped):
    path = patched(zipped(edm(picture)), 10, struct.pack("<H", 14))
    assert "compression other than deflate" in refusal(path)


def test_overlapping_entries_are_refused(picture: Picture, zipped: Zipped):
    path = zipped(edm(picture))
    data = path.read_bytes()
    second = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 4)
    path.write_bytes(data[: second + 42] + struct.pack("<I", 0) + data[second + 46 :])
    assert "overlaps" in refusal(path)


def test_sizes_that_lie_are_refused(picture: Picture, zipped: Zipped):
    refusal(patched(zipped(edm(picture)), 24, struct.pack("<I", 10)))
    refusal(patched(zipped(edm(picture)), 20, struct.pack("<I", 2**31)))


def test_bombs_are_refused_without_being_unpacked(picture: Picture, zipped: Zipped):
    files = {**edm(picture), "bomb.png": bytes(1 << 20)}
    text = refusal(zipped(files, compression=zipfile.ZIP_DEFLATED))
    assert "bomb.png (expands 1,0" in text
    assert ":1, limit 200)" in text


def test_small_flat_images_are_not_bombs(zipped: Zipped):
    out = io.BytesIO()
    Image.new("RGB", (64, 64)).save(out, "BMP")
    path = zipped({"a.bmp": out.getvalue()}, compression=zipfile.ZIP_DEFLATED)
    assert len(load(path)) == 1


def test_entries_over_64_mib_are_refused(picture: Picture, zipped: Zipped):
    path = patched(zipped(edm(picture)), 24, struct.pack("<I", (64 << 20) + 1))
    assert "67,108,865 bytes, limit 67,108,864" in refusal(path)


def test_the_number_of_entries_is_limited(
    picture: Picture, zipped: Zipped, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(archives, "ENTRIES", 5)
    assert "6 entries; expected at most 5" in refusal(zipped(edm(picture)))


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("../x.png", "points outside"),
        ("a/../../x.png", "points outside"),
        ("/etc/x.png", "points outside"),
        ("C:/x.png", "points outside"),
        ("c:x.png", "points outside"),
        ("a\\x.png", "backslash"),
        ("..\\x.png", "backslash"),
        (f"{'x' * 4096}.png", "too long"),
        ("é" * 600 + ".png", "too long"),
        ("00000/IMG00000000.PNG", "same name as"),
    ],
)
def test_names_with_tricks_are_refused(picture: Picture, zipped: Zipped, name: str, fault: str):
    assert fault in refusal(zipped({**edm(picture), name: picture()}))


def test_a_nul_in_a_name_is_refused(picture: Picture, zipped: Zipped):
    path = zipped({**edm(picture), "evil.png#.txt": picture()})
    path.write_bytes(path.read_bytes().replace(b"evil.png#.txt", b"evil.png\0.txt"))
    assert "evil.png\\x00.txt (name with NUL" in refusal(path)


def test_unicode_clashes_are_refused(picture: Picture, zipped: Zipped):
    assert "same name as" in refusal(zipped({"é.png": picture(), "e\u0301.png": picture(1)}))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_doubled_names_are_refused(picture: Picture, zipped: Zipped):
    path = zipped(edm(picture))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("00000/img00000000.png", picture(9))
    assert "same name as" in refusal(path)


def test_links_are_refused(picture: Picture, zipped: Zipped):
    path = zipped(edm(picture))
    link = zipfile.ZipInfo("link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    assert "link.png (symbolic link)" in refusal(path)


def test_folder_entries_and_strangers_are_passed_over(picture: Picture, zipped: Zipped):
    extra = {"00000/": b"", "readme.txt": b"x", "__MACOSX/._a.png": b"x"}
    assert len(load(zipped({**extra, **edm(picture)}))) == 6


def test_no_damage_gets_past_as_another_kind_of_error(picture: Picture, zipped: Zipped):
    path = zipped(edm(picture, 3), {"labels": None}, zipfile.ZIP_DEFLATED)
    good = load(path)
    data = path.read_bytes()
    random = np.random.default_rng(1)
    refused = 0
    for _ in range(300):
        spoiled = bytearray(data)
        spoiled[random.integers(len(data))] ^= 1 << random.integers(8)
        path.write_bytes(spoiled)
        try:
            images = load(path)
        except DataError:
            refused += 1
        else:  # a bit that does not matter, or an entry that is no longer an image by name
            assert all((good.pixels == p).flatten(1).all(1).any() for p in images.pixels)
    assert refused > 200


CIFAR10 = Path(os.environ.get("KDGEN_CIFAR10_ZIP", "unset"))


@pytest.mark.skipif(not CIFAR10.is_file(), reason="no CIFAR-10 zip (KDGEN_CIFAR10_ZIP)")
def test_cifar10_in_the_edm_layout_loads_whole():
    images = load(CIFAR10)
    assert images.pixels.shape == (50_000, 3, 32, 32)
    assert torch.bincount(images.labels).tolist() == [5000] * 10
    assert images.class_names[3] == "cat"
    mean = images.pixels.double().mean((0, 2, 3)) / 255
    torch.testing.assert_close(
        mean, torch.tensor([0.4914, 0.4822, 0.4465]).double(), rtol=0, atol=2e-3
    )
