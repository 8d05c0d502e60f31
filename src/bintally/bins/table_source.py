"""A table as a source of bins: each row names a photograph and what should lie in its bin.

The rows become records of ABID's layout, so that all that follows knows one kind of record. Where a table does not say
which products lie in a bin, its record lists one, UNNAMED.
"""

import hashlib
import logging
import os
import posixpath
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bintally.bins.folder import FolderSource
from bintally.bins.objects import DENIED, SIGN, Unread, record_key
from bintally.bins.record import ID_PATTERN, MAX_PATH
from bintally.bins.s3 import S3Source
from bintally.bins.table_records import TableRecords
from bintally.bins.tables import BadRow, Row, read_table, text_of
from bintally.errors import UserError, printable
from bintally.params import Fetch

log = logging.getLogger("bintally.source")
NAMED = 5  # rows in a message
REPEATED = "rows repeat an earlier one, which counts once"
LEFT_OUT = "rows cannot be used, and another has the same id"
WITHOUT_OWNER = "rows cannot be read, or are of no photograph and no bin in the table, and are left out"
UNREAD = "values or sizes cannot be read, and the rows are taken without them"
ALIKE = "photographs have names that differ in their endings alone, so their ids are made of the whole names"


@dataclass(frozen=True, slots=True)
class _Photograph:
    """A photograph of the table, and the record that its row makes."""

    path: str
    """As the table names it, in its shortest form."""
    row: int
    record: bytes | Unread


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
        records = TableRecords(table)
        if self._items_file:
            records.add_items(self._rows(self._items_file, "quantity"), table.items_file or "")
        photographs = self._read_photographs(records)
        self._check_renamed()
        _warn(self._items_file, WITHOUT_OWNER, records.without_owner())
        _warn(fetch.source, UNREAD, records.unread)
        if not photographs:
            raise UserError(f"{fetch.source} has no rows beneath its header")
        ids, alike = _ids(photographs)
        _warn(fetch.source, ALIKE, alike)
        self._photographs = {ids[name]: photograph for name, photograph in photographs.items()}

    def _read_photographs(self, records: TableRecords) -> dict[str, _Photograph]:
        """The photographs by the names that their ids are made of: the cell with their id, or their path."""
        found: dict[str, _Photograph] = {}
        bad: dict[str, _Photograph] = {}
        repeated, left_out = list[int](), list[int]()
        for number, row in self._rows(self._fetch.source, "photograph"):
            path, name = "", f"row-{number}"
            try:
                if isinstance(row, BadRow):
                    raise row
                path = records.photograph(row)
                name = text_of(row.get(self._columns.id)) or path or name
                self._key(path)
                new = _Photograph(path, number, records.record(row, number))
            except BadRow as reason:
                left_out += [number] if name in bad else []
                bad.setdefault(name, _Photograph(path, number, Unread(f"cannot be made: row {number} {reason}")))
                continue
            first = found.setdefault(name, new)
            if first is not new and (first.path, first.record) == (new.path, new.record):
                repeated.append(number)
            elif first is not new:
                same = "names the same photograph" if name == path else "has the same id"
                differs = Unread(f"cannot be made: row {number} differs from row {first.row}, which {same}")
                found[name] = replace(first, record=differs)
        left_out += [one.row for name, one in bad.items() if name in found]
        _warn(self._fetch.source, REPEATED, repeated)
        _warn(self._fetch.source, LEFT_OUT, sorted(left_out))
        return bad | found

    def ids(self) -> list[str]:
        return sorted(self._photographs)

    def path(self, bin_id: str) -> str:
        """The path of a photograph, as the table names it."""
        return self._photographs[bin_id].path if bin_id in self._photographs else ""

    def files(self) -> list[Path]:
        """The local files that the bins come from: the table, where it is one, and photographs."""
        keys = (self._key(one.path) for one in self._photographs.values() if isinstance(one.record, bytes))
        tables = [name for name in (self._fetch.source, self._items_file) if name and not _folder_of(name)[0]]
        return [*map(Path, tables), *(Path(self._folder, key) for bucket, key in keys if not bucket)]

    def digests(self) -> Iterator[tuple[str, str]]:
        return iter(())

    def read(
        self, keys: Sequence[str], known: Mapping[str, str] | None = None
    ) -> Iterator[tuple[str, bytes | Unread | None]]:
        wanted: dict[tuple[str, str], list[str]] = {}  # our keys of each photograph, by bucket and key
        for key in keys:
            bin_id = _id_of(key)
            photograph = self._photographs.get(bin_id)
            if photograph is None:
                yield key, None
            elif key == record_key(bin_id) or not isinstance(photograph.record, bytes):
                yield key, photograph.record
            else:
                wanted.setdefault(self._key(photograph.path), []).append(key)
        for bucket in sorted({bucket for bucket, _ in wanted}):
            names = [name for of, name in wanted if of == bucket]
            digests = {
                name: known[wanted[bucket, name][0]] for name in names if known and wanted[bucket, name][0] in known
            }
            for name, body in self._store(bucket).read(names, digests):
                for key in wanted[bucket, name]:
                    yield key, _missing(self._photographs[_id_of(key)]) if body is None else body

    def _store(self, bucket: str) -> FolderSource | S3Source:
        if bucket not in self._stores:
            root = self._fetch.model_copy(update={"source": f"s3://{bucket}"})
            folder, threads = Path(self._folder), self._fetch.concurrency
            self._stores[bucket] = S3Source(root) if bucket else FolderSource(folder, self._folder, threads)
        return self._stores[bucket]

    def _key(self, photograph: str) -> tuple[str, str]:
        """The bucket, "" for none, and the key of a photograph. Raises BadRow."""
        if not photograph:
            raise BadRow(f"has no {self._columns.photograph}")
        if len(photograph) > MAX_PATH:
            raise BadRow(f"names a photograph in {len(photograph):,} characters, more than {MAX_PATH:,}")
        if re.search("[\0\ud800-\udfff]", photograph):
            raise BadRow(f"names a photograph with a character that no file's name has: '{printable(photograph[:80])}'")
        if photograph.startswith("s3://"):
            bucket, _, key = photograph.removeprefix("s3://").partition("/")
            if not re.fullmatch("[A-Za-z0-9._-]+", bucket) or not key:
                raise BadRow(f"names no object: '{printable(photograph[:80])}'")
            return bucket, key
        path = posixpath.normpath(photograph)
        if not self._bucket and path.startswith("/"):
            path = os.path.relpath(path, Path(self._folder).resolve())
        if path.startswith(("/", "../")) or path in (".", ".."):
            raise BadRow(f"names a photograph outside the table's folder: '{printable(photograph[:80])}'")
        return self._bucket, posixpath.join(self._folder, path) if self._bucket else path

    def _rows(self, name: str, needed: str) -> Iterator[tuple[int, Row]]:
        """The rows of a table. Raises UserError if the column of the parameter ``needed`` is missing."""
        bucket, folder = _folder_of(name)
        file = posixpath.basename(name)
        if not bucket and not Path(folder).is_dir():
            raise UserError(f"{name} does not exist")
        key = posixpath.join(folder, file) if bucket else file
        root = self._fetch.model_copy(update={"source": f"s3://{bucket}"})
        store = S3Source(root) if bucket else FolderSource(Path(folder), folder, 1)
        ((_, body),) = store.read([key])
        if not isinstance(body, bytes):
            sign = f", or {SIGN}" if body == DENIED else ""
            raise UserError(
                f"{name} {body.reason if isinstance(body, Unread) else 'does not exist'}; check "
                f"{'fetch.source' if name == self._fetch.source else 'fetch.table.items_file'}{sign}"
            )
        by_name, column = {one.casefold(): one for one in self._names().values()}, getattr(self._columns, needed)
        bad: tuple[int, BadRow] | None = None
        one_read = False
        for number, cells in read_table(body, name, by_name, column):
            if isinstance(cells, BadRow):
                bad = bad or (number, cells)
                yield number, cells
                continue
            row = {by_name.get(one.casefold(), one): cell for one, cell in cells.items()}
            self._found |= row.keys()
            if column not in row and not one_read and not name.lower().endswith((".jsonl", ".ndjson")):
                only = ", ".join(f"'{printable(str(one))}'" for one in cells if one)
                raise UserError(f"{name} has no column '{column}', only {only}: name it in fetch.table.{needed}")
            one_read = True
            yield number, row
        if bad and not one_read:
            raise UserError(f"{name} has no row that can be read: row {bad[0]} {bad[1]}")

    def _names(self) -> dict[str, str]:
        """The name of each column by its parameter."""
        of_columns = (name for name, field in type(self._columns).model_fields.items() if field.annotation is str)
        return {name: getattr(self._columns, name) for name in of_columns}

    def _check_renamed(self) -> None:
        """Raise UserError if a column that has another name than its parameter is in no table."""
        for parameter, column in self._names().items():
            if column not in (parameter, *self._found):
                columns = ", ".join(f"'{printable(one)}'" for one in sorted(self._found) if one)
                raise UserError(
                    f"fetch.table.{parameter}: {self._fetch.source} has no column '{column}', only {columns}"
                )


