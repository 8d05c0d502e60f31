"""The demo warehouse: its files, examined as a stranger would, say what it says they say."""

import io
import json
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from bintally.warehouse.render import render, to_jpeg
from bintally.warehouse.warehouse import DEFECT_SHARES, DEFECTS, DemoSource, DemoWarehouse
from PIL import Image

from bintally.demo import warehouse

WAREHOUSE = DemoWarehouse(seed=7)
NUMBERS = range(1, 1201)


@pytest.fixture(scope="module")
def bins() -> dict[int, warehouse.Bin]:
    return {number: WAREHOUSE.bin(number) for number in NUMBERS}


@pytest.fixture(scope="module")
def records() -> dict[int, bytes]:
    return {number: WAREHOUSE.record(number) for number in NUMBERS}


def parse(data: bytes) -> Any:
    """The record, or None where it is not JSON."""
    try:
        return json.loads(data)
    except json.JSONDecodeError:
        return None


def booked(record: Any) -> int:
    return sum(entry["quantity"] for entry in record["BIN_FCSKU_DATA"].values())


def detail(image: Image.Image) -> float:
    """Mean difference between neighbours at a fourth of the size, where noise is gone."""
    grey = np.asarray(image.convert("L").reduce(4), np.float32)
    return float(np.abs(np.diff(grey, axis=1)).mean())


def test_records_show_exactly_the_faults_the_warehouse_knows(
    bins: dict[int, warehouse.Bin], records: dict[int, bytes]
) -> None:
    def fault_seen(number: int) -> str | None:
        record = parse(records[number])
        if record is None:
            return "broken record"
        if "EXPECTED_QUANTITY" not in record:
            return "no expected quantity"
        if record["EXPECTED_QUANTITY"] != booked(record):
            return "quantities disagree"
        if booked(record) != bins[number].count:
            assert abs(booked(record) - bins[number].count) <= 2
            return "wrong record"
        return None

    of_image = {"blurred", "broken image", "missing image"}
    for number in NUMBERS:
        fault = bins[number].fault
        assert fault_seen(number) == (None if fault in of_image else fault)


def test_images_show_exactly_the_faults_the_warehouse_knows(bins: dict[int, warehouse.Bin]) -> None:
    by_fault = defaultdict(list)
    for number in NUMBERS:
        by_fault[bins[number].fault].append(number)
    assert set(by_fault) == {None, *DEFECTS}
    for fault, numbers in by_fault.items():
        for number in numbers[:10]:
            data = WAREHOUSE.image(number)
            assert (data is None) == (fault == "missing image")
            if data is None:
                continue
            image = Image.open(io.BytesIO(data))
            if fault == "broken image":
                with pytest.raises(OSError, match="truncated"):
                    image.load()
                continue
            assert image.mode == "RGB" and min(image.size) >= 300 and max(image.size) <= 660
            sharp = Image.open(io.BytesIO(to_jpeg(render(replace(bins[number].photo, blur=0.0)))))
            assert (detail(image) < 0.8 * detail(sharp)) == (fault == "blurred")


def test_the_shares_of_faults_and_counts_are_those_of_the_real_data() -> None:
    faults = Counter(WAREHOUSE.fault(number) for number in range(1, 10_001))
    for fault, share in zip(DEFECTS, DEFECT_SHARES, strict=True):
        assert abs(faults[fault] - 10_000 * share) < 4 * np.sqrt(10_000 * share)


def test_counts_are_spread_like_those_of_the_real_bins(bins: dict[int, warehouse.Bin]) -> None:
    counts = np.bincount([it.count for it in bins.values()], minlength=9)
    assert len(counts) == 9 and counts.all()
    classes = counts[1:6]
    assert 0.64 < classes.sum() / len(bins) < 0.77
    np.testing.assert_allclose(classes / classes.sum(), [0.115, 0.215, 0.26, 0.23, 0.18], atol=0.045)


def test_twins_are_close_share_a_product_and_differ_by_one_item(bins: dict[int, warehouse.Bin]) -> None:
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


def test_groups_read_from_the_records_are_those_of_the_warehouse(
    bins: dict[int, warehouse.Bin], records: dict[int, bytes]
) -> None:
    asins = {n: set((parse(data) or {}).get("BIN_FCSKU_DATA", {})) for n, data in records.items()}
    linked, found = set(), set()
    for n in NUMBERS:
        for m in (n + 1, n + 2):
            if m in bins and asins[n] & asins[m]:
                found.add((n, m))
            if m in bins and bins[n].group == bins[m].group and not {bins[n].fault, bins[m].fault} & set(DEFECTS):
                linked.add((n, m))
    assert linked <= found
    assert all(bins[n].group == bins[m].group for n, m in found)
    classes = {n for n in NUMBERS if 1 <= bins[n].count <= 5}
    with_a_twin = {n for pair in found if set(pair) <= classes for n in pair}
    assert 0.55 < len(with_a_twin) / len(classes) < 0.75


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


def test_the_source_gives_the_same_bytes_through_the_pool_as_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "WORTH_A_PROCESS", 2)
    monkeypatch.setattr(demo, "BATCH", 5)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    source = DemoSource(bins=8, seed=7)
    ids = source.ids()
    assert ids == [f"{number:05}" for number in range(1, 9)]
    keys = [f"bin-images/{id_}.jpg" for id_ in reversed(ids)] + [f"metadata/{id_}.json" for id_ in ids]
    absent = ["bin-images/00009.jpg", "bin-images/1.jpg", "metadata/00001.txt", "00001"]
    read = list(source.read(keys + absent))
    assert len(read) == len(keys) + len(absent)
    alone = {f"bin-images/{id_}.jpg": WAREHOUSE.image(int(id_)) for id_ in ids}
    alone |= {f"metadata/{id_}.json": WAREHOUSE.record(int(id_)) for id_ in ids}
    assert dict(read) == {**alone, **dict.fromkeys(absent)}


def test_another_seed_is_another_warehouse_and_more_bins_are_not() -> None:
    keys = ["metadata/00003.json", "bin-images/00003.jpg"]
    first = dict(DemoSource(bins=3, seed=7).read(keys))
    assert dict(DemoSource(bins=100_000, seed=7).read(keys)) == dict.fromkeys(keys)  # its ids have six digits
    assert dict(DemoSource(bins=5_000, seed=7).read(keys)) == first
    other = dict(DemoSource(bins=3, seed=8).read(keys))
    assert all(other[key] != first[key] for key in keys)


@pytest.mark.parametrize(("bins", "seed"), [(0, 1), (5, -1)])
def test_an_impossible_source_is_refused(bins: int, seed: int) -> None:
    with pytest.raises(ValueError, match=f"bins={bins}, seed={seed}"):
        DemoSource(bins, seed)
