"""Which bins a fetch takes: the same ones whatever happens on the way, and none of them fetched twice."""

import io
import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from PIL import Image

from bintally.bins import subset
from bintally.bins.source import image_key, open_source, record_key
from bintally.bins.staging import Staging
from bintally.bins.subset import Subset, choose, iter_bins, read_id_list
from bintally.errors import UserError
from bintally.params import Fetch


def jpeg(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (shade, 90, 30)).save(file, "JPEG")
    return file.getvalue()


def record(count: int, asin: str) -> bytes:
    return json.dumps({"BIN_FCSKU_DATA": {asin: {"quantity": count}}, "EXPECTED_QUANTITY": count}).encode()


def fetch(**changes: object) -> Fetch:
    return Fetch.model_validate(
        {
            "source": "memory",
            "endpoint": None,
            "region": "us-east-1",
            "anonymous": True,
            "ids": None,
            "counts": [1, 2],
            "open_ended": False,
            "per_count": None,
            "concurrency": 2,
            "seed": 1,
            "demo_bins": 1,
        }
        | changes
    )


@dataclass
class Memory:
    """A source that counts what is read, and fails once ``lasts`` objects are."""

    objects: dict[str, bytes]
    lasts: int | None = None
    reads: Counter[str] = field(default_factory=Counter)

    def ids(self) -> list[str]:
        return sorted(key[9:-5] for key in self.objects if key.startswith("metadata/"))

    def read(self, keys: Sequence[str]) -> Iterator[tuple[str, bytes | None]]:
        for key in reversed(keys):
            if self.reads.total() == self.lasts:
                raise UserError("the network is gone")
            self.reads[key] += 1
            yield key, self.objects.get(key)


def warehouse(bins: int = 60, faulty: bool = True) -> dict[str, bytes]:
    """Counts 2, 3 and 1 in turn; every fifth bin is ``faulty`` in one way or another."""
    objects = {}
    for number in range(1, bins + 1):
        name = f"{number:05d}"
        objects[record_key(name)] = record(1 + number % 3, f"B{number // 2}")
        objects[image_key(name)] = jpeg(number)
        if not faulty:
            continue
        if number % 20 == 0:
            objects[record_key(name)] = b"{}"
        elif number % 20 == 5:
            objects[image_key(name)] = jpeg(number)[:-40]
        elif number % 20 == 10:
            del objects[image_key(name)]
        elif number % 20 == 15:
            objects[record_key(name)] = b'{"BIN_FCSKU_DATA": {}, "EXPECTED_QUANTITY": 2}'
    return objects


def chosen(folder: Path, objects: dict[str, bytes], **changes: object) -> Subset:
    staging = Staging(folder / "objects.sqlite")
    try:
        return choose(Memory(objects), fetch(**changes), staging)
    finally:
        staging.close()


def test_good_bins_of_the_counts_are_taken_and_bad_ones_named_with_their_reason(tmp_path: Path) -> None:
    got = chosen(tmp_path, warehouse())
    good = [n for n in range(1, 61) if n % 5 and n % 3 < 2]
    assert got.counts == {f"{n:05d}": 1 + n % 3 for n in good}
    assert got.rejected["00020"] == "record has no EXPECTED_QUANTITY"
    assert got.rejected["00010"] == "image is missing"
    assert got.rejected["00025"].startswith("image does not decode")
    assert got.rejected["00015"] == "quantities add up to 0, EXPECTED_QUANTITY is 2"
    # A faulty image counts only where the record is of a wanted count: 5 and 50 are of count 3.
    assert sorted(got.rejected) == ["00010", "00015", "00020", "00025", "00030", "00035", "00040", "00045",
                                    "00055", "00060"]  # fmt: skip
    assert got.groups["00006"] == "00006" == got.groups["00007"] != got.groups["00009"]