def _warn(name: str | None, what: str, rows: Sequence[int | str]) -> None:
    """Say what happened to rows of a table, or parts of them, and name the first."""
    if rows:
        some = "; ".join(map(str, rows[:NAMED])) + ("; …" if len(rows) > NAMED else "")
        log.warning("%s: %d %s: %s", name, len(rows), what, some)


def _folder_of(name: str) -> tuple[str, str]:
    """The bucket of a file, "" for none, and its folder."""
    bucket, _, key = name.removeprefix("s3://").partition("/") if name.startswith("s3://") else ("", "", name)
    return bucket, posixpath.dirname(key) or ("" if bucket else ".")


def _beside(table: str, name: str) -> str:
    """The second table, whose name is from the folder of the first on."""
    if name.startswith("s3://") or posixpath.isabs(name):
        return name
    return posixpath.join(posixpath.dirname(table), name)


def _ids(names: Collection[str]) -> tuple[dict[str, str], list[str]]:
    """The id of each name, and the names that would have had the same: the order of the rows does not matter.

    Raises UserError if two have the same even so.
    """
    short = {name: _short_id(name) for name in names}
    times = Counter(short.values())
    alike = [name for name, one in short.items() if one and one != name and times[one] > 1]
    ids = {name: _long_id(name) if one is None else one for name, one in short.items()}
    ids |= {name: _long_id(name) for name in alike}
    times = Counter(ids.values())
    ids |= {name: _long_id(name, 32) for name, one in ids.items() if one != name and times[one] > 1}
    if len(set(ids.values())) < len(ids):
        twice, _ = Counter(ids.values()).most_common(1)[0]
        two = " and ".join(f"'{printable(name[:80])}'" for name, one in ids.items() if one == twice)
        raise UserError(f"{two} would both have the id {twice}: give them ids in the table")
    return ids, alike


def _short_id(name: str) -> str | None:
    """A name that is an id, or is one without its ending; None if neither is."""
    return next((one for one in (name, name.rpartition(".")[0]) if ID_PATTERN.fullmatch(one)), None)


def _long_id(name: str, digits: int = 8) -> str:
    """The end of a name, what is of no id replaced, and a digest of the whole."""
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:digits]
    return f"{re.sub('[^A-Za-z0-9_-]+', '_', name)[digits - 63 :]}-{digest}"


def _id_of(key: str) -> str:
    return key.partition("/")[2].rpartition(".")[0]


def _missing(photograph: _Photograph) -> Unread:
    return Unread(f"is missing: row {photograph.row} names '{printable(photograph.path)}'")
