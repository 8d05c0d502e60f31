"""Predictions as a table: a CSV or Parquet file that is written part by part."""

import csv
import math
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bintally.apps.photographs import Photographs
from bintally.apps.records import explain_record, read_products
from bintally.apps.scores import ScoredPart, Scores
from bintally.bins.products import Product
from bintally.bins.record import BadBin
from bintally.errors import UserError, printable
from bintally.files import atomic_write, spreadsheet_text
from bintally.scoring.calibration import Calibration, Floats, predict_counts
from bintally.scoring.decoding import DECODINGS
from bintally.scoring.evidence import FEATURES
from bintally.scoring.explain import likely_counts
from bintally.scoring.judgement import judge
from bintally.scoring.lists import Lists
from bintally.scoring.metrics import Counts
from bintally.scoring.record_model import RecordModel

PREDICTION_COLUMNS = (*DECODINGS, "low", "high", "unsure")
RUN = b"bintally.run"
DISTANCE = "distance_rank"
MODEL = "model"
GIVEN_PRODUCTS = "given_products_"  # begins the names of columns of the count given the products

Columns = dict[str, tuple[pa.DataType, list[Any]]]
"""Type and values by name."""


def prediction_rows(probabilities: Floats, calibration: Calibration) -> Counts:
    """The predictions, (n, PREDICTION_COLUMNS), for probabilities (n, counts)."""
    predicted = predict_counts(probabilities, calibration)
    by_rule = [predicted.by_rule[rule] for rule in DECODINGS]
    return np.stack([*by_rule, predicted.low, predicted.high, predicted.unsure.astype(np.int64)], 1)


class RecordColumns:
    """The columns that the records of photographs add to predictions."""

    def __init__(self, photographs: Photographs, model: RecordModel) -> None:
        """Raises UserError if the source has no records."""
        if photographs.records is None:
            raise UserError(f"{photographs.name} has no records to read: leave out --records")
        self.rejected: list[tuple[str, str]] = []
        """Id and reason of each record that could not be used."""
        self.not_judged = 0
        """The number of records whose number of items the model does not predict."""
        self._model = model
        self._reads = iter(photographs.records(photographs.ids))

    def of_part(self, part: ScoredPart) -> Columns:
        """The columns of the next part, empty where a photograph has no usable record."""
        records = self._read(part)
        rows = [row for row, products in enumerate(records) if products is not None]
        usable = [products for products in records if products is not None]
        columns = self._of_records(usable, part.probabilities[rows], part.tables[rows])
        return _spread(columns, rows, len(records))

    def _read(self, part: ScoredPart) -> list[list[Product] | None]:
        """What each record of a part lists, in the order of its photographs."""
        found: dict[str, list[Product] | None] = dict.fromkeys(part.ids)
        for file_id, read in islice(self._reads, len(part.ids) + len(part.rejected)):
            if file_id in found:
                try:
                    found[file_id] = read_products(read)
                except BadBin as error:
                    self.rejected.append((file_id, printable(str(error))))
        return list(found.values())

    def _of_records(self, records: Sequence[list[Product]], probabilities: Floats, tables: Floats) -> Columns:
        model, lists = self._model, Lists.of(records)
        counted = np.flatnonzero(model.can_count(lists))
        given_products = model.count_given_products(probabilities[counted], tables[counted], lists.take(counted))
        rows = np.flatnonzero(model.totals.allow(lists.totals))
        self.not_judged += len(records) - len(rows)
        judged = judge(model, probabilities[rows], lists.take(rows), model.answers.record_error_rate)
        verdicts = [explain_record(judged, place, records[row])[1] for place, row in enumerate(rows.tolist())]
        of_judged: Columns = {
            "error_probability": (pa.float64(), judged.error.tolist()),
            "likely_count": (pa.int64(), likely_counts(judged, model.answers.counts).tolist()),
            "verdict": (pa.string(), verdicts),
        }
        return {
            "record": (pa.int64(), lists.totals.tolist()),
            **_spread(_predictions(given_products, model.answers, GIVEN_PRODUCTS), counted.tolist(), len(records)),
            **_spread(of_judged, rows.tolist(), len(records)),
        }


def write_predictions(path: Path, scores: Scores, records: RecordColumns | None = None, run_key: str = "") -> None:
    """Write predictions and probabilities of every photograph that was scored, as CSV or in full precision as Parquet.

    Args:
        path: ends in .csv or .parquet.
        records: add their columns.
        run_key: kept in the metadata RUN of a Parquet file.
    """
    tables = (_table(part, scores, records) for part in scores)
    counts = len(scores.calibration.counts)
    nothing = ScoredPart([], np.zeros((0, counts)), np.zeros((0, FEATURES, counts)), np.zeros(0), [])
    empty = _table(nothing, scores, records)
    empty = empty.replace_schema_metadata({RUN: run_key} if run_key else None)
    with atomic_write(path) as temporary:
        (_write_parquet if path.suffix == ".parquet" else _write_csv)(temporary, empty, tables)


def _table(part: ScoredPart, scores: Scores, records: RecordColumns | None) -> pa.Table:
    columns: Columns = {"id": (pa.string(), part.ids), **_predictions(part.probabilities, scores.calibration)}
    # Empty by a model that does not say.
    columns[DISTANCE] = (pa.float64(), [None if math.isnan(rank) else rank for rank in part.distance_ranks.tolist()])
    columns[MODEL] = (pa.string(), [scores.model] * len(part.ids))
    columns |= records.of_part(part) if records else {}
    schema = pa.schema([(name, kind) for name, (kind, _) in columns.items()])
    return pa.table([pa.array(values, kind) for kind, values in columns.values()], schema=schema)


def _predictions(probabilities: Floats, calibration: Calibration, prefix: str = "") -> Columns:
    *counts, unsure = prediction_rows(probabilities, calibration).T
    kinds = [*((pa.int64(), one.tolist()) for one in counts), (pa.bool_(), unsure.astype(bool).tolist())]
    columns = dict(zip(PREDICTION_COLUMNS, kinds, strict=True))
    for count, values in zip(calibration.counts, probabilities.T.tolist(), strict=True):
        columns[f"p{count}"] = (pa.float64(), values)
    return {prefix + name: column for name, column in columns.items()}


def _spread(columns: Columns, rows: Sequence[int], number: int) -> Columns:
    """Columns of ``number`` values: those given at ``rows``, None elsewhere."""
    place = dict(zip(rows, range(len(rows)), strict=True))
    return {
        name: (kind, [values[place[row]] if row in place else None for row in range(number)])
        for name, (kind, values) in columns.items()
    }


def _write_parquet(path: Path, empty: pa.Table, tables: Iterator[pa.Table]) -> None:
    with pq.ParquetWriter(path, empty.schema) as writer:
        for table in tables:
            writer.write_table(table.replace_schema_metadata(empty.schema.metadata))


def _write_csv(path: Path, empty: pa.Table, tables: Iterator[pa.Table]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(empty.column_names)
        for table in tables:
            columns = [column.to_pylist() for column in table.columns]
            writer.writerows([_cell(value) for value in row] for row in zip(*columns, strict=True))


def _cell(value: object) -> object:
    match value:
        case bool():
            return int(value)
        case float():
            return f"{value:.8g}"
        case str():
            return spreadsheet_text(value)
    return value  # None is written as nothing
