"""The inventory record of a bin, and the checks that it must pass."""

import json
import re
from dataclasses import dataclass
from typing import Any

from bintally.errors import printable

# An id becomes a file name, so it may hold nothing that could lead out of a folder.
ID_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,64}")
MAX_RECORD_BYTES = 4_000_000
MAX_COUNT = 1000  # of a bin or of one product in it; nothing that follows is made for more
MAX_PATH = 4096  # characters of a photograph's path
MAX_PRODUCT_NAME = 100  # characters of the key of a product, such as an ASIN


class BadBin(Exception):
    """A bin that cannot be used; the message is the reason, in a few words."""


@dataclass(frozen=True)
class Record:
    """The inventory record of a bin."""

    count: int  # EXPECTED_QUANTITY: how many items the bin should hold
    asins: frozenset[str]  # the products in it, without those of quantity 0
    bin: str | None = None  # which bin it is, where the source says so
    photograph: str = ""  # its path, where the source says so in MAX_PATH characters


def parse_record(body: bytes) -> Record:
    """Parse a record in the JSON format of ABID.

    Raises BadBin if it is not JSON, lacks EXPECTED_QUANTITY, or its quantities do not add up to it.
    """
    if len(body) > MAX_RECORD_BYTES:
        raise BadBin(f"record is larger than {MAX_RECORD_BYTES:,} bytes")
    try:
        content = json.loads(body, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise BadBin("record is not JSON") from error
    if not isinstance(content, dict) or "EXPECTED_QUANTITY" not in content:
        raise BadBin("record has no EXPECTED_QUANTITY")
    count = content["EXPECTED_QUANTITY"]
    if not _is_count(count):
        shown = type(count).__name__ if isinstance(count, list | dict) else str(count)[:40]
        raise BadBin(f"EXPECTED_QUANTITY is {shown!r}, not a count from 0 to {MAX_COUNT}")
    items = content.get("BIN_FCSKU_DATA")
    if not isinstance(items, dict):
        raise BadBin("record has no BIN_FCSKU_DATA")
    quantities: list[Any] = [item.get("quantity") if isinstance(item, dict) else None for item in items.values()]
    if not all(map(_is_count, quantities)):
        raise BadBin(f"an item of the record has no whole quantity from 0 to {MAX_COUNT}")
    if sum(quantities) != count:
        raise BadBin(f"quantities add up to {sum(quantities)}, EXPECTED_QUANTITY is {count}")
    asins = frozenset(asin for asin, item in items.items() if item["quantity"])
    if any(len(asin) > MAX_PRODUCT_NAME for asin in asins):
        raise BadBin(f"the key of an item is longer than {MAX_PRODUCT_NAME} characters")
    if not all(map(str.isprintable, asins)):
        raise BadBin("the key of an item has characters that cannot be shown")
    name, photograph = content.get("bin"), content.get("photograph")
    path = photograph if isinstance(photograph, str) and len(photograph) <= MAX_PATH else ""
    return Record(count, asins, name if isinstance(name, str) else None, path)


def with_photograph(reason: str, path: str) -> str:
    """``reason`` and the path of the photograph that it is about, unless it has it or the path is not known."""
    shown = printable(path[:MAX_PATH])
    return reason if not shown or f"'{shown}'" in reason else f"{reason}: {shown}"


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= MAX_COUNT  # True is an int, too


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise BadBin("record is JSON that has a key twice in one object")
    return content
