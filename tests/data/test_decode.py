"""What each kind of image file becomes."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from kdgen.data.decode import Unreadable, decode


def saved(image: Image.Image, format: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def pixels(data: bytes, **options) -> np.ndarray:
    wish = {"wanted": None, "size": None, "channels": None} | options
    return decode(data, **wish).pixels


def ramp(shape: tuple[int, ...] = (8, 8, 3)) -> np.ndarray:
    return (np.arange(np.prod(shape)) * 5 % 256).astype(np.uint8).reshape(shape)


@pytest.mark.parametrize("format", ["PNG", "BMP"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_lossless_files_keep_every_pixel(picture: Callable[..., bytes], format: str, mode: str):
    data = picture(3, (5, 9), mode, format)
    got = pixels(data)
    assert got.shape == (9, 5, 1 if mode == "L" else 3)
    assert np.array_equal(got.squeeze(), np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "GIF"])
def test_lossy_files_are_read(format: str):
    grey = Image.fromarray(np.full((8, 8, 3), 100, np.uint8))
    assert np.abs(pixels(saved(grey, format)).astype(int) - 100).max() <= 3


def test_sixteen_bits_are_rounded_to_eight():
    wide = np.array([[0, 128, 129, 257, 32896, 65535]], np.uint16)
    got = pixels(saved(Image.fromarray(wide)))
    assert got[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255]


def test_a_palette_becomes_its_colours():
    image = Image.fromarray(ramp()).quantize(256)
    assert np.array_equal(pixels(saved(image)), np.asarray(image.convert("RGB")))


def test_one_bit_images_become_black_and_white():
    image = Image.fromarray(np.eye(8, dtype=bool))
    assert np.array_equal(pixels(saved(image))[..., 0], np.eye(8, dtype=np.uint8) * 255)


@pytest.mark.parametrize(("mode", "channels"), [("LA", 1), ("RGBA", 3)])
def test_transparency_is_laid_over_white(mode: str, channels: int):
    image = Image.fromarray(np.zeros((4, 4), np.uint8)).convert(mode)
    image.putalpha(Image.fromarray(np.array([[0, 255, 51, 0]] * 4, np.uint8)))
    got = pixels(saved(image))
    assert got.shape == (4, 4, channels)
    assert got[0, :, 0].tolist() == [255, 0, 204, 255]


def test_cmyk_becomes_rgb():
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    red = pixels(saved(image, "JPEG"))[0, 0].astype(int)
    assert red[0] > 240
    assert red[1:].max() < 15


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_exif_rotation_is_applied(format: str):
    image = Image.new("RGB", (8, 4))
    image.paste((255, 255, 255), (0, 0, 4, 4))  # the left half white
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned 90° clockwise
    got = pixels(saved(image, format, exif=exif))
    assert got.shape == (8, 4, 3)
    assert got[:4].mean() > 200
    assert got[4:].mean() < 55


def test_the_first_frame_of_an_animation_is_taken():
    frames = [Image.new("L", (8, 8), value) for value in (10, 200)]
    for format in ("GIF", "PNG"):
        data = saved(frames[0], format, save_all=True, append_images=frames[1:])
        assert (pixels(data) == 10).all()


def test_size_takes_the_middle_square():
    image = np.zeros((6, 12, 3), np.uint8)
    image[:, 3:9] = 200
    assert np.array_equal(pixels(saved(Image.fromarray(image)), size=6), np.full((6, 6, 3), 200))
    assert pixels(saved(Image.fromarray(image)), size=4).shape == (4, 4, 3)


def test_channels_converts_both_ways(picture: Callable[..., bytes]):
    grey = pixels(picture(0, 8, "L"), channels=3)
    assert grey.shape == (8, 8, 3)
    assert (grey[..., 0] == grey[..., 2]).all()
    assert pixels(picture(0, 8, "RGB"), channels=1).shape == (8, 8, 1)


def test_an_image_of_another_size_is_not_decoded(picture: Callable[..., bytes]):
    whole = picture(0, 32)
    header_only = whole[:60]
    assert decode(header_only, (8, 8), None, None) == ((32, 32), None)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def huge_png(side: int) -> bytes:
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    body = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [4097, 10_000, 13_000, 30_000, 2**31 - 1])
@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
def test_images_beyond_the_pixel_limit_are_refused_by_their_header(side: int):
    with pytest.raises(Unreadable, match=r"more than 16,777,216 pixels|Unreasonable|too large"):
        pixels(huge_png(side))


def spoil(data: bytes, place: float) -> bytes:
    at = int(len(data) * place)
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


def test_damaged_files_say_what_is_wrong(picture: Callable[..., bytes]):
    png = picture(0, 32)
    cases = {
        b"": "zero bytes",
        b"hello, I am text": "not PNG",
        png[: len(png) // 2]: "truncated|Truncated",
        picture(0, 32, format="JPEG")[:-200]: "truncated",
        spoil(png, 0.5): "CRC|checksum|broken",
        png[:-16] + spoil(png[-16:], 0): "CRC|checksum|broken",  # the CRC of the pixels
        b"II*\x00" + bytes(100): "not PNG",  # TIFF is not among the decoders
        b"P6 2 2 255\n" + bytes(12): "not PNG",
    }
    for data, reason in cases.items():
        with pytest.raises(Unreadable, match=reason):
            pixels(data)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP", "GIF"])
@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
def test_no_damage_gets_past_as_another_kind_of_error(picture: Callable[..., bytes], format: str):
    data = bytearray(picture(1, 16, format=format))
    random = np.random.default_rng(5)
    reasons = []
    for _ in range(150):
        spoiled = bytearray(data[: random.integers(1, len(data) + 1)])
        for at in random.integers(0, len(spoiled), 3):
            spoiled[at] = random.integers(256)
        try:
            decode(bytes(spoiled), (16, 16), None, None)
        except Unreadable as error:
            reasons.append(str(error))
    assert all(reasons)
    assert len(reasons) > 30
