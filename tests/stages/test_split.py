"""The split stage and the list of its test set."""

import logging
from pathlib import Path

import pytest

from bintally.bins.shards import Bin, write_shards
from bintally.errors import UserError
from bintally.files import read_csv, write_csv
from bintally.params import Params, load_params
from bintally.paths import BINS, CORRECTIONS, QUALITY, SPLITS
from bintally.stages import split

ROOT = Path(__file__).parents[2]
IDS = [f"{number:05d}" for number in range(1, 61)]


@pytest.fixture(autouse=True)
def _workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_shards(BINS, [Bin(bin_id, 1 + int(bin_id) % 5, bin_id, b"image", b"record") for bin_id in IDS])
    write_quality({}, {})


def write_quality(reasons: dict[str, str], first: dict[str, str]) -> None:
    """Quality of all bins, the records the more probable the higher the id."""
    rows = ((one, first.get(one, ""), int(one) / 100, reasons.get(one, "")) for one in IDS)
    write_csv(QUALITY, ["id", "near_duplicate_of", "record_probability", "reasons"], rows)


def params(**of_split: object) -> Params:
    whole = load_params(ROOT / "params.yaml").model_dump()
    whole["split"] |= of_split or {"test_ids": "test.txt"}
    return Params.model_validate(whole)


def splits(**of_split: object) -> dict[str, str]:
    split.main(params(**of_split))
    return {row["id"]: row["split"] for row in read_csv(SPLITS)}


def test_the_bins_of_a_list_with_a_byte_order_mark_are_the_test_set(caplog: pytest.LogCaptureFixture) -> None:
    Path("test.txt").write_text("\ufeff00003\r\n00004\r\n00099\r\n", encoding="utf-8", newline="")
    with caplog.at_level(logging.INFO, logger="bintally"):
        split.main(params())
    assert [row["id"] for row in read_csv(SPLITS) if row["split"] == "test"] == ["00003", "00004"]
    assert "1 of the 3 ids of test.txt are not in data/bins, such as 00099" in caplog.text


def test_a_test_set_that_lost_its_zeros_is_refused_and_not_trained_on() -> None:
    Path("test.txt").write_text("00003\n4\n5\n99\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"split\.test_ids: 2 ids of 'test\.txt' .* such as 4 for 00004"):
        split.main(params())
    assert not SPLITS.exists()


def test_what_is_bad_or_improbable_is_left_out_of_training_alone(caplog: pytest.LogCaptureFixture) -> None:
    before = splits(exclude=[])
    bad = {name: [one for one in IDS if before[one] == name][-3:] for name in ("train", "validation", "test")}
    write_quality({one: "odd_size blurred" for ids in bad.values() for one in ids}, {})
    assert splits(exclude=["dark"]) == before
    assert splits(exclude=["dark", "blurred"]) == before | dict.fromkeys(bad["train"], "left_out")
    train = [one for one in IDS if before[one] == "train"]
    CORRECTIONS.write_text(f"id,count\n{train[0]},2\n")  # a person has counted it
    assert splits(exclude_wrong=0.1) == before | dict.fromkeys(train[1 : 1 + round(0.1 * len(train))], "left_out")
    with caplog.at_level(logging.INFO, logger="bintally"):
        splits(exclude=["blurred"], exclude_wrong=0.1)
    assert f"{3 + round(0.1 * len(train))} of {len(train)} training bins are left out" in caplog.text


def test_near_duplicates_in_different_splits_are_named(caplog: pytest.LogCaptureFixture) -> None:
    before = splits(exclude=[])
    one, other = (next(one for one in IDS if before[one] == name) for name in ("train", "test"))
    beside = [id_ for id_ in IDS if before[id_] == "train"][-1]
    write_quality({}, {other: one, beside: one})
    assert splits(exclude=[]) == before
    assert f"1 photographs are near-duplicates of one in another split, which leaks: {other} of {one}" in caplog.text


def test_quality_of_other_bins_is_refused() -> None:
    write_csv(QUALITY, ["id", "near_duplicate_of", "record_probability", "reasons"], [("00001", "", 1, "")])
    with pytest.raises(UserError, match=r"data/quality\.csv has other bins than data/bins; run `dvc repro`"):
        split.main(params(exclude=[]))
