"""Parsing of request bodies: an image file, JSON with Base64, or a multipart form."""

import binascii
import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from threading import Event
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import FormParser, parse_options_header

from bintally.bins.products import Product, listed_products
from bintally.bins.record import MAX_COUNT, BadBin, parse_record
from bintally.errors import UserError, printable

MAX_IMAGES = 64
MAX_RECORD = 999_999_999
MAX_PRODUCTS = 64  # in a record; the time to judge one grows with their square
RAW = ("image/*", "application/x-image", "application/octet-stream")
JSON, FORM = "application/json", "multipart/form-data"
QUOTED = 40  # maximum characters of an offending value in a message

# MAX_IMAGES images, each with 16 products of ABID, need fewer of each: a product takes up to 60 quotation marks, 13
# commas and 5 braces. Parsing JSON of a million keys would stop every other thread for seconds.
STRUCTURE = {
    "quotation marks": (b'"', 2**16),
    "commas": (b",", 2**14),
    "braces": (b"{", 2**13),
    "brackets": (b"[", 2**8),
}
MAX_DIGITS = 40  # of a whole number; the time to read one grows with their square
UTF8_MARK = b"\xef\xbb\xbf"
URL_SAFE = bytes.maketrans(b"-_", b"+/")
NOT_BASE64 = re.compile(r"[^A-Za-z0-9+/_=\s-]")

QUANTITY = {"type": "integer", "minimum": 0, "maximum": MAX_COUNT}
RECORD_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["BIN_FCSKU_DATA", "EXPECTED_QUANTITY"],
    "properties": {
        "EXPECTED_QUANTITY": QUANTITY | {"description": "number of items: the sum of the quantities"},
        "BIN_FCSKU_DATA": {
            "type": "object",
            "description": f"the products by their keys, such as ASINs, at most {MAX_PRODUCTS}; besides the quantity, "
            "name, length, width, height and weight are read, in the form of ABID's metadata",
            "additionalProperties": {"type": "object", "required": ["quantity"], "properties": {"quantity": QUANTITY}},
        },
    },
}

Expected = Annotated[int, Field(ge=0, le=MAX_RECORD, strict=True, description="number of items in the record")]
Record = Annotated[
    dict[str, Any],
    Field(description="the inventory's record of the bin, as in ABID's metadata", json_schema_extra=RECORD_SCHEMA),
]


class EncodedImage(BaseModel):
    model_config = ConfigDict(extra="forbid")

    data: str = Field(
        description="a JPEG or PNG file in Base64, or as a data URL", json_schema_extra={"format": "byte"}
    )
    expected: Expected | None = None
    record: Record | None = None


class Images(BaseModel):
    """Images as JSON."""

    model_config = ConfigDict(extra="forbid")

    images: list[EncodedImage] = Field(min_length=1, max_length=MAX_IMAGES)


def _one_or_list(item: dict[str, object], min_items: int, description: str) -> dict[str, object]:
    array = {"type": "array", "minItems": min_items, "maxItems": MAX_IMAGES, "items": item}
    return {"anyOf": [item, array], "description": description}


FORM_SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["images"],
    "properties": {
        "images": _one_or_list({"type": "string", "format": "binary"}, 1, "JPEG or PNG files"),
        "expected": _one_or_list(
            {"type": "integer", "minimum": 0, "maximum": MAX_RECORD},
            0,
            "number of items in the record of each image, in the order of the images, or none at all; one may be empty",
        ),
        "records": _one_or_list(
            {"type": "string", "contentMediaType": JSON, "contentSchema": RECORD_SCHEMA},
            0,
            "the record of each image, in the order of the images, or none at all; one may be empty",
        ),
    },
}


@dataclass(frozen=True)
class Upload:
    """An image file as received, not yet decoded."""

    content: bytes
    expected: int | None
    """Number of items in the record, where it or a record was sent."""
    products: Sequence[Product] | None = None
    """What the record lists, where one was sent."""


