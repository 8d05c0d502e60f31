"""The inventory record of a bin, and the checks that records and photographs must pass."""

import io
import json
import re
from dataclasses import dataclass

from PIL import Image

# An id becomes a file name, so it may hold nothing that could lead out of a folder.
ID_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,64}")
MAX_PIXELS = 50_000_000
MAX_RECORD_BYTES = 4_000_000


class BadBin(Exception):
    """A bin that cannot be used; the message is the reason, in a few words."""


@dataclass(frozen=True)
class Record:
    """The inventory record of a bin."""

    count: int  # EXPECTED_QUANTITY: how many items the bin should hold
    asins: frozenset[str]  # the products in it, without those of quantity 0


def parse_record(body: bytes) -> Record:
    """Parse a record in the JSON format of ABID.

    Raises BadBin if it is not JSON, lacks EXPECTED_QUANTITY, or its quantities do not add up to it.
    """
    if len(body) > MAX_RECORD_BYTES:
        raise BadBin(f"record larger than {MAX_RECORD_BYTES} bytes")
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadBin("record is not JSON") from error
    if not isinstance(content, dict) or "EXPECTED_QUANTITY" not in content:
        raise BadBin("record has no EXPECTED_QUANTITY")
    count = content["EXPECTED_QUANTITY"]
    if type(count) is not int or count < 0:
        raise BadBin(f"EXPECTED_QUANTITY is {str(count)[:40]!r}, not a count")
    items = content.get("BIN_FCSKU_DATA")
    if not isinstance(items, dict):
        raise BadBin("record has no BIN_FCSKU_DATA")
    quantities = [item.get("quantity") if isinstance(item, dict) else None for item in items.values()]
    valid = [quantity for quantity in quantities if type(quantity) is int and quantity >= 0]
    if len(valid) < len(quantities):
        raise BadBin("an item of the record has no whole quantity")
    if sum(valid) != count:
        raise BadBin(f"quantities add up to {sum(valid)}, EXPECTED_QUANTITY is {count}")
    return Record(count, frozenset(asin for asin, item in items.items() if item["quantity"]))


def check_image(body: bytes) -> None:
    """Decode a photograph. Raises BadBin if it is not a complete JPEG of at most MAX_PIXELS pixels."""
    try:
        with Image.open(io.BytesIO(body), formats=["JPEG"]) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadBin(f"image of {image.width}x{image.height} pixels is too large")
            image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadBin(f"image does not decode ({' '.join(str(error).split())[:80]})") from error
