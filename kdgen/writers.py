"""Where generated images go: a grid, an array, a folder or a zip; whole at their final name or not
there."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kdgen import grid
from kdgen.errors import UsageError

GRID_LIMIT = 400  # a picture of more cells shows nothing to a person


class Writer(Protocol):
    """Takes uint8 (n, H, W, C) batches in order; nothing is at the final name before `close`."""

    def add(self, images: Tensor, labels: Tensor | None) -> None: ...
    def close(self) -> str:
        """Finish; a phrase for people about what was written. Leaves nothing behind if it fails."""
        ...

    def abort(self) -> None:
        """Leave nothing behind."""
        ...


class GridWriter:
    """One PNG with the first images in a square."""

    def __init__(self, path: Path, classes: int = 0) -> None:
        self.path, self.parts, self.count = path, list[Tensor](), 0

    def add(self, images: Tensor, labels: Tensor | None) -> None:
        if (room := GRID_LIMIT - self.count) > 0:
            self.parts.append(images[:room])
        self.count += len(images)

    def close(self) -> str:
        grid.save_png(grid.grid(_joined(self.parts)), self.path)
        return f"{self.path}" + (f" (the first {GRID_LIMIT})" if self.count > GRID_LIMIT else "")

    def abort(self) -> None:
        self.parts.clear()


class ArrayWriter:
    """`.npz` with `arr_0` uint8 (N, H, W, C), the layout of OpenAI's evaluator, and `labels` int64
    (N,).

    With the number of images `n` known, they go to the disk as they come, and memory holds their
    labels alone.
    """

    def __init__(self, path: Path, classes: int = 0, n: int | None = None) -> None:
        self.path, self.draft, self.n = path, _draft(path), n
        self.held, self.labels, self.count = list[Tensor](), list[Tensor](), 0
        self.archive: zipfile.ZipFile | None = None
        self.array: IO[bytes] | None = None

    def add(self, images: Tensor, labels: Tensor | None) -> None:
        self.count += len(images)
        if labels is not None:
            self.labels.append(labels.cpu())
        if self.n is None:
            self.held.append(images)
        else:
            self._store(images, self.n)

    def close(self) -> str:
        with _aborting(self):
            if not self.count:
                _joined([])
            for images in self.held:
                self._store(images, self.count)
            if self.n not in (None, self.count):
                raise ValueError(
                    f"writer: {self.count:,} images were added; expected {self.n:,}, as announced. "
                    "Add them all."
                )
            assert self.array is not None
            assert self.archive is not None
            self.array.close()
            if self.labels:
                with self._entry("labels") as file:
                    np.lib.format.write_array(file, torch.cat(self.labels).numpy())
            self.archive.close()
            os.replace(self.draft, self.path)
        return str(self.path)

    def abort(self) -> None:
        self.held.clear()
        self.labels.clear()
        try:
            for part in (self.array, self.archive):
                if part is not None:
                    part.close()
        finally:
            self.draft.unlink(missing_ok=True)

    def _store(self, images: Tensor, n: int) -> None:
        if self.array is None:
            self.archive = zipfile.ZipFile(self.draft, "w", zipfile.ZIP_STORED)
            self.array = self._entry("arr_0")
            shape = (n, *images.shape[1:])
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(self.array, header)
        self.array.write(images.contiguous().numpy().data)

    def _entry(self, name: str) -> IO[bytes]:
        """As `numpy.savez` makes it."""
        assert self.archive is not None
        return self.archive.open(f"{name}.npy", "w", force_zip64=True)


class FolderWriter:
    """`000000.png`, `000001.png`, … in a new folder, and `dataset.json` with their classes, which
    `kdgen.data` reads back."""

    def __init__(self, path: Path, classes: int = 0) -> None:
        self.path, self.draft = path, _draft(path)
        shutil.rmtree(self.draft, ignore_errors=True)
        self.draft.mkdir(parents=True)
        self.count, self.labels, self.classes = 0, list[tuple[str, int]](), classes

    def add(self, images: Tensor, labels: Tensor | None) -> None:
        classes = [None] * len(images) if labels is None else labels.tolist()
        for image, label in zip(images, classes, strict=True):
            name = f"{self.count:06d}.png"
            (self.draft / name).write_bytes(png(image))
            self.count += 1
            if label is not None:
                self.labels.append((name, label))

    def close(self) -> str:
        with _aborting(self):
            if self.labels:
                listing = _listing(self.labels, self.classes)
                (self.draft / "dataset.json").write_text(listing)
            os.replace(self.draft, self.path)  # an empty folder may be there; `writer` saw to it
        return f"{self.path}{os.sep} ({self.count:,} files)"

    def abort(self) -> None:
        shutil.rmtree(self.draft, ignore_errors=True)


class ZipWriter:
    """EDM's layout: uncompressed `NNNNN/imgNNNNNNNN.png` and `dataset.json`; `kdgen.data` reads it
    back."""

    def __init__(self, path: Path, classes: int = 0) -> None:
        self.path, self.draft = path, _draft(path)
        self.archive = zipfile.ZipFile(self.draft, "w", zipfile.ZIP_STORED)
        self.count, self.labels, self.classes = 0, list[tuple[str, int]](), classes

    def add(self, images: Tensor, labels: Tensor | None) -> None:
        classes = [None] * len(images) if labels is None else labels.tolist()
        for image, label in zip(images, classes, strict=True):
            number = f"{self.count:08d}"
            name = f"{number[:5]}/img{number}.png"
            self.archive.writestr(_entry(name), png(image))
            self.count += 1
            if label is not None:
                self.labels.append((name, label))

    def close(self) -> str:
        with _aborting(self):
            listing = _listing(self.labels, self.classes)
            self.archive.writestr(_entry("dataset.json"), listing)
            self.archive.close()
            os.replace(self.draft, self.path)
        return str(self.path)

    def abort(self) -> None:
        try:
            self.archive.close()
        finally:
            self.draft.unlink(missing_ok=True)


KINDS: dict[str, Callable[[Path, int, int | None], Writer]] = {
    ".png": lambda path, classes, n: GridWriter(path, classes),
    ".npz": ArrayWriter,
    ".zip": lambda path, classes, n: ZipWriter(path, classes),
    "": lambda path, classes, n: FolderWriter(path, classes),
}


def writer(out: str | Path, classes: int = 0, n: int | None = None) -> Writer:
    """The writer for a name: `.png`, `.npz`, `.zip`, or a folder (no ending); `classes` is how many
    the labels may name, `n` how many images will come (an array then needs no room in memory).
    UsageError when it cannot be made."""
    path = Path(out)
    kind = KINDS.get(path.suffix.lower())
    if kind is None:
        raise UsageError(
            f"sample: --out {path} ends in {path.suffix}; expected .png, .npz, .zip or a folder "
            "name. Rename it."
        )
    try:
        _check_free(path, folder=not path.suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return kind(path, classes, n)
    except OSError as error:
        raise UsageError(
            f"sample: --out {path}: {error.strerror}; expected a place that can be written. Choose "
            "another."
        ) from error


def _check_free(path: Path, folder: bool) -> None:
    """Refuse to replace what is not a file, or not an empty folder."""
    if not path.exists():
        return
    if folder and (not path.is_dir() or any(path.iterdir())):
        raise UsageError(
            f"sample: --out {path} exists; expected an empty folder or none. Choose another name."
        )
    if not folder and not path.is_file():
        raise UsageError(
            f"sample: --out {path} is not a file; expected one or none. Choose another name."
        )


def png(image: Tensor) -> bytes:
    """uint8 (H, W, C) -> PNG bytes."""
    array = image.numpy()
    buffer = io.BytesIO()
    Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).save(
        buffer, "PNG", compress_level=1
    )
    return buffer.getvalue()


def _joined(parts: list[Tensor]) -> Tensor:
    if not parts:
        raise ValueError("writer: no images were added; expected at least one. Add some first.")
    return torch.cat(parts)


def _listing(labels: list[tuple[str, int]], classes: int) -> str:
    """The text of `dataset.json`; naming all classes lets a set hold only some of them."""
    names = {"classes": [str(k) for k in range(classes)]} if labels and classes else {}
    return json.dumps({"labels": labels or None, **names})


def _entry(name: str) -> zipfile.ZipInfo:
    """With a fixed date, so that the archive's bytes follow from its images alone."""
    entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    entry.external_attr = 0o644 << 16  # else `unzip` makes files that nobody may read
    return entry


@contextmanager
def _aborting(target: Writer) -> Iterator[None]:
    try:
        yield
    except BaseException:
        target.abort()
        raise


def _draft(path: Path) -> Path:
    return path.with_name(f".tmp-{path.name}")
