"""The demo warehouse: its files agree with its contents, and their bytes do not change."""

import io
import json
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bintally.demo import warehouse
from bintally.demo.edition import EDITION
from bintally.demo.render import render, to_jpeg
from bintally.demo.warehouse import DEFECT_SHARES, DEFECTS, DemoSource, DemoWarehouse
from bintally.hashing import sha256_hex

WAREHOUSE = DemoWarehouse(seed=7)
NUMBERS = range(1, 1201)


@pytest.fixture(scope="module")
def bins() -> dict[int, warehouse.Bin]:
    return {number: WAREHOUSE.bin(number) for number in NUMBERS}


@pytest.fixture(scope="module")
def records() -> dict[int, bytes]:
    return {number: WAREHOUSE.record(number) for number in NUMBERS}


def parse(data: bytes) -> Any:
    """The record, or None if it is not JSON."""
    try:
        return json.loads(data)
    except json.JSONDecodeError:
        return None


def total_quantity(record: Any) -> int:
    return sum(entry["quantity"] for entry in record["BIN_FCSKU_DATA"].values())


def detail(image: Image.Image) -> float:
    """Mean difference between neighbouring pixels at a quarter of the size, without the noise."""
    grey = np.asarray(image.convert("L").reduce(4), np.float32)
    return float(np.abs(np.diff(grey, axis=1)).mean())


def test_records_have_exactly_the_defects_of_the_warehouse(
    bins: dict[int, warehouse.Bin], records: dict[int, bytes]
) -> None:
    def defect_in_record(number: int) -> str | None:
        record = parse(records[number])
        if record is None:
            return "broken record"
        if "EXPECTED_QUANTITY" not in record:
            return "no expected quantity"
        if record["EXPECTED_QUANTITY"] != total_quantity(record):
            return "quantities disagree"
        if total_quantity(record) != bins[number].count:
            assert abs(total_quantity(record) - bins[number].count) <= 2
            return "wrong record"
        return None

    image_defects = {"blurred", "broken image", "missing image"}
    for number in NUMBERS:
        defect = bins[number].defect
        assert defect_in_record(number) == (None if defect in image_defects else defect)


def test_images_have_exactly_the_defects_of_the_warehouse(bins: dict[int, warehouse.Bin]) -> None:
    by_defect = defaultdict(list)
    for number in NUMBERS:
        by_defect[bins[number].defect].append(number)
    assert set(by_defect) == {None, *DEFECTS}
    for defect, numbers in by_defect.items():
        for number in numbers[:10]:
            data = WAREHOUSE.image(number)
            assert (data is None) == (defect == "missing image")
            if data is None:
                continue
            image = Image.open(io.BytesIO(data))
            if defect == "broken image":
                with pytest.raises(OSError, match="truncated"):
                    image.load()
                continue
            assert image.mode == "RGB" and min(image.size) >= 300 and max(image.size) <= 660
            sharp = Image.open(io.BytesIO(to_jpeg(render(replace(bins[number].photo, blur=0.0)))))
            assert (detail(image) < 0.8 * detail(sharp)) == (defect == "blurred")


def test_defects_have_their_shares() -> None:
    defects = Counter(WAREHOUSE.defect(number) for number in range(1, 10_001))
    for defect, share in zip(DEFECTS, DEFECT_SHARES, strict=True):
        assert abs(defects[defect] - 10_000 * share) < 4 * np.sqrt(10_000 * share)


def test_counts_are_distributed_like_those_of_the_real_bins(bins: dict[int, warehouse.Bin]) -> None:
    counts = np.bincount([it.count for it in bins.values()], minlength=9)
    assert len(counts) == 9 and counts.all()
    classes = counts[1:6]
    assert 0.64 < classes.sum() / len(bins) < 0.77
    np.testing.assert_allclose(classes / classes.sum(), [0.115, 0.215, 0.26, 0.23, 0.18], atol=0.045)


def test_photographs_of_the_same_bin_have_close_numbers_and_differ_by_one_item(bins: dict[int, warehouse.Bin]) -> None:
    groups = defaultdict(list)
    for number, it in bins.items():
        groups[it.group].append(number)
    for numbers in groups.values():
        assert len(numbers) <= 3
        for before, after in pairwise(numbers):
            a, b = bins[before], bins[after]
            assert after - before <= 2
            assert abs(a.count - b.count) == 1
            fewer, more = sorted((a.photo.items, b.photo.items), key=len)
            assert set(fewer) < set(more)
            assert a.photo.bin == b.photo.bin and a.photo.shot != b.photo.shot


