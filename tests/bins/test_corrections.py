"""Corrections: checked line by line, merged all or none, and used as labels in place of the records."""

import multiprocessing
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from bintally import paths
from bintally.bins.corrections import (
    UNLISTED,
    Correction,
    Merged,
    corrected_products,
    merge_corrections,
    read_corrections,
)
from bintally.bins.products import SIZES, Product
from bintally.bins.shards import Bin, write_shards
from bintally.errors import UserError
from bintally.files import read_csv
from bintally.params import Params, load_params
from bintally.stages import split
from small import write_quality

ROOT = Path(__file__).parents[2]
WITH_ITEMS = "id,count,product,quantity"


def product(key: str, quantity: int) -> Product:
    return Product(key, f"Product {key}", quantity, (1.0,) * len(SIZES))


LISTED = [product("B01", 2), product("0099", 1)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must begin with the line id,count"),
        ("1,2\n", "must begin with the line id,count"),
        ("id,count\n1,2\n2\n", "line 3: '2' must be an id, a comma and a count"),
        ("id,count\n../1,2\n", "line 2: '../1,2' must be an id, a comma and a count"),
        ("id,count\n1,-2\n", "line 2: '1,-2' must have a count from 0 to 1000"),
        ("id,count\n1,2.5\n", "line 2: '1,2.5' must have a count from 0 to 1000"),
        ("id,count\n1,1001\n", "line 2: '1,1001' must have a count from 0 to 1000"),
        ("id,count\n1,2\n2,3\n1,2\n", "line 4: '1,2' repeats an id"),
        ("id,count\n1,2.000\n", "must have a count from 0 to 1000"),  # two thousand, in some languages
        ("id,count\n1,2.0000000000\n", "must have a count from 0 to 1000"),
        (f"id,count\n1,{'9' * 9999}\n", "must have a count from 0 to 1000"),
        ("id,count\n1,٣\n", "must have a count from 0 to 1000"),
        ("id,count\n1,nan\n", "must have a count from 0 to 1000"),
        ("id,count\n1,2,3\n", "line 2: '1,2,3' must be an id, a comma and a count"),
        ("id,count\n1.2E+12,3\n", "line 2: '1.2E+12,3' has a number in place of its id, which a spreadsheet made"),
        ("id,count\n\x1b[2Jx,3\n", "line 2: '\\x1b[2Jx,3' must be an id"),
        ('id,count\n=HYPERLINK("x"),3\n', "must be an id, a comma and a count"),
        ("id;count\n1,5;3\n", "line 2: '1,5;3' must be an id, a comma and a count"),
        ("id,count,product\n1,5,B\n", "must begin with the line id,count, id,count,product,quantity or id,location"),
        (f"{WITH_ITEMS}\n1,5,B\n", "and a count, and the key of a product with its quantity or neither"),
        (f"{WITH_ITEMS}\n1,5,=B,1\n", "must have the key of a product in the record, or unlisted, in the third column"),
        (f"{WITH_ITEMS}\n1,5,,1\n", "must have the key of a product in the record"),
        (f"{WITH_ITEMS}\n1,5,B,x\n", "must have a quantity from 0 to 1000"),
        (f"{WITH_ITEMS}\n1,5,B,6\n", "line 2: '1,5,B,6' has 6 items of one product among 5"),
        (f"{WITH_ITEMS}\n1,5,1.2E+9,1\n", "has a number in place of its product, which a spreadsheet made"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "corrections.csv"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_corrections(path)
    assert message in str(caught.value) and str(path) in str(caught.value)


def test_newer_counts_replace_older_ones_and_a_bad_file_changes_nothing(tmp_path: Path) -> None:
    path, marks = tmp_path / "corrections.csv", tmp_path / "marks.csv"
    assert read_corrections(path) == {}
    marks.write_text("id,count\n7,1\n00007,2\n")
    assert merge_corrections(path, marks) == Merged(new=2, changed=0, same=0)
    marks.write_text("id,count\r\n7,3\r\n00007,2\r\n5,0\r\n")
    assert merge_corrections(path, marks) == Merged(new=1, changed=1, same=1)
    assert path.read_text() == "id,count\n00007,2\n5,0\n7,3\n"
    marks.write_text("id,count,product,quantity\n7,3,B1,2\n")
    assert merge_corrections(path, marks) == Merged(new=0, changed=1, same=0)
    marks.write_text("id,count\n7,3\n")  # says no more than that line, which is kept
    assert merge_corrections(path, marks) == Merged(new=0, changed=0, same=1)
    assert read_corrections(path)["7"].product == "B1"
    marks.write_text("id,count\n7,4\n")
    assert merge_corrections(path, marks) == Merged(new=0, changed=1, same=0)
    marks.write_text("id,count\n7,3\n")
    merge_corrections(path, marks)
    marks.write_text("id,count\n7,x\n")
    with pytest.raises(UserError):
        merge_corrections(path, marks)
    with pytest.raises(UserError, match="does not exist"):
        merge_corrections(path, tmp_path / "none.csv")
    assert path.read_text() == "id,count\n00007,2\n5,0\n7,3\n"


def test_what_a_spreadsheet_makes_of_the_file_is_read_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "marks.csv"
    for text in (
        "id,count\n00123,4\na-1,0\n",
        '\ufeff"id","count"\r\n"00123","4"\r\n"a-1","0"\r\n',
        "id;count\r\n00123;4\r\na-1;0\r\n",
        "id;count\n00123;4,00\na-1;0,0\n",
        "id\tcount\n00123\t4\na-1\t0\n",
        "id,count,,\n00123,4.0,,\na-1,0.0,,\n,,,\n\n",
        "id , count\n 00123 , 4 \na-1,0",
    ):
        path.write_bytes(text.encode())
        assert read_corrections(path) == {"00123": Correction(4), "a-1": Correction(0)}, text
    named = {"00123": Correction(4, "0099", 2), "a-1": Correction(0), "7": Correction(1, UNLISTED, 1)}
    for text in (
        f"{WITH_ITEMS}\n00123,4,0099,2\na-1,0,,\n7,1,unlisted,1\n",
        '\ufeff"id";"count";"product";"quantity"\r\n"00123";"4,0";"0099";"2,00";;\r\na-1;0\r\n7;1;unlisted;1,0\r\n',
    ):
        path.write_bytes(text.encode())
        assert read_corrections(path) == named, text


def test_a_recount_of_a_product_changes_what_lies_in_the_bin() -> None:
    assert corrected_products(LISTED, None) == corrected_products(LISTED, Correction(3)) == LISTED
    assert corrected_products(LISTED, Correction(2, "B01", 1)) == [product("B01", 1), product("0099", 1)]
    assert corrected_products(LISTED, Correction(2, "0099", 0)) == [product("B01", 2)]
    added = corrected_products(LISTED, Correction(5, UNLISTED, 2))
    assert added and added[:2] == LISTED and (added[2].key, added[2].quantity) == (UNLISTED, 2)
    assert corrected_products(LISTED, Correction(2)) is None  # of which product?
    assert corrected_products(LISTED, Correction(5, "B01", 1)) is None  # does not fit this record


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("7,3,B02,1", "names a product that is not in the record of this bin, write unlisted for what the record"),
        ("7,3,99,1", "in the record of this bin, but 0099 is: a spreadsheet removes zeros in front"),
        ("7,3,B01,1", "line 3: '7,3,B01,1' does not fit the record: 1 beside 1 items of other products are 2"),
        ("7,3,unlisted,1", "does not fit the record: 1 beside 3 items of other products are 4"),
    ],
)
def test_a_product_that_does_not_fit_the_record_is_refused(tmp_path: Path, line: str, message: str) -> None:
    path, marks = tmp_path / "corrections.csv", tmp_path / "marks.csv"
    marks.write_text(f"{WITH_ITEMS}\n8,3,anything,1\n{line}\n")
    with pytest.raises(UserError) as caught:
        merge_corrections(path, marks, {"7"}, lambda _: LISTED)
    assert message in str(caught.value) and not path.exists()


