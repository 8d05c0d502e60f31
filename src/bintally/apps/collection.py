"""The bins and predictions of the last `dvc repro`, as arrays, for the report and the notebook."""

import json
import re
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bintally import paths
from bintally.bins.images import decode_fetched
from bintally.bins.shards import Entry, ShardReader, read_index
from bintally.errors import UserError
from bintally.files import iter_csv, read_columns
from bintally.scoring.decoding import DECODINGS, FOR_ACCURACY
from bintally.scoring.metrics import Counts, Floats, LabelledPredictions
from bintally.scoring.references import BenchmarkRow

SHOWN = 640
OUTS = (paths.QUALITY, paths.SPLITS, paths.PREDICTIONS, paths.TEST_METRICS, paths.BENCHMARK)
MEASURES = ("width", "height", "sharpness", "brightest", "darkest", "contrast", "record_probability")


@dataclass(frozen=True)
class Products:
    """The products in all bins, from the records."""

    bin_rows: Counts  # (m,) the row of each product's bin
    quantities: Counts  # (m,) items of it in that bin
    weights: Floats  # (m,) of one item, pounds, NaN if unknown
    sides: Floats  # (m, 3) height, length and width, inches, NaN if unknown


@dataclass(frozen=True)
class Quality:
    """What data/quality.csv says of all bins."""

    measures: dict[str, Floats]  # (n,) each of MEASURES
    near_duplicate_of: list[int | None]  # the row of the first photograph with the same hash
    reasons: list[str]  # why the photograph is bad, separated by spaces


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
    quality: Quality
    products: Products
    test_rows: Counts  # (t,) the rows of the test bins
    predictions: LabelledPredictions  # for the test bins
    predicted_counts: dict[str, Counts]  # (t,) for each decoding rule
    prediction_sets: Counts  # (t, 2) the lowest and the highest count
    unsure: NDArray[np.bool_]  # (t,)
    reader: ShardReader

    def description(self) -> str:
        kind = "rendered demo bins: these figures say nothing about real ones" if self.demo else "bins"
        return f"{len(self.entries):,} {kind}."

    def test_description(self) -> str:
        return f"{len(self.test_rows):,} {'demo ' if self.demo else ''}test bins"

    @property
    def sizes(self) -> Counts:
        """(n, 2) width and height of the photographs, pixels."""
        return np.stack([self.quality.measures["width"], self.quality.measures["height"]], 1).astype(np.int64)

    @property
    def sharpness(self) -> Floats:
        """(n,) of bins.quality.sharpness."""
        return self.quality.measures["sharpness"]

    def images(self, rows: Sequence[int] | Counts) -> list[Image.Image]:
        """Photographs for figures, no side longer than SHOWN pixels."""
        images = []
        for entry in (self.entries[row] for row in rows):
            image = decode_fetched(self.reader.image(entry), entry.id, SHOWN)
            image.thumbnail((SHOWN, SHOWN))
            images.append(image)
        return images

    def majority_count(self) -> int:
        """The most frequent count of the training bins, among those the model predicts."""
        is_train = np.array(self.splits) == "train"
        return int(np.bincount(self.counts[is_train & np.isin(self.counts, self.predictions.counts)]).argmax())


def load_collection() -> Collection:
    """Read the outs of the stages in the current folder.

    Raises UserError if an out is missing or damaged, or if the outs are not of one run.
    """
    for path in (paths.BINS / "index.csv", *OUTS):
        if not path.is_file():
            raise UserError(f"{path} does not exist; run `dvc repro` or `bintally pull`")
    try:
        return _read_outs()
    except (KeyError, IndexError, TypeError, ValueError) as error:
        where = f"{paths.BINS}, {', '.join(map(str, OUTS[:-1]))} or {OUTS[-1]}"
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{where} is damaged or of another version ({reason}); run `dvc repro`") from error