def body_kind(content_type: str) -> str | None:
    """JSON, FORM, RAW[0] for an image file, or None for a type that is not supported."""
    media = content_type.partition(";")[0].strip().lower()
    if media in (JSON, FORM):
        return media
    return RAW[0] if not media or media.startswith("image/") or media in RAW else None


def parse_expected(text: str) -> int:
    """The count that a record gives. Raises UserError unless it is a whole number within bounds."""
    if not (text.isascii() and text.isdecimal() and len(text) <= len(str(MAX_RECORD))):
        raise UserError(f"expected is {text[:QUOTED]!r}; it must be a whole number from 0 to {MAX_RECORD:,}")
    return int(text)


def parse(body: bytes, content_type: str, expected: int | None) -> list[Upload]:
    """The images in a JSON body or a form, those without a record with ``expected``. Raises UserError if malformed."""
    is_json = body_kind(content_type) == JSON
    return _parse_json(body, expected) if is_json else _parse_form(body, content_type, expected)


def _parse_json(body: bytes, expected: int | None) -> list[Upload]:
    body = body.removeprefix(UTF8_MARK)
    _require_few(body, "the JSON has")
    try:
        images = Images.model_validate_json(body).images
    except ValidationError as error:
        raise UserError(f"the JSON is malformed: {_first_error(error)}; see /openapi.json") from error
    if any(image.record is not None for image in images):
        _require_plain_json(body)
    uploads = []
    for number, image in enumerate(images, 1):
        try:
            # As text again: what is a good record is decided in one place.
            record = b"" if image.record is None else json.dumps(image.record).encode()
            uploads.append(_upload(decode_base64(image.data), image.expected, record, expected))
        except UserError as error:
            raise UserError(f"image {number} of {len(images)}: {error}") from error
    return uploads


def _upload(content: bytes, own_expected: int | None, record: bytes, expected: int | None) -> Upload:
    """An image with its record and the count expected of it alone, or, where it has neither, with ``expected``.

    ``record``: JSON, or empty. Raises UserError for a record that is malformed or gives another count.
    """
    if not record.strip():
        return Upload(content, expected if own_expected is None else own_expected)
    try:
        count = parse_record(record).count
    except BadBin as error:
        raise UserError(f"{error}; see /openapi.json") from error
    products = listed_products(record)
    if len(products) > MAX_PRODUCTS:
        raise UserError(
            f"its record lists {len(products)} products, more than {MAX_PRODUCTS}; send its count as 'expected' instead"
        )
    if own_expected not in (None, count):
        raise UserError(
            f"its 'expected' is {own_expected} and its record's EXPECTED_QUANTITY {count}; send one of them"
        )
    return Upload(content, count, products)


def _require_few(text: bytes, what: str) -> None:
    """Raise UserError if JSON has more structure than the images and records of one request need."""
    for name, (character, most) in STRUCTURE.items():
        if (number := text.count(character)) > most:
            raise UserError(
                f"{what} {number:,} {name}; {MAX_IMAGES} images, each with a record of 16 products, need fewer than "
                f"{most:,}; send fewer images at once"
            )


def _require_plain_json(text: bytes) -> None:
    """Raise UserError if JSON has equal keys in one object, of which parsers take the last, or endless numbers."""
    with suppress(ValueError, RecursionError):  # it is no JSON, as the next parser says
        json.loads(text, object_pairs_hook=_require_unique, parse_int=_require_few_digits)


def _require_unique(pairs: list[tuple[str, Any]]) -> None:
    """Raise UserError if an object of JSON has a key twice."""
    seen = set[str]()
    for key, _ in pairs:
        if key in seen:
            raise UserError(f"the JSON has the key {key[:QUOTED]!r} twice in one object; send it once")
        seen.add(key)


def _require_few_digits(number: str) -> None:
    """Raise UserError for a whole number that no count comes near."""
    if len(number) > MAX_DIGITS:
        raise UserError(f"the JSON has a number of {len(number):,} digits; counts have at most {len(str(MAX_RECORD))}")


