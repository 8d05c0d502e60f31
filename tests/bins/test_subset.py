"""The selection of bins: independent of concurrency and interruptions, and nothing is fetched twice."""

import hashlib
import io
import json
import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from PIL import Image

from bintally.bins import subset
from bintally.bins.images import MAX_BYTES
from bintally.bins.objects import DENIED, UNCHANGED, Unread, image_key, record_key
from bintally.bins.source import open_source
from bintally.bins.staging import Staging
from bintally.bins.subset import Subset, iter_bins, select_bins
from bintally.errors import UserError
from bintally.params import Fetch
from s3_stub import fetch_params as any_fetch_params


def jpeg(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (shade, 90, 30)).save(file, "JPEG")
    return file.getvalue()


def make_record(count: int, asin: str) -> bytes:
    return json.dumps({"BIN_FCSKU_DATA": {asin: {"quantity": count}}, "EXPECTED_QUANTITY": count}).encode()


def fetch_params(**changes: object) -> Fetch:
    return any_fetch_params(changes.pop("source", "memory"), **changes)  # type: ignore[arg-type]


@dataclass
class MemorySource:
    """A source in memory that counts its reads, and fails after ``max_reads``."""

    objects: Mapping[str, bytes | Unread]
    max_reads: int | None = None
    reads: Counter[str] = field(default_factory=Counter)

    def ids(self) -> list[str]:
        return sorted(key[9:-5] for key in self.objects if key.startswith("metadata/"))

    def digests(self) -> Iterator[tuple[str, str]]:
        return iter(())

    def read(
        self, keys: Sequence[str], known: Mapping[str, str] | None = None
    ) -> Iterator[tuple[str, bytes | Unread | None]]:
        for key in reversed(keys):
            body = self.objects.get(key)
            if isinstance(body, bytes) and hashlib.md5(body).hexdigest() == (known or {}).get(key):  # noqa: S324
                yield key, UNCHANGED
                continue
            if self.reads.total() == self.max_reads:
                raise UserError("the network is down")
            self.reads[key] += 1
            yield key, body


def make_objects(bins: int = 60, defects: bool = True) -> dict[str, bytes]:
    """Objects of bins with the counts 2, 3 and 1 in turn; with ``defects``, every fifth bin has one."""
    objects = {}
    for number in range(1, bins + 1):
        name = f"{number:05d}"
        objects[record_key(name)] = make_record(1 + number % 3, f"B{number // 2}")
        objects[image_key(name)] = jpeg(number)
        if not defects:
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


def selected(folder: Path, objects: Mapping[str, bytes | Unread], **changes: object) -> Subset:
    staging = Staging(folder / "objects.sqlite")
    try:
        return select_bins(MemorySource(objects), fetch_params(**changes), staging)
    finally:
        staging.close()


def test_good_bins_of_the_counts_are_selected_and_bad_ones_rejected_with_the_reason(tmp_path: Path) -> None:
    got = selected(tmp_path, make_objects())
    good = [n for n in range(1, 61) if n % 5 and n % 3 < 2]
    assert got.counts == {f"{n:05d}": 1 + n % 3 for n in good}
    assert got.rejected["00020"] == "record has no EXPECTED_QUANTITY"
    assert got.rejected["00010"] == "image is missing"
    assert got.rejected["00025"].startswith("image does not decode")
    assert got.rejected["00015"] == "quantities add up to 0, EXPECTED_QUANTITY is 2"
    # Images are checked only for wanted counts: 5 and 50 have count 3.
    assert sorted(got.rejected) == ["00010", "00015", "00020", "00025", "00030", "00035", "00040", "00045",
                                    "00055", "00060"]  # fmt: skip
    assert got.groups["00006"] == "00006" == got.groups["00007"] != got.groups["00009"]


def test_the_selection_does_not_depend_on_concurrency(tmp_path: Path) -> None:
    for key, body in make_objects().items():
        path = tmp_path / key
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(body)
    got = []
    for concurrency in (1, 16):
        params = fetch_params(source=str(tmp_path), per_count=7, concurrency=concurrency)
        staging = Staging(tmp_path / f"{concurrency}.sqlite")
        found = select_bins(open_source(params), params, staging)
        got.append((found, list(iter_bins(found, staging))))
        staging.close()
    assert got[0] == got[1]
    objects = make_objects()
    bins = got[0][1]
    assert [one.id for one in bins] == sorted(got[0][0].counts)
    assert all(objects[image_key(b.id)] == b.image and objects[record_key(b.id)] == b.record for b in bins)


