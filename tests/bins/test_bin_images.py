"""One decoder for every command: what a photograph shows counts, and nothing else in its file."""

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from bintally.bins import images
from bintally.bins.images import BadImage, decode_fetched, decode_image
from bintally.errors import UserError

pytestmark = pytest.mark.filterwarnings("error")  # Pillow's say nothing to a user

NOISE = np.random.default_rng(0).bytes(200_000)


def photograph(mode: str = "RGB", width: int = 90, height: int = 60) -> Image.Image:
    """A smooth image, reddish on the left and bluish on the right, darker at the top."""
    across, down = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    pixels = np.stack([200 - 150 * across, 60 + 100 * down, 40 + 180 * across], axis=2)
    return Image.fromarray(pixels.astype(np.uint8)).convert(mode)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def segment(code: int, content: bytes) -> bytes:
    return bytes([0xFF, code]) + struct.pack(">H", len(content) + 2) + content


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, data: bytes, depth: int = 8, colours: int = 2, interlace: int = 0) -> bytes:
    """A PNG whose header states this size and kind; ``data`` as it is compressed."""
    head = struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, interlace)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def tiff(entries: list[tuple[int, int, int, int]], order: str = "<", extra: bytes = b"") -> bytes:
    """EXIF tags, each with its type, number of values and the first value or where the values are."""
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "IH", 8, len(entries))
    values = (struct.pack(order + "HHI", *entry[:3]) + _value(order, *entry[1:]) for entry in entries)
    return head + b"".join(values) + bytes(4) + extra


def _value(order: str, kind: int, number: int, value: int) -> bytes:
    return struct.pack(order + "HH", value, 0) if (kind, number) == (3, 1) else struct.pack(order + "I", value)


def exif(content: bytes) -> bytes:
    return segment(0xE1, b"Exif\0\0" + content)


def after(start: int, body: bytes, *parts: bytes) -> bytes:
    return body[:start] + b"".join(parts) + body[start:]


JPEG, PNG = saved(photograph(), "JPEG", quality=90), saved(photograph(), "PNG")
PROGRESSIVE = saved(photograph(width=160, height=120), "JPEG", progressive=True)
TURNED = tiff([(0x0112, 3, 1, 6)])  # a quarter to the right
HEADER = 33  # bytes of a PNG before its first chunk but IHDR


def pixels(body: bytes) -> list[list[list[int]]]:
    return np.asarray(decode_image(body)).tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "body",
    [
        *(saved(photograph(mode), "JPEG") for mode in ("RGB", "L", "CMYK")),
        *(saved(photograph(mode), "PNG") for mode in ("RGB", "L", "RGBA", "LA", "P", "1")),
        PROGRESSIVE,
        saved(photograph(), "JPEG", keep_rgb=True),
        saved(photograph(), "JPEG", subsampling="4:2:0", restart_marker_blocks=2),
        saved(photograph(), "MPO", save_all=True, append_images=[photograph(width=30)]),
        saved(photograph(), "PNG", save_all=True, append_images=[photograph("L").convert("RGB")]),
        saved(photograph(width=1, height=1), "JPEG"),
        saved(photograph(width=1, height=1), "PNG"),
        saved(photograph(width=65500, height=1), "JPEG"),
    ],
)
def test_the_pixels_are_those_of_pillow(body: bytes) -> None:
    decoded = decode_image(body)
    with Image.open(io.BytesIO(body)) as image:
        expected = image.convert("RGB")
    assert (decoded.mode, decoded.size) == ("RGB", expected.size)
    assert decoded.tobytes() == expected.tobytes()


@pytest.mark.parametrize(("colours", "channels"), [(0, 1), (4, 2), (2, 3), (6, 4)])
def test_of_sixteen_bits_per_channel_the_upper_eight_are_kept(colours: int, channels: int) -> None:
    values = np.frombuffer(NOISE[: 40 * 30 * channels * 2], ">u2").reshape(30, 40, channels)
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    upper = (values[:, :, :3] if channels > 2 else values[:, :, :1].repeat(3, axis=2)) >> 8
    assert pixels(png(40, 30, zlib.compress(rows), 16, colours)) == upper.tolist()


