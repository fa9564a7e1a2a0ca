"""A zip of images in the EDM/StyleGAN layout, read in place and never extracted."""

from __future__ import annotations

import re
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from zipfile import ZipFile, ZipInfo

import torch

from kdgen.data import labels
from kdgen.data.decode import FILE_BYTES, Unreadable
from kdgen.data.gather import Reading, gather
from kdgen.data.images import Images
from kdgen.data.names import is_image
from kdgen.data.offenders import listing, quoted
from kdgen.errors import DataError

ENTRIES = 5_000_000
NAME_BYTES = 1024
RATIO = 200  # an image that shrinks further than this is no photograph
RATIO_FROM = 1 << 16  # bytes; what is small may well be a flat colour
LOCAL_HEADER = 30  # bytes before the name of an entry
DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
)


def load_zip(path: Path, reading: Reading) -> Images:
    """Labels from dataset.json; without one, or with null labels, there are none."""
    where = str(path)
    try:
        archive = ZipFile(path)
    except (OSError, *DAMAGE) as error:
        raise DataError(
            f"{where}: not a readable zip ({error}); expected a zip of images. Fetch it again."
        ) from None
    with archive:
        entries = archive.infolist()
        _check(where, entries)
        by_name = {entry.filename: entry for entry in entries}
        return _load(where, path.stem, archive, by_name, reading)


def _load(
    where: str, name: str, archive: ZipFile, entries: dict[str, ZipInfo], reading: Reading
) -> Images:
    names = sorted(entry for entry in entries if is_image(entry))
    if not names:
        raise DataError(
            f"{where}: no images among {len(entries):,} entries; expected PNG, JPEG, WebP, BMP "
            "or GIF files. Check the archive."
        )
    known = labels.UNLABELLED
    if reading.labels and labels.FILE in entries:
        known = labels.from_json(where, _read_labels(where, archive), names)
    got = gather(where, names, lambda entry: _read(archive, entries[entry]), reading)
    return Images(
        torch.from_numpy(got.pixels),
        None if known.values is None else torch.from_numpy(known.values[got.places]),
        known.classes,
        name,
        class_names=known.class_names,
        skipped=got.skipped,
    )


def _read(archive: ZipFile, entry: ZipInfo) -> bytes:
    """The bytes of an entry; zipfile reads no more than its stated size, and checks its CRC."""
    try:
        return archive.read(entry)
    except DAMAGE as error:
        raise Unreadable("wrong checksum" if "CRC" in str(error) else str(error)) from None


def _read_labels(where: str, archive: ZipFile) -> bytes:
    try:
        return _read(archive, archive.getinfo(labels.FILE))
    except (Unreadable, OSError) as error:
        raise DataError(
            f"{where}: {labels.FILE} is damaged ({error}); expected a readable label file. "
            "Fetch the archive again."
        ) from None


def _check(where: str, entries: Sequence[ZipInfo]) -> None:
    """Refuses names that point elsewhere, bombs, and entries that share bytes."""
    if len(entries) > ENTRIES:
        raise DataError(
            f"{where}: {len(entries):,} entries; expected at most {ENTRIES:,}. Divide the archive."
        )
    faults = ((entry.orig_filename, _fault(entry)) for entry in entries)
    wrong = [f"{quoted(name)} ({fault})" for name, fault in faults if fault]
    wrong += _clashes(entries) + _overlaps(entries)
    if wrong:
        raise DataError(
            f"{where}: {len(wrong):,} of {len(entries):,} entries refused: {listing(wrong)}; "
            "expected plain files with relative names. Build the archive anew."
        )


def _fault(entry: ZipInfo) -> str | None:
    name = entry.orig_filename
    limit = labels.FILE_BYTES if name == labels.FILE else FILE_BYTES
    if len(name.encode(errors="replace")) > NAME_BYTES:
        return "name too long"
    if not name or "\0" in name or "\\" in name:
        return "name with NUL or backslash, or empty"
    if name.startswith("/") or re.match("[A-Za-z]:", name) or ".." in name.split("/"):
        return "name points outside the archive"
    if stat.S_ISLNK(entry.external_attr >> 16):
        return "symbolic link"
    if entry.flag_bits & 0x1:
        return "encrypted"
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "compression other than deflate"
    if entry.file_size > limit:
        return f"{entry.file_size:,} bytes, limit {limit:,}"
    if entry.file_size > max(RATIO_FROM, RATIO * entry.compress_size):
        return f"expands {entry.file_size // max(1, entry.compress_size):,}:1, limit {RATIO}"
    return None


def _clashes(entries: Sequence[ZipInfo]) -> list[str]:
    """Names that some file systems take for one."""
    seen: dict[str, str] = {}
    wrong = []
    for entry in entries:
        key = unicodedata.normalize("NFC", entry.filename).casefold()
        if key in seen:
            wrong.append(f"{quoted(entry.filename)} (same name as {quoted(seen[key])})")
        seen[key] = entry.filename
    return wrong


def _overlaps(entries: Sequence[ZipInfo]) -> list[str]:
    """Entries that reach into the next one: the way to pack one bomb many times."""
    placed = sorted(entries, key=lambda entry: entry.header_offset)
    return [
        f"{quoted(entry.filename)} (overlaps {quoted(after.filename)})"
        for entry, after in pairwise(placed)
        if entry.header_offset + LOCAL_HEADER + entry.compress_size > after.header_offset
    ]
