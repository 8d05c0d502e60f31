"""A table as a source of bins: each row names a photograph and what should lie in its bin.

The rows become records of ABID's layout, so that all that follows knows one kind of record. Where a table does not say
which products lie in a bin, its record lists one, UNNAMED.
"""

import hashlib
import json
import logging
import os
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from bintally.bins.folder import FolderSource
from bintally.bins.objects import Unread, record_key
from bintally.bins.products import UNNAMED
from bintally.bins.record import ID_PATTERN, MAX_COUNT
from bintally.bins.s3 import S3Source
from bintally.bins.tables import Cell, number_of, read_table, text_of
from bintally.errors import UserError, printable
from bintally.params import Fetch

log = logging.getLogger("bintally.source")
SIZES = ("length", "width", "height", "weight")
NAMED = 5  # rows in a message
REPEATED = "rows repeat an earlier one, which counts once"
LEFT_OUT = "rows cannot be used, and another has the same id"


class _BadRow(Exception):
    """A row that cannot be used; the message follows "row 17"."""


class TableSource:
    """Bins of a table's rows. Photographs are named from the table's folder on, or as s3://bucket/key of one bucket."""

    def __init__(self, fetch: Fetch) -> None:
        """Read the table. Raises UserError if it cannot be read or lacks a column that is needed or named."""
        self._fetch, self._columns = fetch, fetch.table
        table = fetch.table
        self._bucket, self._folder = _folder_of(fetch.source)
        self._stores: dict[str, FolderSource | S3Source] = {}  # by bucket; "" for the table's local folder
        self._found: set[str] = set()  # columns
        self._items_file = _beside(fetch.source, table.items_file) if table.items_file else None
        items = self._items(self._items_file) if self._items_file else None
        self._records: dict[str, bytes | Unread] = {}
        self._images: dict[str, tuple[str, int]] = {}  # the photograph as the table names it, and the row
        bad: dict[str, tuple[Unread, str, int]] = {}
        repeated, left_out = list[int](), list[int]()
        for number, row in self._rows(fetch.source, ("photograph",)):
            photograph = text_of(row.get(table.photograph)).replace("\\", "/")
            bin_id = _id(text_of(row.get(table.id)) or photograph, number)
            try:
                self._key(photograph)
                record = self._record(row, bin_id, items)
            except _BadRow as reason:
                left_out += [number] if bin_id in bad else []
                bad.setdefault(bin_id, (Unread(f"cannot be made: row {number} {reason}"), photograph, number))
                continue
            if bin_id not in self._records:
                self._records[bin_id], self._images[bin_id] = record, (photograph, number)
            elif (record, photograph) == (self._records[bin_id], self._images[bin_id][0]):
                repeated.append(number)
            else:
                first = self._images[bin_id][1]
                self._records[bin_id] = Unread(
                    f"cannot be made: row {number} differs from row {first}, which has the same id"
                )
        for bin_id, (unread, photograph, number) in bad.items():
            if bin_id in self._records:
                left_out.append(number)
            else:
                self._records[bin_id], self._images[bin_id] = unread, (photograph, number)
        self._check_renamed()
        for rows, what in ((repeated, REPEATED), (left_out, LEFT_OUT)):
            if rows:
                some = ", ".join(map(str, sorted(rows)[:NAMED])) + (", …" if len(rows) > NAMED else "")
                log.warning("%s: %d %s: %s", fetch.source, len(rows), what, some)
        if not self._records:
            raise UserError(f"{fetch.source} has no rows beneath its header")

    def ids(self) -> list[str]:
        return sorted(self._records)

    def files(self) -> list[Path]:
        """The local files that the bins come from: the table, where it is one, and photographs."""
        keys = (self._key(photograph) for bin_id, (photograph, _) in self._images.items() if self._is_good(bin_id))
        tables = [name for name in (self._fetch.source, self._items_file) if name and not _folder_of(name)[0]]
        return [*map(Path, tables), *(Path(self._folder, key) for bucket, key in keys if not bucket)]

    def _is_good(self, bin_id: str) -> bool:
        return isinstance(self._records[bin_id], bytes)

    def digests(self) -> Iterator[tuple[str, str]]:
        return iter(())

    def read(
        self, keys: Sequence[str], known: Mapping[str, str] | None = None
    ) -> Iterator[tuple[str, bytes | Unread | None]]:
        wanted: dict[tuple[str, str], list[str]] = {}  # our keys of each photograph, by bucket and key
        for key in keys:
            bin_id = key.partition("/")[2].rpartition(".")[0]
            if bin_id not in self._records:
                yield key, None
            elif key == record_key(bin_id) or not self._is_good(bin_id):
                yield key, self._records[bin_id]
            else:
                wanted.setdefault(self._key(self._images[bin_id][0]), []).append(key)
        for bucket in sorted({bucket for bucket, _ in wanted}):
            names = [name for of, name in wanted if of == bucket]
            digests = {
                name: known[wanted[bucket, name][0]] for name in names if known and wanted[bucket, name][0] in known
            }
            for name, body in self._store(bucket).read(names, digests):
                for key in wanted[bucket, name]:
                    yield key, self._missing(key) if body is None else body

    def _store(self, bucket: str) -> FolderSource | S3Source:
        if bucket not in self._stores:
            root = self._fetch.model_copy(update={"source": f"s3://{bucket}"})
            folder, threads = Path(self._folder), self._fetch.concurrency
            self._stores[bucket] = S3Source(root) if bucket else FolderSource(folder, self._folder, threads)
        return self._stores[bucket]

    def _key(self, photograph: str) -> tuple[str, str]:
        """The bucket, "" for none, and the key of a photograph. Raises _BadRow."""
        if not photograph:
            raise _BadRow(f"has no {self._columns.photograph}")
        if photograph.startswith("s3://"):
            bucket, _, key = photograph.removeprefix("s3://").partition("/")
            if not re.fullmatch("[A-Za-z0-9._-]+", bucket) or not key:
                raise _BadRow(f"names no object: '{printable(photograph[:80])}'")
            return bucket, key
        path = posixpath.normpath(photograph)
        if not self._bucket and path.startswith("/"):
            path = os.path.relpath(path, Path(self._folder).resolve())
        if path.startswith(("/", "../")) or path in (".", ".."):
            raise _BadRow(f"names a photograph outside the table's folder: '{printable(photograph[:80])}'")
        return self._bucket, posixpath.join(self._folder, path) if self._bucket else path

    def _rows(self, name: str, needed: Sequence[str]) -> Iterator[tuple[int, Mapping[str, Cell]]]:
        """The rows of a table. Raises UserError if a column that is ``needed``, or has another name, is missing."""
        bucket, folder = _folder_of(name)
        file = posixpath.basename(name)
        if not bucket and not Path(folder).is_dir():
            raise UserError(f"{name} does not exist")
        key = posixpath.join(folder, file) if bucket else file
        root = self._fetch.model_copy(update={"source": f"s3://{bucket}"})
        store = S3Source(root) if bucket else FolderSource(Path(folder), folder, 1)
        ((_, body),) = store.read([key])
        if not isinstance(body, bytes):
            raise UserError(
                f"{name} {body.reason if isinstance(body, Unread) else 'does not exist'}; check "
                f"{'fetch.source' if name == self._fetch.source else 'fetch.table.items_file'}"
            )
        own = {getattr(self._columns, parameter): parameter for parameter in type(self._columns).model_fields}
        by_name = {column.casefold(): column for column in own if isinstance(column, str)}
        for place, (number, cells) in enumerate(read_table(body, name)):
            row = {by_name.get(column.casefold(), column): cell for column, cell in cells.items()}
            self._found |= row.keys()
            missing = [column for column in needed if getattr(self._columns, column) not in row]
            if missing and place == 0 and not name.lower().endswith((".jsonl", ".ndjson")):
                columns = ", ".join(f"'{printable(str(one))}'" for one in cells if one)
                wanted = getattr(self._columns, missing[0])
                raise UserError(f"{name} has no column '{wanted}', only {columns}: name it in fetch.table.{missing[0]}")
            yield number, row

    def _check_renamed(self) -> None:
        """Raise UserError if a column that has another name than its parameter is in no table."""
        for parameter, field in type(self._columns).model_fields.items():
            column = getattr(self._columns, parameter)
            if field.annotation is str and column not in (parameter, *self._found):
                columns = ", ".join(f"'{printable(one)}'" for one in sorted(self._found) if one)
                raise UserError(
                    f"fetch.table.{parameter}: {self._fetch.source} has no column '{column}', only {columns}"
                )

    def _missing(self, key: str) -> Unread:
        photograph, number = self._images[key.partition("/")[2].rpartition(".")[0]]
        return Unread(f"is missing: row {number} names '{printable(photograph)}'")

    def _record(
        self, row: Mapping[str, Cell], bin_id: str, items: Mapping[str, list[Mapping[str, Cell]]] | None
    ) -> bytes:
        """A record of ABID's layout. Raises _BadRow."""
        columns = self._columns
        listed = self._listed(row, items)
        count = _whole(row.get(columns.count), columns.count)
        if not listed and count != 0:  # nothing is listed where something should lie: the products are not known
            listed = None
        if count is None:
            if listed is None:
                raise _BadRow(f"has no {columns.count}")
            count = sum(product["quantity"] for product in listed.values())
        if listed is None:
            listed = {UNNAMED: {"quantity": count, "name": "its items"} | _price(row, columns.value)}
        content = {"BIN_FCSKU_DATA": listed, "EXPECTED_QUANTITY": count, "bin": text_of(row.get(columns.bin)) or bin_id}
        for name, column in (("id", columns.id), ("time", columns.time), ("location", columns.location)):
            if text := text_of(row.get(column)):
                content[name] = text
        return json.dumps(content, ensure_ascii=False, sort_keys=True).encode()

    def _listed(
        self, row: Mapping[str, Cell], items: Mapping[str, list[Mapping[str, Cell]]] | None
    ) -> dict[str, dict[str, Any]] | None:
        """The products of a row by key, None where the table does not say. Raises _BadRow."""
        columns = self._columns
        if items is not None:
            return self._products(items.get(self._owner(row), []))
        cell = row.get(columns.items)
        if isinstance(cell, str) and cell.strip():
            try:
                cell = json.loads(cell)
            except (ValueError, RecursionError):
                raise _BadRow(f"has a wrong cell: {columns.items} is not JSON: '{printable(cell[:40])}'") from None
        if cell is None or cell == "":
            return None
        if isinstance(cell, dict):  # {"B00…": 2}, or {"B00…": {"quantity": 2, …}}
            cell = [
                {columns.product: key} | (item if isinstance(item, dict) else {columns.quantity: item})
                for key, item in cell.items()
            ]
        if not isinstance(cell, list) or not all(isinstance(item, dict) for item in cell):
            raise _BadRow(f"has a wrong cell: {columns.items} is no list of products with their quantities")
        return self._products(cell)

    def _products(self, rows: Sequence[Mapping[str, Cell]]) -> dict[str, dict[str, Any]]:
        columns, listed = self._columns, dict[str, dict[str, Any]]()
        for row in rows:
            key = text_of(row.get(columns.product)) or text_of(row.get(columns.name))
            quantity = _whole(row.get(columns.quantity), columns.quantity)
            if not key or quantity is None:
                raise _BadRow(
                    f"has a wrong cell: one of its items has no {columns.quantity if key else columns.product}"
                )
            if key in listed:  # a product on two lines of the record
                listed[key]["quantity"] += quantity
                continue
            product: dict[str, Any] = {"quantity": quantity, "name": text_of(row.get(columns.name)) or key}
            for size in SIZES:
                column = getattr(columns, size)
                unit = columns.weight_unit if size == "weight" else columns.length_unit
                value = _number(row.get(column), column)
                if value is not None:
                    product[size] = {"unit": unit, "value": value}
            listed[key] = product | _price(row, columns.value)
        return listed

    def _items(self, name: str) -> dict[str, list[Mapping[str, Cell]]]:
        """The rows of the second table, by the id or bin that they belong to."""
        items: dict[str, list[Mapping[str, Cell]]] = {}
        for _, row in self._rows(name, ("quantity",)):
            items.setdefault(self._owner(row), []).append(row)
        return items

    def _owner(self, row: Mapping[str, Cell]) -> str:
        return text_of(row.get(self._columns.id)) or text_of(row.get(self._columns.bin))


