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
            "photograph": "shelf 1/a.jpg",
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
    lost = records(source(table(tmp_path, "photograph,bin,count", "e.jpg,21,"), items_file="items.csv"))
    assert lost == {"e": Unread("cannot be made: row 2 has no count")}


@pytest.mark.parametrize("owner", ["id;A-1", "id;shelf/a.jpg", "photograph;shelf\\a.jpg", "bin;17"])
def test_a_second_table_names_photographs_by_id_or_file_or_their_bin(tmp_path: Path, owner: str) -> None:
    column, name = owner.split(";")
    table(tmp_path, f"{column};product;quantity", f"{name};x;2", f"{name};y;1", name="items.csv")
    path = table(
        tmp_path, "photograph,id,bin,count", f"shelf/a.jpg,{'A-1' if name == 'A-1' else ''},17,3", "b.jpg,B,18,1"
    )
    found = {one["photograph"]: one["BIN_FCSKU_DATA"] for one in records(source(path, items_file="items.csv")).values()}
    assert found["shelf/a.jpg"].keys() == {"x", "y"} and found["b.jpg"].keys() == {UNNAMED}


def test_a_photograph_with_an_id_is_not_known_by_its_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table(tmp_path, "id,product,quantity", "23,x,2", "40,y,1", "18,z,1", "19,z,1", name="items.csv")
    found = records(source(table(tmp_path, "photograph,count,id", "23.jpg,,17", "40.jpg,2,23"), items_file="items.csv"))
    assert found["17"] == Unread("cannot be made: row 2 has no count")
    assert found["23"]["BIN_FCSKU_DATA"].keys() == {"x"}
    assert "items.csv: 3 rows cannot be read, or are of no photograph and no bin in the table" in caplog.text
    assert "left out: 3; 4; 5" in caplog.text