def decode_base64(text: str) -> bytes:
    """The bytes of Base64 in the standard or the URL-safe alphabet, padded or not, in lines or not, or in a data URL.

    Raises UserError with what is wrong.
    """
    head, comma, data = text.partition(",") if text[:5].lower() == "data:" else ("", "", text)
    if head and not (comma and head.lower().endswith(";base64")):
        raise UserError(
            f"its data is the data URL {head[:QUOTED]!r} without Base64; it must begin as data:image/jpeg;base64,"
        )
    encoded = data.encode("ascii", "replace").translate(URL_SAFE, b" \t\r\n")
    try:
        return binascii.a2b_base64(encoded + b"=" * (-len(encoded) % 4), strict_mode=True)
    except binascii.Error as error:
        wrong = NOT_BASE64.search(data)
        reason = f"character {wrong.start() + 1} is {wrong[0]!r}" if wrong else str(error)
        raise UserError(f"its data of {len(data)} characters is not Base64: {reason}; encode the file anew") from error


def _parse_form(body: bytes, content_type: str, expected: int | None) -> list[Upload]:
    parts: dict[bytes, list[bytes]] = {b"images": [], b"expected": [], b"records": []}
    complete = Event()

    def add_part(name: bytes | None, content: bytes) -> None:
        if name not in parts:
            quoted = (name or b"").decode("utf-8", "replace")[:QUOTED]
            raise UserError(f"the form has a part named {quoted!r}; name parts 'images', 'expected' and 'records'")
        parts[name].append(content)
        if len(parts[name]) > MAX_IMAGES:  # at once, as parsing more costs seconds
            raise UserError(f"the form has more than {MAX_IMAGES} parts named {name.decode()!r}; send fewer")

    def add_file(file: Any) -> None:
        file.file_object.seek(0)
        add_part(file.field_name, file.file_object.read())

    _, options = parse_options_header(content_type)
    if not options.get(b"boundary"):
        raise UserError("the form's Content-Type has no boundary; let the client's library write that header")
    try:
        parser = FormParser(
            FORM,
            on_field=lambda field: add_part(field.field_name, field.value or b""),
            on_file=add_file,
            on_end=complete.set,
            boundary=options[b"boundary"],
            config={"MAX_MEMORY_FILE_SIZE": len(body) + 1, "UPLOAD_ERROR_ON_BAD_CTE": True},
        )
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise UserError(f"the form of {len(body)} bytes cannot be read: {str(error)[: QUOTED * 3]}") from error
    if not complete.is_set():
        raise UserError(f"the form of {len(body)} bytes is incomplete: its last boundary is missing")
    files = parts[b"images"]
    if not files:
        raise UserError(f"the form has no images; send 1 to {MAX_IMAGES} as parts named 'images'")
    for name in (b"expected", b"records"):
        if parts[name] and len(parts[name]) != len(files):
            raise UserError(
                f"the form has {len(files)} images and {len(parts[name])} parts named {name.decode()!r}; send one per "
                "image, or none"
            )
    _require_few(b"".join(parts[b"records"]), "the form's records have")
    uploads = []
    none = [b""] * len(files)
    each = zip(files, parts[b"expected"] or none, parts[b"records"] or none, strict=True)
    for number, (file, count, record) in enumerate(each, 1):
        try:
            _require_plain_json(record)
            own_expected = parse_expected(count.decode("utf-8", "replace")) if count else None
            uploads.append(_upload(file, own_expected, record.removeprefix(UTF8_MARK), expected))
        except UserError as error:
            raise UserError(f"image {number} of {len(files)}: {error}") from error
    return uploads


def _first_error(error: ValidationError) -> str:
    """Location and message of the first error, without the value that was sent."""
    details = error.errors(include_url=False, include_input=False, include_context=False)[0]
    location = ".".join(str(part)[:QUOTED] for part in details["loc"])
    return printable(f"{location}: {details['msg']}" if location else details["msg"])
