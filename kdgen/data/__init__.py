"""Images for training: decoded once to uint8, checked before training starts, kept in memory."""

from __future__ import annotations

import difflib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from kdgen.data.images import Images
from kdgen.data.offenders import quoted
from kdgen.data.order import indices, order
from kdgen.errors import DataError

if TYPE_CHECKING:
    from kdgen.data.gather import Reading

__all__ = ["BUILT_IN", "Images", "indices", "load", "order"]

BUILT_IN = ("digits",)
SOURCES = "a folder of images, a .zip of images, or CIFAR-10's archive or folder"


def load(
    spec: str | Path,
    *,
    split: Literal["train", "test"] = "train",
    size: int | None = None,
    channels: int | None = None,
    labels: bool = True,
    skip_bad: bool = False,
    max_bytes: int = 16 << 30,
    progress: bool = True,
) -> Images:
    """The images that spec names: "digits", or the path of a folder, zip or CIFAR-10 archive.

    split: CIFAR-10 only. size: the middle square of each image, resized. channels: 1 or 3; by
    default 1 if all images are grey, else 3. labels: False ignores them. skip_bad: leave out
    unreadable images, at most 1%. max_bytes: the most memory that pixels read from files may take.
    Raises DataError, which lists what is wrong.
    """
    from kdgen.data.gather import Reading  # here and below: Pillow loads on first use

    if split not in ("train", "test"):
        raise ValueError(f"load: split is {split!r}; expected 'train' or 'test'. Pass one of them.")
    reading = Reading(size, channels, labels, skip_bad, max_bytes, progress)
    arrays = _load_arrays(spec, split)
    if arrays is None:
        return _load_files(Path(spec), split, reading)
    from kdgen.data.refit import refit

    images = refit(arrays, size, channels)
    return images if labels else replace(images, labels=None, classes=0, class_names=None)


def _load_arrays(spec: str | Path, split: Literal["train", "test"]) -> Images | None:
    """The data sets that come as arrays; None for all others."""
    if spec == "digits":
        _only_train("digits", split)
        from kdgen.data.digits import load_digits

        return load_digits()
    path = Path(spec)
    _check_exists(spec, path)
    from kdgen.data.cifar import find_cifar10, load_cifar10

    if path.is_dir():
        folder = find_cifar10(path)
        return load_cifar10(folder, split) if folder else None
    packed = path.name.lower().endswith((".tar", ".tar.gz", ".tgz"))
    return load_cifar10(path, split) if packed else None


def _load_files(path: Path, split: Literal["train", "test"], reading: Reading) -> Images:
    _only_train(str(path), split)
    if path.is_dir():
        from kdgen.data.folder import load_folder

        return load_folder(path, reading)
    if path.suffix.lower() == ".zip" and path.is_file():
        from kdgen.data.archive import load_zip

        return load_zip(path, reading)
    raise DataError(f"{path}: unknown kind of data; expected {SOURCES}. Check the path.")


def _only_train(where: str, split: str) -> None:
    if split != "train":
        raise DataError(
            f"{where}: has no {split} split; expected split='train'. "
            "Pass the path of the test images instead, or use Images.split."
        )


def _check_exists(spec: str | Path, path: Path) -> None:
    try:
        path.stat()
        return
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        why = getattr(error, "strerror", None) or str(error)
    near = difflib.get_close_matches(str(spec), BUILT_IN, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else "Check the path."
    known = ", ".join(map(repr, BUILT_IN))
    raise DataError(f"{quoted(str(spec))}: {why}; expected {known}, {SOURCES}. {hint}")