def test_a_wrong_cell_of_the_second_table_is_said_with_its_own_row(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    items = ["Artikelliste", "id;product;quantity;value", "b;x;two;", "a;x;1;ask", "a;y;1;2 €", ";z;1;1", "c;;1;1"]
    table(tmp_path, *items, name="items.csv")
    path = table(tmp_path, "photograph,count,value", "a.jpg,2,1.5", "b.jpg,1,", "c.jpg,1,")
    found = records(source(path, items_file="items.csv"))
    assert found["b"] == Unread(
        "cannot be made: row 3 has a wrong item: row 3 of items.csv has a wrong cell: quantity is 'two', not a number"
    )
    assert found["c"].reason.endswith("row 7 of items.csv has a wrong cell: one of its items has no product")
    assert [one["value"] for one in found["a"]["BIN_FCSKU_DATA"].values()] == [1.5, 2.0]  # else that of its photograph
    assert (
        "1 values or sizes cannot be read, and the rows are taken without them: row 4 of items.csv, value is 'ask'"
        in caplog.text
    )
    assert f"{tmp_path}/items.csv: 1 rows cannot be read, or are of no photograph and no bin" in caplog.text


def test_odd_ids_become_others_that_stay_the_same(tmp_path: Path) -> None:
    names = ["a/1.jpg", "b/1.jpg", "1.jpg", "ü x.jpg", "plain.jpg", f"{'n' * 200}.jpg"]
    ids = {one["photograph"]: bin_id for bin_id, one in records(of_names(tmp_path, names)).items()}
    assert ids.keys() == set(names) and {"1", "plain"} <= set(ids.values())
    assert ids["b/1.jpg"].startswith("b_1_jpg-")
    assert of_names(tmp_path, names[::-1]).ids() == sorted(ids.values())


def of_names(folder: Path, names: list[str]) -> TableSource:
    return source(table(folder, "photograph,count", *(f"{name},1" for name in names)))


def test_photographs_that_differ_in_their_endings_alone_have_ids_of_their_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = ["1.jpg", "1.png", "2.jpg", "2.JPG", "3.jpg", "1.jpg"]
    found = records(of_names(tmp_path, names))
    assert {one["photograph"] for one in found.values()} == set(names)
    assert [bin_id.rpartition("-")[0] or bin_id for bin_id in found] == ["1_jpg", "1_png", "2_JPG", "2_jpg", "3"]
    assert "4 photographs have names that differ in their endings alone" in caplog.text
    assert of_names(tmp_path, names[::-1]).ids() == list(found)
    mixed = records(source(table(tmp_path, "photograph,count,id", "1.png,1,1", "1.jpg,x,", "2.png,2,2.png")))
    assert mixed["1"]["photograph"] == "1.png" and mixed["2"]["EXPECTED_QUANTITY"] == 2 and len(mixed) == 3


def test_no_two_photographs_have_one_id(tmp_path: Path) -> None:
    def ids(*taken: str) -> dict[str, str]:
        rows = ["ü.jpg,1,", *(f"{number}.jpg,1,{one}" for number, one in enumerate(taken))]
        found = records(source(table(tmp_path, "photograph,count,id", *rows)))
        return {one["photograph"]: bin_id for bin_id, one in found.items()}

    short = ids()["ü.jpg"]
    both = ids(short)
    assert both["0.jpg"] == short and both["ü.jpg"].startswith(short)
    with pytest.raises(UserError, match=f"would both have the id {both['ü.jpg']}: give them ids in the table"):
        ids(short, both["ü.jpg"])


def test_a_photograph_named_in_two_ways_is_one_bin(tmp_path: Path) -> None:
    rows = ["./1.jpg,1", "1.jpg,1", ".\\x\\..\\1.jpg,1", "a//b.jpg,1", "s3://bucket//c.jpg,1"]
    found = records(source(table(tmp_path, "photograph,count", *rows)))
    assert sorted((one["photograph"], one["bin"]) for one in found.values()) == [
        (name, name) for name in ("1.jpg", "a/b.jpg", "s3://bucket//c.jpg")
    ]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (",3,a", "cannot be made: row 2 has no photograph"),
        ("a.jpg,,a", "cannot be made: row 2 has no count"),
        ('a.jpg,3,a,"{""x"": 2}"', "cannot be made: row 2 has 3 as its count, and 2 items are listed"),
        ("a.jpg,two,a", "cannot be made: row 2 has a wrong cell: count is 'two', not a number"),
        ("a.jpg,2.5,a", "cannot be made: row 2 has a wrong cell: count is 2.5, not a count from 0 to 1000"),
        ("a.jpg,-1,a", "cannot be made: row 2 has a wrong cell: count is -1, not a count from 0 to 1000"),
        ('a.jpg,"1,000",a', "cannot be made: row 2 has a wrong cell: count is '1,000', which may be 1000 or 1.000: "),
        ("../a.jpg,1,a", "cannot be made: row 2 names a photograph outside the table's folder: '../a.jpg'"),
        ("x/../../a.jpg,1,a", "cannot be made: row 2 names a photograph outside the table's folder: "),
        ("/etc/passwd,1,a", "cannot be made: row 2 names a photograph outside the table's folder: '/etc/passwd'"),
        (f"{'p' * 4097},1,a", "cannot be made: row 2 names a photograph in 4,097 characters, more than 4,096"),
        ("s3:///a,1,a", "cannot be made: row 2 names no object: 's3:///a'"),
        ("a.jpg,1,a\na.jpg,2,a", "cannot be made: row 3 differs from row 2, which has the same id"),
        ("a.jpg,1,a\nb.jpg,1,a\na.jpg,1,a", "cannot be made: row 4 differs from row 2, which has the same id"),
    ],
)
def test_a_row_that_cannot_be_used_is_set_aside_with_its_number(tmp_path: Path, row: str, reason: str) -> None:
    opened = source(table(tmp_path, "photograph,count,id,items", row, "good.jpg,1,b"))
    found = records(opened)
    assert isinstance(found["a"], Unread) and found["a"].reason.startswith(reason)
    assert found["b"]["EXPECTED_QUANTITY"] == 1
    assert dict(opened.read([image_key("a")])) == {image_key("a"): found["a"]}


