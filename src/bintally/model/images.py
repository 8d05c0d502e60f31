"""From the bytes of a photograph to the pixels a network sees: the one path for training and for serving."""

import torch
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2.functional import resize

from bintally.faults import Fault


def decode(body: bytes, size: int) -> torch.Tensor:
    """Decode a JPEG or PNG and squash it to a square, bilinear with antialiasing.

    Args:
        body: the file's bytes.
        size: side of the square in pixels.

    Returns:
        uint8 tensor of shape (3, size, size), RGB.

    Raises Fault if the bytes are no image that can be decoded.
    """
    try:
        pixels = decode_image(torch.frombuffer(bytearray(body), dtype=torch.uint8), mode=ImageReadMode.RGB)
    except (RuntimeError, ValueError) as error:
        raise Fault(f"an image of {len(body)} bytes does not decode: {str(error).splitlines()[0]}") from error
    squashed: torch.Tensor = resize(pixels, [size, size], antialias=True)
    return squashed
