"""Photographs become the same kind of tensor, whatever their file."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2.functional import resize

from bintally.bins.images import decode_image
from bintally.bins.shards import Bin, ShardReader, write_shards
from bintally.errors import UserError
from bintally.model.images import decode, decode_bin


def encode_image(mode: str, kind: str) -> bytes:
    """A smooth image, wider than high, reddish on the left and bluish on the right."""
    across, down = np.meshgrid(np.linspace(0, 1, 90), np.linspace(0, 1, 60))
    pixels = np.stack([200 - 150 * across, 60 + 100 * down, 40 + 180 * across], axis=2)
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).convert(mode).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize(("mode", "kind"), [("RGB", "JPEG"), ("L", "JPEG"), ("CMYK", "JPEG"), ("RGBA", "PNG")])
@pytest.mark.filterwarnings("error")
def test_every_photograph_is_squashed_to_a_square_as_pillow_does(mode: str, kind: str) -> None:
    body = encode_image(mode, kind)
    pixels = decode(body, 32)
    assert (pixels.dtype, tuple(pixels.shape)) == (torch.uint8, (3, 32, 32))
    image = decode_image(body)
    planes = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
    assert torch.equal(pixels, resize(planes, [32, 32], antialias=True))
    squashed = image.resize((32, 32), Image.Resampling.BILINEAR)
    difference = np.abs(pixels.permute(1, 2, 0).numpy().astype(float) - np.asarray(squashed))
    assert difference.mean() < 2 and difference.max() < 12


def test_a_file_that_does_not_decode_is_a_user_error() -> None:
    with pytest.raises(UserError, match="image does not decode: it is truncated"):
        decode(encode_image("RGB", "JPEG")[:-10], 32)


def test_a_bin_that_does_not_decode_is_named(tmp_path: Path) -> None:
    good = encode_image("RGB", "JPEG")
    bins = [Bin("00001", 1, "a", good, b"{}"), Bin("00002", 1, "b", good[:-10], b"{}")]
    (first, second), reader = write_shards(tmp_path, bins), ShardReader(tmp_path)
    assert torch.equal(decode_bin(reader, first, 32), decode(good, 32))
    with pytest.raises(UserError, match="bin 00002: image does not decode: it is truncated"):
        decode_bin(reader, second, 32)


def png_of_zeros(side: int) -> bytes:
    """A small PNG file with 16 bits per channel."""
    head = struct.pack(">IIBBBBB", side, side, 16, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(bytes(side * (1 + 6 * side)))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def test_sixteen_bits_per_channel_take_no_more_memory_than_eight() -> None:
    def peak() -> int:
        (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024

    side = 4000
    body = png_of_zeros(side)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is in use
    before = peak()
    assert not decode(body, 16).any()
    assert peak() - before < 14 * side**2  # 4 bytes a pixel in Pillow, 3 in each of two copies, and some
