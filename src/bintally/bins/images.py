"""Decode photographs the same way wherever one is read, in bounded memory and time.

Of JPEG and PNG files Pillow is given only the parts that the pixels depend on. Texts, profiles, previews, films behind
the picture and EXIF tags other than the orientation can thus cost nothing, and cannot fail. WebP, TIFF and AVIF files
are given to it as they are, and are read from the user's own sources alone, not from requests.
"""

import io
import re
import struct
import warnings
import zlib
from collections.abc import Sequence

import numpy as np
from PIL import Image, UnidentifiedImageError

from bintally.errors import UserError

MAX_BYTES = 100_000_000
MAX_PIXELS = 50_000_000
MAX_SCANS = 64  # of a JPEG, each as slow to decode as the whole image; cameras write about ten
MAX_PARTS = 2**16  # segments of a JPEG or chunks of a PNG
MAX_TABLES = 2**20  # bytes of a JPEG's tables; those of 64 scans are about 200 KB

HEIC = re.compile(rb"....ftyp(hei[cx]|mif1|heim|heis)", re.DOTALL)

# Any marker but those that stand in the data of a scan: FF00 is a byte of it, FFD0 to FFD7 part it.
WEB = ("JPEG", "PNG")
FORMATS = (*WEB, "WEBP", "TIFF", "AVIF")
MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd7\xff])")
SOI, EOI, SOS, APP1 = 0xD8, 0xD9, 0xDA, 0xE1
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # how large the picture is and how it is coded
TABLES = {*FRAMES, 0xC4, 0xCC, 0xDB, 0xDD}  # those, Huffman's, of arithmetic coding, quantization, restart interval
APPLICATIONS = {0xE0: b"JFIF", 0xEE: b"Adobe"}  # segments that say which colours the channels are
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
SIGNATURES = {
    "PNG": re.compile(re.escape(PNG_SIGNATURE)),
    "JPEG": re.compile(rb"\xff\xd8\xff"),
    "WEBP": re.compile(rb"RIFF....WEBP", re.DOTALL),
    "TIFF": re.compile(rb"II\*\0|MM\0\*"),
    "AVIF": re.compile(rb"....ftypavi[fs]", re.DOTALL),
}
ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


warnings.filterwarnings("ignore", module="PIL")  # of tags that are damaged


class BadImage(UserError):
    """A file that is not decoded; the message is the reason, the same for the same bytes."""


def decode_image(body: bytes, smallest: int | None = None, formats: Sequence[str] = FORMATS) -> Image.Image:
    """Decode the first picture of a file to RGB, turned as its EXIF orientation says; transparency is ignored.

    Args:
        smallest: a JPEG may be decoded at a half, quarter or eighth of its size, which is quicker, if no side becomes
            shorter than this.
        formats: those of FORMATS that are taken.

    Raises BadImage if the file is of none of the ``formats``, is truncated or damaged, or is too large.
    """
    if len(body) > MAX_BYTES:
        raise BadImage(f"image of {len(body):,} bytes is too large; at most {MAX_BYTES:,} are allowed")
    kind = next((kind for kind, start in SIGNATURES.items() if start.match(body)), "")
    if kind not in formats:
        names = f"{', '.join(formats[:-1])} nor {formats[-1]}".replace("WEBP", "WebP")
        is_heic = "; it is HEIC: save it as JPEG" if HEIC.match(body) else ""
        raise _damaged(f"it is neither {names}{is_heic}" if body else "it is empty")
    essence, exif = {"PNG": _png_essence, "JPEG": _jpeg_essence}.get(kind, _whole)(body)
    image: Image.Image
    try:
        with Image.open(io.BytesIO(essence), formats=[kind]) as image:
            _check_size(*image.size)
            if smallest:
                image.draft(None, (smallest, smallest))
            image.load()
            exif = exif or image.info.get("exif", b"").removeprefix(b"Exif\0\0")
            turned = image.getexif().get(ORIENTATION, 1) if kind == "TIFF" else _orientation(exif)
    except UnidentifiedImageError as error:  # its message holds an address in memory
        raise _damaged("its header is damaged") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise _damaged("it is truncated" if "runcated" in str(error) else str(error)) from error
    if image.mode.startswith("I;16"):  # convert() would clip
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode != "RGB":
        image = image.convert("RGB")
    turn = TURNS.get(turned)
    return image if turn is None else image.transpose(turn)