def test_products_have_columns_only_where_one_is_named(tmp_path: Path) -> None:
    path, marks = tmp_path / "corrections.csv", tmp_path / "marks.csv"
    marks.write_text(f"{WITH_ITEMS}\n7,3,,\n")
    assert merge_corrections(path, marks, {"7"}, lambda _: LISTED).new == 1
    assert path.read_text() == "id,count\n7,3\n"
    marks.write_text(f"{WITH_ITEMS}\n8,3,B01,2\n7,5,unlisted,2\n")
    assert merge_corrections(path, marks, {"7", "8"}, lambda _: LISTED) == Merged(new=1, changed=1, same=0)
    assert path.read_text() == f"{WITH_ITEMS}\n7,5,unlisted,2\n8,3,B01,2\n"


def test_ids_that_lost_their_zeros_are_refused_and_those_of_no_bin_are_named(tmp_path: Path) -> None:
    path, marks = tmp_path / "corrections.csv", tmp_path / "marks.csv"
    path.write_text("id,count\n00300,1\n")
    known = {"00123", "7", "00007"}
    for text in ("123,4\n00007,1\n", "300,2\n"):
        marks.write_text(f"id,count\n{text}")
        number = text.partition(",")[0]
        with pytest.raises(UserError, match=f"there is no bin {number}, but 00{number}: a spreadsheet removes zeros"):
            merge_corrections(path, marks, known)
    assert path.read_text() == "id,count\n00300,1\n"
    marks.write_text("id,count\n7,1\n00007,2\n00300,1\n999,3\nabc,3\n")
    assert merge_corrections(path, marks, known) == Merged(new=4, changed=0, same=1, unknown=("999", "abc"))
    # What a person has written into the corrections is meant.
    path.write_text("id,count\n123,1\n")
    marks.write_text("id,count\n123,4\n")
    assert merge_corrections(path, marks, known) == Merged(new=0, changed=1, same=0)