BOMB = tiff([(300 + number, 7, 60_000, 100) for number in range(4_000)], extra=NOISE[:10_000])
TEXT = zlib.compress(b"\xff" * 2**20)


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (JPEG + NOISE, JPEG),
        (JPEG + saved(photograph(width=30), "JPEG"), JPEG),
        (after(2, JPEG, *[segment(0xE3, b"\xff\xda" * 30_000)] * 3), JPEG),
        (after(2, JPEG, *[segment(0xE3, NOISE[:65_000])] * 20), JPEG),
        (after(2, JPEG, segment(0xE2, b"MPF\0" + NOISE[:900]), segment(0xE2, b"ICC_PROFILE\0")), JPEG),
        (after(2, JPEG, segment(0xED, b"Photoshop 3.0\0" + NOISE[:900]), b"\xff\xff\x00junk"), JPEG),
        (after(2, JPEG, exif(NOISE[:60_000])), JPEG),
        (after(2, JPEG, exif(TURNED[:15])), JPEG),
        (after(2, JPEG, exif(BOMB)), JPEG),
        (PNG + NOISE, PNG),
        (after(HEADER, PNG, chunk(b"iCCP", b"name\0\0" + zlib.compress(bytes(2**21)))), PNG),
        (after(HEADER, PNG, *[chunk(b"zTXt", b"key\0\0" + TEXT)] * 80), PNG),
        (after(HEADER, PNG, *[chunk(b"iTXt", b"key\0\1\0\0\0" + TEXT)] * 80), PNG),
        (after(HEADER, PNG, chunk(b"tEXt", b"\xff" * 1000), chunk(b"acTL", b""), chunk(b"tRNS", b"")), PNG),
        (after(HEADER, PNG, chunk(b"eXIf", BOMB), b""), PNG),
    ],
)
def test_what_is_not_the_picture_costs_and_changes_nothing(body: bytes, shown: bytes) -> None:
    tracemalloc.start()
    try:
        found = decode_image(body)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.tobytes() == decode_image(shown).tobytes()
    assert peak < 3 * len(shown) + 100_000  # Python's objects: neither the tags' values nor the texts


def test_data_behind_the_pixels_of_a_png_are_not_decompressed() -> None:
    compressor = zlib.compressobj()
    data = compressor.compress(bytes(8 * 25 + 2**20)) + compressor.flush(zlib.Z_FULL_FLUSH)
    assert pixels(png(8, 8, data + NOISE)) == np.zeros((8, 8, 3)).tolist()  # the noise would not decompress


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_photograph_is_turned_as_its_orientation_says(kind: str, orientation: int) -> None:
    tags = tiff([(0x0100, 4, 1, 90), (0x0112, 3, 1, orientation)])
    body = after(2, JPEG, exif(tags)) if kind == "JPEG" else after(HEADER, PNG, chunk(b"eXIf", tags))
    with Image.open(io.BytesIO(body)) as image:
        expected = ImageOps.exif_transpose(image)
    decoded = decode_image(body)
    assert (decoded.size, decoded.tobytes()) == (expected.size, expected.tobytes())


