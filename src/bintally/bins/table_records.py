"""Records of ABID's layout from the rows of a table, and from those of a second one that lists products."""

import json
import posixpath
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from bintally.bins.products import UNNAMED
from bintally.bins.record import MAX_COUNT
from bintally.bins.tables import BadRow, Cell, Row, number_of, price_of, text_of
from bintally.errors import printable
from bintally.table_columns import Table

SIZES = ("length", "width", "height", "weight")
Cells = Mapping[str, Cell]
Listed = tuple[str, dict[str, Any]]
"""Key of a product and what a record says of it."""
Owner = tuple[str, str]
"""What items are listed by, "id", "photograph" or "bin", and which."""


class TableRecords:
    """Makes the record of each row."""

    def __init__(self, columns: Table) -> None:
        self._columns = columns
        self._items: dict[Owner, list[tuple[int, Listed | BadRow]]] | None = None  # with their rows
        self._not_found: set[Owner] = set()  # of these, until the first table has them
        self._without_owner: list[int] = []  # rows of the second table that name none
        self.unread: list[str] = []
        """Rows of either table with a value or size that cannot be read, and that cell."""

    def add_items(self, rows: Iterable[tuple[int, Row]], name: str) -> None:
        """Take the rows of the second table, called ``name``: the products of photographs and bins."""
        self._items = {}
        for number, row in rows:
            owners = [] if isinstance(row, BadRow) else self._owners(row)
            if isinstance(row, BadRow) or not owners:
                self._without_owner.append(number)
                continue
            where = f"row {number} of {name}"
            try:
                listed: Listed | BadRow = self._product(row, where)
            except BadRow as reason:
                listed = BadRow(f"has a wrong item: {where} {reason}")
            self._items.setdefault(owners[0], []).append((number, listed))
        self._not_found = set(self._items)

    def without_owner(self) -> list[int]:
        """Rows of the second table that belong to no photograph and no bin of the records that were made."""
        items = self._items or {}
        return sorted([*self._without_owner, *(number for one in self._not_found for number, _ in items[one])])

    def photograph(self, row: Cells) -> str:
        """The path of a row's photograph, in its shortest form, so that one photograph has one path."""
        path = text_of(row.get(self._columns.photograph)).replace("\\", "/")
        return posixpath.normpath(path) if path and not path.startswith("s3://") else path

    def record(self, row: Cells, number: int) -> bytes:
        """The record of a row. Raises BadRow."""
        columns = self._columns
        listed = self._listed(row, number)
        count = _whole(row.get(columns.count), columns.count)
        if not listed and count != 0:  # nothing is listed where something should lie: the products are not known
            listed = None
        total = sum(product["quantity"] for product in listed.values()) if listed is not None else count
        if total is None:
            raise BadRow(f"has no {columns.count}")
        if count is not None and count != total:
            raise BadRow(f"has {count} as its {columns.count}, and {total} items are listed")
        if listed is None:
            listed = {UNNAMED: {"quantity": total, "name": "its items"}}
        if (price := self._read(row, columns.value, price_of, f"row {number}")) is not None:
            listed = {key: {"value": price} | product for key, product in listed.items()}
        photograph = self.photograph(row)
        content = {
            "BIN_FCSKU_DATA": listed,
            "EXPECTED_QUANTITY": total,
            "bin": text_of(row.get(columns.bin)) or photograph,
            "photograph": photograph,
        }
        for name, column in (("id", columns.id), ("time", columns.time), ("location", columns.location)):
            if text := text_of(row.get(column)):
                content[name] = text
        try:
            return json.dumps(content, ensure_ascii=False, sort_keys=True).encode()
        except UnicodeEncodeError as error:
            raise BadRow(f"has half a character, '{printable(error.object[error.start])}'") from None

    def _owners(self, row: Cells) -> list[Owner]:
        """What items may be listed by, the first that is known: an id, a photograph or a bin."""
        photograph, bin_id = self.photograph(row), text_of(row.get(self._columns.id))
        names = [("id", bin_id), ("photograph", photograph), ("bin", text_of(row.get(self._columns.bin)))]
        if not bin_id:  # the photograph is its id
            names[2:2] = [("id", photograph), ("id", photograph.rpartition(".")[0])]
        return [name for name in names if name[1]]

    def _listed(self, row: Cells, number: int) -> dict[str, dict[str, Any]] | None:
        """The products of a row by key, None where the table does not say. Raises BadRow."""
        columns = self._columns
        if self._items is not None:
            owners = self._owners(row)
            self._not_found.difference_update(owners)
            return _added_up([item for _, item in next((self._items[one] for one in owners if one in self._items), [])])
        cell = row.get(columns.items)
        if isinstance(cell, str) and cell.strip():
            try:
                cell = json.loads(cell)
            except (ValueError, RecursionError):
                raise BadRow(f"has a wrong cell: {columns.items} is not JSON: '{printable(cell[:40])}'") from None
        if cell is None or cell == "":
            return None
        if isinstance(cell, dict):  # {"B00…": 2}, or {"B00…": {"quantity": 2, …}}
            cell = [
                {columns.product: key} | (item if isinstance(item, dict) else {columns.quantity: item})
                for key, item in cell.items()
            ]
        if not isinstance(cell, list) or not all(isinstance(item, dict) for item in cell):
            raise BadRow(f"has a wrong cell: {columns.items} is no list of products with their quantities")
        return _added_up([self._product(item, f"row {number}") for item in cell])

    def _product(self, row: Cells, where: str) -> Listed:
        columns = self._columns
        key = text_of(row.get(columns.product)) or text_of(row.get(columns.name))
        quantity = _whole(row.get(columns.quantity), columns.quantity)
        if not key or quantity is None:
            raise BadRow(f"has a wrong cell: one of its items has no {columns.quantity if key else columns.product}")
        product: dict[str, Any] = {"quantity": quantity, "name": text_of(row.get(columns.name)) or key}
        for size in SIZES:
            unit = columns.weight_unit if size == "weight" else columns.length_unit
            if (number := self._read(row, getattr(columns, size), number_of, where)) is not None:
                product[size] = {"unit": unit, "value": number}
        if (price := self._read(row, columns.value, price_of, where)) is not None:
            product["value"] = price
        return key, product

    def _read(self, row: Cells, column: str, read: Callable[[Cell], float | None], where: str) -> float | None:
        """What ``read`` makes of a cell that may be missing; None if it cannot."""
        try:
            return read(row.get(column))
        except ValueError as reason:
            self.unread.append(f"{where}, {column} {printable(str(reason))}")
            return None


def _added_up(items: Sequence[Listed | BadRow]) -> dict[str, dict[str, Any]]:
    """Products by key; one on two lines has the quantity of both. Raises the first BadRow among them."""
    listed = dict[str, dict[str, Any]]()
    for item in items:
        if isinstance(item, BadRow):
            raise item
        key, product = item
        if key in listed:
            product = product | listed[key] | {"quantity": listed[key]["quantity"] + product["quantity"]}
        listed[key] = product
    return listed


def _whole(cell: Cell, column: str) -> int | None:
    try:
        value = number_of(cell)
    except ValueError as reason:
        raise BadRow(f"has a wrong cell: {column} {printable(str(reason))}") from None
    if value is not None and not (value.is_integer() and 0 <= value <= MAX_COUNT):
        raise BadRow(f"has a wrong cell: {column} is {value:g}, not a count from 0 to {MAX_COUNT}")
    return None if value is None else int(value)
