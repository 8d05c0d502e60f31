"""Decode photographs to the pixels that the network takes, the same way for training and serving."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2.functional import resize

from bintally.bins.images import FORMATS, decode_fetched, decode_image
from bintally.bins.shards import Entry, ShardReader


def decode(body: bytes, size: int, formats: Sequence[str] = FORMATS) -> torch.Tensor:
    """Decode a file as :func:`bintally.bins.images.decode_image` does, and squash it to a square.

    Returns uint8 (3, size, size), RGB. Raises BadImage, a UserError, if it does not decode.
    """
    return squash(decode_image(body, formats=formats), size)


def decode_bin(reader: ShardReader, entry: Entry, size: int) -> torch.Tensor:
    """:func:`decode` for a fetched bin. Raises UserError with its id if its shard is damaged."""
    return squash(decode_fetched(reader.image(entry), entry.id), size)


def squash(image: Image.Image, size: int) -> torch.Tensor:
    """Resize an RGB image to a square, bilinear with antialiasing: uint8 (3, size, size)."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    squashed: torch.Tensor = resize(pixels, [size, size], antialias=True)
    return squashed