@pytest.mark.parametrize(
    "body",
    [
        after(2, JPEG, segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta/>"), exif(TURNED)),
        after(2, JPEG, exif(tiff([(0x0112, 3, 1, 6)], ">"))),
        after(2, JPEG, exif(tiff([(0x0112, 4, 1, 6)]))),
        # A horizontal resolution of -1/0.
        after(2, JPEG, exif(tiff([(0x0112, 3, 1, 6), (0x011A, 10, 1, 38)], extra=struct.pack("<ii", -1, 0)))),
        after(2, JPEG, exif(TURNED), exif(tiff([(0x0112, 3, 1, 3)]))),
        after(len(PNG) - 12, PNG, chunk(b"eXIf", TURNED)),
    ],
    ids=["XMP first", "big-endian", "long", "odd resolution", "twice", "behind the pixels"],
)
def test_the_orientation_is_found_among_other_tags(body: bytes) -> None:
    upright = decode_image(JPEG if body.startswith(JPEG[:2]) else PNG).transpose(Image.Transpose.ROTATE_270)
    assert decode_image(body).tobytes() == upright.tobytes()


def flipped(body: bytes, place: int) -> bytes:
    return body[:place] + bytes([body[place] ^ 1]) + body[place + 1 :]


LAST_SCAN = PROGRESSIVE[PROGRESSIVE.rindex(b"\xff\xda") : -2]
SIZE = struct.pack(">HH", 60, 90)
DAMAGED = "image does not decode: "


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", DAMAGED + "it is empty"),
        (b"garbage" * 100, DAMAGED + "it is neither JPEG, PNG, WebP, TIFF nor AVIF"),
        (saved(photograph("P"), "GIF"), DAMAGED + "it is neither JPEG, PNG, WebP, TIFF nor AVIF"),
        (b"\xff\xd8\xff", DAMAGED + "its header is damaged"),
        (JPEG[:30], DAMAGED + "it is truncated"),
        (JPEG[: len(JPEG) * 3 // 5], DAMAGED + "it is truncated"),
        (JPEG[:-10], DAMAGED + "it is truncated"),
        (PROGRESSIVE[:-10], DAMAGED + "it is truncated"),
        # A segment that begins in the picture's data and ends behind the file.
        (after(len(JPEG) - 60, JPEG, b"\xff\xe0\xff\xff"), DAMAGED + "it is truncated"),
        (JPEG.replace(SIZE, struct.pack(">HH", 0, 90)), DAMAGED + "its header is damaged"),
        (PNG[:-30], DAMAGED + "it is truncated"),
        (PNG[:-12], DAMAGED + "it is truncated"),
        (flipped(PNG, len(PNG) - 40), DAMAGED + "a checksum is wrong"),
        (png(8, 8, zlib.compress(b"\x77" * 8 * 25)), DAMAGED + "unrecognized data stream contents"),
        (png(8, 8, NOISE[:900]), DAMAGED + "broken data stream"),
        (png(40, 30, zlib.compress(bytes(8 * 25)), interlace=1), DAMAGED),
        (png(8, 8, b"", depth=7, colours=5), DAMAGED + "its header is damaged"),
        (png(0, 0, b""), DAMAGED + "its header is damaged"),
        (png(10_000, 6_000, b""), "image of 10000 x 6000 pixels is too large; at most 50,000,000 are allowed"),
        (png(2**31 - 1, 2**31 - 1, b""), "pixels is too large"),
        (JPEG.replace(SIZE, b"\xff" * 4), "image of 65535 x 65535 pixels is too large"),
        (PROGRESSIVE[:-2] + LAST_SCAN * 60, "image is a JPEG of more than 64 scans; save it as a baseline JPEG"),
        (after(2, JPEG, segment(0xFE, b"") * 70_000), "image is a JPEG of more than 65,536 segments; save it again"),
        (after(2, JPEG, *[segment(0xDB, bytes(65_000))] * 17), "a JPEG with more than 1,048,576 bytes of tables"),
        (after(HEADER, PNG, chunk(b"prVt", b"") * 70_000), "image is a PNG of more than 65,536 chunks; save it again"),
    ],
)
def test_what_is_not_decoded_has_one_reason_each_time(body: bytes, reason: str) -> None:
    found = []
    for _ in range(2):
        with pytest.raises(BadImage) as caught:
            decode_image(body)
        found.append(str(caught.value))
    assert reason in found[0] and found[0] == found[1]
    assert len(found[0]) < 150 and " at 0x" not in found[0]


def test_a_file_of_too_many_bytes_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_BYTES", len(JPEG))
    decode_image(JPEG)
    with pytest.raises(BadImage, match=f"image of {len(JPEG) + 1:,} bytes is too large; at most {len(JPEG):,}"):
        decode_image(JPEG + b"\0")


def test_a_jpeg_of_which_less_is_needed_is_decoded_at_a_fraction_of_its_size() -> None:
    body = saved(photograph(width=640, height=480), "JPEG")
    assert decode_image(body, smallest=100).size == (160, 120)
    assert decode_image(PNG, smallest=10).size == (90, 60)


def test_a_photograph_that_changed_since_it_was_fetched_names_its_bin_and_the_remedy() -> None:
    assert decode_fetched(JPEG, "00042").tobytes() == decode_image(JPEG).tobytes()
    with pytest.raises(UserError, match=r"bin 00042: image does not decode: it is truncated, .* `dvc repro -f fetch`"):
        decode_fetched(JPEG[:-10], "00042")
