"""Images as a PNG grid that people can look at."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from kdgen.durable import replace_file

CELL = 48  # pixels that an image should at least measure on screen
BACKGROUND = 255
INK = (32, 32, 32)
TITLE_SIZE = 14
GAP = 16


def grid(
    images: Tensor,
    columns: int | None = None,
    scale: int | None = None,
    pad: int = 2,
    background: int = BACKGROUND,
) -> Image.Image:
    """uint8 images (N, H, W, C) or (N, C, H, W), 1 or 3 channels, as one picture, row by row.

    `scale` enlarges every pixel to scale × scale; without it small images grow to about 48 pixels.
    `columns` defaults to a square arrangement.
    """
    pixels = _channels_last(images)
    n, height, width, channels = pixels.shape
    columns = min(n, columns or _square(n))
    scale = scale or max(1, -(-CELL // max(height, width)))
    if columns < 1 or scale < 1 or pad < 0:
        raise ValueError(
            f"grid: columns={columns}, scale={scale}, pad={pad}; "
            "expected columns and scale of at least 1 and pad of at least 0."
        )
    rows = -(-n // columns)
    high, wide = height * scale + pad, width * scale + pad
    shape = (rows * high + pad, columns * wide + pad, channels)
    canvas = np.full(shape, background, dtype=np.uint8)
    large = pixels.repeat(scale, axis=1).repeat(scale, axis=2)
    for i, image in enumerate(large):
        top, left = pad + i // columns * high, pad + i % columns * wide
        canvas[top : top + image.shape[0], left : left + image.shape[1]] = image
    return Image.fromarray(canvas[:, :, 0] if channels == 1 else canvas)


def side_by_side(
    panels: Mapping[str, Tensor], columns: int | None = None, scale: int | None = None, pad: int = 2
) -> Image.Image:
    """Titled grids next to each other, e.g. {"teacher · 32 steps": …, "student · 1 step": …}.

    Image i stands at the same place in every panel, so all need the same number of images.
    """
    counts = {title: len(images) for title, images in panels.items()}
    if len(set(counts.values())) != 1:
        raise ValueError(f"side_by_side: panels hold {counts} images; expected equal numbers.")
    font = ImageFont.load_default(TITLE_SIZE)
    grids = {t: grid(x, columns, scale, pad).convert("RGB") for t, x in panels.items()}
    widths = [max(g.width, _width(t, font)) for t, g in grids.items()]
    head = 2 * TITLE_SIZE
    size = (sum(widths) + GAP * (len(widths) - 1), head + max(g.height for g in grids.values()))
    canvas = Image.new("RGB", size, (BACKGROUND,) * 3)
    draw = ImageDraw.Draw(canvas)
    left = 0
    for (title, picture), width in zip(grids.items(), widths, strict=True):
        draw.text((left + pad, TITLE_SIZE // 2), title, fill=INK, font=font)
        canvas.paste(picture, (left, head))
        left += width + GAP
    return canvas


def png(image: Image.Image) -> bytes:
    """The picture as a PNG file; equal pictures give equal bytes."""
    stream = io.BytesIO()
    image.save(stream, "PNG", compress_level=9)
    return stream.getvalue()


def save_png(image: Image.Image, path: Path | str) -> None:
    """Write the picture; whoever watches the file sees the old one or the new one, never half."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, png(image))


def _channels_last(images: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    shape = tuple(images.shape)
    first, last = images.dim() == 4 and shape[1] in (1, 3), images.dim() == 4 and shape[3] in (1, 3)
    if images.dtype != torch.uint8 or not (first or last) or images.numel() == 0:
        raise ValueError(
            f"grid: got {images.dtype} {shape}; expected uint8 (N, H, W, C) or (N, C, H, W) with "
            "1 or 3 channels and at least one image. Convert with kernels.to_uint8."
        )
    if not last:
        images = images.permute(0, 2, 3, 1)
    return images.detach().cpu().numpy()


def _square(n: int) -> int:
    return int(np.ceil(np.sqrt(n)))


def _width(title: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> int:
    return int(np.ceil(font.getlength(title))) + 4
