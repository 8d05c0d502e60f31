"""Tables that people and their systems have written are read as they were meant, or refused."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bintally.bins.tables import number_of, read_table, text_of
from bintally.errors import UserError


def rows(text: str | bytes, name: str = "list.csv") -> list[tuple[int, Mapping[str, object]]]:
    return list(read_table(text.encode() if isinstance(text, str) else text, name))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_csv_of_any_spreadsheet_is_read(encoding: str, delimiter: str, end: str) -> None:
    lines = ["Foto, Stück ,Länge", '"a, b; c.jpg",3,"2;5"', ",,", 'd.jpg,"4",']
    body = end.join(
        line.replace(",", delimiter) if number != 1 else f'"a, b; c.jpg"{delimiter}3{delimiter}"2;5"'
        for number, line in enumerate(lines)
    ).encode(encoding)
    assert rows(body) == [
        (2, {"Foto": "a, b; c.jpg", "Stück": "3", "Länge": "2;5"}),
        (4, {"Foto": "d.jpg", "Stück": "4", "Länge": ""}),
    ]


def test_rows_are_numbered_as_a_spreadsheet_shows_them() -> None:
    assert [number for number, _ in rows('photograph,count\n"two\nlines.jpg",1\n\n\nb.jpg,2\n')] == [2, 5]


def test_short_and_long_rows_keep_their_columns() -> None:
    assert rows("a,b,c\n1\n1,2,3,4\n") == [(2, {"a": "1"}), (3, {"a": "1", "b": "2", "c": "3"})]


def test_json_lines_and_parquet_keep_types(tmp_path: Path) -> None:
    expected = {"photograph": "a.jpg", "count": 3, "items": [{"product": "x", "quantity": 3}], "weight": None}
    assert rows(
        '\n{" photograph": "a.jpg", "count": 3, "items": [{"product": "x", "quantity": 3}], "weight": null}\n',
        "list.jsonl",
    ) == [(2, expected)]
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([expected, expected]), file)
    assert rows(file.getvalue(), "LIST.PARQUET") == [(1, expected), (2, expected)]


@pytest.mark.parametrize(
    ("body", "name", "message"),
    [
        (b"", "list.csv", "list.csv is empty"),
        (b"\n,,\n", "list.csv", "list.csv is empty"),
        (b"PK\x03\x04\x00\x00", "list.csv", "not a CSV file"),
        (b"a,b,a\n1,2,3\n", "list.csv", "two columns named 'a'"),
        (b"a\n\x81\x8d\n", "list.csv", "neither UTF-8 nor Windows-1252"),
        (b'{"a": 1}\n{"a"\n', "list.jsonl", "line 2: not JSON"),
        (b"[1]\n", "list.jsonl", "line 1: not an object"),
        (b'[' * 100_000, "list.jsonl", "line 1: not JSON"),
        (b"PAR1 and no more", "list.parquet", "not a Parquet file"),
        (b"", "list.parquet", "not a Parquet file"),
    ],
)  # fmt: skip
def test_what_is_no_table_is_a_user_error(body: bytes, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        rows(body, name)


@pytest.mark.parametrize(
    ("cell", "number"),
    [
        ("2.5", 2.5), ("2,5", 2.5), ("1.234,5", 1234.5), ("1,234.5", 1234.5), ("1 234,5", 1234.5), ("0,250", 0.25),
        ("1'234.50", 1234.5), ("12.345.678", 12345678.0), ("1\u00a0234", 1234.0), ("-2", -2.0), (" 7 ", 7.0),
        ("", None), ("  ", None), (None, None), (3, 3.0), (2.5, 2.5), (float("nan"), None),
    ],
)  # fmt: skip
def test_numbers_are_read_in_either_notation(cell: Any, number: float | None) -> None:
    assert number_of(cell) == number


@pytest.mark.parametrize(
    "cell",
    ["1.234", "1,234", "abc", "1e5", "1.234.5", "3 pcs", "=SUM(A1)", "٣", "9" * 50, True, float("inf"), 1e300, [3]],
)
def test_what_may_be_two_numbers_or_none_is_refused(cell: Any) -> None:
    with pytest.raises(ValueError, match="is "):
        number_of(cell)


def test_whole_numbers_as_text_have_no_decimals() -> None:
    assert [text_of(cell) for cell in (123.0, 7, " a ", None, float("nan"), 2.5)] == ["123", "7", "a", "", "", "2.5"]
