"""Files and directories that are wholly there or not at all, whenever the process dies."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

TEMPORARY = (
    ".tmp-"  # a draft, or something about to be deleted: never read, removed at the next start
)
ASIDE = ".old-"  # what a new directory is replacing: read while its own name is missing
_CHUNK = 1 << 26  # one write call of 64 MiB: Linux stops at 2 GiB


def write_file(path: Path, data: bytes) -> None:
    """A new file with `data`, on disk; FileExistsError if there is one.

    Its mode follows the umask.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(fd, left[:_CHUNK]) :]
        os.fsync(fd)
    finally:
        os.close(fd)


def replace_file(path: Path, data: bytes) -> None:
    """`path` holds either what it held or `data`, at any instant."""
    draft = path.with_name(TEMPORARY + path.name)
    with suppress(FileNotFoundError):
        os.unlink(draft)
    try:
        write_file(draft, data)
        os.replace(draft, path)
    except OSError:
        with suppress(OSError):
            os.unlink(draft)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make creations, renames and removals in `path` survive a power cut."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """An empty draft that becomes `target` when the block ends, or nothing if it raises.

    A directory already there stays readable (as `whole(target)`) until the new one has its name.
    """
    clean(target.parent, target.name)
    draft = target.with_name(TEMPORARY + target.name)
    aside = target.with_name(ASIDE + target.name)
    os.mkdir(draft)
    try:
        yield draft
        sync_directory(draft)
        if target.exists():
            os.rename(target, aside)
        os.rename(draft, target)
        sync_directory(target.parent)
    except Exception:
        with suppress(OSError):
            clean(target.parent, target.name)
        raise
    with suppress(OSError):  # the new one stands; a leftover is removed at the next start
        remove(aside)


def whole(target: Path) -> Path:
    """`target`, or what it is being replaced by while the replacement has not got its name."""
    aside = target.with_name(ASIDE + target.name)
    return aside if not target.exists() and aside.exists() else target


def remove(path: Path) -> None:
    """Delete a directory of plain files; it loses its name first: nobody reads half of it."""
    if not path.exists():
        return
    if not path.name.startswith(TEMPORARY):
        doomed = path.with_name(f"{TEMPORARY}gone-{path.name}")
        remove(doomed)
        os.rename(path, doomed)
        path = doomed
    for entry in sorted(os.listdir(path)):
        os.unlink(path / entry)
    os.rmdir(path)


def clean(parent: Path, name: str | None = None) -> None:
    """Remove what died halfway in `parent`: everything, or only what belongs to `name`."""
    names = sorted(p.name for p in parent.iterdir()) if parent.is_dir() else []
    for entry in names:
        path = parent / entry
        if entry.startswith(ASIDE):
            target = path.with_name(entry.removeprefix(ASIDE))
            if name in (None, target.name):
                remove(path) if target.exists() else os.rename(path, target)
        elif entry.startswith(TEMPORARY):
            owner = entry.removeprefix(TEMPORARY).removeprefix("gone-").removeprefix(ASIDE)
            if name in (None, owner):
                remove(path) if path.is_dir() else os.unlink(path)
