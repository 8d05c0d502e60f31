"""Photographs of every kind are decoded to the same kind of tensor, or refused."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from bintally.errors import UserError
from bintally.model.images import decode


def gradient_image(mode: str = "RGB") -> Image.Image:
    """A smooth image, wider than high, reddish on the left and bluish on the right."""
    across, down = np.meshgrid(np.linspace(0, 1, 90), np.linspace(0, 1, 60))
    pixels = np.stack([200 - 150 * across, 60 + 100 * down, 40 + 180 * across], axis=2)
    return Image.fromarray(pixels.astype(np.uint8)).convert(mode)


def encode_image(image: Image.Image, format: str) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **({"quality": 95} if format == "JPEG" else {}))
    return file.getvalue()


@pytest.mark.parametrize(
    ("mode", "format"),
    [("RGB", "JPEG"), ("L", "JPEG"), ("CMYK", "JPEG"), ("RGB", "PNG"), ("L", "PNG"), ("RGBA", "PNG"), ("P", "PNG")],
)
def test_every_kind_of_photograph_is_squashed_to_the_square_that_pillow_gives(mode: str, format: str) -> None:
    body = encode_image(gradient_image(mode), format)
    pixels = decode(body, 32)
    assert (pixels.dtype, tuple(pixels.shape)) == (torch.uint8, (3, 32, 32))
    with Image.open(io.BytesIO(body)) as image:
        squashed = image.convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)
    difference = np.abs(pixels.permute(1, 2, 0).numpy().astype(float) - np.asarray(squashed))
    assert difference.mean() < 2 and difference.max() < 12


@pytest.mark.parametrize("body", [b"", b"garbage" * 100, encode_image(gradient_image(), "JPEG")[:-10]])
def test_bytes_that_are_no_complete_image_are_a_user_error(body: bytes) -> None:
    with pytest.raises(UserError, match=f"image of {len(body)} bytes does not decode") as caught:
        decode(body, 32)
    assert "\n" not in str(caught.value)


def test_the_exif_orientation_is_applied() -> None:
    upright, turned = io.BytesIO(), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated a quarter to the right
    gradient_image().transpose(Image.Transpose.ROTATE_270).save(upright, "JPEG", quality=95)
    gradient_image().save(turned, "JPEG", quality=95, exif=exif)
    difference = decode(upright.getvalue(), 32).int() - decode(turned.getvalue(), 32).int()
    assert difference.abs().max() < 8


def test_sixteen_bits_per_channel_are_reduced_to_eight() -> None:
    grey = np.linspace(0, 65535, 64 * 48).astype(np.uint16).reshape(48, 64)
    pixels = decode(encode_image(Image.fromarray(grey), "PNG"), 16)
    assert pixels.dtype == torch.uint8 and pixels[0, 0, 0] < 10 and pixels[0, -1, -1] > 245


def png_of_size(width: int, height: int) -> bytes:
    """A small PNG file whose header states this size."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (png_of_size(30_000, 30_000), "an image of more than 50,000,000 pixels is too large"),
        (png_of_size(10_000, 6_000), "an image of 10000 x 6000 pixels is too large; at most 50,000,000"),
        (encode_image(gradient_image(), "JPEG") + b"\xff\xda" * 64, "more than 64 scans"),
        (encode_image(gradient_image("P"), "GIF"), "neither JPEG nor PNG"),
    ],
    ids=["30000", "10000", "scans", "GIF"],
)
def test_an_image_too_slow_to_decode_is_refused_first(body: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        decode(body, 32)
