"""A table's rows become bins; what is wrong with a row is said with its number."""

import json
from pathlib import Path
from typing import Any

import pytest

from bintally.bins.objects import Unread, image_key, record_key
from bintally.bins.products import UNNAMED
from bintally.bins.record import parse_record
from bintally.bins.source import open_source
from bintally.bins.table_source import TableSource
from bintally.errors import UserError
from bintally.yaml_files import read_yaml
from s3_stub import Answer, Request, error, fetch_params, stub_server

COLUMNS = read_yaml(Path(__file__).parents[2] / "params.yaml")["fetch"]["table"]


def source(path: object, endpoint: str | None = None, **columns: Any) -> TableSource:
    opened = open_source(fetch_params(path, endpoint, table=COLUMNS | columns))
    assert isinstance(opened, TableSource)
    return opened


def table(folder: Path, *lines: str, name: str = "list.csv") -> Path:
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / name


def records(opened: TableSource) -> dict[str, Any]:
    """By id the content of each record, or why there is none."""
    read = dict(opened.read([record_key(bin_id) for bin_id in opened.ids()]))
    return {
        bin_id: json.loads(body) if isinstance(body := read[record_key(bin_id)], bytes) else body
        for bin_id in opened.ids()
    }


def test_a_row_becomes_a_record_and_its_photograph_keeps_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "shelf 1").mkdir()
    (tmp_path / "shelf 1/a.jpg").write_bytes(b"photograph")
    path = table(tmp_path, "photograph,count,id,bin,location,value", "shelf 1/a.jpg,3,A-1,17,R1,2.50")
    opened = source(path)
    assert records(opened) == {
        "A-1": {
            "BIN_FCSKU_DATA": {"unnamed items": {"quantity": 3, "name": "its items", "value": 2.5}},
            "EXPECTED_QUANTITY": 3,
            "bin": "17",
            "id": "A-1",
            "location": "R1",
        }
    }
    body = dict(opened.read([record_key("A-1")]))[record_key("A-1")]
    assert isinstance(body, bytes)
    record = parse_record(body)
    assert (record.count, record.bin) == (3, "17")
    keys = [image_key("A-1"), image_key("B"), record_key("B")]
    assert dict(opened.read(keys)) == {image_key("A-1"): b"photograph", image_key("B"): None, record_key("B"): None}
    assert opened.files() == [path, tmp_path / "shelf 1/a.jpg"]


def test_columns_of_any_name_numbers_of_either_notation_and_backslashes(tmp_path: Path) -> None:
    (tmp_path / "Bilder").mkdir()
    (tmp_path / "Bilder/1.png").write_bytes(b"one")
    path = table(tmp_path, "Bild;SOLL;Wert", "Bilder\\1.png;2,0;1.234,50")
    opened = source(path, photograph="Bild", count="Soll", value="Wert")
    ((bin_id, record),) = records(opened).items()
    assert record["BIN_FCSKU_DATA"] == {"unnamed items": {"quantity": 2, "name": "its items", "value": 1234.5}}
    assert dict(opened.read([image_key(bin_id)])) == {image_key(bin_id): b"one"}


ITEMS = [
    '[{"product": "x", "quantity": 2, "name": "Box", "length": "12,5", "weight": 0.25}, '
    '{"product": "y", "quantity": 1}]',
    '{"x": {"quantity": 2, "name": "Box", "length": 12.5, "weight": 0.25}, "y": 1}',
]
LISTED = {
    "x": {
        "quantity": 2,
        "name": "Box",
        "length": {"unit": "mm", "value": 12.5},
        "weight": {"unit": "kg", "value": 0.25},
    },
    "y": {"quantity": 1, "name": "y"},
}


@pytest.mark.parametrize("items", ITEMS)
@pytest.mark.parametrize("kind", ["text", "object"])
def test_items_may_be_json_and_give_the_count(tmp_path: Path, items: str, kind: str) -> None:
    row = {"photograph": "a.jpg", "items": json.loads(items) if kind == "object" else items}
    path = table(tmp_path, json.dumps(row), name="list.jsonl")
    (record,) = records(source(path, length_unit="mm")).values()
    assert record["BIN_FCSKU_DATA"] == LISTED and record["EXPECTED_QUANTITY"] == 3


def test_items_may_be_rows_of_a_second_table(tmp_path: Path) -> None:
    items = table(
        tmp_path,
        *("bin;product;quantity;name;length;weight", "17;x;1;Box;12,5;0,25", "17;x;1;Box;;", "17;y;1;;;", "18;z;9;;;"),
        name="items.csv",
    )
    rows = "a.jpg,17,3", "b.jpg,17,3", "c.jpg,19,0", "d.jpg,20,2"
    path = table(tmp_path, "photograph,bin,count", *rows)
    assert items.parent == path.parent
    found = records(source(path, items_file="items.csv", length_unit="mm"))
    unknown = {UNNAMED: {"quantity": 2, "name": "its items"}}  # nothing is listed for d, which should hold two
    assert [one["BIN_FCSKU_DATA"] for one in found.values()] == [LISTED, LISTED, {}, unknown]
    assert [one["bin"] for one in found.values()] == ["17", "17", "19", "20"]
    lost = source(table(tmp_path, "photograph,bin,count", "e.jpg,21,"), items_file="items.csv")._records["e"]
    assert lost == Unread("cannot be made: row 2 has no count")