def _folder_of(name: str) -> tuple[str, str]:
    """The bucket of a file, "" for none, and its folder."""
    bucket, _, key = name.removeprefix("s3://").partition("/") if name.startswith("s3://") else ("", "", name)
    return bucket, posixpath.dirname(key) or ("" if bucket else ".")


def _beside(table: str, name: str) -> str:
    """The second table, whose name is from the folder of the first on."""
    if name.startswith("s3://") or posixpath.isabs(name):
        return name
    return posixpath.join(posixpath.dirname(table), name)


def _id(text: str, number: int) -> str:
    """The id of a bin: ``text`` as it is, or else with what is no id replaced and a digest of the whole behind it."""
    if ID_PATTERN.fullmatch(text):
        return text
    stem = PurePosixPath(text).stem if text else f"row-{number}"
    if not text or (ID_PATTERN.fullmatch(stem) and stem == text.rpartition(".")[0]):
        return stem
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:8]
    return f"{re.sub('[^A-Za-z0-9_-]+', '_', stem)[:50]}-{digest}"


def _whole(cell: Cell, column: str) -> int | None:
    value = _number(cell, column)
    if value is not None and not (value.is_integer() and 0 <= value <= MAX_COUNT):
        raise _BadRow(f"has a wrong cell: {column} is {value:g}, not a count from 0 to {MAX_COUNT}")
    return None if value is None else int(value)


def _number(cell: Cell, column: str) -> float | None:
    try:
        return number_of(cell)
    except ValueError as reason:
        raise _BadRow(f"has a wrong cell: {column} {printable(str(reason))}") from None


def _price(row: Mapping[str, Cell], column: str) -> dict[str, float]:
    value = _number(row.get(column), column)
    return {} if value is None else {"value": value}