def decode_fetched(body: bytes, bin_id: str, smallest: int | None = None) -> Image.Image:
    """Decode a photograph of the fetched bins; the UserError names the bin and the remedy."""
    try:
        return decode_image(body, smallest)
    except BadImage as error:
        remedy = "`dvc checkout --force` restores it, `dvc repro -f fetch` fetches it again"
        raise UserError(f"bin {bin_id}: {error}, but did when it was fetched; {remedy}") from error


def _damaged(reason: str) -> BadImage:
    return BadImage(f"image does not decode: {reason[:80]}")


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise BadImage(f"image of {width} x {height} pixels is too large; at most {MAX_PIXELS:,} are allowed")


def _whole(body: bytes) -> tuple[bytes, bytes]:
    return body, b""


def _jpeg_essence(body: bytes) -> tuple[bytes, bytes]:
    """What the pixels of a JPEG depend on, up to the end of its first picture; and its EXIF tags."""
    essence, exif, scans, table_bytes, position = bytearray(body[:2]), b"", 0, 0, 2
    for _ in range(MAX_PARTS):
        marker = MARKER.search(body, position)
        if marker is None:
            return bytes(essence), exif
        code, start, data = marker[1][0], marker.start(), marker.end() + 2
        if code in (SOI, EOI):
            return bytes(essence + marker[0]), exif
        position = max(data, marker.end() + _number(body[marker.end() : data]))
        if code == SOS:
            scans += 1
            following = MARKER.search(body, position)
            position = following.start() if following else len(body)
            essence += body[start:position]
        elif code in TABLES or (code in APPLICATIONS and body.startswith(APPLICATIONS[code], data)):
            table_bytes += position - start
            essence += body[start:position]
        elif code == APP1 and not exif and body.startswith(b"Exif\0\0", data):
            exif = body[data + 6 : position]
        if code in FRAMES:
            _check_size(_number(body[data + 3 : data + 5]), _number(body[data + 1 : data + 3]))
        if scans > MAX_SCANS:
            raise BadImage(f"image is a JPEG of more than {MAX_SCANS} scans; save it as a baseline JPEG")
        if table_bytes > MAX_TABLES:
            raise BadImage(f"image is a JPEG with more than {MAX_TABLES:,} bytes of tables; save it again")
    raise BadImage(f"image is a JPEG of more than {MAX_PARTS:,} segments; save it again")


def _png_essence(body: bytes) -> tuple[bytes, bytes]:
    """What the pixels of a PNG depend on, without the frames of an animation; and its EXIF tags."""
    essence, exif, position = bytearray(PNG_SIGNATURE), b"", len(PNG_SIGNATURE)
    for _ in range(MAX_PARTS):
        kind, data = body[position + 4 : position + 8], position + 8
        end = data + _number(body[position : position + 4])
        if end + 4 > len(body):
            raise _damaged("it is truncated")
        if kind in (b"IHDR", b"PLTE", b"IDAT", b"IEND"):
            if zlib.crc32(body[position + 4 : end]) != _number(body[end : end + 4]):
                raise _damaged("a checksum is wrong")
            essence += body[position : end + 4]
        if kind == b"IHDR":
            _check_size(_number(body[data:end][:4]), _number(body[data:end][4:8]))
        if kind == b"eXIf":
            exif = body[data:end]
        if kind == b"IEND":
            return bytes(essence), exif
        position = end + 4
    raise BadImage(f"image is a PNG of more than {MAX_PARTS:,} chunks; save it again")


def _number(data: bytes) -> int:
    return int.from_bytes(data, "big")


def _orientation(exif: bytes) -> int:
    """The orientation of EXIF tags, which are a TIFF file; 1, upright, where they have none or are damaged."""
    order = ">" if exif.startswith(b"MM") else "<"
    try:
        (directory,) = struct.unpack_from(order + "I", exif, 4)
        (tags,) = struct.unpack_from(order + "H", exif, directory)
        for place in range(directory + 2, directory + 2 + 12 * tags, 12):
            tag, kind = struct.unpack_from(order + "HH", exif, place)
            if tag == ORIENTATION:
                return int(struct.unpack_from(order + ("I" if kind == 4 else "H"), exif, place + 8)[0])
    except struct.error:
        return 1
    return 1
