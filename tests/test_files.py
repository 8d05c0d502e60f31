"""Files are written whole or not at all, and a full disk is reported in one sentence."""

import json
import math
from pathlib import Path

import pytest

from bintally.errors import UserError
from bintally.files import atomic_write, read_csv, round_floats, write_csv, write_json, write_text


def test_a_file_that_could_not_be_finished_leaves_the_earlier_one_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "deeper" / "file.txt"
    write_text(path, "earlier\n")
    with pytest.raises(RuntimeError), atomic_write(path) as temporary:
        temporary.write_text("half")
        assert path.read_text() == "earlier\n"
        raise RuntimeError
    assert path.read_text() == "earlier\n"
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_is_a_user_error_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "earlier\n")
    with pytest.raises(UserError, match=rf"disk is full.*{path}"), atomic_write(path) as temporary:
        temporary.symlink_to("/dev/full")
        temporary.write_text("more")
    assert path.read_text() == "earlier\n"
    assert list(tmp_path.iterdir()) == [path]


def test_other_system_errors_are_not_reported_as_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError), atomic_write(tmp_path / "file") as temporary:
        temporary.mkdir()
        try:
            temporary.write_text("x")
        finally:
            temporary.rmdir()


def test_a_table_comes_back_with_ids_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    write_csv(path, ["id", "note"], [("00001", 'a "b", c'), ("1e5", "ü\nnext")])
    assert read_csv(path) == [{"id": "00001", "note": 'a "b", c'}, {"id": "1e5", "note": "ü\nnext"}]
    assert b"\r" not in path.read_bytes()


def test_json_is_indented_and_never_has_not_a_number(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    write_json(path, {"b": 0.5, "a": "ü"})
    assert path.read_text(encoding="utf-8") == '{\n  "b": 0.5,\n  "a": "ü"\n}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"b": float("nan")})
    assert "0.5" in path.read_text(encoding="utf-8")


def test_floats_are_rounded_to_significant_digits_and_nothing_else_is(tmp_path: Path) -> None:
    content = {"a": [1 / 3, (1e-9 / 3, 1234567)], "b": {"c": 2e9 / 3, "d": "0.123456789"}, "e": None}
    rounded = {"a": [0.333333, [3.33333e-10, 1234567]], "b": {"c": 666667000.0, "d": "0.123456789"}, "e": None}
    write_json(tmp_path / "rounded.json", content, 6)
    write_csv(tmp_path / "rounded.csv", ["a", "b"], [(1 / 3, 7654321)], 6)
    assert json.loads((tmp_path / "rounded.json").read_text()) == rounded
    assert read_csv(tmp_path / "rounded.csv") == [{"a": "0.333333", "b": "7654321"}]


@pytest.mark.parametrize("value", [0.8746875, 0.0015625, 1 / 3, 1.0])
def test_the_last_digit_does_not_change_a_rounded_float(value: float) -> None:
    neighbours = (math.nextafter(value, 0), math.nextafter(value, 2))
    assert {round_floats(one, 6) for one in neighbours} == {round_floats(value, 6)}
