"""The quality stage: a row for each bin, and photographs that are not measured twice."""

import json
from pathlib import Path

import pytest
from PIL import Image

from bintally.bins.images import decode_fetched
from bintally.bins.shards import write_shards
from bintally.files import SCRATCH, read_csv
from bintally.params import Params, load_params
from bintally.paths import BINS, QUALITY, QUALITY_METRICS
from bintally.stages import encode, quality
from small import bins

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_shards(BINS, [one for one in bins() if 1 <= one.count <= 5])


def params(**of_model: object) -> Params:
    whole = load_params(ROOT / "params.yaml").model_dump()
    whole["model"] |= {"image_size": 64, **of_model}
    whole["fetch"] |= {"source": "s3://bins"}
    return Params.model_validate(whole)


@pytest.mark.parametrize("trainable", ["head", "all"])
def test_every_bin_is_judged_from_features_and_from_pixels(trainable: str) -> None:
    settings = params(trainable=trainable)
    encode.main(settings)
    quality.main(settings)
    rows = read_csv(QUALITY)
    assert [row["id"] for row in rows] == [one.id for one in bins() if 1 <= one.count <= 5]
    known = [float(row["record_probability"]) for row in rows if row["record_probability"]]
    assert known and all(0 <= one <= 1 for one in known)
    assert [path.name for path in (SCRATCH / "quality").iterdir() if path.suffix != ".csv"] in ([], ["encode"])
    metrics = json.loads(QUALITY_METRICS.read_text())
    assert metrics["photographs"] == len(rows) and "known" not in metrics
    assert metrics["good"] == sum(not row["reasons"] for row in rows)


def test_what_was_measured_is_not_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = params()
    encode.main(settings)
    quality.main(settings)
    first = QUALITY.read_bytes()
    (measured,) = (SCRATCH / "quality").glob("*.csv")
    whole = measured.read_bytes()
    lines = whole.splitlines(keepends=True)
    measured.write_bytes(b"".join(lines[:3]) + lines[3][:10])  # ended in the middle of a line
    seen: list[str] = []

    def decode(body: bytes, bin_id: str) -> Image.Image:
        seen.append(bin_id)
        return decode_fetched(body, bin_id)

    monkeypatch.setattr("bintally.stages.quality.decode_fetched", decode)
    quality.main(settings)
    assert QUALITY.read_bytes() == first and measured.read_bytes() == whole
    assert sorted(seen) == [row["id"] for row in read_csv(QUALITY)][3:]
