"""Parsing of request bodies: an image file, JSON with Base64, or a multipart form."""

import binascii
import re
from dataclasses import dataclass
from threading import Event
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import FormParser, parse_options_header

from bintally.errors import UserError, printable

MAX_IMAGES = 64
MAX_RECORD = 999_999_999
RAW = ("image/*", "application/x-image", "application/octet-stream")
JSON, FORM = "application/json", "multipart/form-data"
QUOTED = 40  # maximum characters of an offending value in a message

# MAX_IMAGES images need fewer of each. Parsing JSON of a million keys would stop every other thread for seconds.
STRUCTURE, MAX_STRUCTURE = {"quotation marks": b'"', "commas": b",", "braces": b"{", "brackets": b"["}, 16 * MAX_IMAGES
UTF8_MARK = b"\xef\xbb\xbf"
URL_SAFE = bytes.maketrans(b"-_", b"+/")
NOT_BASE64 = re.compile(r"[^A-Za-z0-9+/_=\s-]")

Record = Annotated[int, Field(ge=0, le=MAX_RECORD, strict=True, description="number of items in the record")]


class EncodedImage(BaseModel):
    model_config = ConfigDict(extra="forbid")

    data: str = Field(
        description="a JPEG or PNG file in Base64, or as a data URL", json_schema_extra={"format": "byte"}
    )
    expected: Record | None = None


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
            "one record per image, in the order of the images, or none at all; a record may be empty",
        ),
    },
}


@dataclass(frozen=True)
class Upload:
    """An image file as received, not yet decoded."""

    content: bytes
    expected: int | None
    """Number of items in the record, where one was sent."""


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
    for name, character in STRUCTURE.items():
        if (number := body.count(character)) > MAX_STRUCTURE:
            raise UserError(
                f"the JSON has {number:,} {name}; {MAX_IMAGES} images, each with data and expected, need fewer than "
                f"{MAX_STRUCTURE:,}; see /openapi.json"
            )
    try:
        images = Images.model_validate_json(body.removeprefix(UTF8_MARK)).images
    except ValidationError as error:
        raise UserError(f"the JSON is malformed: {_first_error(error)}; see /openapi.json") from error
    uploads = []
    for number, image in enumerate(images, 1):
        try:
            data = decode_base64(image.data)
        except UserError as error:
            raise UserError(f"image {number} of {len(images)}: {error}") from error
        uploads.append(Upload(data, expected if image.expected is None else image.expected))
    return uploads


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
    files: list[bytes] = []
    records: list[str] = []
    complete = Event()

    def add_part(name: bytes | None, content: bytes) -> None:
        if name == b"images":
            files.append(content)
        elif name == b"expected":
            records.append(content.decode("utf-8", "replace"))
        else:
            quoted = (name or b"").decode("utf-8", "replace")[:QUOTED]
            raise UserError(f"the form has a part named {quoted!r}; name parts 'images' and 'expected'")
        if max(len(files), len(records)) > MAX_IMAGES:  # at once, as parsing more costs seconds
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
    if not files:
        raise UserError(f"the form has no images; send 1 to {MAX_IMAGES} as parts named 'images'")
    if records and len(records) != len(files):
        raise UserError(
            f"the form has {len(files)} images and {len(records)} records; send one record per image, or none"
        )
    uploads = []
    for number, (file, record) in enumerate(zip(files, records or [""] * len(files), strict=True), 1):
        try:
            uploads.append(Upload(file, parse_expected(record) if record else expected))
        except UserError as error:
            raise UserError(f"record {number}: {error}") from error
    return uploads


def _first_error(error: ValidationError) -> str:
    """Location and message of the first error, without the value that was sent."""
    details = error.errors(include_url=False, include_input=False, include_context=False)[0]
    location = ".".join(str(part)[:QUOTED] for part in details["loc"])
    return printable(f"{location}: {details['msg']}" if location else details["msg"])