def test_groups_found_from_the_records_are_those_of_the_warehouse(
    bins: dict[int, warehouse.Bin], records: dict[int, bytes]
) -> None:
    asins = {n: set((parse(data) or {}).get("BIN_FCSKU_DATA", {})) for n, data in records.items()}
    linked, found = set(), set()
    for n in NUMBERS:
        for m in (n + 1, n + 2):
            if m in bins and asins[n] & asins[m]:
                found.add((n, m))
            if m in bins and bins[n].group == bins[m].group and not {bins[n].defect, bins[m].defect} & set(DEFECTS):
                linked.add((n, m))
    assert linked <= found
    assert all(bins[n].group == bins[m].group for n, m in found)
    classes = {n for n in NUMBERS if 1 <= bins[n].count <= 5}
    in_a_pair = {n for pair in found if set(pair) <= classes for n in pair}
    assert 0.55 < len(in_a_pair) / len(classes) < 0.75


def test_records_have_the_schema_of_the_real_ones(records: dict[int, bytes]) -> None:
    nulls, repeated, entries = 0, 0, 0
    for data in records.values():
        record = parse(data)
        for asin, entry in record["BIN_FCSKU_DATA"].items() if record else ():
            assert entry["asin"] == asin and len(asin) == 10 and isinstance(entry["name"], str)
            assert isinstance(entry["quantity"], int) and entry["quantity"] >= 1
            for field, unit in (("height", "IN"), ("length", "IN"), ("width", "IN"), ("weight", "pounds")):
                assert entry[field] is None or (entry[field]["unit"] == unit and entry[field]["value"] > 0)
            nulls += None in entry.values()
            repeated += entry["quantity"] > 1
            entries += 1
    assert 0 < nulls < 0.1 * entries
    assert repeated > 0.2 * entries


def test_the_source_gives_the_same_bytes_with_and_without_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warehouse, "MIN_IMAGES_PER_PROCESS", 2)
    monkeypatch.setattr(warehouse, "BATCH", 5)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    source = DemoSource(bins=8, seed=7)
    ids = source.ids()
    assert ids == [f"{number:05}" for number in range(1, 9)]
    keys = [f"bin-images/{id_}.jpg" for id_ in reversed(ids)] + [f"metadata/{id_}.json" for id_ in ids]
    absent = ["bin-images/00009.jpg", "bin-images/1.jpg", "metadata/00001.txt", "00001"]
    read = list(source.read(keys + absent))
    assert len(read) == len(keys) + len(absent)
    expected = {f"bin-images/{id_}.jpg": WAREHOUSE.image(int(id_)) for id_ in ids}
    expected |= {f"metadata/{id_}.json": WAREHOUSE.record(int(id_)) for id_ in ids}
    assert dict(read) == {**expected, **dict.fromkeys(absent)}


def test_bytes_depend_on_the_seed_and_not_on_the_number_of_bins() -> None:
    keys = ["metadata/00003.json", "bin-images/00003.jpg"]
    first = dict(DemoSource(bins=3, seed=7).read(keys))
    assert dict(DemoSource(bins=100_000, seed=7).read(keys)) == dict.fromkeys(keys)  # its ids have six digits
    assert dict(DemoSource(bins=5_000, seed=7).read(keys)) == first
    other = dict(DemoSource(bins=3, seed=8).read(keys))
    assert all(other[key] != first[key] for key in keys)


@pytest.mark.parametrize(("bins", "seed"), [(0, 1), (5, -1)])
def test_a_source_without_bins_or_with_a_negative_seed_is_refused(bins: int, seed: int) -> None:
    with pytest.raises(ValueError, match=f"bins={bins}, seed={seed}"):
        DemoSource(bins, seed)


def test_the_bytes_are_those_of_the_edition() -> None:
    """If this fails, raise EDITION in bintally/demo/edition.py (then the demo is fetched again) and update both."""
    golden = DemoWarehouse(seed=1)
    defective = [next(n for n in range(1, 2000) if golden.defect(n) == defect) for defect in DEFECTS]
    files = [body or b"" for n in (*range(1, 7), *defective) for body in (golden.record(n), golden.image(n))]
    assert (EDITION, sha256_hex(*files)) == (1, "8d33157a03a56d1608280859b39a979d856d5a9e76975435227f1a22f78145ee")
