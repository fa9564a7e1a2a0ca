"""One image file to 8-bit pixels, within limits.

What is not plain grey or RGB is converted: palettes to RGB, 16 bits rounded to 8, CMYK to RGB,
transparency laid over white, EXIF orientation applied, the first frame of an animation taken;
colour profiles are ignored.
"""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")  # few decoders, few holes
PIXELS = 1 << 24  # the largest image that is decoded
FILE_BYTES = 64 << 20  # the largest file that is read

Pixels = NDArray[np.uint8]


class Unreadable(Exception):
    """Why one file cannot be used, in a few words."""


class Decoded(NamedTuple):
    """(width, height) as the header says; pixels (H, W, 1 or 3), or None if of an unwanted size."""

    size: tuple[int, int]
    pixels: Pixels | None


def decode(
    data: bytes, wanted: tuple[int, int] | None, size: int | None, channels: int | None
) -> Decoded:
    """The image in data; with `wanted`, an image of another size is not decoded beyond its header.

    Raises Unreadable.
    """
    if not data:
        raise Unreadable("zero bytes")
    try:
        return _decode(data, wanted, size, channels)
    except (Unreadable, MemoryError):
        raise
    except UnidentifiedImageError:
        raise Unreadable("not PNG, JPEG, WebP, BMP or GIF") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise Unreadable(f"more than {PIXELS:,} pixels") from None
    except Exception as error:  # Pillow's decoders raise many kinds on damaged files
        raise Unreadable(str(error) or type(error).__name__) from None


def _decode(
    data: bytes, wanted: tuple[int, int] | None, size: int | None, channels: int | None
) -> Decoded:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        width, height = image.size
        if width * height > PIXELS:
            raise Unreadable(f"{width}×{height} is more than {PIXELS:,} pixels")
        if wanted is not None and image.size != wanted:
            return Decoded(image.size, None)
        if image.format == "PNG":
            _verify(data)
        image.load()
        return Decoded((width, height), fitted(_plain(image), size, channels))


def _verify(data: bytes) -> None:
    """Checks the CRC of every chunk, which decoding a PNG does not."""
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        image.verify()


def _plain(image: Image.Image) -> Image.Image:
    """The same picture in mode L or RGB."""
    if image.info.get("exif"):
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion may clip it at 255
        wide = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8))
    kind = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image.convert("RGBA"))
        image = white
    return image if image.mode == kind else image.convert(kind)


def fitted(image: Image.Image, size: int | None, channels: int | None) -> Pixels:
    """(H, W, 1 or 3): the middle square at size × size, in 1 or 3 channels; None: as it is."""
    if size is not None and image.size != (size, size):
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        box = (left, top, left + side, top + side)
        image = image.resize((size, size), Image.Resampling.LANCZOS, box=box)
    if channels is not None:
        image = image.convert("L" if channels == 1 else "RGB")
    pixels = np.asarray(image)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels
