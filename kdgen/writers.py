"""Where generated images go: a grid, an array, a folder or a zip; whole at their final name or not there."""

from __future__ import annotations

import io
import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import Protocol

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
        """Finish; a phrase for people about what was written."""
        ...

    def abort(self) -> None:
        """Leave nothing behind."""
        ...


class GridWriter:
    """One PNG with the first images in a square."""

    def __init__(self, path: Path) -> None:
        self.path, self.parts, self.count = path, list[Tensor](), 0

    def add(self, images: Tensor, labels: Tensor | None) -> None:
        if (room := GRID_LIMIT - self.count) > 0:
            self.parts.append(images[:room])
        self.count += len(images)

    def close(self) -> str:
        grid.save_png(grid.grid(torch.cat(self.parts)), self.path)
        return f"{self.path}" + (f" (the first {GRID_LIMIT})" if self.count > GRID_LIMIT else "")

    def abort(self) -> None:
        self.parts.clear()


class ArrayWriter:
    """`.npz` with `arr_0` uint8 (N, H, W, C), the layout of OpenAI's evaluator, and `labels` int64 (N,)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.images, self.labels = list[Tensor](), list[Tensor]()

    def add(self, images: Tensor, labels: Tensor | None) -> None:
        self.images.append(images)
        if labels is not None:
            self.labels.append(labels.cpu())

    def close(self) -> str:
        arrays = {"arr_0": torch.cat(self.images).numpy()}
        if self.labels:
            arrays["labels"] = torch.cat(self.labels).numpy()
        draft = _draft(self.path)
        try:
            with draft.open("wb") as file:
                np.savez(file, **arrays)
            os.replace(draft, self.path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        return str(self.path)

    def abort(self) -> None:
        self.images.clear()


class FolderWriter:
    """`000000.png`, `000001.png`, … and `labels.json` in a new folder."""

    def __init__(self, path: Path) -> None:
        self.path, self.draft = path, _draft(path)
        shutil.rmtree(self.draft, ignore_errors=True)
        self.draft.mkdir(parents=True)
        self.count, self.labels = 0, list[int]()

    def add(self, images: Tensor, labels: Tensor | None) -> None:
        for image in images:
            (self.draft / f"{self.count:06d}.png").write_bytes(png(image))
            self.count += 1
        self.labels += [] if labels is None else labels.tolist()

    def close(self) -> str:
        if self.labels:
            (self.draft / "labels.json").write_text(json.dumps(self.labels))
        os.replace(self.draft, self.path)  # an empty folder may be there; `writer` refused others
        return f"{self.path}{os.sep} ({self.count:,} files)"

    def abort(self) -> None:
        shutil.rmtree(self.draft, ignore_errors=True)


class ZipWriter:
    """EDM's layout: uncompressed `NNNNN/imgNNNNNNNN.png` and `dataset.json`; `kdgen.data` reads it back."""

    def __init__(self, path: Path) -> None:
        self.path, self.draft = path, _draft(path)
        self.archive = zipfile.ZipFile(self.draft, "w", zipfile.ZIP_STORED)
        self.count, self.labels = 0, list[tuple[str, int]]()

    def add(self, images: Tensor, labels: Tensor | None) -> None:
        for k, image in enumerate(images):
            name = f"{self.count:08d}"
            name = f"{name[:5]}/img{name}.png"
            # A fixed date keeps the archive's bytes a function of its images.
            self.archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), png(image))
            self.count += 1
            if labels is not None:
                self.labels.append((name, int(labels[k])))

    def close(self) -> str:
        entry = zipfile.ZipInfo("dataset.json", (1980, 1, 1, 0, 0, 0))
        self.archive.writestr(entry, json.dumps({"labels": self.labels or None}))
        self.archive.close()
        os.replace(self.draft, self.path)
        return str(self.path)

    def abort(self) -> None:
        self.archive.close()
        self.draft.unlink(missing_ok=True)


def writer(out: str | Path) -> Writer:
    """The writer for a name: `.png`, `.npz`, `.zip`, or a folder (no ending). UsageError when it cannot be made."""
    path = Path(out)
    kinds = {".png": GridWriter, ".npz": ArrayWriter, ".zip": ZipWriter, "": FolderWriter}
    kind = kinds.get(path.suffix.lower())
    if kind is None:
        raise UsageError(
            f"sample: --out {path} ends in {path.suffix}; expected .png, .npz, .zip or a folder name. Rename it."
        )
    if kind is FolderWriter and path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UsageError(
            f"sample: --out {path} exists and is not an empty folder. Choose another name."
        )
    if kind is not FolderWriter and path.exists() and not path.is_file():
        raise UsageError(f"sample: --out {path} exists and is not a file. Choose another name.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path.parent, os.W_OK):
            raise PermissionError(13, "Permission denied")
        return kind(path)  # type: ignore[abstract,no-any-return]
    except OSError as error:
        raise UsageError(
            f"sample: --out {path}: {error.strerror}. Choose a place that can be written."
        ) from error


def png(image: Tensor) -> bytes:
    """uint8 (H, W, C) -> PNG bytes."""
    array = image.numpy()
    buffer = io.BytesIO()
    Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).save(
        buffer, "PNG", compress_level=1
    )
    return buffer.getvalue()


def _draft(path: Path) -> Path:
    return path.with_name(f".tmp-{path.name}")
