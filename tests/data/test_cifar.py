"""CIFAR-10's own archives, made small, and hostile ones."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from kdgen.data import cifar, load
from kdgen.data.pickles import RefusedPickle, read_batch
from kdgen.errors import DataError

BATCHES = [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]
N = 7


def content(k: int) -> tuple[np.ndarray, list[int]]:
    random = np.random.default_rng(k)
    return random.integers(0, 256, (N, 3072), np.uint8), random.integers(0, 10, N).tolist()


def short(data: bytes) -> bytes:
    return b"U" + bytes([len(data)]) + data


def python2_pickle(rows: np.ndarray, labels: list[int]) -> bytes:
    """What Python 2 wrote (protocol 2, byte strings), as in the published files."""
    array = b"cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85" + short(
        b"b"
    )
    array += b"\x87Rq\x03(K\x01" + b"M" + struct.pack("<H", len(rows)) + b"M\x00\x0c\x86"
    array += b"cnumpy\ndtype\nq\x04" + short(b"u1") + b"K\x00K\x01\x87Rq\x05"
    array += b"(K\x03" + short(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array += b"\x89T" + struct.pack("<i", rows.size) + rows.tobytes() + b"tb"
    listed = b"](" + b"".join(b"K" + bytes([k]) for k in labels) + b"e"
    name = short(b"batch_label") + short(b"training batch")
    return b"\x80\x02}q\x00(" + name + short(b"labels") + listed + short(b"data") + array + b"u."


def python3_pickle(rows: np.ndarray, labels: list[int], protocol: int = 4) -> bytes:
    return pickle.dumps({"data": rows, "labels": labels, "filenames": ["a.png"] * N}, protocol)


def binary(rows: np.ndarray, labels: list[int]) -> bytes:
    return np.concatenate([np.array(labels, np.uint8)[:, None], rows], 1).tobytes()


def tar(path: Path, files: dict[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def python_files() -> dict[str, bytes]:
    files = {name: python2_pickle(*content(k)) for k, name in enumerate(BATCHES)}
    return {f"cifar-10-batches-py/{name}": data for name, data in files.items()}


def binary_files() -> dict[str, bytes]:
    files = {name: binary(*content(k)) for k, name in enumerate(BATCHES)}
    return {f"cifar-10-batches-bin/{name}.bin": data for name, data in files.items()}


def unpacked(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def every_form(root: Path) -> list[Path]:
    (root / "p").mkdir()
    (root / "b").mkdir()
    return [
        tar(root / "cifar-10-python.tar.gz", python_files()),
        tar(root / "cifar-10-binary.tar.gz", binary_files()),
        tar(root / "plain.tar", dict(reversed(binary_files().items())), "w"),
        unpacked(root / "p", python_files()),
        root / "p" / "cifar-10-batches-py",
        unpacked(root / "b", binary_files()),
        root / "b" / "cifar-10-batches-bin",
    ]


@pytest.mark.parametrize(("split", "batches"), [("train", range(5)), ("test", [5])])
def test_every_form_of_the_archive_gives_the_same_images(tmp_path: Path, split: str, batches):
    rows = np.concatenate([content(k)[0] for k in batches]).reshape(-1, 3, 32, 32)
    labels = [label for k in batches for label in content(k)[1]]
    for path in every_form(tmp_path):
        images = load(path, split=split)
        assert torch.equal(images.pixels, torch.from_numpy(rows))
        assert images.labels.tolist() == labels
        assert images.class_names[9] == "truck"
        assert images.name == "cifar10"


def test_cifar10_comes_in_another_size_and_without_labels(tmp_path: Path):
    path = tar(tmp_path / "c.tgz", binary_files())
    images = load(path, size=16, channels=1, labels=False)
    assert images.pixels.shape == (35, 1, 16, 16)
    assert images.labels is None


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("by_column", [False, True])
def test_batches_pickled_anew_are_read(protocol: int, by_column: bool):
    rows, labels = content(0)
    stored = np.asfortranarray(rows) if by_column else rows
    got, known = read_batch(python3_pickle(stored, labels, protocol), 3072)
    assert np.array_equal(got, rows)
    assert known.tolist() == labels


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


def hostile(canary: Path) -> list[bytes]:
    """Batches that would leave a file at canary if they were unpickled the usual way."""
    rows, labels = content(0)
    calls = [
        Call(open, str(canary), "w"),
        Call(os.system, f"touch '{canary}'"),
        Call(eval, f"open({str(canary)!r}, 'w')"),
        Call(exec, f"open({str(canary)!r}, 'w')"),
        Call(subprocess.check_call, ["touch", str(canary)]),
        Call(np.save, str(canary), np.zeros(1)),
    ]
    batches = [{"data": rows, "labels": labels, "filenames": call} for call in calls]
    return [pickle.dumps(batch, protocol) for batch in batches for protocol in (2, 3, 4)]


def test_code_in_a_pickle_never_runs(tmp_path: Path):
    canary = tmp_path / "canary"
    files = hostile(canary)
    for data in files:
        with pytest.raises(RefusedPickle, match="refused: the file asks for"):
            read_batch(data, 3072)
    assert not canary.exists()
    pickle.loads(files[0])
    assert canary.exists()  # so the files do bite


@pytest.mark.parametrize(
    "name",
    ["posix system", "numpy load", "numpy.core.multiarray scalar", "numpy ndarray.tofile",
     "numpy.core.multiarray _reconstruct.__globals__", "_codecs lookup", "builtins getattr"],
)  # fmt: skip
@pytest.mark.parametrize("stacked", [False, True])
def test_only_what_rebuilds_an_array_may_be_named(name: str, stacked: bool):
    module, attribute = name.encode().split(b" ")
    data = b"\x80\x02c" + module + b"\n" + attribute + b"\n."
    if stacked:
        texts = [b"\x8c" + bytes([len(text)]) + text for text in (module, attribute)]
        data = b"\x80\x04" + b"".join(texts) + b"\x93."
    with pytest.raises(RefusedPickle, match="the file asks for " + name.replace(" ", ".")):
        read_batch(data, 3072)


def test_a_hostile_archive_is_refused_with_the_name_it_asks_for(tmp_path: Path):
    files = python_files()
    name = "cifar-10-batches-py/data_batch_2"
    canary = tmp_path / "canary"
    files[name] = pickle.dumps(Call(os.system, f"touch '{canary}'"), 2)
    with pytest.raises(DataError, match=r"data_batch_2: refused: the file asks for posix\.system"):
        load(tar(tmp_path / "c.tar.gz", files))
    assert not canary.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b".",
        b"not a pickle",
        b"\x80\x02" + b"(" * 100,
        b"\x80\x02}r\xff\xff\xff\x7f.",  # memo slot 2³¹ − 1
        b"\x80\x04\x96\xff\xff\xff\xff\x0f\x00\x00\x00.",  # a bytearray of 64 GiB
        b"\x80\x04\x8e\xff\xff\xff\xff\x0f\x00\x00\x00.",  # bytes of 64 GiB
        b"\x80\x02})" + b"\x85" * 1_000_000 + b"K\x01s.",  # a key a million tuples deep
        b"\x80\x02\x8b\xff\xff\xff\x7f.",  # an integer of 2 GiB
        b"\x80\x02]q\x00" + b"h\x00a" * 1000 + b".",  # a list in itself
        b"\x80\x02\x82\x01.",  # an extension code
        b"P1\n.",  # a persistent id
        b"(i__main__\nX\n.",  # an instance
    ],
)
def test_damaged_and_hungry_pickles_are_refused(data: bytes):
    with pytest.raises(RefusedPickle):
        read_batch(data, 3072)


@pytest.mark.parametrize(
    "batch",
    [
        [1, 2],
        {},
        {"data": 3, "labels": [1]},
        {"data": content(0)[0], "labels": [1]},
        {"data": content(0)[0], "labels": [1.5] * N},
        {"data": content(0)[0], "labels": "0123456"},
        {"data": content(0)[0].astype(np.float64), "labels": [1] * N},
        {"data": content(0)[0].astype(np.int8), "labels": [1] * N},
        {"data": content(0)[0][:, :3000], "labels": [1] * N},
        {"data": content(0)[0][0], "labels": [1]},
    ],
)
def test_batches_of_another_shape_are_refused(batch: object):
    with pytest.raises(RefusedPickle):
        read_batch(pickle.dumps(batch, 2), 3072)


@pytest.mark.filterwarnings("ignore:invalid escape sequence")  # from the scan of text opcodes
def test_no_damage_gets_past_as_another_kind_of_error():
    data = python2_pickle(*content(0))
    head = data.index(b"|")  # beyond, there are mostly pixels
    random = np.random.default_rng(2)
    for _ in range(2000):
        spoiled = bytearray(data)
        spoiled[random.integers(head + 60)] = random.integers(256)
        try:
            rows, labels = read_batch(bytes(spoiled), 3072)
        except RefusedPickle:
            continue
        assert rows.shape == (len(labels), 3072)


def test_missing_batches_are_named(tmp_path: Path):
    files = binary_files()
    del files["cifar-10-batches-bin/data_batch_3.bin"], files["cifar-10-batches-bin/test_batch.bin"]
    for path in (tar(tmp_path / "c.tar.gz", files), unpacked(tmp_path / "c", files)):
        with pytest.raises(DataError, match=r"data_batch_3 missing .* train"):
            load(path)
        with pytest.raises(DataError, match="test_batch missing"):
            load(path, split="test")


@pytest.mark.parametrize(("change", "words"), [
    (lambda data: data[:-1], "expected a multiple of 3,073"),
    (lambda data: b"", "0 images"),
    (lambda data: b"\x0a" + data[1:], "expected images with labels 0 … 9"),
])  # fmt: skip
def test_binary_batches_that_do_not_fit_are_refused(tmp_path: Path, change, words: str):
    files = binary_files()
    name = "cifar-10-batches-bin/data_batch_5.bin"
    files[name] = change(files[name])
    with pytest.raises(DataError, match=words) as caught:
        load(tar(tmp_path / "c.tar.gz", files))
    assert "data_batch_5" in str(caught.value)


@pytest.mark.parametrize("cut", [0, 5, 1000, -20])
def test_a_truncated_archive_is_refused(tmp_path: Path, cut: int):
    path = tar(tmp_path / "c.tar.gz", python_files())
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match=r"not a readable tar|missing"):
        load(path, split="test")


def test_an_archive_that_unpacks_without_end_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cifar, "STREAM_BYTES", 1 << 20)
    path = tmp_path / "c.tar.gz"
    member = tarfile.TarInfo("filler")
    member.size = 8 << 20
    path.write_bytes(gzip.compress(member.tobuf() + bytes(member.size)))
    with pytest.raises(DataError, match="unpacks to more than"):
        load(path)


def test_an_oversized_member_is_refused_before_it_is_read(tmp_path: Path):
    member = tarfile.TarInfo("data_batch_1")
    member.size = 1 << 40
    path = tmp_path / "c.tar"
    path.write_bytes(member.tobuf() + bytes(1024))
    with pytest.raises(DataError, match="data_batch_1: 1,099,511,627,776 bytes"):
        load(path)


def test_links_and_paths_in_an_archive_lead_nowhere(tmp_path: Path):
    path = tmp_path / "c.tar"
    with tarfile.open(path, "w") as archive:
        for name in BATCHES:
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(link)
    with pytest.raises(DataError, match="missing"):
        load(path)
    files = {f"../../{name}.bin": binary(*content(k)) for k, name in enumerate(BATCHES)}
    before = sorted(tmp_path.parent.iterdir())
    assert len(load(tar(path, files, "w"))) == 35  # read by name, written nowhere
    assert sorted(tmp_path.parent.iterdir()) == before
