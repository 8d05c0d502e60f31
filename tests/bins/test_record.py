"""Which records and photographs are rejected, and the reasons."""

import io
import json
import random

import pytest
from PIL import Image

from bintally.bins import record
from bintally.bins.record import ID_PATTERN, BadBin, check_image, parse_record

GOOD = {"BIN_FCSKU_DATA": {"B01": {"quantity": 2}, "B02": {"quantity": 1}}, "EXPECTED_QUANTITY": 3}


def jpeg(width: int = 64, height: int = 48) -> bytes:
    file = io.BytesIO()
    noise = random.Random(0).randbytes(width * height * 3)  # noqa: S311 (a picture)
    Image.frombytes("RGB", (width, height), noise).save(file, "JPEG")
    return file.getvalue()


def test_a_good_record_gives_its_count_and_products() -> None:
    read = parse_record(json.dumps(GOOD).encode())
    assert (read.count, read.asins) == (3, frozenset({"B01", "B02"}))


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
        (b'{"EXPECTED_QUANTITY": "3"}', "EXPECTED_QUANTITY is '3', not a count"),
        (b'{"EXPECTED_QUANTITY": 3.0}', "EXPECTED_QUANTITY is '3.0', not a count"),
        (b'{"EXPECTED_QUANTITY": true}', "EXPECTED_QUANTITY is 'True', not a count"),
        (b'{"EXPECTED_QUANTITY": -1}', "EXPECTED_QUANTITY is '-1', not a count"),
        (b'{"EXPECTED_QUANTITY": null}', "EXPECTED_QUANTITY is 'None', not a count"),
        (b'{"EXPECTED_QUANTITY": 3}', "record has no BIN_FCSKU_DATA"),
        (b'{"EXPECTED_QUANTITY": 3, "BIN_FCSKU_DATA": []}', "record has no BIN_FCSKU_DATA"),
        (
            b'{"EXPECTED_QUANTITY": 3, "BIN_FCSKU_DATA": {"B01": {}}}',
            "an item of the record has no whole quantity",
        ),
        (
            b'{"EXPECTED_QUANTITY": 3, "BIN_FCSKU_DATA": {"B01": 3}}',
            "an item of the record has no whole quantity",
        ),
        (
            b'{"EXPECTED_QUANTITY": 3, "BIN_FCSKU_DATA": {"B01": {"quantity": 3.0}}}',
            "an item of the record has no whole quantity",
        ),
        (
            b'{"EXPECTED_QUANTITY": 3, "BIN_FCSKU_DATA": {"B01": {"quantity": 2}}}',
            "quantities add up to 2, EXPECTED_QUANTITY is 3",
        ),
        (b" " * (record.MAX_RECORD_BYTES + 1), f"record larger than {record.MAX_RECORD_BYTES} bytes"),
    ],
)
def test_a_bad_record_is_rejected_with_the_reason(body: bytes, reason: str) -> None:
    with pytest.raises(BadBin) as caught:
        parse_record(body)
    assert str(caught.value) == reason


def test_a_complete_photograph_passes() -> None:
    check_image(jpeg())


@pytest.mark.parametrize("body", [b"", b"not an image", jpeg()[: len(jpeg()) * 3 // 5], jpeg()[:-2_000], jpeg()[:30]])
def test_a_truncated_photograph_is_rejected(body: bytes) -> None:
    with pytest.raises(BadBin, match="does not decode"):
        check_image(body)


def test_a_photograph_in_another_format_is_rejected() -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    with pytest.raises(BadBin, match="does not decode"):
        check_image(file.getvalue())


def test_a_photograph_with_too_many_pixels_is_rejected_before_it_is_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(record, "MAX_PIXELS", 64 * 48 - 1)
    with pytest.raises(BadBin, match="64x48 pixels is too large"):
        check_image(jpeg()[:700])  # truncated: decoding it would fail for another reason


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "a\\b", "a.b", "a b", "a\n", "é", "x" * 65])
def test_an_id_cannot_lead_out_of_a_folder(name: str) -> None:
    assert not ID_PATTERN.fullmatch(name)
    assert all(ID_PATTERN.fullmatch(good) for good in ("1", "00001", "AB-c_9", "x" * 64))
