"""Small image files, and folders and zips of them."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

Files = dict[str, bytes]


@pytest.fixture
def picture() -> Callable[..., bytes]:
    """picture(seed, size, mode, format): the bytes of an image file with random pixels."""

    def make(
        seed: int = 0, size: int | tuple[int, int] = 8, mode: str = "RGB", format: str = "PNG"
    ) -> bytes:
        width, height = (size, size) if isinstance(size, int) else size
        depth = {"L": (), "LA": (2,), "RGB": (3,), "RGBA": (4,)}[mode]
        values = np.random.default_rng(seed).integers(0, 256, (height, width, *depth), np.uint8)
        out = io.BytesIO()
        Image.fromarray(values).save(out, format)
        return out.getvalue()

    return make


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[Files], Path]:
    def make(files: Files) -> Path:
        root = tmp_path / "images"
        root.mkdir()
        for name, data in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(data)
        return root

    return make


@pytest.fixture
def zipped(tmp_path: Path) -> Callable[..., Path]:
    """zipped(files, labels, compression): a zip; labels is the content of dataset.json."""

    def make(files: Files, labels: Any = None, compression: int = zipfile.ZIP_STORED) -> Path:
        path = tmp_path / "images.zip"
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
            if labels is not None:
                text = labels if isinstance(labels, str) else json.dumps(labels)
                archive.writestr("dataset.json", text)
        return path

    return make
