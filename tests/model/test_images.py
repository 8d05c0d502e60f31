"""From bytes to pixels: every kind of photograph gives the same kind of tensor, or a fault."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from bintally.faults import Fault
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
    with pytest.raises(Fault, match=f"image of {len(body)} bytes does not decode") as caught:
        decode(body, 32)
    assert "\n" not in str(caught.value)