@pytest.mark.parametrize("max_reads", [0, 1, 17, 30, 61])
def test_an_interrupted_fetch_resumes_without_reading_anything_twice(
    tmp_path: Path, max_reads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subset, "BATCH", 25)
    params = fetch_params(per_count=12)
    complete = MemorySource(make_objects())
    staging = Staging(tmp_path / "complete.sqlite")
    expected = select_bins(complete, params, staging)
    staging.close()

    source = MemorySource(make_objects(), max_reads)
    for attempt in range(2):
        staging = Staging(tmp_path / "interrupted.sqlite")
        if attempt == 0:
            with pytest.raises(UserError, match="network is down"):
                select_bins(source, params, staging)
            source.max_reads = None
        else:
            assert select_bins(source, params, staging) == expected
        staging.close()
    assert source.reads.keys() == complete.reads.keys()
    assert all(number == 1 for key, number in source.reads.items() if key in source.objects)


def test_per_count_limits_the_selection_and_the_seed_changes_it(tmp_path: Path) -> None:
    first, again, other = (
        selected(tmp_path / str(place), make_objects(defects=False), per_count=4, seed=seed)
        for place, seed in enumerate((1, 1, 2))
    )
    assert Counter(first.counts.values()) == {1: 4, 2: 4}
    assert first == again
    assert first.counts != other.counts


@pytest.mark.parametrize("per_count", [None, 4])
def test_an_open_ended_count_includes_all_above_it(tmp_path: Path, per_count: int | None) -> None:
    got = selected(tmp_path, make_objects(bins=30, defects=False), open_ended=True, per_count=per_count)
    assert all(count == min(1 + int(name) % 3, 2) for name, count in got.counts.items())
    # Ten bins of each of 1, 2 and 3.
    assert Counter(got.counts.values()) == ({1: 4, 2: 4} if per_count else {1: 10, 2: 20})


def test_images_are_read_only_for_selected_bins(tmp_path: Path) -> None:
    source = MemorySource(make_objects(defects=False))
    staging = Staging(tmp_path / "objects.sqlite")
    select_bins(source, fetch_params(per_count=4), staging)
    staging.close()
    assert sum(key.startswith("bin-images/") for key in source.reads) == 8


def test_good_bins_replace_defective_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subset, "BATCH", 6)
    assert Counter(selected(tmp_path, make_objects(), per_count=14).counts.values()) == {1: 14, 2: 14}


def test_good_bins_of_the_same_batch_replace_defective_ones(tmp_path: Path) -> None:
    assert Counter(selected(tmp_path, make_objects(), per_count=14).counts.values()) == {1: 14, 2: 14}


def test_fewer_bins_than_per_count_are_used_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="bintally"):
        got = selected(tmp_path, make_objects(), per_count=30)
    assert Counter(got.counts.values()) == {1: 16, 2: 16}
    assert [record.getMessage() for record in caplog.records] == [
        f"count {count}: 16 bins, fewer than fetch.per_count (30)" for count in (1, 2)
    ]


def test_nothing_usable_is_an_error_with_the_reason(tmp_path: Path) -> None:
    broken = {key: body if key.startswith("metadata") else b"" for key, body in make_objects(6).items()}
    with pytest.raises(UserError, match=r"none of 6 bins of memory .*\[1, 2\].* image does not decode"):
        selected(tmp_path / "broken", broken)
    with pytest.raises(UserError, match=r"none of 4 bins of memory .*\[8, 9\].* none has one of the counts"):
        selected(tmp_path / "other", make_objects(4), counts=[8, 9])
    with pytest.raises(UserError, match=r"memory has no usable bin with count 9; remove it from fetch\.counts"):
        selected(tmp_path / "partly", make_objects(4), counts=[1, 9])


