"""The items that a record lists, as text for tables and pages."""

import json

from bintally.errors import printable

MAX_NAME = 120  # characters of an item's name


def listed_items(record: bytes) -> list[tuple[int, str]]:
    """Return quantity and name of each item of a record that is known to be good, without those of quantity 0."""
    items = json.loads(record)["BIN_FCSKU_DATA"].values()
    return [(item["quantity"], _name(item.get("name"))) for item in items if item["quantity"]]


def _name(name: object) -> str:
    """A name in one line of at most MAX_NAME characters, those that cannot be shown as escapes."""
    start = str(name or "")[: 2 * MAX_NAME]  # a name may have a megabyte
    return printable(" ".join(start.split()))[:MAX_NAME] or "no name"
