"""Malformed requests of every kind, as a broken or a hostile client sends them."""

import base64
import gzip
import io
import json
import random
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

JSON, PATH = "application/json", "/invocations"


@dataclass(frozen=True)
class BadRequest:
    """A kind of malformed request."""

    make: Callable[[random.Random], bytes]
    closed: bool = False
    """Whether the server may close the connection without a response."""
    weight: float = 1.0
    slow: bool = False


def half_requests(host: str) -> list[bytes]:
    """What clients send that hold a connection: nothing, half a head, a head, half a body."""
    head = f"POST {PATH} HTTP/1.1\r\nhost: {host}\r\ncontent-type: image/jpeg\r\n".encode()
    return [b"", head, head + b"content-length: 50000\r\n\r\n", head + b"content-length: 50000\r\n\r\n" + bytes(25_000)]


def kinds(pictures: Sequence[bytes], host: str) -> dict[str, BadRequest]:
    """Kinds of malformed request by name, to the server at ``host``."""
    good, png = pictures[0], _png(64, 64, zlib.compress(bytes(64 * 193)))
    form = "multipart/form-data; boundary=b"
    part = b'--b\r\ncontent-disposition: form-data; name="images"; filename="a"\r\n\r\n%b\r\n'

    record = b'--b\r\ncontent-disposition: form-data; name="records"\r\n\r\n%b\r\n'
    field = b'--b\r\ncontent-disposition: form-data; name="x"\r\n\r\n\r\n'

    def cut(content: bytes) -> Callable[[random.Random], bytes]:
        return lambda dice: request(content[: dice.randrange(1, len(content) - 2)])

    def same(*arguments: Any, **more: Any) -> Callable[[random.Random], bytes]:
        made = request(*arguments, **more)
        return lambda _: made

    def raw(content: bytes) -> Callable[[random.Random], bytes]:
        return lambda _: content

    def flip_bits(dice: random.Random) -> bytes:
        changed = bytearray(good)
        for _ in range(20):
            changed[dice.randrange(len(changed))] ^= 1 << dice.randrange(8)
        return request(bytes(changed))

    def as_json(*images: bytes, **more: Any) -> bytes:
        listed = [{"data": base64.b64encode(image).decode(), **more} for image in images]
        return json.dumps({"images": listed}).encode()

    def request(body: bytes, content_type: str = "image/jpeg", path: str = PATH, **fields: Any) -> bytes:
        named = {"host": host, "content-length": len(body)} | {
            name.replace("_", "-"): value for name, value in fields.items()
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in named.items())
        return f"POST {path} HTTP/1.1\r\ncontent-type: {content_type}\r\n{head}\r\n".encode() + body

    start = f"POST /invocations HTTP/1.1\r\nhost: {host}\r\n".encode()
    chunked = start + b"transfer-encoding: chunked\r\n\r\n"
    return {
        "empty": BadRequest(same(b"")),
        "cut JPEG": BadRequest(cut(good)),
        "cut PNG": BadRequest(cut(png)),
        "flipped bits": BadRequest(flip_bits),
        "noise": BadRequest(lambda dice: request(dice.randbytes(dice.randrange(1, 20_000)))),
        "GIF": BadRequest(same(_drawn("GIF"))),
        "BMP": BadRequest(same(_drawn("BMP"))),
        "TIFF": BadRequest(same(_drawn("TIFF"))),
        "WebP": BadRequest(same(_drawn("WEBP"))),
        "huge PNG": BadRequest(same(_png(30_000, 30_000, b"\0"))),
        "largest PNG": BadRequest(same(_png(7_000, 7_000, zlib.compress(bytes(7_000 * 21_001)))), weight=0.02),
        "huge JPEG": BadRequest(same(_stretched(good))),
        "GIF before JPEG": BadRequest(same(_drawn("GIF") + good)),
        "JPEG before ZIP": BadRequest(same(good + b"PK\x03\x04" + bytes(500))),
        "page as JPEG": BadRequest(same(b"\xff\xd8\xff\xe0<script>alert(1)</script>")),
        "other type": BadRequest(same(good, "text/html")),
        "record below 0": BadRequest(same(good, path="/invocations?expected=-1")),
        "record of 9,999 digits": BadRequest(same(good, path="/invocations?expected=" + "9" * 9_999)),
        "two records": BadRequest(same(good, path="/invocations?expected=1&expected=2")),
        "half JSON": BadRequest(same(as_json(good)[:-9], JSON)),
        "deep JSON": BadRequest(same(b"[" * 100_000, JSON)),
        "other JSON": BadRequest(same(b'{"pictures":[1]}', JSON)),
        "numbers as JSON images": BadRequest(same(b'{"images":[1,2,3]}', JSON)),
        "no Base64": BadRequest(same(b'{"images":[{"data":"%%%"}]}', JSON)),
        "bad image in JSON": BadRequest(same(as_json(good, b"bad"), JSON)),
        "record as word in JSON": BadRequest(same(as_json(good, expected="x"), JSON)),
        "record without products": BadRequest(same(as_json(good, record={"EXPECTED_QUANTITY": 1}), JSON)),
        "record that does not add up": BadRequest(same(as_json(good, record=_record(3, 2)), JSON)),
        "record of 9,999 products": BadRequest(same(as_json(good, record=_record(9_999, 9_999)), JSON)),
        "record as word in a form": BadRequest(same(part % good + record % b"x" + b"--b--\r\n", form)),
        "deep record in a form": BadRequest(same(part % good + record % (b"[" * 100_000) + b"--b--\r\n", form)),
        "65 in JSON": BadRequest(same(as_json(*[b"x"] * 65), JSON)),
        "form without boundary": BadRequest(same(part % good, "multipart/form-data")),
        "form cut short": BadRequest(same(part % good, form)),
        "noise as form": BadRequest(lambda dice: request(dice.randbytes(2_000), form)),
        "65 in a form": BadRequest(same(part % b"x" * 65 + b"--b--\r\n", form)),
        "many fields": BadRequest(same(field * 20_000 + b"--b--\r\n", form)),
        "oversize": BadRequest(same(bytes(11 * 2**20)), weight=0.2),
        "oversize by its head": BadRequest(same(b"", content_length=10**15)),
        "oversize in chunks": BadRequest(
            raw(
                start
                + b"transfer-encoding: chunked\r\n\r\n"
                + (b"100000\r\n" + bytes(2**20) + b"\r\n") * 11
                + b"0\r\n\r\n"
            ),
            weight=0.2,
        ),
        "bad chunk": BadRequest(raw(chunked + b"xyz\r\n")),
        "two lengths": BadRequest(raw(start + b"content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n")),
        "length below 0": BadRequest(raw(start + b"content-length: -1\r\n\r\n")),
        "no HTTP": BadRequest(lambda dice: b"\x16\x03\x01" + dice.randbytes(200) + b"\r\n\r\n"),
        "endless head": BadRequest(raw(start + b"x: " + b"x" * 300_000)),
        "other method": BadRequest(raw(start.replace(b"POST", b"PUT") + b"content-length: 0\r\n\r\n")),
        "other path": BadRequest(same(good, path="/../../etc/passwd")),
        "endless PNG": BadRequest(same(_endless_png()), weight=0.05),
        "16-bit PNG": BadRequest(same(_png(4_000, 4_000, zlib.compress(bytes(4_000 * 24_001)), depth=16)), weight=0.05),
        "many keys": BadRequest(
            same(b"{" + b",".join(b'"%x":1' % n for n in range(1_000_000)) + b"}", JSON), weight=0.05
        ),
        "many numbers": BadRequest(same(b'{"images":[' + b"1," * 5_000_000 + b"1]}", JSON), weight=0.05),
        "record of 9,999 digits in JSON": BadRequest(
            same(b'{"images":[{"data":"","expected":%b}]}' % (b"9" * 9_999), JSON)
        ),
        "NaN in JSON": BadRequest(same(b'{"images":[{"data":"","expected":NaN}]}', JSON)),
        "half a character in JSON": BadRequest(same(b'{"\\ud800":1}', JSON)),
        "data URL without Base64": BadRequest(same(b'{"images":[{"data":"data:image/jpeg,%FF"}]}', JSON)),
        "gzip": BadRequest(same(gzip.compress(good), content_encoding="gzip")),
        "gzip in chunks": BadRequest(raw(start + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n")),
        "foreign Host": BadRequest(same(good, host="evil.example")),
        "foreign Origin": BadRequest(same(good, origin="http://evil.example")),
        "many header fields": BadRequest(raw(start + b"a: b\r\n" * 5_000 + b"\r\n")),
        "long URL": BadRequest(same(good, path="/" + "x" * 50_000)),
        "small chunks": BadRequest(raw(chunked + b"1\r\nx\r\n" * 100_000 + b"0\r\n\r\n"), weight=0.2),
        "pipelined": BadRequest(raw((start + b"content-length: 0\r\n\r\n") * 5_000), closed=True),
        "upgrade": BadRequest(same(good[:99], connection="upgrade", upgrade="websocket")),
        "slow body": BadRequest(same(good[:99], content_length=len(good)), weight=0.1, slow=True),
        "slow chunk": BadRequest(raw(chunked + b"5\r\nab"), weight=0.1, slow=True),
        "slow head": BadRequest(raw(start), closed=True, weight=0.1, slow=True),
        "silence": BadRequest(raw(b""), closed=True, weight=0.1, slow=True),
    }


def _record(products: int, expected: int) -> dict[str, Any]:
    """A record in ABID's format of products of one item each."""
    items = {f"B{number:09d}": {"quantity": 1, "name": "a product"} for number in range(products)}
    return {"BIN_FCSKU_DATA": items, "EXPECTED_QUANTITY": expected}


def _drawn(kind: str) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (64, 48), "green").save(content, kind)
    return content.getvalue()


def _png(width: int, height: int, packed: bytes, depth: int = 8) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def _stretched(jpeg: bytes) -> bytes:
    """A JPEG whose header declares 65,000 x 65,000 pixels."""
    frame = max(jpeg.find(b"\xff\xc0"), jpeg.find(b"\xff\xc2"))
    return jpeg[: frame + 5] + struct.pack(">HH", 65_000, 65_000) + jpeg[frame + 9 :]


def _endless_png() -> bytes:
    """A PNG of 8 x 8 pixels and 8 GB of zeros behind them, in 8 MB."""
    packer = zlib.compressobj(9)
    pixels = packer.compress(bytes(8 * 25)) + packer.flush(zlib.Z_FULL_FLUSH)
    zeros = packer.compress(bytes(2**24)) + packer.flush(zlib.Z_FULL_FLUSH)
    return _png(8, 8, pixels + zeros * 500)