def test_ids_that_differ_in_leading_zeros_stay_different_bins(tmp_path: Path) -> None:
    objects = {
        record_key("1"): make_record(1, "B1"),
        image_key("1"): jpeg(10),
        record_key("00001"): make_record(2, "B2"),
        image_key("00001"): jpeg(200),
    }
    staging = Staging(tmp_path / "objects.sqlite")
    got = select_bins(MemorySource(objects), fetch_params(), staging)
    bins = {one.id: (one.count, one.image) for one in iter_bins(got, staging)}
    staging.close()
    assert bins == {"1": (1, jpeg(10)), "00001": (2, jpeg(200))}
    assert got.groups == {"1": "1", "00001": "00001"}


def test_an_id_list_selects_exactly_its_bins_and_missing_ones_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "ids"
    path.write_text("00003\n00001\n00099\n", encoding="utf-8")
    got = selected(tmp_path, make_objects(), ids=str(path))
    assert got.counts == {"00003": 1, "00001": 2}
    assert got.rejected == {"00099": "record is missing"}


def test_an_id_without_its_zeros_is_rejected_with_the_id_that_is_meant(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "ids"
    path.write_text("00003\n00007\n1\n4\n99\n00098\n", encoding="utf-8")
    got = selected(tmp_path, make_objects(), ids=str(path))
    assert got.counts == {"00003": 1, "00007": 2}
    assert got.rejected == {
        "1": "record is missing; the source has 00001: a spreadsheet may have removed the zeros",
        "4": "record is missing; the source has 00004: a spreadsheet may have removed the zeros",
        "99": "record is missing",
        "00098": "record is missing",
    }
    assert f"{path}: 2 ids have probably lost their zeros in a spreadsheet, such as 1 for 00001" in caplog.text


def test_objects_that_are_not_read_are_rejected_with_the_reason_and_the_rest_is_taken(tmp_path: Path) -> None:
    objects: dict[str, bytes | Unread] = dict(make_objects(12, defects=False))
    objects[record_key("00001")] = DENIED
    objects[image_key("00003")] = Unread("is larger than 100,000,000 bytes")
    objects[image_key("00004")] = Unread("cannot be read: \x1b[2J\n" + "x" * 9999)
    got = selected(tmp_path, objects)
    assert got.rejected["00001"] == "record cannot be read: access denied"
    assert got.rejected["00003"] == "image is larger than 100,000,000 bytes"
    assert (
        got.rejected["00004"].startswith("image cannot be read: \\x1b[2J\\nxxx") and len(got.rejected["00004"]) == 200
    )
    assert len(got.counts) == 5


def test_a_source_that_denies_every_record_is_an_error_before_all_are_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subset, "BATCH_OF_ALL", 10)
    source = MemorySource({record_key(f"{number:05d}"): DENIED for number in range(100)})
    staging = Staging(tmp_path / "objects.sqlite")
    with pytest.raises(UserError, match=r"access denied to each of 10 records, .* fetch\.anonymous: false"):
        select_bins(source, fetch_params(), staging)
    staging.close()
    assert source.reads.total() == 10


def test_photographs_that_are_all_denied_are_an_error_with_the_remedy(tmp_path: Path) -> None:
    objects: dict[str, bytes | Unread] = dict(make_objects(3, defects=False))
    objects |= {key: DENIED for key in objects if key.endswith(".jpg")}
    staging = Staging(tmp_path / "objects.sqlite")
    with pytest.raises(UserError, match=r"most often: image .*: access denied; set fetch\.anonymous: false"):
        select_bins(MemorySource(objects), fetch_params(), staging)
    staging.close()


def test_the_largest_photograph_may_wait_to_be_decoded() -> None:
    assert MAX_BYTES <= subset.MAX_BYTES_WAITING


def test_few_bytes_wait_in_memory_to_be_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subset, "DECODERS", 1)
    monkeypatch.setattr(subset, "MAX_BYTES_WAITING", 4 * len(b"photograph"))
    decoded: list[bytes] = []

    def decode(body: bytes) -> None:
        time.sleep(0.005)
        decoded.append(body)

    monkeypatch.setattr(subset, "decode_image", decode)
    with subset._Decoders() as decoders:
        checks = []
        for number in range(1, 31):
            checks.append(decoders.check(b"photograph"))
            assert number - len(decoded) <= 4
        assert [check.result() for check in checks] == [""] * 30
