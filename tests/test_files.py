"""Files are written whole or not at all, and a full disk is reported in one sentence."""

import json
import math
import os
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from bintally.errors import UserError
from bintally.files import (
    atomic_write,
    check_writable,
    read_columns,
    read_csv,
    round_floats,
    spreadsheet_text,
    write_csv,
    write_json,
    write_text,
)


def peak_bytes(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_table_of_any_length_is_written_in_little_memory_and_read_as_columns(tmp_path: Path) -> None:
    path, number = tmp_path / "table.csv", 20_000
    rows = ((f"{row:06}", row % 5, "train") for row in range(number))
    assert peak_bytes(lambda: write_csv(path, ["id", "count", "split"], rows)) < 200_000 < path.stat().st_size
    rows_take = peak_bytes(lambda: read_csv(path))
    assert peak_bytes(lambda: read_columns(path, "split", "count")) < rows_take / 10
    split, ids = read_columns(path, "split", "id")
    assert (set(split), ids[0], ids[-1], len(ids)) == ({"train"}, "000000", "019999", number)
    assert read_columns(path, "id")[0][3] is read_columns(path, "id")[0][3]
    with pytest.raises(KeyError, match="group"):
        read_columns(path, "group")


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
        temporary.unlink()
        temporary.symlink_to("/dev/full")
        temporary.write_text("more")
    assert path.read_text() == "earlier\n"
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    with atomic_write(path) as first, atomic_write(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "file[1].txt"
    other = tmp_path / ".file.txt.0123456789abcdef.tmp"
    other.write_text("of another file")
    script = f"""
import os, signal
from pathlib import Path
from bintally.files import atomic_write
with atomic_write(Path({str(path)!r})) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL
    (left,) = set(tmp_path.iterdir()) - {other}
    write_text(path, "first")
    assert left.exists(), "it may have been about to be locked"
    for file in (left, other):
        os.utime(file, (0, 0))
    write_text(path, "whole")
    assert sorted(tmp_path.iterdir()) == [other, path]


@pytest.mark.parametrize("private", [True, False])
def test_a_file_has_the_permissions_of_the_umask_unless_it_is_private(tmp_path: Path, private: bool) -> None:
    path = tmp_path / "file.txt"
    earlier = os.umask(0o022)
    try:
        with atomic_write(path, 0o600 if private else 0o666) as temporary:
            temporary.unlink()  # as safetensors replaces it
            temporary.write_text("x")
            temporary.chmod(0o640)
    finally:
        os.umask(earlier)
    assert path.stat().st_mode & 0o777 == (0o600 if private else 0o644)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("folder", "it is a folder"),
        ("file/x.csv", "folders"),
        ("file/deeper/x.csv", "folders"),
        ("x" * 300, "name"),
        ("/proc/x.csv", "another path"),
    ],
)
def test_a_path_that_cannot_be_written_is_one_sentence_before_the_work(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    for write in (check_writable, lambda path: write_text(path, "y")):
        with pytest.raises(UserError, match=f"cannot be written .*{reason}"):
            write(tmp_path / name)
    check_writable(tmp_path / "new" / "x.csv")
    assert sorted(one.name for one in tmp_path.rglob("*")) == ["file", "folder", "new"]


def test_a_lock_lets_one_process_at_a_time_change_a_file(tmp_path: Path) -> None:
    path = tmp_path / "number.txt"
    path.write_text("0")
    script = f"""
from pathlib import Path
from bintally.files import file_lock, write_text
path = Path({str(path)!r})
for _ in range(100):
    with file_lock(path):
        write_text(path, str(int(path.read_text()) + 1))
"""
    processes = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert path.read_text() == "300"
    assert list(tmp_path.iterdir()) == [path]


def test_text_that_a_spreadsheet_would_run_is_text() -> None:
    assert spreadsheet_text("=HYPERLINK(1)") == "'=HYPERLINK(1)"
    assert [spreadsheet_text(one)[0] for one in ("+1", "-1", "@a", "\tx", "\rx")] == ["'"] * 5
    assert spreadsheet_text("a; =1") == "a; '=1"
    assert spreadsheet_text("a=b") == "a=b"
    assert spreadsheet_text("") == ""


def test_other_system_errors_are_not_reported_as_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError), atomic_write(tmp_path / "file") as temporary:
        temporary.unlink()
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