def test_the_bins_taken_do_not_depend_on_how_many_are_read_at_once(tmp_path: Path) -> None:
    for key, body in warehouse().items():
        path = tmp_path / key
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(body)
    got = []
    for concurrency in (1, 16):
        asked = fetch(source=str(tmp_path), per_count=7, concurrency=concurrency)
        staging = Staging(tmp_path / f"{concurrency}.sqlite")
        found = choose(open_source(asked), asked, staging)
        got.append((found, list(iter_bins(found, staging))))
        staging.close()
    assert got[0] == got[1]
    objects = warehouse()
    bins = got[0][1]
    assert [one.id for one in bins] == sorted(got[0][0].counts)
    assert all(objects[image_key(b.id)] == b.image and objects[record_key(b.id)] == b.record for b in bins)


@pytest.mark.parametrize("lasts", [0, 1, 17, 30, 61])
def test_an_interrupted_fetch_goes_on_without_reading_anything_twice(
    tmp_path: Path, lasts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subset, "BATCH", 25)
    asked = fetch(per_count=12)
    whole = Memory(warehouse())
    staging = Staging(tmp_path / "whole.sqlite")
    expected = choose(whole, asked, staging)
    staging.close()

    source = Memory(warehouse(), lasts)
    for attempt in range(2):
        staging = Staging(tmp_path / "interrupted.sqlite")
        if attempt == 0:
            with pytest.raises(UserError, match="network is gone"):
                choose(source, asked, staging)
            source.lasts = None
        else:
            assert choose(source, asked, staging) == expected
        staging.close()
    assert source.reads == whole.reads
    assert set(source.reads.values()) == {1}


def test_no_more_than_per_count_are_taken_and_other_draws_take_others(tmp_path: Path) -> None:
    first, again, other = (
        chosen(tmp_path / str(place), warehouse(faulty=False), per_count=4, seed=seed)
        for place, seed in enumerate((1, 1, 2))
    )
    assert Counter(first.counts.values()) == {1: 4, 2: 4}
    assert first == again
    assert first.counts != other.counts


@pytest.mark.parametrize("per_count", [None, 4])
def test_an_open_ended_count_takes_in_all_above_it(tmp_path: Path, per_count: int | None) -> None:
    got = chosen(tmp_path, warehouse(bins=30, faulty=False), open_ended=True, per_count=per_count)
    assert all(count == min(1 + int(name) % 3, 2) for name, count in got.counts.items())
    # Ten bins of each of 1, 2 and 3.
    assert Counter(got.counts.values()) == ({1: 4, 2: 4} if per_count else {1: 10, 2: 20})


def test_images_are_read_only_where_they_are_wanted(tmp_path: Path) -> None:
    source = Memory(warehouse(faulty=False))
    staging = Staging(tmp_path / "objects.sqlite")
    choose(source, fetch(per_count=4), staging)
    staging.close()
    assert sum(key.startswith("bin-images/") for key in source.reads) == 8


def test_good_bins_take_the_place_of_faulty_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subset, "BATCH", 6)
    assert Counter(chosen(tmp_path, warehouse(), per_count=14).counts.values()) == {1: 14, 2: 14}


def test_good_bins_of_the_same_batch_take_the_place_of_faulty_ones(tmp_path: Path) -> None:
    assert Counter(chosen(tmp_path, warehouse(), per_count=14).counts.values()) == {1: 14, 2: 14}


def test_fewer_bins_than_asked_for_are_said_and_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="bintally"):
        got = chosen(tmp_path, warehouse(), per_count=30)
    assert Counter(got.counts.values()) == {1: 16, 2: 16}
    assert [record.getMessage() for record in caplog.records] == [
        f"count {count}: 16 bins, fewer than the 30 asked for" for count in (1, 2)
    ]


