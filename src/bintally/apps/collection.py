"""The bins of the last `dvc repro` with all that is known of them, for the notebook and the report."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from bintally import paths
from bintally.bins.facts import SIDES, measure
from bintally.bins.shards import Entry, ShardReader, read_index
from bintally.errors import UserError
from bintally.files import read_csv
from bintally.progress import progress
from bintally.scoring.decoding import DECODINGS
from bintally.scoring.metrics import Counts, Floats, LabelledPredictions
from bintally.scoring.references import Row
from bintally.scoring.selection import sharpness


@dataclass(frozen=True)
class Products:
    """What the records say of every product in every bin."""

    bins: Counts
    """(m,) the row of its bin."""
    quantities: Counts
    """(m,) items of it in that bin."""
    weights: Floats
    """(m,) of one item in pounds, NaN where the record does not say."""
    sides: Floats
    """(m, 3) height, length and width in inches, NaN likewise."""


@dataclass(frozen=True)
class Collection:
    """Bins in order of id; ``tested`` are those the model answered for, in the order of ``scored``."""

    demo: bool
    benchmark: list[Row]
    metrics: dict[str, Any]
    """Those of ``metrics/test.json``."""
    entries: list[Entry]
    counts: Counts
    """(n,) of the records."""
    groups: list[str]
    splits: list[str]
    sizes: Counts
    """(n, 2) width and height in pixels."""
    sharpness: Floats
    """(n,) as :func:`bintally.scoring.selection.sharpness` has it."""
    products: Products
    tested: Counts
    """Rows of the test bins."""
    scored: LabelledPredictions
    answers: dict[str, Counts]
    """The counts each decoding rule answered with, in the order of ``scored``."""
    reader: ShardReader

    def about(self) -> str:
        """What these bins are."""
        kind = "rendered demo bins: what is shown says nothing about real ones" if self.demo else "bins"
        return f"{len(self.entries):,} {kind}."

    def about_tested(self) -> str:
        """What the model answered for."""
        return f"{len(self.tested):,} {'demo ' if self.demo else ''}test bins"

    def images(self, rows: Sequence[int] | Counts) -> list[bytes]:
        """The photographs of some bins."""
        return [self.reader.image(self.entries[row]) for row in rows]

    def majority(self) -> int:
        """The commonest count of the training bins, of those the model answers with."""
        learned = self.counts[(np.array(self.splits) == "train") & np.isin(self.counts, self.scored.counts)]
        return int(np.bincount(learned).argmax())


def load_collection() -> Collection:
    """Read what the stages wrote, under the current folder, and look at every photograph once.

    Raises UserError if something is missing, or if the outs are not of the same bins.
    """
    for needed in (paths.BINS / "index.csv", paths.SPLITS, paths.PREDICTIONS, paths.TEST_METRICS, paths.BENCHMARK):
        if not needed.is_file():
            raise UserError(f"{needed} is not there: `dvc repro` makes it, `bintally pull` fetches it")
    entries, splits, predictions = read_index(paths.BINS), read_csv(paths.SPLITS), read_csv(paths.PREDICTIONS)
    rows = {entry.id: row for row, entry in enumerate(entries)}
    if [row["id"] for row in splits] != list(rows) or not rows.keys() >= {row["id"] for row in predictions}:
        raise UserError(
            f"{paths.SPLITS} or {paths.PREDICTIONS} has other bins than {paths.BINS}: `dvc repro` mends that"
        )
    benchmark = json.loads(paths.BENCHMARK.read_text(encoding="utf-8"))
    reader = ShardReader(paths.BINS)
    with progress("look at", len(entries), "photographs") as advance, ThreadPoolExecutor() as pool:
        looks = []
        for look in pool.map(lambda entry: _look(reader.image(entry)), entries):
            looks.append(look)
            advance(1)
    answered = [int(name[1:]) for name in predictions[0] if name[0] == "p" and name[1:].isdecimal()]
    return Collection(
        demo=not benchmark["comparable"],
        benchmark=[Row(**{"rmse": None, **row}) for row in benchmark["rows"]],
        metrics=json.loads(paths.TEST_METRICS.read_text(encoding="utf-8")),
        entries=entries,
        counts=np.array([entry.count for entry in entries]),
        groups=[entry.group for entry in entries],
        splits=[row["split"] for row in splits],
        sizes=np.array([size for size, _ in looks]),
        sharpness=np.array([value for _, value in looks]),
        products=_products([reader.record(entry) for entry in entries]),
        tested=np.array([rows[row["id"]] for row in predictions]),
        scored=LabelledPredictions(
            np.array([[float(row[f"p{count}"]) for count in answered] for row in predictions]),
            np.array([int(row["count"]) for row in predictions]),
            [row["group"] for row in predictions],
            answered,
        ),
        answers={rule: np.array([int(row[rule]) for row in predictions]) for rule in DECODINGS},
        reader=reader,
    )


def _look(image: bytes) -> tuple[tuple[int, int], float]:
    with Image.open(BytesIO(image)) as opened:
        return opened.size, sharpness(image)


def _products(records: Sequence[bytes]) -> Products:
    """Of good records; what has quantity 0 is left out."""
    items = [
        (row, item)
        for row, record in enumerate(records)
        for item in json.loads(record)["BIN_FCSKU_DATA"].values()
        if item["quantity"]
    ]
    return Products(
        np.array([row for row, _ in items], np.int64),
        np.array([item["quantity"] for _, item in items], np.int64),
        np.array([measure(item, "weight") for _, item in items], np.float64),
        np.array([[measure(item, side) for side in SIDES] for _, item in items], np.float64).reshape(-1, len(SIDES)),
    )
