"""Files of ids: one a line or JSON, and what is refused."""

from pathlib import Path

import pytest

from bintally.bins import id_list
from bintally.bins.id_list import read_id_list, read_lines, with_lost_zeros
from bintally.errors import UserError


@pytest.mark.parametrize(
    "text",
    [
        "00007\n3\n\n00002\r\n3\n",
        '{"1": ["data/metadata/00007.json", "3"], "2": ["data/metadata/00002.json", "3"]}',
        '["00007", "3", "00002.json"]',
        "\ufeff00007\r\n3\r\n00002\r\n",
        '\ufeff["00007", "3", "00002"]',
        "00007\r3\r00002",
        " 00007 \t\n3\n00002",
        '{"1": ["00007"], "1": ["3"], "2": ["00002"]}',
    ],
)
def test_ids_are_read_in_order_from_every_format(tmp_path: Path, text: str) -> None:
    path = tmp_path / "ids"
    path.write_text(text, encoding="utf-8", newline="")
    assert read_id_list(path) == ["00007", "3", "00002"]


@pytest.mark.parametrize(
    ("body", "message_part"),
    [
        (b"00001\n../../etc/passwd\n", "'../../etc/passwd'"),
        (b"a/b\n", "'a/b'"),
        (b'["..json"]', "'.'"),
        (b'{"1": ["00001.json"', "must be"),
        (b'{"1": [7]}', "must be"),
        (b'{"1": 7}', "must be"),
        (b"\n \n", "lists no ids"),
        (b"{}", "lists no ids"),
        (b"\xff\xfe\x00", "not a text file"),
        ("00001\n".encode("utf-16"), "not a text file in UTF-8; save it as one"),
        (b"00001\0\n", "not a text file"),
        (b"00001\n" * 9, "larger than 50 bytes"),
        (b"00001 \x1b[2J", "'00001 \\x1b[2J'"),
        (b"1.2E+05", "'1.2E+05'"),
        (b"[" * 40, "must be"),
        (b"[%s]" % (b"7" * 40), "must be"),
        (b'[["1"], "2"]', "must be"),
        (b"[null]", "must be"),
        (None, "cannot read"),
    ],
)
def test_a_bad_file_is_refused_with_the_parameter_and_the_path(
    tmp_path: Path, body: bytes | None, message_part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(id_list, "MAX_LIST_BYTES", 50)
    path = tmp_path / "ids"
    if body is not None:
        path.write_bytes(body)
    with pytest.raises(UserError) as caught:
        read_id_list(path, "split.test_ids")
    message = str(caught.value)
    assert message.startswith("split.test_ids: ") and str(path) in message and message_part in message


def test_deeply_nested_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ids").write_bytes(b"[" * 100_000)
    with pytest.raises(UserError, match="must be a list of ids"):
        read_id_list(tmp_path / "ids")


def test_only_line_ends_end_a_line(tmp_path: Path) -> None:
    names = ["a\u2028b.jpg", "c\x0bd.jpg", "\xa0e.jpg", "f\x85.jpg"]
    (tmp_path / "list").write_text("\ufeff" + "\r\n\r\n".join(names), encoding="utf-8", newline="")
    assert read_lines(tmp_path / "list", "SOURCE") == names


def test_ids_that_lost_their_zeros_are_found() -> None:
    known = ["00123", "0000", "7", "07", "AB", "1000"]
    assert with_lost_zeros(["123", "0", "7", "AB", "8", "100"], known) == {"123": "00123", "0": "0000", "7": "7"}
    assert with_lost_zeros([], known) == {}
