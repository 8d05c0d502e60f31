"""Which records are rejected, and the reasons."""

import json

import pytest

from bintally.bins import record
from bintally.bins.record import ID_PATTERN, MAX_PATH, BadBin, parse_record, with_photograph

GOOD = {"BIN_FCSKU_DATA": {"B01": {"quantity": 2}, "B02": {"quantity": 1}}, "EXPECTED_QUANTITY": 3}


def test_a_good_record_gives_its_count_and_products() -> None:
    read = parse_record(json.dumps(GOOD).encode())
    assert (read.count, read.asins) == (3, frozenset({"B01", "B02"}))


def test_a_record_may_have_a_byte_order_mark_and_any_number_of_items_without_a_quantity() -> None:
    items = ",".join(f'"{number}":{{"quantity":0}}' for number in range(100_000))
    text = '{"EXPECTED_QUANTITY": -0, "BIN_FCSKU_DATA": {' + items + "}}"
    read = parse_record(text.encode("utf-8-sig"))
    assert (read.count, read.asins) == (0, frozenset())


def test_a_path_longer_than_any_is_ignored() -> None:
    for length, kept in ((MAX_PATH, MAX_PATH), (MAX_PATH + 1, 0), (3_900_000, 0)):
        assert len(parse_record(json.dumps(GOOD | {"photograph": "p" * length}).encode()).photograph) == kept


def test_a_reason_is_given_the_path_of_its_photograph_once() -> None:
    missing = "is missing: row 2 names '1.jpg'"
    assert with_photograph(missing, "1.jpg") == with_photograph(missing, "") == missing
    assert with_photograph("is missing", "is") == "is missing: is"


def test_an_empty_bin_is_a_bin() -> None:
    assert parse_record(b'{"BIN_FCSKU_DATA": {}, "EXPECTED_QUANTITY": 0}').count == 0


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "record is not JSON"),
        (b'{"EXPECTED_QUANTITY": 3, "BIN_', "record is not JSON"),
        (b"\xff\xfe\xfd", "record is not JSON"),
        (b"[" * 100_000, "record is not JSON"),
        (b"[1]", "record has no EXPECTED_QUANTITY"),
        (b"{}", "record has no EXPECTED_QUANTITY"),
        (b'{"EXPECTED_QUANTITY": "3"}', "EXPECTED_QUANTITY is '3', not a count from 0 to 1000"),
        (b'{"EXPECTED_QUANTITY": 3.0}', "EXPECTED_QUANTITY is '3.0', not a count from 0 to 1000"),
        (b'{"EXPECTED_QUANTITY": true}', "EXPECTED_QUANTITY is 'True', not a count from 0 to 1000"),
        (b'{"EXPECTED_QUANTITY": -1}', "EXPECTED_QUANTITY is '-1', not a count from 0 to 1000"),
        (b'{"EXPECTED_QUANTITY": null}', "EXPECTED_QUANTITY is 'None', not a count from 0 to 1000"),
        (b'{"EXPECTED_QUANTITY": 3}', "record has no BIN_FCSKU_DATA"),
        (b'{"EXPECTED_QUANTITY": 3, "BIN_FCSKU_DATA": []}', "record has no BIN_FCSKU_DATA"),
        (
            b'{"EXPECTED_QUANTITY": 3, "BIN_FCSKU_DATA": {"B01": {}}}',
            "an item of the record has no whole quantity from 0 to 1000",
        ),
        (
            b'{"EXPECTED_QUANTITY": 3, "BIN_FCSKU_DATA": {"B01": 3}}',
            "an item of the record has no whole quantity from 0 to 1000",
        ),
        (
            b'{"EXPECTED_QUANTITY": 3, "BIN_FCSKU_DATA": {"B01": {"quantity": 3.0}}}',
            "an item of the record has no whole quantity from 0 to 1000",
        ),
        (
            b'{"EXPECTED_QUANTITY": 3, "BIN_FCSKU_DATA": {"B01": {"quantity": 2}}}',
            "quantities add up to 2, EXPECTED_QUANTITY is 3",
        ),
        (b'{"EXPECTED_QUANTITY": 1e400}', "EXPECTED_QUANTITY is 'inf', not a count from 0 to 1000"),
        (b'{"EXPECTED_QUANTITY": NaN}', "EXPECTED_QUANTITY is 'nan', not a count from 0 to 1000"),
        (b'{"EXPECTED_QUANTITY": -0.0}', "EXPECTED_QUANTITY is '-0.0', not a count from 0 to 1000"),
        (b'{"EXPECTED_QUANTITY": 1001}', "EXPECTED_QUANTITY is '1001', not a count from 0 to 1000"),
        (b'{"EXPECTED_QUANTITY": [[[1]]]}', "EXPECTED_QUANTITY is 'list', not a count from 0 to 1000"),
        (
            b'{"EXPECTED_QUANTITY": %s}' % (b"9" * 4300),
            f"EXPECTED_QUANTITY is '{'9' * 40}', not a count from 0 to 1000",
        ),
        (b'{"EXPECTED_QUANTITY": %s}' % (b"9" * 4301), "record is not JSON"),
        (
            b'{"EXPECTED_QUANTITY": 1, "BIN_FCSKU_DATA": {"a": {"quantity": %s}, "b": {"quantity": %s}}}'
            % (b"9" * 4300, b"9" * 4300),
            "an item of the record has no whole quantity from 0 to 1000",
        ),
        (
            b'{"EXPECTED_QUANTITY": 1, "EXPECTED_QUANTITY": 2, "BIN_FCSKU_DATA": {}}',
            "record is JSON that has a key twice in one object",
        ),
        (
            b'{"EXPECTED_QUANTITY": 1, "BIN_FCSKU_DATA": {"a": {"quantity": 1}, "a": {"quantity": 1}}}',
            "record is JSON that has a key twice in one object",
        ),
        (
            b'{"EXPECTED_QUANTITY": 1, "BIN_FCSKU_DATA": {"%s": {"quantity": 1}}}' % (b"a" * 101),
            "the key of an item is longer than 100 characters",
        ),
        (
            b'{"EXPECTED_QUANTITY": 1, "BIN_FCSKU_DATA": {"\\ud800": {"quantity": 1}}}',
            "the key of an item has characters that cannot be shown",
        ),
        (b'{"a":' * 100_000, "record is not JSON"),
        (b" " * (record.MAX_RECORD_BYTES + 1), f"record is larger than {record.MAX_RECORD_BYTES:,} bytes"),
    ],
)
def test_a_bad_record_is_rejected_with_the_reason(body: bytes, reason: str) -> None:
    with pytest.raises(BadBin) as caught:
        parse_record(body)
    assert str(caught.value) == reason


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "a\\b", "a.b", "a b", "a\n", "é", "x" * 65])
def test_an_id_cannot_lead_out_of_a_folder(name: str) -> None:
    assert not ID_PATTERN.fullmatch(name)
    assert all(ID_PATTERN.fullmatch(good) for good in ("1", "00001", "AB-c_9", "x" * 64))
