"""Bodies are parsed in memory of their own size, however they are made."""

import base64
import tracemalloc

import pytest

from bintally.errors import UserError
from bintally.serving.bodies import FORM, JSON, decode_base64, parse

SIZE = 4 * 2**20
BOUNDARY = f"{FORM}; boundary=b"
FIELD = b'--b\r\ncontent-disposition: form-data; name="%b"\r\n\r\n\r\n'
PART = b'\r\n--b\r\ncontent-disposition: form-data; name="%b"\r\n\r\n'
FILE = b'--b\r\ncontent-disposition: form-data; name="images"; filename="a"\r\n\r\n'


def filled(repeated: bytes, start: bytes = b"", end: bytes = b"") -> bytes:
    return start + repeated * (SIZE // len(repeated)) + end


BAD = {
    "many keys": (b"{" + b",".join(b'"%x":1' % n for n in range(SIZE // 9)) + b"}", JSON, "quotation marks"),
    "many numbers": (filled(b"1,", b'{"images":[', b"1]}"), JSON, "commas"),
    "many objects": (filled(b"{", b"", b""), JSON, "braces"),
    "deep": (filled(b"[", b'{"images":'), JSON, "brackets"),
    "many digits": (filled(b"9", b'{"images":[{"data":"","expected":', b"}]}"), JSON, "number out of range"),
    "many spaces": (filled(b" "), JSON, "Invalid JSON"),
    "spaces in base64": (filled(b"A ", b'{"images":[{"data":"', b'%"}]}'), JSON, "is '%'"),
    "many fields": (filled(FIELD % b"x", end=b"--b--\r\n"), BOUNDARY, "a part named 'x'"),
    "many records": (filled(FIELD % b"expected", end=b"--b--\r\n"), BOUNDARY, "more than 64 parts named 'expected'"),
    "many keys in a record": (
        filled(b'"a":1,', PART % b"images" + PART % b"records" + b"{", b"}\r\n--b--\r\n"),
        BOUNDARY,
        "the form's records have 1,398,1.. quotation marks",
    ),
    "many files": (filled(FILE + b"\r\n", end=b"--b--\r\n"), BOUNDARY, "more than 64 parts named 'images'"),
    "many headers": (filled(b"a: b\r\n", b"--b\r\n"), BOUNDARY, "cannot be read"),
    "half boundaries": (filled(b"\r\n--", FILE), BOUNDARY, "incomplete"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_refused_body_takes_no_multiple_of_its_memory(name: str) -> None:
    body, content_type, reason = BAD[name]
    tracemalloc.start()
    with pytest.raises(UserError, match=reason):
        parse(body, content_type, None)
    assert tracemalloc.get_traced_memory()[1] < 3.5 * SIZE
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("QUJ%", "character 4 is '%'"),
        ("QUJD\ud800", r"character 5 is '\\ud800'"),
        ("QUJDR", "cannot be 1 more than a multiple of 4"),
        ("QQ==QQ==", "Excess data after padding"),
        ("data:image/jpeg,%FF%D8", "'data:image/jpeg' without Base64"),
        ("data:image/jpeg;base64", "'data:image/jpeg;base64' without Base64"),
        ("data:;base64,Q%3D%3D", "character 2 is '%'"),
    ],
)
def test_base64_is_refused_with_the_true_reason(text: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        decode_base64(text)


def test_base64_as_tools_write_it_is_decoded() -> None:
    content = bytes(range(256))
    lines = base64.encodebytes(content).decode()
    unpadded = base64.urlsafe_b64encode(content).decode().rstrip("=")
    for text in (lines, lines.replace("\n", "\r\n"), unpadded, "DATA:image/png;charset=x;BASE64," + lines):
        assert decode_base64(text) == content
    assert decode_base64("") == b""