def test_a_value_that_cannot_be_read_is_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = ["a.jpg;1;25,99 €", "b.jpg;1;auf Anfrage", "c.jpg;1;1.299", "d.jpg;1;"]
    found = records(source(table(tmp_path, "photograph;count;value", *rows)))
    assert [one["BIN_FCSKU_DATA"][UNNAMED].get("value") for one in found.values()] == [25.99, None, None, None]
    said = "2 values or sizes cannot be read, and the rows are taken without them: row 3, value is 'auf Anfrage', not a"
    assert said in caplog.text and "row 4, value is '1.299', which may be 1299 or 1.299" in caplog.text


def test_a_line_of_json_that_cannot_be_read_is_set_aside_with_its_number(tmp_path: Path) -> None:
    good = '{"photograph": "a.jpg", "count": 3}'
    found = records(source(table(tmp_path, "not JSON", good, "7", name="list.jsonl")))
    assert found.keys() == {"a", "row-1", "row-3"} and found["a"]["EXPECTED_QUANTITY"] == 3
    assert found["row-1"].reason.startswith("cannot be made: row 1 is not JSON: Expecting value")
    with pytest.raises(UserError, match=r"list\.jsonl has no row that can be read: row 1 is not JSON"):
        source(table(tmp_path, "nothing", "7", name="list.jsonl"))


def test_texts_of_json_that_are_none_and_endless_numbers_set_aside_their_row_alone(tmp_path: Path) -> None:
    rows = [
        r'{"photograph": "a\ud800.jpg", "count": 1, "id": "a"}',
        r'{"photograph": "b\u0000.jpg", "count": 1, "id": "b"}',
        r'{"photograph": "c.jpg", "count": 1, "id": "c", "location": "R\ud800"}',
        r'{"photograph": "d.jpg", "id": "d", "items": "{\"\\ud800\": 1}"}',
        '{"photograph": "e.jpg", "id": "e", "count": %s}' % ("9" * 400),
        '{"photograph": "f.jpg", "id": "f", "count": 1, "value": %s}' % ("9" * 400),
        r'{"photograph": "g.jpg", "id": "g", "count": 1, "location": "R\u0000", "bin": "\u0000"}',
        r'{"photograph": "h.jpg", "id": "\ud800", "count": 1}',
    ]
    opened = source(table(tmp_path, *rows, name="list.jsonl"))
    assert list(opened.read([image_key(one) for one in opened.ids()]))
    found = records(opened)
    reasons = [one.reason.removeprefix("cannot be made: row ") for one in found.values() if isinstance(one, Unread)]
    assert sorted(reasons) == [
        r"1 names a photograph with a character that no file's name has: 'a\ud800.jpg'",
        r"2 names a photograph with a character that no file's name has: 'b\x00.jpg'",
        r"3 has half a character, '\ud800'",
        r"4 has half a character, '\ud800'",
        f"5 has a wrong cell: count is {'9' * 40}, too large",
        r"8 has half a character, '\ud800'",
    ]
    assert found.keys() > {"f", "g"} and "value" not in found["f"]["BIN_FCSKU_DATA"][UNNAMED]


def test_repeated_rows_count_once_and_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    opened = source(table(tmp_path, "photograph,count", *["a.jpg,1"] * 3, "b.jpg,1"))
    assert opened.ids() == ["a", "b"]
    assert "2 rows repeat an earlier one, which counts once: 3; 4" in caplog.text


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
        assert isinstance(records(opened)[next(one for one in opened.ids() if one.startswith("_b_1_jpg"))], Unread)
        with pytest.raises(UserError, match=r"s3://bucket/b\.csv does not exist"):
            source("s3://bucket/b.csv", stub.endpoint)
    with (
        stub_server(lambda _: error(403, "AccessDenied")) as private,
        pytest.raises(UserError, match=r"list\.csv cannot be read: access denied; .* fetch\.anonymous: false"),
    ):
        source("s3://bucket/a/list.csv", private.endpoint)
    with stub_server(answer) as stub:
        local = source(table(tmp_path, "photograph,count,id", "s3://other/d.jpg,1,x"), stub.endpoint)
        assert dict(local.read([image_key("x")])) == {image_key("x"): b"d"}
