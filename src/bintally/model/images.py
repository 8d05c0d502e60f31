"""Decode photographs to the pixels that the network takes, the same way for training and serving."""

import io

import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2.functional import resize

from bintally.bins.record import MAX_PIXELS
from bintally.errors import UserError

MAX_SCANS = 64  # of a progressive JPEG, each as slow to decode as the whole image; cameras write about ten
START_OF_SCAN = b"\xff\xda"


def decode(body: bytes, size: int) -> torch.Tensor:
    """Decode a JPEG or PNG file, apply its EXIF orientation, and squash it to a square, bilinear with antialiasing.

    Returns uint8 (3, size, size), RGB. Raises UserError if it does not decode or, before decoding, if it is too large.
    """
    _check_size(body)
    try:
        encoded = torch.frombuffer(bytearray(body), dtype=torch.uint8)
        pixels = decode_image(encoded, mode=ImageReadMode.RGB, apply_exif_orientation=True)
    except (RuntimeError, ValueError) as error:
        raise _error(body, error) from error
    if pixels.dtype == torch.uint16:
        pixels = (pixels.int() >> 8).to(torch.uint8)
    squashed: torch.Tensor = resize(pixels, [size, size], antialias=True)
    return squashed


def _check_size(body: bytes) -> None:
    try:
        with Image.open(io.BytesIO(body), formats=["JPEG", "PNG"]) as image:
            width, height = image.size
    except Image.DecompressionBombError as error:
        raise UserError(f"an image of more than {MAX_PIXELS:,} pixels is too large; make it smaller") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise _error(body, "it is neither JPEG nor PNG") from error
    if width * height > MAX_PIXELS:
        raise UserError(f"an image of {width} x {height} pixels is too large; at most {MAX_PIXELS:,} are allowed")
    if body.count(START_OF_SCAN) > MAX_SCANS:
        raise UserError(f"a JPEG of more than {MAX_SCANS} scans is not decoded; save it as a baseline JPEG")


def _error(body: bytes, reason: object) -> UserError:
    return UserError(f"an image of {len(body)} bytes does not decode: {str(reason).splitlines()[0]}")
