"""Objects kept while a fetch is under way: nothing twice, and nothing that is no longer true."""

import hashlib
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bintally.bins.objects import DENIED, UNCHANGED, Unread
from bintally.bins.staging import Staging
from bintally.errors import UserError


@dataclass
class MemorySource:
    """A source in memory that counts the bodies it gives."""

    objects: Mapping[str, bytes | Unread]
    reads: Counter[str] = field(default_factory=Counter)
    asked: Counter[str] = field(default_factory=Counter)

    def ids(self) -> list[str]:
        return sorted(self.objects)

    def digests(self) -> Iterator[tuple[str, str]]:
        bodies = ((key, body) for key, body in self.objects.items() if isinstance(body, bytes))
        return ((key, hashlib.md5(body).hexdigest()) for key, body in bodies)  # noqa: S324

    def read(
        self, keys: Sequence[str], known: Mapping[str, str] | None = None
    ) -> Iterator[tuple[str, bytes | Unread | None]]:
        for key in keys:
            body = self.objects.get(key)
            self.asked[key] += 1
            if isinstance(body, bytes) and hashlib.md5(body).hexdigest() == (known or {}).get(key):  # noqa: S324
                yield key, UNCHANGED
            else:
                self.reads[key] += 1
                yield key, body


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "objects.sqlite"


def fetched(path: Path, objects: Mapping[str, bytes | Unread], keys: str) -> tuple[dict[str, object], Counter[str]]:
    """What a run finds under the keys, and which of them it reads from the source."""
    source = MemorySource(objects)
    with closing(Staging(path)) as staging:
        assert sorted(staging.fetch(source, keys)) == sorted(keys)
        assert sorted(staging.fetch(source, keys)) == sorted(keys)  # once a run
        return {key: staging.get(key) for key in keys}, source.reads


def test_a_second_run_reads_only_what_is_new_or_changed_or_was_missing(path: Path) -> None:
    first: dict[str, bytes | Unread] = {"a": b"", "b": b"\x00", "c": b"old", "e": DENIED, "g": b"gone"}
    assert fetched(path, first, "abcdeg") == (first | {"d": None}, Counter("abcdeg"))
    second = {"a": b"", "b": b"\x00", "c": b"new", "d": b"here", "e": b"allowed", "f": b"more"}
    assert fetched(path, second, "abcdefg") == (second | {"g": None}, Counter("cdefg"))
    assert fetched(path, second, "abcdef") == (second, Counter())


def test_what_an_earlier_run_left_is_not_given_before_the_source_was_asked(path: Path) -> None:
    fetched(path, {"a": b"1"}, "a")
    with closing(Staging(path)) as staging, pytest.raises(KeyError):
        staging.get("a")


@pytest.mark.parametrize(("least", "asked"), [(4, "abcd"), (3, "bd")])
def test_many_stored_objects_are_compared_with_the_listing_and_not_asked_for(
    path: Path, monkeypatch: pytest.MonkeyPatch, least: int, asked: str
) -> None:
    first: dict[str, bytes | Unread] = {"a": b"1", "b": b"old", "c": b"3"}
    fetched(path, first, "abc")
    monkeypatch.setattr("bintally.bins.staging.ASKED_ONE_BY_ONE", least)
    source = MemorySource(first | {"b": b"new", "d": b"4"})
    with closing(Staging(path)) as staging:
        staging.verify(source)
        assert sorted(staging.fetch(source, "abcd")) == list("abcd")
        assert [staging.get(key) for key in "abcd"] == [b"1", b"new", b"3", b"4"]
    assert (source.asked, source.reads) == (Counter(asked), Counter("bd"))


def test_a_defect_is_kept_for_the_next_run_until_the_object_changes(path: Path) -> None:
    objects: dict[str, bytes | Unread] = {"a": b"1", "b": b"2"}
    with closing(Staging(path)) as staging:
        list(staging.fetch(MemorySource(objects), "abc"))
        assert [staging.defect(key) for key in "abc"] == [None, None, None]
        for key, defect in (("a", ""), ("b", "blurred"), ("c", "missing")):
            staging.keep_defect(key, defect)
        assert [staging.defect(key) for key in "abc"] == ["", "blurred", "missing"]
    with closing(Staging(path)) as staging:
        list(staging.fetch(MemorySource({"a": b"1", "b": b"sharp"}), "abc"))
        assert [staging.defect(key) for key in "abc"] == ["", None, None]


@pytest.mark.parametrize("damage", ["no database", "truncated", "another version", "the format before"])
def test_a_file_that_cannot_be_used_is_made_anew(path: Path, damage: str) -> None:
    fetched(path, {key: bytes(3000) for key in "abc"}, "abc")
    if damage == "no database":
        path.write_bytes(b"not a database, but long enough to have a header" * 100)
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:5000])
    else:
        with closing(sqlite3.connect(path)) as database:
            database.execute("DROP TABLE object")
            if damage == "another version":
                database.execute("CREATE TABLE object (id INTEGER)")
                database.execute("PRAGMA user_version = 99")
            else:
                database.execute("CREATE TABLE object (key TEXT PRIMARY KEY, body BLOB)")
                database.execute("PRAGMA user_version = 0")
                database.execute("INSERT INTO object VALUES ('a', NULL)")
            database.commit()
    assert fetched(path, {"a": b"1"}, "a") == ({"a": b"1"}, Counter("a"))


def test_a_second_fetch_at_once_is_a_user_error_and_harms_nothing(path: Path) -> None:
    source = MemorySource({"a": b"1", "b": b"2"})
    with closing(Staging(path)) as first:
        list(first.fetch(source, "a"))
        with pytest.raises(UserError, match="another fetch is under way"):
            Staging(path)
        list(first.fetch(source, "b"))
        assert (first.get("a"), first.get("b")) == (b"1", b"2")


def test_an_extended_code_of_sqlite_is_its_primary_one(path: Path) -> None:
    error = sqlite3.OperationalError("database is locked")
    error.sqlite_errorcode = sqlite3.SQLITE_BUSY_RECOVERY  # while another process reads the log of a killed one
    with (
        closing(Staging(path)) as staging,
        pytest.raises(UserError, match="another fetch is under way"),
        staging._errors_as_user_errors(),
    ):
        raise error


def test_a_place_that_cannot_be_written_is_a_user_error(path: Path) -> None:
    path.parent.joinpath("file").write_bytes(b"")
    with pytest.raises(UserError, match="cannot be written"):
        Staging(path.parent / "file" / "objects.sqlite")


def test_a_full_disk_is_a_user_error_and_fetched_objects_stay(path: Path) -> None:
    objects = {f"{number:02d}": bytes([number]) * 5_000 for number in range(50)}
    staging = Staging(path)
    # SQLite raises the same error as on a full disk.
    staging._database.execute("PRAGMA max_page_count = 60")
    with pytest.raises(UserError, match=f"disk is full.*{path}"):
        list(staging.fetch(MemorySource(objects), objects))
    staging.close()
    source = MemorySource(objects)
    with closing(Staging(path)) as again:
        assert sorted(again.fetch(source, objects)) == sorted(objects)
        assert all(again.get(key) == body for key, body in objects.items())
    assert 0 < source.reads.total() < 50
