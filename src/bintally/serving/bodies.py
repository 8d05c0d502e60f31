"""From the body of a request to photographs and their records: one file, JSON, or a form of several parts."""

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import FormParser, parse_options_header

from bintally.errors import UserError

MAX_IMAGES = 64
MAX_RECORD = 999_999_999
RAW = ("image/*", "application/x-image", "application/octet-stream")
JSON, FORM = "application/json", "multipart/form-data"
SHOWN = 40  # characters of an offending value

Record = Annotated[int, Field(ge=0, le=MAX_RECORD, strict=True, description="how many items the record says")]


class EncodedImage(BaseModel):
    model_config = ConfigDict(extra="forbid")

    data: str = Field(description="a JPEG or PNG file in Base64", json_schema_extra={"format": "byte"})
    expected: Record | None = None


class Images(BaseModel):
    """Several photographs as JSON."""

    model_config = ConfigDict(extra="forbid")

    images: list[EncodedImage] = Field(min_length=1, max_length=MAX_IMAGES)


def _once_or_more(what: dict[str, object], least: int, description: str) -> dict[str, object]:
    several = {"type": "array", "minItems": least, "maxItems": MAX_IMAGES, "items": what}
    return {"anyOf": [what, several], "description": description}


FORM_SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["images"],
    "properties": {
        "images": _once_or_more({"type": "string", "format": "binary"}, 1, "JPEG or PNG files"),
        "expected": _once_or_more(
            {"type": "integer", "minimum": 0, "maximum": MAX_RECORD},
            0,
            "the records, as many as images and in their order, or none; one may be empty",
        ),
    },
}


@dataclass(frozen=True)
class Photograph:
    """A file as it came, not yet looked at."""

    body: bytes
    expected: int | None


def kind_of(content_type: str) -> str | None:
    """JSON, FORM, the first of RAW for any file, or None for what is not taken."""
    media = content_type.partition(";")[0].strip().lower()
    if media in (JSON, FORM):
        return media
    return RAW[0] if not media or media.startswith("image/") or media in RAW else None


def read_record(text: str) -> int:
    """Raises UserError if it is no whole number that a record may say."""
    if not (text.isascii() and text.isdecimal() and len(text) <= len(str(MAX_RECORD))):
        raise UserError(f"expected is {text[:SHOWN]!r}; it must be a whole number from 0 to {MAX_RECORD:,}")
    return int(text)


def read_json(body: bytes, expected: int | None) -> list[Photograph]:
    """Raises UserError if it is not Images; ``expected`` is the record of those that name none."""
    try:
        images = Images.model_validate_json(body).images
    except ValidationError as error:
        raise UserError(f"the JSON is not what is asked for: {_first(error)}; see /openapi.json") from error
    photographs = []
    for number, image in enumerate(images, 1):
        try:
            data = base64.b64decode(image.data, validate=True)
        except (binascii.Error, ValueError) as error:
            raise UserError(
                f"image {number} of {len(images)}: its data of {len(image.data)} characters is not Base64; encode "
                "the file with the standard alphabet and padding"
            ) from error
        photographs.append(Photograph(data, expected if image.expected is None else image.expected))
    return photographs


def read_form(body: bytes, content_type: str, expected: int | None) -> list[Photograph]:
    """Raises UserError if it is no whole form of files ``images`` and, if at all, as many numbers ``expected``."""
    files: list[bytes] = []
    records: list[str] = []
    others: list[str] = []
    ends: list[bool] = []

    def take(name: bytes | None, content: bytes) -> None:
        if name == b"images":
            files.append(content)
        elif name == b"expected":
            records.append(content.decode("utf-8", "replace"))
        else:
            others.append((name or b"").decode("utf-8", "replace")[:SHOWN])

    _, options = parse_options_header(content_type)
    if not options.get(b"boundary"):
        raise UserError("the form's Content-Type names no boundary; let the client's library write that header")
    try:
        parser = FormParser(
            FORM,
            on_field=lambda field: take(field.field_name, field.value or b""),
            on_file=lambda file: take(file.field_name, _content(file.file_object)),
            on_end=lambda: ends.append(True),
            boundary=options[b"boundary"],
            config={"MAX_MEMORY_FILE_SIZE": len(body) + 1, "UPLOAD_ERROR_ON_BAD_CTE": True},
        )
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise UserError(f"the form of {len(body)} bytes cannot be read: {str(error)[: SHOWN * 3]}") from error
    if not ends:
        raise UserError(f"the form of {len(body)} bytes is cut short: its last boundary is missing")
    if others:
        raise UserError(f"a part of the form is called {others[0]!r}; parts are called 'images' and 'expected'")
    if not 0 < len(files) <= MAX_IMAGES:
        raise UserError(f"the form holds {len(files)} images; send 1 to {MAX_IMAGES} as parts called 'images'")
    if records and len(records) != len(files):
        raise UserError(f"the form holds {len(files)} images and {len(records)} records; send none, or as many")
    given = [_record(text, number, expected) for number, text in enumerate(records, 1)]
    return [Photograph(file, one) for file, one in zip(files, given or [expected] * len(files), strict=True)]


def _content(file: object) -> bytes:
    file.seek(0)  # type: ignore[attr-defined]
    return bytes(file.read())  # type: ignore[attr-defined]


def _record(text: str, number: int, expected: int | None) -> int | None:
    try:
        return read_record(text) if text else expected
    except UserError as fault:
        raise UserError(f"record {number}: {fault}") from fault


def _first(error: ValidationError) -> str:
    """Where and why, without what was sent."""
    details = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where: Sequence[int | str] = details["loc"]
    place = ".".join(str(part)[:SHOWN] for part in where)
    return f"{place}: {details['msg']}" if place else details["msg"]
