"""Inject errors into the records of test bins and measure how many of them rankings find."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from bintally import paths
from bintally.bins.shards import ShardReader, read_index
from bintally.errors import UserError
from bintally.files import METRIC_DIGITS, read_csv, write_csv, write_json
from bintally.params import Params
from bintally.scoring import figures
from bintally.scoring.audit import (
    ERROR_KINDS,
    error_probability,
    expected_recall_curve,
    inject_errors,
    ranking_metrics,
    recall_curve,
)
from bintally.scoring.calibration import Calibration, load_calibration
from bintally.scoring.decoding import FOR_ACCURACY, decode_counts
from bintally.scoring.metrics import Counts, Floats
from bintally.stages import run

SEED = 1
PHOTOGRAPH = "photograph"  # the ranking by error_probability
SHARES = np.linspace(0, 1, 101)  # of the bins recounted, at which curves are kept
RECOUNTED = 0.1


@dataclass(frozen=True)
class Bins:
    """The probabilities, (n, counts), and the correct records, (n,), of test bins."""

    probabilities: Floats
    records: Counts
    quantities: list[list[int]]
    """Of every product in each bin."""

    def take(self, rows: Counts) -> "Bins":
        return Bins(self.probabilities[rows], self.records[rows], [self.quantities[row] for row in rows])


def main(params: Params) -> None:
    calibration = load_calibration(paths.MODELS, beside_model=False)
    table = read_csv(paths.PREDICTIONS)
    bins = _read_bins(table, calibration.counts)
    groups = [row["group"] for row in table]
    random = np.random.default_rng(SEED)
    number = params.audit.draws
    draws, draw_curves = zip(*(_draw(bins, calibration, random) for _ in range(number)), strict=True)
    # The intervals: other errors in other bins.
    resampled = [_draw(bins.take(_resample_groups(groups, random)), calibration, random)[0] for _ in range(number)]
    content = {
        "images": len(table),
        "record_error_rate": calibration.record_error_rate,
        **{name: _summary([draw[name] for draw in draws], [draw[name] for draw in resampled]) for name in draws[0]},
    }
    write_json(paths.AUDIT_METRICS, content, METRIC_DIGITS)

    curves = {name: np.mean([draw[name] for draw in draw_curves], 0) for name in draw_curves[0]}
    write_csv(paths.AUDIT_CURVES, ["recounted", *curves], zip(SHARES, *curves.values(), strict=True), METRIC_DIGITS)
    expected = curves.pop("expected")
    source = figures.source_name(params.fetch.source)
    title = f"errors in {calibration.record_error_rate:.0%} of the records of {len(table):,} test bins ({source})"
    figures.save(figures.audit_figure(curves, expected, title), paths.AUDIT_FIGURE)


def _read_bins(table: Sequence[dict[str, str]], counts: Sequence[int]) -> Bins:
    """Raises UserError if the predictions are too few, or not of this calibration and these bins."""
    if len(table) < 2:
        raise UserError(f"{len(table)} test bins are too few to measure how errors are found; raise fetch.per_count")
    try:
        return Bins(
            np.array([[float(row[f"p{count}"]) for count in counts] for row in table]),
            np.array([int(row["count"]) for row in table]),
            _quantities([row["id"] for row in table]),
        )
    except KeyError as error:
        raise UserError(
            f"{paths.PREDICTIONS} is not of this calibration or of these bins: {error} is missing; run `dvc repro`"
        ) from error


def _quantities(ids: Sequence[str]) -> list[list[int]]:
    reader, entries = ShardReader(paths.BINS), {entry.id: entry for entry in read_index(paths.BINS)}
    records = [json.loads(reader.record(entries[bin_id])) for bin_id in ids]
    return [[item["quantity"] for item in record["BIN_FCSKU_DATA"].values() if item["quantity"]] for record in records]


def _draw(
    bins: Bins, calibration: Calibration, random: np.random.Generator
) -> tuple[dict[str, dict[str, float]], dict[str, Floats]]:
    """Inject errors once: the metrics of each ranking, and the fractions of the errors that each finds at SHARES.

    The curves end with ``expected``, the fractions expected of the ranking PHOTOGRAPH.
    """
    counts, share = calibration.counts, calibration.record_error_rate
    records, kinds = inject_errors(bins.records, bins.quantities, counts, share, random)
    is_wrong = records != bins.records
    scores = {
        PHOTOGRAPH: error_probability(bins.probabilities, counts, records, share),
        "disagreement": (decode_counts(bins.probabilities, counts, FOR_ACCURACY) != records).astype(np.float64),
        "chance": np.zeros(len(records)),
    }
    metrics = {name: ranking_metrics(values, is_wrong) for name, values in scores.items()}
    expected = _at_shares(expected_recall_curve(scores[PHOTOGRAPH]))
    metrics[PHOTOGRAPH]["expected_at_10"] = float(np.interp(RECOUNTED, SHARES, expected))
    metrics[PHOTOGRAPH] |= _found_by_kind(scores[PHOTOGRAPH], np.array(kinds))
    curves = {name: _at_shares(recall_curve(values, is_wrong)) for name, values in scores.items()}
    return metrics, curves | {"expected": expected}


def _found_by_kind(scores: Floats, kinds: NDArray[np.str_]) -> dict[str, float]:
    """The fraction of each kind of error among the first tenth of a ranking."""
    first = np.argsort(-scores, kind="stable")[: round(RECOUNTED * len(scores))]
    return {
        f"{kind}_found_at_10": float((kinds[first] == kind).sum() / (kinds == kind).sum())
        for kind in ERROR_KINDS
        if kind in kinds
    }


def _at_shares(curve: Floats) -> Floats:
    """A curve over 0, 1, … bins, interpolated at SHARES."""
    return np.asarray(np.interp(SHARES, np.linspace(0, 1, len(curve)), curve))


def _resample_groups(groups: Sequence[str], random: np.random.Generator) -> Counts:
    """The rows of as many groups, drawn with replacement: photographs of the same bin come together."""
    _, member, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    rows = np.split(np.argsort(member, kind="stable"), sizes.cumsum()[:-1])
    return np.concatenate([rows[number] for number in random.integers(len(rows), size=len(rows))])


def _summary(draws: list[dict[str, float]], resampled: list[dict[str, float]]) -> dict[str, object]:
    """The mean over ``draws`` of each metric that all have, and the 95 % interval over ``resampled``."""
    names = [name for name in draws[0] if all(name in draw for draw in (*draws, *resampled))]
    return {
        **{name: fmean(draw[name] for draw in draws) for name in names},
        "interval_95": {
            name: np.percentile([draw[name] for draw in resampled], [2.5, 97.5]).tolist() for name in names
        },
    }


if __name__ == "__main__":
    run("audit", main)