def _read_outs() -> Collection:
    entries = read_index(paths.BINS)
    ids, counts, splits = read_columns(paths.SPLITS, "id", "count", "split")
    judged, near_duplicate_of, reasons = read_columns(paths.QUALITY, "id", "near_duplicate_of", "reasons")
    measures = _measures()
    benchmark, metrics = (
        json.loads(path.read_text(encoding="utf-8")) for path in (paths.BENCHMARK, paths.TEST_METRICS)
    )
    for path, column in ((paths.QUALITY, judged), (paths.SPLITS, ids)):
        if column != [entry.id for entry in entries]:
            raise UserError(f"{path} has other bins than {paths.BINS}; run `dvc repro`")
    classes = [int(name[1:]) for name in next(iter_csv(paths.PREDICTIONS), {}) if re.fullmatch("p[0-9]+", name)]
    if not classes:
        raise ValueError(f"{paths.PREDICTIONS} has no row with probabilities")
    test_ids, test_groups, truth, low, high, unsure = read_columns(
        paths.PREDICTIONS, "id", "group", "count", "low", "high", "unsure"
    )
    predicted = dict(zip(DECODINGS, read_columns(paths.PREDICTIONS, *DECODINGS), strict=True))
    probabilities = read_columns(paths.PREDICTIONS, *(f"p{count}" for count in classes))
    bins = zip(ids, counts, splits, strict=True)
    test = [(bin_id, count) for bin_id, count, split in bins if split == "test" and int(count) in classes]
    if list(zip(test_ids, truth, strict=True)) != test:
        raise UserError(f"{paths.PREDICTIONS} has other test bins than {paths.SPLITS}; run `dvc repro`")
    right = np.mean(np.array(predicted[FOR_ACCURACY]) == np.array(truth))
    if abs(metrics[FOR_ACCURACY]["accuracy"] - right) > 1e-5:
        raise UserError(f"{paths.TEST_METRICS} is not of {paths.PREDICTIONS}; run `dvc repro`, or `dvc checkout`")
    reader = ShardReader(paths.BINS)
    row_of = {entry.id: row for row, entry in enumerate(entries)}

    return Collection(
        demo=not benchmark["comparable"],
        benchmark=[BenchmarkRow(**{"rmse": None, **row}) for row in benchmark["rows"]],
        metrics=metrics,
        entries=entries,
        counts=np.array([entry.count for entry in entries]),
        groups=[entry.group for entry in entries],
        splits=splits,
        quality=Quality(measures, [row_of[first] if first else None for first in near_duplicate_of], reasons),
        products=_products(map(reader.record, entries)),
        test_rows=np.array([row_of[bin_id] for bin_id in test_ids]),
        predictions=LabelledPredictions(
            np.stack([np.array(column, np.float64) for column in probabilities], 1),
            np.array(truth, np.int64),
            test_groups,
            classes,
        ),
        predicted_counts={rule: np.array(column, np.int64) for rule, column in predicted.items()},
        prediction_sets=np.stack([np.array(low, np.int64), np.array(high, np.int64)], 1),
        unsure=np.array(unsure) == "1",
        reader=reader,
    )


def _measures() -> dict[str, Floats]:
    """MEASURES of all bins, read as numbers from the start, as half a million rows of text take much memory."""
    columns = {name: array("d") for name in MEASURES}
    for row in iter_csv(paths.QUALITY):
        for name, column in columns.items():
            column.append(float(row[name] or "nan"))
    return {name: np.array(column) for name, column in columns.items()}


def _products(records: Iterable[bytes]) -> Products:
    rows, quantities, weights, sides = array("q"), array("q"), array("d"), array("d")
    for row, record in enumerate(records):
        for item in json.loads(record)["BIN_FCSKU_DATA"].values():
            if item["quantity"]:
                rows.append(row)
                quantities.append(item["quantity"])
                weights.append(_measurement(item, "weight"))
                sides.extend(_measurement(item, side) for side in ("height", "length", "width"))
    return Products(np.array(rows), np.array(quantities), np.array(weights), np.reshape(sides, (-1, 3)))


def _measurement(item: Mapping[str, Any], name: str) -> float:
    """A measurement of an item in the record's unit; NaN if it is missing or not a positive number."""
    measurement = item.get(name)
    value = measurement.get("value") if isinstance(measurement, dict) else None
    return float(value) if isinstance(value, int | float) and 0 < value < 1e9 else np.nan
