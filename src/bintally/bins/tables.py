"""Read the rows of a table that people or their systems have written: CSV, JSON Lines or Parquet."""

import csv
import io
import json
import math
import re
from collections.abc import Iterator, Mapping
from datetime import date, datetime

import pyarrow as pa
import pyarrow.parquet as pq

from bintally.errors import UserError

SUFFIXES = (".csv", ".jsonl", ".ndjson", ".parquet")
DELIMITERS = ",;\t|"
MAX_COLUMNS = 10_000
PARQUET_ROWS = 10_000  # held at once
# A decimal comma or point, and the other one, spaces or apostrophes between groups of three digits.
NUMBER = re.compile(r"[+-]?(\d+|\d{1,3}(?:([ '’\u00a0\u202f.,])\d{3})(?:\2\d{3})*)(?:([.,])(\d+))?", re.ASCII)
AMBIGUOUS = re.compile(r"[+-]?[1-9]\d{0,2}[.,]\d{3}")

Cell = object
"""A string of CSV; a string, number, boolean, None, list or dict of JSON Lines; also a date or time of Parquet."""


def is_table(name: str) -> bool:
    """Whether a source is a table, by the end of its name."""
    return name.lower().endswith(SUFFIXES)


def read_table(body: bytes, name: str) -> Iterator[tuple[int, Mapping[str, Cell]]]:
    """Yield the number of each row, as a spreadsheet or an editor shows it, and its cells by column.

    Names of columns are without spaces around them. In CSV the delimiter is the one of DELIMITERS that parts the first
    line into the most columns, and the encoding UTF-8, UTF-16 with its mark, or else Windows-1252.

    Args:
        name: of the file, for its suffix and for messages.

    Raises UserError if it is no such table.
    """
    suffix = name.lower().rpartition(".")[2]
    if suffix == "parquet":
        return _parquet_rows(body, name)
    return _csv_rows(_text(body, name), name) if suffix == "csv" else _json_rows(_text(body, name), name)


def _text(body: bytes, name: str) -> str:
    marked = body.startswith((b"\xff\xfe", b"\xfe\xff"))
    for encoding in ("utf-16",) if marked else ("utf-8-sig", "cp1252"):
        try:
            return body.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise UserError(f"{name} is neither UTF-8 nor Windows-1252 text; save it again as CSV UTF-8")


def _csv_rows(text: str, name: str) -> Iterator[tuple[int, Mapping[str, Cell]]]:
    if "\0" in text:
        raise UserError(f"{name} is not a CSV file: it has bytes of value 0; a spreadsheet saves it as CSV")
    first = text.lstrip("\r\n").partition("\n")[0]
    delimiter = max(DELIMITERS, key=lambda one: len(next(csv.reader([first], delimiter=one))))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    header: list[str] = []
    number = 0
    try:
        for number, cells in enumerate(reader, 1):
            if not any(cell.strip() for cell in cells):
                continue
            if not header:
                header = _checked_header([cell.strip() for cell in cells], name)
                continue
            yield number, dict(zip(header, cells, strict=False))
    except csv.Error as error:
        raise UserError(f"{name}, row {number + 1}: {error}") from error
    if not header:
        raise UserError(f"{name} is empty: its first row must name the columns")


def _checked_header(header: list[str], name: str) -> list[str]:
    twice = next((column for column in header if column and header.count(column) > 1), None)
    if twice or len(header) > MAX_COLUMNS:
        reason = f"two columns named '{twice}'" if twice else f"more than {MAX_COLUMNS:,} columns"
        raise UserError(f"{name} has {reason}; rename or remove some")
    return header


def _json_rows(text: str, name: str) -> Iterator[tuple[int, Mapping[str, Cell]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{name}, line {number}: not JSON: {str(error)[:80]}; one object a line is wanted"
            ) from error
        if not isinstance(row, dict):
            raise UserError(f'{name}, line {number}: not an object, such as {{"photograph": "1.jpg", "count": 3}}')
        yield number, {column.strip(): cell for column, cell in row.items()}


def _parquet_rows(body: bytes, name: str) -> Iterator[tuple[int, Mapping[str, Cell]]]:
    try:
        file = pq.ParquetFile(pa.BufferReader(body))
        _checked_header([column.strip() for column in file.schema_arrow.names], name)
        number = 0
        for batch in file.iter_batches(PARQUET_ROWS):
            for row in batch.to_pylist():
                number += 1
                yield number, {column.strip(): cell for column, cell in row.items()}
    except (pa.ArrowException, OSError) as error:
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
        if not math.isfinite(cell) or abs(cell) > 1e15:
            raise ValueError(f"is {cell:g}, too large")
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
