"""Read the rows of a table that people or their systems have written: CSV, JSON Lines or Parquet."""

import csv
import io
import json
import logging
import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import date, datetime
from itertools import count, islice, zip_longest

import pyarrow as pa
import pyarrow.parquet as pq

from bintally.errors import UserError, printable

log = logging.getLogger("bintally.source")
SUFFIXES = (".csv", ".jsonl", ".ndjson", ".parquet")
DELIMITERS = ",;\t|"
HEADER_WITHIN = 20  # rows
MAX_ROW_LINES = 50  # of a row of CSV, of which a cell may hold line ends; more are other rows after a lost quote
MAX_HEAD = 2**16  # characters that the header is looked for in
MAX_COLUMNS = 10_000
MAX_PRICE = 1e12  # as bins.products takes it
PARQUET_ROWS = 10_000  # held at once
# A decimal comma or point, and the other one, spaces or apostrophes between groups of three digits.
NUMBER = re.compile(r"[+-]?(\d+|\d{1,3}(?:([ '’\u00a0\u202f.,])\d{3})(?:\2\d{3})*)(?:([.,])(\d+))?", re.ASCII)
AMBIGUOUS = re.compile(r"[+-]?[1-9]\d{0,2}[.,]\d{3}")
CODES = "eur|euro|usd|gbp|chf|fr|jpy|cny|inr|krw|cad|aud|brl|mxn|try|sek|nok|dkk|kr|pln|zł|czk|kč|huf"
CURRENCY = rf"[A-Z]{{0,3}}[$¢£¤¥฿₠-⃏]|(?:{CODES})\.?"
PRICE = re.compile(rf"([+-]?)\s*(?:{CURRENCY})?\s*([+-]?\d.*?)\s*(?:{CURRENCY})?", re.IGNORECASE)

Cell = object
"""A string of CSV; a string, number, boolean, None, list or dict of JSON Lines; also a date or time of Parquet."""


class BadRow(Exception):
    """A row that cannot be read or used; the message follows "row 17"."""


Row = Mapping[str, Cell] | BadRow
"""The cells of a row by column, or why it cannot be read."""


def is_table(name: str) -> bool:
    """Whether a source is a table, by the end of its name."""
    return name.lower().endswith(SUFFIXES)


def read_table(body: bytes, name: str, known: Collection[str] = (), needed: str = "") -> Iterator[tuple[int, Row]]:
    """Yield the number of each row, as a spreadsheet or an editor shows it, and its cells by column.

    Names of columns are without spaces around them. In CSV the encoding is UTF-8, UTF-16 with its mark, or else
    Windows-1252; header and delimiter are found among the first HEADER_WITHIN rows.

    Args:
        name: of the file, for its suffix and for messages.
        known: names that columns may have, letters in any case.
        needed: that of them which the header has; where no row has it, the header is the row with the most of them.

    Raises UserError if it is no such table.
    """
    suffix = name.lower().rpartition(".")[2]
    if suffix == "parquet":
        return _parquet_rows(body, name)
    text = _text(body, name)
    if suffix != "csv":
        return _json_rows(text)
    return _csv_rows(text, name, {one.casefold() for one in known}, needed.casefold())


def _text(body: bytes, name: str) -> str:
    marked = body.startswith((b"\xff\xfe", b"\xfe\xff"))
    for encoding in ("utf-16",) if marked else ("utf-8-sig", "cp1252"):
        try:
            return body.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise UserError(f"{name} is neither UTF-8 nor Windows-1252 text; save it again as CSV UTF-8")


def _csv_rows(text: str, name: str, known: Collection[str], needed: str) -> Iterator[tuple[int, Row]]:
    if "\0" in text:
        raise UserError(f"{name} is not a CSV file: it has bytes of value 0; a spreadsheet saves it as CSV")
    delimiter, above = _find_header(text, known, needed)
    lines = [*io.StringIO(text, newline=""), "\n"]  # the last belongs to a row if a quote is open at the end
    reader = csv.reader(lines, delimiter=delimiter)
    header: list[str] = []
    for number in count(1):
        above_row = reader.line_num
        try:
            cells = next(reader, None)
        except csv.Error as error:  # the next line begins another row
            _check_quotes(lines[above_row : reader.line_num], above_row + 1, name, delimiter)
            yield number, BadRow(f"cannot be read: {error}")
            continue
        if cells is None:
            break
        _check_quotes(lines[above_row : reader.line_num], above_row + 1, name, delimiter)
        if number <= above or not any(cell.strip() for cell in cells):
            continue
        if header:
            yield number, dict(zip_longest(header, cells[: len(header)], fillvalue=""))
        else:
            header = _checked_header([cell.strip() for cell in cells], name, known)
            if above:
                log.warning("%s: %d lines above the header are skipped", name, above)
    if not header:
        raise UserError(f"{name} is empty: its first row must name the columns")