def test_nothing_usable_is_a_fault_that_says_why(tmp_path: Path) -> None:
    broken = {key: body if key.startswith("metadata") else b"" for key, body in warehouse(6).items()}
    with pytest.raises(UserError, match=r"none of 6 bins of memory .*\[1, 2\].* image does not decode"):
        chosen(tmp_path / "broken", broken)
    with pytest.raises(UserError, match=r"none of 4 bins of memory .*\[8, 9\].* none has one of the counts"):
        chosen(tmp_path / "other", warehouse(4), counts=[8, 9])
    with pytest.raises(UserError, match=r"memory has no usable bin with count 9; take it out of fetch\.counts"):
        chosen(tmp_path / "partly", warehouse(4), counts=[1, 9])


def test_ids_that_differ_in_leading_zeros_stay_different_bins(tmp_path: Path) -> None:
    objects = {
        record_key("1"): record(1, "B1"),
        image_key("1"): jpeg(10),
        record_key("00001"): record(2, "B2"),
        image_key("00001"): jpeg(200),
    }
    staging = Staging(tmp_path / "objects.sqlite")
    got = choose(Memory(objects), fetch(), staging)
    bins = {one.id: (one.count, one.image) for one in iter_bins(got, staging)}
    staging.close()
    assert bins == {"1": (1, jpeg(10)), "00001": (2, jpeg(200))}
    assert got.groups == {"1": "1", "00001": "00001"}


@pytest.mark.parametrize(
    "text",
    [
        "00007\n3\n\n00002\r\n3\n",
        '{"1": ["data/metadata/00007.json", "3"], "2": ["data/metadata/00002.json", "3"]}',
        '["00007", "3", "00002.json"]',
    ],
)
def test_an_id_list_is_taken_in_its_order_in_every_format(tmp_path: Path, text: str) -> None:
    path = tmp_path / "ids"
    path.write_text(text, encoding="utf-8", newline="")
    assert read_id_list(path) == ["00007", "3", "00002"]


def test_an_id_list_draws_exactly_its_bins_and_misses_are_named(tmp_path: Path) -> None:
    path = tmp_path / "ids"
    path.write_text("00003\n00001\n00099\n", encoding="utf-8")
    got = chosen(tmp_path, warehouse(), ids=str(path))
    assert got.counts == {"00003": 1, "00001": 2}
    assert got.rejected == {"00099": "record is missing"}


@pytest.mark.parametrize(
    ("body", "said"),
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
def test_an_id_list_that_is_none_is_a_fault(tmp_path: Path, body: bytes | None, said: str) -> None:
    path = tmp_path / "ids"
    if body is not None:
        path.write_bytes(body)
    with pytest.raises(UserError) as caught:
        read_id_list(path, "split.test_ids")
    message = str(caught.value)
    assert message.startswith("split.test_ids: ") and str(path) in message and said in message


def test_an_object_the_source_lacks_is_remembered_as_missing(tmp_path: Path) -> None:
    for _ in range(2):
        staging = Staging(tmp_path / "objects.sqlite")
        source = Memory({"a": b"", "b": b"\x00"}, lasts=3)
        assert set(staging.fetch(source, ["a", "b", "c"])) == {"a", "b", "c"}
        assert [staging.get(key) for key in "abc"] == [b"", b"\x00", None]
        with pytest.raises(KeyError):
            staging.get("d")
        staging.close()
    assert source.reads.total() == 0


def test_a_full_disk_is_a_fault_and_what_was_fetched_stays(tmp_path: Path) -> None:
    path = tmp_path / "objects.sqlite"
    objects = {f"{number:02d}": bytes(5_000) for number in range(50)}
    staging = Staging(path)
    # SQLite gives the same error as where the disk has no space left.
    staging._database.execute("PRAGMA max_page_count = 60")
    with pytest.raises(UserError, match=f"disk is full.*{path}"):
        list(staging.fetch(Memory(objects), objects))
    staging.close()
    source = Memory(objects)
    staging = Staging(path)
    assert sorted(staging.fetch(source, objects)) == sorted(objects)
    assert all(staging.get(key) == body for key, body in objects.items())
    staging.close()
    assert 0 < source.reads.total() < 50
