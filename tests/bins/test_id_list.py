"""Files of ids: one a line or JSON, and what is refused."""

from pathlib import Path

import pytest

from bintally.bins.id_list import read_id_list
from bintally.errors import UserError


@pytest.mark.parametrize(
    "text",
    [
        "00007\n3\n\n00002\r\n3\n",
        '{"1": ["data/metadata/00007.json", "3"], "2": ["data/metadata/00002.json", "3"]}',
        '["00007", "3", "00002.json"]',
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
        (None, "cannot read"),
    ],
)
def test_a_bad_file_is_refused_with_the_parameter_and_the_path(
    tmp_path: Path, body: bytes | None, message_part: str
) -> None:
    path = tmp_path / "ids"
    if body is not None:
        path.write_bytes(body)
    with pytest.raises(UserError) as caught:
        read_id_list(path, "split.test_ids")
    message = str(caught.value)
    assert message.startswith("split.test_ids: ") and str(path) in message and message_part in message