def test_lines_of_a_count_sheet_without_a_count_are_of_bins_that_were_not_counted(tmp_path: Path) -> None:
    path, marks = tmp_path / "corrections.csv", tmp_path / "marks.csv"
    sheet = "id;location;expected;counted;difference;product;quantity"
    marks.write_text(f"{sheet}\n7;R1;3;;;;\n8;R2;3;2;-1;;\n9;R3;4;;-4\n8;R2;3\n;;;;;;\n")
    assert merge_corrections(path, marks) == Merged(new=1, changed=0, same=0, uncounted=3)
    assert path.read_text() == "id,count\n8,2\n"
    marks.write_text(f"{sheet}\n7;R1;3;;;B01;2\n")  # an item was counted, and the others perhaps
    with pytest.raises(UserError, match=r"line 2: .* must have a count from 0 to 1000"):
        merge_corrections(path, marks)


def merge_often(folder: Path, who: int, start: Barrier) -> None:
    for turn in range(30):
        marks = folder / f"{who}.csv"
        marks.write_text(f"id,count\n{who}x{turn},1\n")
        start.wait(60)
        merge_corrections(folder / "corrections.csv", marks)


def test_of_two_merges_at_once_none_is_lost(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(2)
    processes = [context.Process(target=merge_often, args=(tmp_path, who, start)) for who in (1, 2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(read_corrections(tmp_path / "corrections.csv")) == 60


def make_params(open_ended: bool) -> Params:
    loaded = load_params(ROOT / "params.yaml")
    fetch = loaded.fetch.model_copy(update={"counts": [1, 2, 3], "open_ended": open_ended})
    return loaded.model_copy(update={"fetch": fetch})


@pytest.mark.parametrize(("open_ended", "of_seven"), [(False, ("7", "left_out")), (True, ("3", ""))])
def test_the_split_uses_them_as_labels_and_moves_no_other_bin(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    open_ended: bool,
    of_seven: tuple[str, str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_shards(paths.BINS, [Bin(f"{n:02}", n % 3 + 1, f"{n - n % 2:02}", b"", b"") for n in range(60)])
    write_quality([f"{n:02}" for n in range(60)])
    split.main(make_params(open_ended))
    before = {row["id"]: row for row in read_csv(paths.SPLITS)}
    paths.CORRECTIONS.write_text("id,count\n00,3\n01,2\n02,7\n3,1\n99,1\n")
    split.main(make_params(open_ended))
    after = {row["id"]: row for row in read_csv(paths.SPLITS)}
    changed = {one: (row["count"], row["split"]) for one, row in after.items() if row != before[one]}
    assert before["00"]["count"] == "1" and before["01"]["count"] == "2"
    expected = {"00": ("3", before["00"]["split"]), "02": (of_seven[0], of_seven[1] or before["02"]["split"])}
    if open_ended:
        expected.pop("02")  # its label is 3 already
    assert changed == expected
    assert "data/corrections.csv: 1 ids have perhaps lost zeros in a spreadsheet: 3 (not 03?)" in caplog.text
    assert load_params(ROOT / "params.yaml") and (ROOT / paths.CORRECTIONS).read_text().startswith("id,count\n")


def test_the_split_says_which_corrections_do_not_fit_their_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    record = b'{"BIN_FCSKU_DATA": {"B01": {"quantity": 2}}, "EXPECTED_QUANTITY": 2}'
    write_shards(paths.BINS, [Bin(f"{n:02}", n % 3 + 1, f"{n:02}", b"", record) for n in range(60)])
    write_quality([f"{n:02}" for n in range(60)])
    paths.CORRECTIONS.write_text(f"{WITH_ITEMS}\n00,3,B01,3\n01,2,B01,1\n02,3,,\n")
    split.main(make_params(open_ended=False))
    assert [row["count"] for row in read_csv(paths.SPLITS)][:3] == ["3", "2", "3"]
    assert "data/corrections.csv: 1 of them do not fit the record, and count as corrections" in caplog.text
    assert caplog.text.rstrip().endswith("alone: 01")
