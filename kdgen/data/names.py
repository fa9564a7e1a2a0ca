"""Which names in a folder or an archive are images."""

from __future__ import annotations

from pathlib import PurePosixPath

READ = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif"}
# Images that are not read are listed as unreadable and not left out silently.
FOREIGN = {".tif", ".tiff", ".avif", ".heic", ".heif", ".jp2", ".ppm", ".pgm", ".tga", ".jxl"}


def is_image(name: str) -> bool:
    """Whether a file name looks like an image, readable here or not; hidden files do not."""
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return not hidden and path.suffix.lower() in READ | FOREIGN
