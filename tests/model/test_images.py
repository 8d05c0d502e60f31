"""From bytes to pixels: every kind of photograph gives the same kind of tensor, or a fault."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from bintally.errors import UserError
from bintally.model.images import decode


def picture(mode: str = "RGB") -> Image.Image:
    """A smooth picture, wider than high, reddish on the left and bluish on the right."""
    across, down = np.meshgrid(np.linspace(0, 1, 90), np.linspace(0, 1, 60))
    pixels = np.stack([200 - 150 * across, 60 + 100 * down, 40 + 180 * across], axis=2)
    return Image.fromarray(pixels.astype(np.uint8)).convert(mode)


def coded(image: Image.Image, form: str) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **({"quality": 95} if form == "JPEG" else {}))
    return file.getvalue()


@pytest.mark.parametrize(
    ("mode", "form"),
    [("RGB", "JPEG"), ("L", "JPEG"), ("CMYK", "JPEG"), ("RGB", "PNG"), ("L", "PNG"), ("RGBA", "PNG"), ("P", "PNG")],
)
def test_every_kind_of_photograph_becomes_a_square_as_pillow_sees_it(mode: str, form: str) -> None:
    body = coded(picture(mode), form)
    pixels = decode(body, 32)
    assert (pixels.dtype, tuple(pixels.shape)) == (torch.uint8, (3, 32, 32))
    with Image.open(io.BytesIO(body)) as image:
        squashed = image.convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)
    difference = np.abs(pixels.permute(1, 2, 0).numpy().astype(float) - np.asarray(squashed))
    assert difference.mean() < 2 and difference.max() < 12


@pytest.mark.parametrize("body", [b"", b"garbage" * 100, coded(picture(), "JPEG")[:-10]])
def test_bytes_that_are_no_image_or_not_all_of_one_are_a_fault(body: bytes) -> None:
    with pytest.raises(UserError, match=f"image of {len(body)} bytes does not decode") as caught:
        decode(body, 32)
    assert "\n" not in str(caught.value)


def test_a_photograph_is_turned_as_its_camera_says() -> None:
    upright, turned = io.BytesIO(), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # of a camera held upright: a quarter to the right
    picture().transpose(Image.Transpose.ROTATE_270).save(upright, "JPEG", quality=95)
    picture().save(turned, "JPEG", quality=95, exif=exif)
    difference = decode(upright.getvalue(), 32).int() - decode(turned.getvalue(), 32).int()
    assert difference.abs().max() < 8


def test_sixteen_bits_a_channel_are_read_as_eight() -> None:
    grey = np.linspace(0, 65535, 64 * 48).astype(np.uint16).reshape(48, 64)
    pixels = decode(coded(Image.fromarray(grey), "PNG"), 16)
    assert pixels.dtype == torch.uint8 and pixels[0, 0, 0] < 10 and pixels[0, -1, -1] > 245


def claimed(width: int, height: int) -> bytes:
    """A PNG whose head says that it is so large."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (claimed(30_000, 30_000), "an image of more than 50,000,000 pixels is too large"),
        (claimed(10_000, 6_000), "an image of 10000 x 6000 pixels is too large"),
        (coded(picture(), "JPEG") + b"\xff\xda" * 64, "more than 64 scans"),
        (coded(picture("P"), "GIF"), "neither JPEG nor PNG"),
    ],
    ids=["30000", "10000", "scans", "GIF"],
)
def test_what_would_take_too_long_is_refused_before_it_is_decoded(body: bytes, said: str) -> None:
    with pytest.raises(UserError, match=said):
        decode(body, 32)
