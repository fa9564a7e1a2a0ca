"""CIFAR-10 as its authors publish it: the python and the binary archive, packed or unpacked."""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from kdgen.data.images import Images
from kdgen.data.offenders import listing, quoted
from kdgen.data.pickles import RefusedPickle, read_batch
from kdgen.errors import DataError

Split = Literal["train", "test"]
FILES: Mapping[str, tuple[str, ...]] = {
    "train": tuple(f"data_batch_{k}" for k in range(1, 6)),
    "test": ("test_batch",),
}
FOLDERS = (".", "cifar-10-batches-py", "cifar-10-batches-bin")
CLASS_NAMES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
PIXELS = 3 * 32 * 32  # a row: red, green, blue planes
FILE_BYTES = 64 << 20  # a real batch has 31 MB
STREAM_BYTES = 256 << 20  # the real archive unpacks to 186 MB
EXPECTED = "expected CIFAR-10's python or binary archive"
AGAIN = "Fetch the archive again."


def find_cifar10(path: Path) -> Path | None:
    """The folder that holds the batches: path itself or the archive's folder in it."""
    for folder in FOLDERS:
        for name in (*FILES["train"], *FILES["test"]):
            if (path / folder / name).is_file() or (path / folder / f"{name}.bin").is_file():
                return path / folder
    return None


def load_cifar10(path: Path, split: Split) -> Images:
    """path: a .tar or .tar.gz, or the folder with the batches. Pickles in it are never run."""
    where = str(path)
    files = _from_folder(path, split) if path.is_dir() else _from_archive(path, split)
    missing = [name for name in FILES[split] if name not in files]
    if missing:
        raise DataError(
            f"{where}: {listing(missing)} missing from CIFAR-10's {split} split; "
            f"{EXPECTED}, complete. {AGAIN}"
        )
    parts = [_parse(f"{where}: {name}", *files[name]) for name in FILES[split]]
    pixels, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Images(
        torch.from_numpy(pixels), torch.from_numpy(labels), 10, "cifar10", class_names=CLASS_NAMES
    )


Files = dict[str, tuple[bool, bytes]]  # batch name: binary or python, content


def _from_folder(folder: Path, split: Split) -> Files:
    files: Files = {}
    for name in FILES[split]:
        for binary, file in ((False, folder / name), (True, folder / f"{name}.bin")):
            if file.is_file():
                _check_size(str(file), file.stat().st_size)
                files[name] = binary, _read(file)
                break
    return files


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(
            f"{file}: {error.strerror}; expected a readable file. Check its permissions."
        ) from None


def _from_archive(path: Path, split: Split) -> Files:
    """Reads the batches out of the archive, in memory; nothing is extracted."""
    files: Files = {}
    try:
        with path.open("rb") as raw, tarfile.open(fileobj=_Limited(raw), mode="r|") as archive:
            for member in archive:
                stem, _, suffix = member.name.rsplit("/", 1)[-1].partition(".")
                if member.isreg() and stem in FILES[split] and suffix in ("", "bin"):
                    _check_size(f"{path}: {quoted(member.name)}", member.size)
                    content = archive.extractfile(member)
                    files[stem] = suffix == "bin", content.read() if content else b""
                if len(files) == len(FILES[split]):
                    break
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path}: not a readable tar archive ({error}); {EXPECTED}. {AGAIN}"
        ) from None
    return files


class _Limited(io.RawIOBase):
    """A tar stream, unpacked if need be, that ends with an error where a bomb would go on."""

    def __init__(self, raw: BinaryIO) -> None:
        super().__init__()
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        self.stream = gzip.GzipFile(fileobj=raw) if packed else raw
        self.left = STREAM_BYTES

    def read(self, size: int = -1, /) -> bytes:
        data = self.stream.read(size)
        self.left -= len(data)
        if self.left < 0:
            raise tarfile.ReadError(f"unpacks to more than {STREAM_BYTES:,} bytes")
        return data


def _check_size(where: str, size: int) -> None:
    if size > FILE_BYTES:
        raise DataError(
            f"{where}: {size:,} bytes; expected at most {FILE_BYTES:,}. Check the archive."
        )


def _parse(where: str, binary: bool, data: bytes) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    rows, labels = _binary(where, data) if binary else _python(where, data)
    if not len(rows) or (labels < 0).any() or (labels > 9).any():
        raise DataError(
            f"{where}: {len(rows):,} images, labels {np.unique(labels)[:10].tolist()}; "
            f"expected images with labels 0 … 9. {AGAIN}"
        )
    return rows.reshape(-1, 3, 32, 32), labels


def _binary(where: str, data: bytes) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    if len(data) % (1 + PIXELS):
        raise DataError(
            f"{where}: {len(data):,} bytes; expected a multiple of {1 + PIXELS:,}. {AGAIN}"
        )
    records = np.frombuffer(data, np.uint8).reshape(-1, 1 + PIXELS)
    return records[:, 1:], records[:, 0].astype(np.int64)


def _python(where: str, data: bytes) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    try:
        rows, labels = read_batch(data, PIXELS)
    except RefusedPickle as error:
        raise DataError(f"{where}: {error}; {EXPECTED}, which needs no code. {AGAIN}") from None
    return rows, labels
