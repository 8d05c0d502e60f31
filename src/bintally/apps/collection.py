"""The bins and predictions of the last `dvc repro`, as arrays, for the report and the notebook."""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from bintally import paths
from bintally.bins.shards import Entry, ShardReader, read_index
from bintally.errors import UserError
from bintally.files import read_csv
from bintally.progress import progress
from bintally.scoring.decoding import DECODINGS
from bintally.scoring.metrics import Counts, Floats, LabelledPredictions
from bintally.scoring.references import BenchmarkRow
from bintally.scoring.selection import sharpness


@dataclass(frozen=True)
class Products:
    """The products in all bins, from the records."""

    bin_rows: Counts  # (m,) the row of each product's bin
    quantities: Counts  # (m,) items of it in that bin
    weights: Floats  # (m,) of one item, pounds, NaN if unknown
    sides: Floats  # (m, 3) height, length and width, inches, NaN if unknown


@dataclass(frozen=True)
class Collection:
    """All bins in order of id, and the predictions for the test bins."""

    demo: bool
    benchmark: list[BenchmarkRow]
    metrics: dict[str, Any]  # the content of metrics/test.json
    entries: list[Entry]
    counts: Counts  # (n,) of the records
    groups: list[str]
    splits: list[str]
    sizes: Counts  # (n, 2) width and height of the photographs, pixels
    sharpness: Floats  # (n,) of scoring.selection.sharpness
    products: Products
    test_rows: Counts  # (t,) the rows of the test bins
    predictions: LabelledPredictions  # for the test bins
    predicted_counts: dict[str, Counts]  # (t,) for each decoding rule
    prediction_sets: Counts  # (t, 2) the lowest and the highest count
    reader: ShardReader

    def description(self) -> str:
        kind = "rendered demo bins: these figures say nothing about real ones" if self.demo else "bins"
        return f"{len(self.entries):,} {kind}."

    def test_description(self) -> str:
        return f"{len(self.test_rows):,} {'demo ' if self.demo else ''}test bins"

    def images(self, rows: Sequence[int] | Counts) -> list[bytes]:
        return [self.reader.image(self.entries[row]) for row in rows]

    def record(self, row: int) -> dict[str, Any]:
        return dict(json.loads(self.reader.record(self.entries[row])))

    def majority_count(self) -> int:
        """The most frequent count of the training bins, among those the model predicts."""
        is_train = np.array(self.splits) == "train"
        return int(np.bincount(self.counts[is_train & np.isin(self.counts, self.predictions.counts)]).argmax())


def load_collection() -> Collection:
    """Read the outs of the stages in the current folder, and measure every photograph.

    Raises UserError if an out is missing, or if the outs belong to different bins.
    """
    for path in (paths.BINS / "index.csv", paths.SPLITS, paths.PREDICTIONS, paths.TEST_METRICS, paths.BENCHMARK):
        if not path.is_file():
            raise UserError(f"{path} does not exist; run `dvc repro` or `bintally pull`")
    entries, splits, predictions = read_index(paths.BINS), read_csv(paths.SPLITS), read_csv(paths.PREDICTIONS)
    row_of = {entry.id: row for row, entry in enumerate(entries)}
    if [line["id"] for line in splits] != list(row_of) or not row_of.keys() >= {line["id"] for line in predictions}:
        raise UserError(f"{paths.SPLITS} or {paths.PREDICTIONS} has other bins than {paths.BINS}; run `dvc repro`")
    benchmark = json.loads(paths.BENCHMARK.read_text(encoding="utf-8"))
    reader = ShardReader(paths.BINS)

    def measure(entry: Entry) -> tuple[tuple[int, int], float]:
        image = reader.image(entry)
        with Image.open(BytesIO(image)) as opened:
            return opened.size, sharpness(image)

    measured = []
    with progress("measure", len(entries), "photographs") as advance, ThreadPoolExecutor() as pool:
        for size_and_sharpness in pool.map(measure, entries):
            measured.append(size_and_sharpness)
            advance(1)
    classes = [int(name[1:]) for name in predictions[0] if name[0] == "p" and name[1:].isdecimal()]
    return Collection(
        demo=not benchmark["comparable"],
        benchmark=[BenchmarkRow(**{"rmse": None, **row}) for row in benchmark["rows"]],
        metrics=json.loads(paths.TEST_METRICS.read_text(encoding="utf-8")),
        entries=entries,
        counts=np.array([entry.count for entry in entries]),
        groups=[entry.group for entry in entries],
        splits=[line["split"] for line in splits],
        sizes=np.array([size for size, _ in measured]),
        sharpness=np.array([value for _, value in measured]),
        products=_products([reader.record(entry) for entry in entries]),
        test_rows=np.array([row_of[line["id"]] for line in predictions]),
        predictions=LabelledPredictions(
            np.array([[float(line[f"p{count}"]) for count in classes] for line in predictions]),
            np.array([int(line["count"]) for line in predictions]),
            [line["group"] for line in predictions],
            classes,
        ),
        predicted_counts={rule: np.array([int(line[rule]) for line in predictions]) for rule in DECODINGS},
        prediction_sets=np.array([[int(line["low"]), int(line["high"])] for line in predictions]),
        reader=reader,
    )


def _products(records: Sequence[bytes]) -> Products:
    products = [json.loads(record)["BIN_FCSKU_DATA"].values() for record in records]
    items = [(row, item) for row, listed in enumerate(products) for item in listed if item["quantity"]]
    sides = [[_measurement(item, side) for side in ("height", "length", "width")] for _, item in items]
    return Products(
        np.array([row for row, _ in items], np.int64),
        np.array([item["quantity"] for _, item in items], np.int64),
        np.array([_measurement(item, "weight") for _, item in items], np.float64),
        np.array(sides, np.float64).reshape(-1, 3),
    )


def _measurement(item: Mapping[str, Any], name: str) -> float:
    """A measurement of an item in the record's unit; NaN if it is missing or not a positive number."""
    measurement = item.get(name)
    value = measurement.get("value") if isinstance(measurement, dict) else None
    return float(value) if isinstance(value, int | float) and 0 < value < 1e9 else np.nan
