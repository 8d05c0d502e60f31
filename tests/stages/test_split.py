"""The split stage and the list of its test set."""

import logging
from pathlib import Path

import pytest

from bintally.bins.shards import Bin, write_shards
from bintally.errors import UserError
from bintally.files import read_csv
from bintally.params import Params, load_params
from bintally.paths import BINS, SPLITS
from bintally.stages import split

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ids = [f"{number:05d}" for number in range(1, 61)]
    write_shards(BINS, [Bin(bin_id, 1 + int(bin_id) % 5, bin_id, b"image", b"record") for bin_id in ids])


def params() -> Params:
    whole = load_params(ROOT / "params.yaml").model_dump()
    whole["split"] |= {"test_ids": "test.txt"}
    return Params.model_validate(whole)


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
