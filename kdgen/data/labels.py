"""Which class each image has: dataset.json of the EDM/StyleGAN layout, or the names of folders."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdgen.data.offenders import listing, quoted
from kdgen.errors import DataError

FILE = "dataset.json"
FILE_BYTES = 256 << 20
CLASSES = 1 << 16
EXPECTED = f"expected a {FILE} with 'labels': [[\"image name\", class], …] or null"


class Labels(NamedTuple):
    """values int64, one for each image name, or None; the names of the classes when known."""

    values: NDArray[np.int64] | None
    classes: int
    class_names: tuple[str, ...] | None


UNLABELLED = Labels(None, 0, None)


def from_json(where: str, data: bytes, names: Sequence[str]) -> Labels:
    """Labels of the image files `names`; without "classes", classes are 0 … the largest label."""
    content = _parse(where, data)
    pairs = content.get("labels")
    if pairs is None:
        return UNLABELLED
    by_name = _by_name(where, pairs)
    _check_same_files(where, set(by_name), set(names))
    class_names = _class_names(where, content.get("classes"))
    classes = len(class_names) if class_names else max(by_name.values()) + 1
    _check_range(where, by_name, classes, named=class_names is not None)
    return Labels(np.array([by_name[name] for name in names], np.int64), classes, class_names)


def from_folders(where: str, names: Sequence[str]) -> Labels:
    """One class for each top-level folder, in the order of their names, when there are several.

    The numbered folders of the EDM layout (00000/img00000000.png) only divide the files.
    """
    tops = [name.split("/", 1)[0] if "/" in name else "" for name in names]
    folders = sorted(set(tops) - {""})
    if len(folders) < 2 or all(re.fullmatch(r"\d{5}/img\d{8}\.\w+", name) for name in names):
        return UNLABELLED
    loose = [quoted(name) for name, top in zip(names, tops, strict=True) if not top]
    if loose:
        raise DataError(
            f"{where}: {len(loose):,} images beside {len(folders):,} class folders: "
            f"{listing(loose)}; expected each image in the folder of its class. "
            "Move them, or pass labels=False to ignore the folders."
        )
    _check_count(where, len(folders))
    place = {folder: k for k, folder in enumerate(folders)}
    return Labels(np.array([place[top] for top in tops], np.int64), len(folders), tuple(folders))


def _parse(where: str, data: bytes) -> dict[str, Any]:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{where}: {FILE} is not JSON ({error}); {EXPECTED}. Repair or remove it."
        ) from None
    if not isinstance(content, dict):
        raise DataError(
            f"{where}: {FILE} holds a {type(content).__name__}; {EXPECTED}. Repair or remove it."
        )
    return content


def _by_name(where: str, pairs: Any) -> dict[str, int]:
    if not isinstance(pairs, list) or not pairs:
        what = "an empty list" if pairs == [] else f"a {type(pairs).__name__}"
        raise DataError(f"{where}: labels in {FILE} are {what}; {EXPECTED}. Repair or remove it.")
    wrong = [_shown(pair) for pair in pairs if not _is_pair(pair)]
    if wrong:
        raise DataError(
            f"{where}: {len(wrong):,} of {len(pairs):,} labels in {FILE} are malformed: "
            f"{listing(wrong)}; expected [name, class] with a class of 0 or more. Repair them."
        )
    twice = [quoted(name) for name, k in Counter(name for name, _ in pairs).items() if k > 1]
    if twice:
        raise DataError(
            f"{where}: {len(twice):,} images labelled more than once in {FILE}: "
            f"{listing(twice)}; expected one label each. Repair it."
        )
    return dict(pairs)


def _is_pair(pair: Any) -> bool:
    return (
        isinstance(pair, list)
        and len(pair) == 2
        and isinstance(pair[0], str)
        and type(pair[1]) is int  # bool is an int, too
        and pair[1] >= 0
    )


def _shown(value: Any) -> str:
    return quoted(json.dumps(value))


def _check_same_files(where: str, labelled: set[str], present: set[str]) -> None:
    for names, what in (
        (labelled - present, f"labels in {FILE} name files that are not there"),
        (present - labelled, f"images without a label in {FILE}"),
    ):
        if names:
            raise DataError(
                f"{where}: {len(names):,} {what}: {listing([quoted(n) for n in sorted(names)])}; "
                "expected one label for each image. Repair it, or pass labels=False to ignore it."
            )


def _class_names(where: str, names: Any) -> tuple[str, ...] | None:
    if names is None:
        return None
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise DataError(
            f"{where}: classes in {FILE} are {_shown(names)}; expected a list of names. "
            "Repair or remove it."
        )
    return tuple(names)


def _check_range(where: str, by_name: dict[str, int], classes: int, *, named: bool) -> None:
    over = [f"{quoted(name)} ({k})" for name, k in by_name.items() if k >= classes]
    if over:
        raise DataError(
            f"{where}: {len(over):,} labels in {FILE} are beyond its {classes:,} class names: "
            f"{listing(over)}; expected 0 … {classes - 1}. Repair it."
        )
    _check_count(where, classes)
    unused = sorted(set(range(classes)) - set(by_name.values()))
    if unused and not named:  # with class names, a class may have no image
        raise DataError(
            f"{where}: labels in {FILE} go up to {classes - 1}, but {len(unused):,} classes have "
            f"no image: {listing([str(k) for k in unused])}; expected every class from 0 on. "
            'Number the classes without gaps, or list all names under "classes".'
        )


def _check_count(where: str, classes: int) -> None:
    if classes > CLASSES:
        raise DataError(
            f"{where}: {classes:,} classes; expected at most {CLASSES:,}. "
            "Check the labels, or pass labels=False to ignore them."
        )
