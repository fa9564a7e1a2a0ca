"""A folder of images, searched through; links to folders are not followed."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import torch

from kdgen.data import labels
from kdgen.data.decode import FILE_BYTES, Unreadable
from kdgen.data.gather import Reading, gather
from kdgen.data.images import Images
from kdgen.data.names import is_image
from kdgen.errors import DataError


def load_folder(path: Path, reading: Reading) -> Images:
    """Labels from dataset.json, else from the names of the top-level folders."""
    where = str(path)
    names = _names(path)
    if not names:
        raise DataError(
            f"{where}: no images; expected PNG, JPEG, WebP, BMP or GIF files. Check the path."
        )
    known = labels.UNLABELLED
    if reading.labels:
        file = path / labels.FILE
        known = (
            labels.from_json(where, _read_labels(file), names)
            if file.exists()
            else labels.from_folders(where, names)
        )
    got = gather(where, names, lambda name: _read(path / name), reading)
    return Images(
        torch.from_numpy(got.pixels),
        None if known.values is None else torch.from_numpy(known.values[got.places]),
        known.classes,
        path.resolve().name,
        class_names=known.class_names,
        skipped=got.skipped,
    )


def _names(path: Path) -> list[str]:
    """Relative names with forward slashes, sorted, so that no file system decides the order."""
    found = []
    for folder, subfolders, files in os.walk(path, onerror=_refuse):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        here = Path(folder).relative_to(path)
        found += [(here / name).as_posix() for name in files]
    return sorted(name for name in found if is_image(name))


def _refuse(error: OSError) -> None:
    raise DataError(
        f"{error.filename}: {error.strerror}; expected a readable folder. Check its permissions."
    ) from None


def _read(file: Path) -> bytes:
    found = file.stat()
    if not stat.S_ISREG(found.st_mode):  # opening a pipe would wait for ever
        raise Unreadable("not a regular file")
    if found.st_size > FILE_BYTES:
        raise Unreadable(f"{found.st_size:,} bytes, limit {FILE_BYTES:,}")
    return file.read_bytes()


def _read_labels(file: Path) -> bytes:
    try:
        if not file.is_file() or file.stat().st_size > labels.FILE_BYTES:
            raise OSError(0, f"not a file of at most {labels.FILE_BYTES:,} bytes")
        return file.read_bytes()
    except OSError as error:
        raise DataError(
            f"{file}: {error.strerror}; expected a readable label file. Repair or remove it."
        ) from None