def _check_quotes(lines: Sequence[str], first: int, name: str, delimiter: str) -> None:
    """Raise UserError if a row of several lines, from the line ``first`` on, may be others that a quote has joined."""
    if len(lines) == 1:
        return
    with suppress(csv.Error):
        if len(lines) <= MAX_ROW_LINES and list(csv.reader(lines, delimiter=delimiter, strict=True)):
            return
    raise UserError(
        f"{name}: a quote that opens in the row at line {first} is not closed at the end of its cell within "
        f"{MAX_ROW_LINES} lines, so rows beneath would be lost: {printable(lines[0].strip()[:60])}; close or remove it"
    )


def _find_header(text: str, known: Collection[str], needed: str) -> tuple[str, int]:
    """The delimiter of a CSV file and the number of rows above its header.

    It is the first row with the ``needed`` column, or else the one with the most known columns.
    """
    first = {
        one: list(islice(csv.reader(io.StringIO(text[:MAX_HEAD], newline=""), delimiter=one), HEADER_WITHIN))
        for one in DELIMITERS
    }
    places = [
        (-above if needed in names else -HEADER_WITHIN, len(names.intersection(known)), len(names), delimiter, above)
        for delimiter, rows in first.items()
        for above, names in enumerate({cell.strip().casefold() for cell in row if cell.strip()} for row in rows)
    ]
    _, found, _, delimiter, above = max(places, key=lambda place: place[:3], default=(0, 0, 0, ",", 0))
    if found:
        return delimiter, above
    # No name is known: the delimiter that parts the most rows into as many cells, and the first row that is half full.
    delimiter = max(first, key=lambda one: max(Counter(len(row) for row in first[one] if row[1:]).values(), default=0))
    filled = [sum(bool(cell.strip()) for cell in cells) for cells in first[delimiter]]
    return delimiter, next((above for above, cells in enumerate(filled) if 2 * cells > max(filled)), 0)


def _checked_header(header: list[str], name: str, known: Collection[str] = ()) -> list[str]:
    folded = [column.casefold() for column in header]
    asked = [column for column in folded if column in known] if known else filter(None, folded)
    twice = next((header[folded.index(column)] for column in asked if folded.count(column) > 1), None)
    if twice or len(header) > MAX_COLUMNS:
        reason = f"two columns named '{twice}'" if twice else f"more than {MAX_COLUMNS:,} columns"
        raise UserError(f"{name} has {reason}; rename or remove some")
    return header


def _json_rows(text: str) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield number, BadRow(f"is not JSON: {str(error)[:80]}")
            continue
        if isinstance(row, dict):
            yield number, {column.strip(): cell for column, cell in row.items()}
        else:
            yield number, BadRow(f'is no object such as {{"photograph": "1.jpg", "count": 3}}: {printable(line[:40])}')


def _parquet_rows(body: bytes, name: str) -> Iterator[tuple[int, Row]]:
    try:
        file = pq.ParquetFile(pa.BufferReader(body))
        _checked_header([column.strip() for column in file.schema_arrow.names], name)
        number = 0
        for batch in file.iter_batches(PARQUET_ROWS):
            for row in batch.to_pylist():
                number += 1
                yield number, {column.strip(): cell for column, cell in row.items()}
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:  # the last two of dates
        raise UserError(f"{name} is not a Parquet file that can be read: {str(error).splitlines()[0][:100]}") from error


def text_of(cell: Cell) -> str:
    """A cell as text, without spaces around it; "" for an empty one. Whole numbers have no decimals."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    if isinstance(cell, float) and cell.is_integer() and abs(cell) < 2**53:
        return str(int(cell))
    if isinstance(cell, datetime | date):
        return cell.isoformat()
    return str(cell).strip()


def number_of(cell: Cell) -> float | None:
    """A cell as a number, None if it is empty; raises ValueError if it is none.

    In texts the decimal sign may be a point or a comma: 2.5, "2,5", "1.234,5", "1,234.5" and "1 234,5" are numbers.
    "1.234" and "1,234" may mean two numbers and are refused.
    """
    if isinstance(cell, bool):
        raise ValueError("is true or false, not a number")
    if isinstance(cell, int | float):
        if isinstance(cell, float) and math.isnan(cell):
            return None
        if abs(cell) > 1e15:
            raise ValueError(f"is {str(cell)[:40]}, too large")
        return float(cell)
    text = text_of(cell)
    if not text:
        return None
    found = NUMBER.fullmatch(text) if len(text) <= 40 else None
    if not found or (found[2] and found[2] == found[3]):
        raise ValueError(f"is '{text[:40]}', not a number")
    if AMBIGUOUS.fullmatch(text):
        both = " or ".join(re.sub("[.,]", sign, text) for sign in ("", "."))
        raise ValueError(f"is '{text}', which may be {both}: write it without a sign between thousands")
    whole, _, _, decimals = found.groups()
    digits = re.sub(r"\D", "", whole)
    value = float(f"{digits}.{decimals or 0}")
    return -value if text.startswith("-") else value


def price_of(cell: Cell) -> float | None:
    """A cell as a number, as :func:`number_of` reads it; a currency may stand beside it: "25,99 €", "$1,299.00"."""
    found = PRICE.fullmatch(cell.strip()) if isinstance(cell, str) and len(cell) <= 80 else None
    price = number_of(found[1] + found[2] if found else cell)
    if price is not None and not 0 <= price < MAX_PRICE:
        raise ValueError(f"is {price:g}, not a price")
    return price
