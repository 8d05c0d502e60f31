"""Tables that people and their systems have written are read as they were meant, or refused."""

import io
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bintally.bins.tables import BadRow, Row, number_of, price_of, read_table, text_of
from bintally.errors import UserError


def rows(
    text: str | bytes, name: str = "list.csv", known: Collection[str] = (), needed: str = ""
) -> list[tuple[int, Row]]:
    return list(read_table(text.encode() if isinstance(text, str) else text, name, known, needed))


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
    expected = [(2, {"a": "1", "b": "", "c": ""}), (3, {"a": "1", "b": "2", "c": "3"})]
    assert rows("a,b,c\n1\n1,2,3,4\n") == expected


TITLES = ["Bestand; Lager Nord, Halle 2", "Stand:;01.10.2026", "", '"von; ""Müller"", Meier\nund, Co"']


@pytest.mark.parametrize("titles", [TITLES, [f"{one};;;" for one in TITLES], ["", "Fach"]])
@pytest.mark.parametrize("header", ["Lfd.;BILD;Menge;Preis", "Lfd. Nr;Menge (Stück, netto);bild;Preis"])
def test_lines_above_the_header_are_skipped_and_said(
    titles: list[str], header: str, caplog: pytest.LogCaptureFixture
) -> None:
    text = "\n".join([*titles, header, "1;a, b, c, d, e.jpg;2;3,50"])
    number = len(titles) + 2
    expected = dict(zip(header.split(";"), ["1", "a, b, c, d, e.jpg", "2", "3,50"], strict=True))
    assert rows(text, known=["Bild", "Menge", "photograph", "fach"]) == [(number, expected)]
    assert f"list.csv: {len(titles)} lines above the header are skipped" in caplog.text


@pytest.mark.parametrize("title", ["", "count, id, value\n"])
@pytest.mark.parametrize(
    "lines",
    [
        ["photograph;count;Ort", "a.jpg;2;Bin 3", "b.jpg;1;location, count, id, bin"],
        ["PHOTOGRAPH,Anzahl,Ort", "a.jpg,2,", "id,count,value", "b.jpg,1,"],
    ],
)
def test_no_row_beneath_the_header_is_taken_for_it(lines: list[str], title: str) -> None:
    known = ["photograph", "count", "id", "bin", "location", "value"]
    read = rows(title + "\n".join(lines), known=known, needed="Photograph")
    assert [next(iter(row.values())) for _, row in read if isinstance(row, dict)] == [
        re.split("[,;]", line)[0] for line in lines[1:]
    ]


def test_a_column_that_is_there_twice_matters_where_it_is_a_known_one() -> None:
    text = "Datum;Bild;Datum\n1.10.;a.jpg;2.10.\n"
    ((_, row),) = rows(text, known=["bild"])
    assert isinstance(row, dict) and row["Bild"] == "a.jpg"
    with pytest.raises(UserError, match="two columns named 'Bild'"):
        rows(text.replace("Datum;B", "BILD;B").replace("BILD;Bild", "Bild;BILD"), known=["bild"])


def test_a_header_that_has_no_known_name_is_told_from_titles_and_from_decimal_commas() -> None:
    text = "Bestand, vom 1.10.,,,\n\nNr;Foto;Menge;Preis;\n" + "1;a.jpg;2,0;3,50;x\n" * 5
    assert rows(text, known=["photograph"])[0] == (
        4,
        {"Nr": "1", "Foto": "a.jpg", "Menge": "2,0", "Preis": "3,50", "": "x"},
    )


def test_a_line_of_json_that_cannot_be_read_and_an_endless_cell_are_single_bad_rows() -> None:
    text = '{"a": 1}\n{"a"\n\n[1]\n' + "[" * 100_000 + '\n{"a": 2}\n'
    read = rows(text, "list.jsonl")
    assert [(number, str(row)[:14]) for number, row in read if isinstance(row, BadRow)] == [
        (2, "is not JSON: E"),
        (4, "is no object s"),
        (5, "is not JSON: m"),
    ]
    assert [row for _, row in read if not isinstance(row, BadRow)] == [{"a": 1}, {"a": 2}]
    endless = rows('a,b\n1,2\n"' + "x" * 200_000 + "\n3,4\n")
    assert isinstance(endless[1][1], BadRow) and "field larger" in str(endless[1][1])
    assert [endless[0][1], endless[2][1]] == [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]


@pytest.mark.parametrize("after", [0, 3, 20_000])
@pytest.mark.parametrize("end", ["", '"z.jpg",1,"far ""away"\n'])
def test_a_quote_that_is_not_closed_ends_with_its_line_and_loses_no_row_in_silence(after: int, end: str) -> None:
    good = 'photograph,count,note\na.jpg,1,"of two\nlines"\n'
    lost = good + 'b.jpg,2,"12 inches\n' + "c.jpg,3,\n" * after + end
    with pytest.raises(UserError, match=r"list\.csv: a quote that opens in the row at line 4 .*: b\.jpg,2,\"12 inches"):
        rows(lost)


def test_a_quote_that_joins_very_many_lines_is_refused_and_a_cell_of_some_lines_is_read() -> None:
    text = 'photograph,note\na.jpg,"' + "b.jpg,\n" * 40 + '"\n'
    assert rows(text) == [(2, {"photograph": "a.jpg", "note": "b.jpg,\n" * 40})]
    with pytest.raises(UserError, match=r"at line 2 is not closed .* within 50 lines"):
        rows(text.replace("b.jpg,\n", "b.jpg,\n" * 2))


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


@pytest.mark.parametrize(
    ("cell", "price"),
    [
        ("25,99 €", 25.99), ("$1,299.00", 1299.0), ("€ 25,99", 25.99), ("1.299,00\u00a0EUR", 1299.0), ("eur 5", 5.0),
        ("US$ 2.50", 2.5), ("12 kr", 12.0), ("CHF 1'299.50", 1299.5), ("25,99", 25.99), ("+3 £", 3.0), (2.5, 2.5),
        ("", None), (None, None),
    ],
)  # fmt: skip
def test_prices_are_read_with_their_currency(cell: Any, price: float | None) -> None:
    assert price_of(cell) == price


@pytest.mark.parametrize(
    "cell", ["1.299 €", "25 € / Stk", "2€50", "€", "25k", "3 pcs", "-5 €", "€-5", "1e5", 1e13, [3]]
)
def test_what_is_no_price_or_two_is_refused(cell: Any) -> None:
    with pytest.raises(ValueError, match="is "):
        price_of(cell)


def test_whole_numbers_as_text_have_no_decimals() -> None:
    assert [text_of(cell) for cell in (123.0, 7, " a ", None, float("nan"), 2.5)] == ["123", "7", "a", "", "", "2.5"]