def test_odd_ids_become_others_that_stay_the_same(tmp_path: Path) -> None:
    names = ["a/1.jpg", "b/1.jpg", "1.jpg", "ü x.jpg", "plain.jpg", f"{'n' * 200}.jpg"]
    path = table(tmp_path, "photograph,count", *(f"{name},1" for name in names))
    ids = {record_id: key for record_id, (key, _) in source(path)._images.items()}
    assert sorted(ids.values()) == sorted(names) and {"1", "plain"} <= ids.keys()
    assert source(table(tmp_path, "photograph,count", *(f"{name},1" for name in reversed(names)))).ids() == sorted(ids)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (",3,a", "cannot be made: row 2 has no photograph"),
        ("a.jpg,,a", "cannot be made: row 2 has no count"),
        ("a.jpg,two,a", "cannot be made: row 2 has a wrong cell: count is 'two', not a number"),
        ("a.jpg,2.5,a", "cannot be made: row 2 has a wrong cell: count is 2.5, not a count from 0 to 1000"),
        ("a.jpg,-1,a", "cannot be made: row 2 has a wrong cell: count is -1, not a count from 0 to 1000"),
        ('a.jpg,"1,000",a', "cannot be made: row 2 has a wrong cell: count is '1,000', which may be 1000 or 1.000: "),
        ("../a.jpg,1,a", "cannot be made: row 2 names a photograph outside the table's folder: '../a.jpg'"),
        ("x/../../a.jpg,1,a", "cannot be made: row 2 names a photograph outside the table's folder: "),
        ("/etc/passwd,1,a", "cannot be made: row 2 names a photograph outside the table's folder: '/etc/passwd'"),
        ("s3:///a,1,a", "cannot be made: row 2 names no object: 's3:///a'"),
        ("a.jpg,1,a\na.jpg,2,a", "cannot be made: row 3 differs from row 2, which has the same id"),
        ("a.jpg,1,a\nb.jpg,1,a\na.jpg,1,a", "cannot be made: row 4 differs from row 2, which has the same id"),
    ],
)
def test_a_row_that_cannot_be_used_is_set_aside_with_its_number(tmp_path: Path, row: str, reason: str) -> None:
    opened = source(table(tmp_path, "photograph,count,id", row, "good.jpg,1,b"))
    found = records(opened)
    assert isinstance(found["a"], Unread) and found["a"].reason.startswith(reason)
    assert found["b"]["EXPECTED_QUANTITY"] == 1
    assert dict(opened.read([image_key("a")])) == {image_key("a"): found["a"]}


def test_repeated_rows_count_once_and_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    opened = source(table(tmp_path, "photograph,count", *["a.jpg,1"] * 3, "b.jpg,1"))
    assert opened.ids() == ["a", "b"]
    assert "2 rows repeat an earlier one, which counts once: 3, 4" in caplog.text


def test_a_photograph_that_is_missing_or_behind_a_link_is_named(tmp_path: Path) -> None:
    (tmp_path / "outside.jpg").write_bytes(b"private")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/link").symlink_to(tmp_path)
    opened = source(table(tmp_path / "in", "photograph,count,id", "link/outside.jpg,1,a", "no\x07.jpg,1,b"))
    assert dict(opened.read([image_key("a"), image_key("b")])) == {
        image_key("a"): Unread("is a link that leads out of the source's folder"),
        image_key("b"): Unread("is missing: row 3 names 'no\\x07.jpg'"),
    }


@pytest.mark.parametrize(
    ("lines", "columns", "message"),
    [
        (
            ["Bild,count", "a.jpg,1"],
            {},
            "has no column 'photograph', only 'Bild', 'count': name it in fetch.table.photo",
        ),
        (["photograph,count", "a.jpg,1"], {"bin": "Fach"}, "fetch.table.bin: .* has no column 'Fach', only 'count', "),
        (["photograph,count"], {}, "has no rows beneath its header"),
        (["photograph,count", "a.jpg,1"], {"items_file": "no/items.csv"}, "no/items.csv does not exist"),
    ],
)
def test_a_table_without_what_is_needed_is_a_user_error(
    tmp_path: Path, lines: list[str], columns: dict[str, str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        source(table(tmp_path, *lines), **columns)
    with pytest.raises(UserError, match=r"other\.csv does not exist"):
        source(tmp_path / "other.csv")


def test_a_table_in_a_bucket_and_photographs_in_buckets(tmp_path: Path) -> None:
    lists = b"photograph,count\n../b/1.jpg,1\nc.jpg,2\ns3://other/d.jpg,3\n"
    objects = {"/bucket/a/list.csv": lists, "/bucket/a/c.jpg": b"c", "/other/d.jpg": b"d"}

    def answer(request: Request) -> Answer:
        return Answer(objects[request.target]) if request.target in objects else error(404, "NoSuchKey")

    with stub_server(answer) as stub:
        opened = source("s3://bucket/a/list.csv", stub.endpoint)
        read = dict(opened.read([image_key(bin_id) for bin_id in opened.ids()]))
        assert sorted(body for body in read.values() if isinstance(body, bytes)) == [b"c", b"d"]
        assert isinstance(records(opened)[next(one for one in opened.ids() if one.startswith("1"))], Unread)
        with pytest.raises(UserError, match=r"s3://bucket/b\.csv does not exist"):
            source("s3://bucket/b.csv", stub.endpoint)
        local = source(table(tmp_path, "photograph,count,id", "s3://other/d.jpg,1,x"), stub.endpoint)
        assert dict(local.read([image_key("x")])) == {image_key("x"): b"d"}
