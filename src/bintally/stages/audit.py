"""Inject errors into the records of test bins and measure how many of them rankings find."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from bintally import paths
from bintally.bins.shards import ShardReader, read_index
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
from bintally.scoring.metrics import Floats
from bintally.stages import run

SEED = 1
PHOTOGRAPH = "photograph"  # the ranking by error_probability
SHARES = np.linspace(0, 1, 101)  # of the bins recounted, at which curves are kept
RECOUNTED = 0.1


@dataclass(frozen=True)
class Bins:
    """Test bins, n of them."""

    probabilities: Floats
    """(n, counts)."""
    records: NDArray[np.int64]
    """(n,) correct ones."""
    quantities: list[list[int]]
    """Of every product in each bin."""

    def take(self, rows: Sequence[int]) -> "Bins":
        return Bins(self.probabilities[rows], self.records[rows], [self.quantities[row] for row in rows])


@dataclass(frozen=True)
class Draw:
    """What rankings found of errors that were injected once."""

    metrics: dict[str, dict[str, float]]
    """By ranking."""
    curves: dict[str, Floats]
    """Fraction found by ranking, at SHARES."""
    expected: Floats
    """That expected of the ranking PHOTOGRAPH, at SHARES."""


def main(params: Params) -> None:
    calibration = load_calibration(paths.MODELS)
    table = read_csv(paths.PREDICTIONS)
    bins = Bins(
        np.array([[float(row[f"p{count}"]) for count in calibration.counts] for row in table]),
        np.array([int(row["count"]) for row in table]),
        _quantities([row["id"] for row in table]),
    )
    groups = [row["group"] for row in table]
    random = np.random.default_rng(SEED)
    draws = [_draw(bins, calibration, random) for _ in range(params.audit.draws)]
    # The intervals: other errors in other bins.
    resampled = [
        _draw(bins.take(_resample_groups(groups, random)), calibration, random) for _ in range(params.audit.draws)
    ]
    rankings = list(draws[0].metrics)
    content = {
        "images": len(table),
        "record_error_rate": calibration.record_error_rate,
        **{
            name: _summary([draw.metrics[name] for draw in draws], [draw.metrics[name] for draw in resampled])
            for name in rankings
        },
    }
    write_json(paths.AUDIT_METRICS, content, METRIC_DIGITS)

    curves = {name: np.mean([draw.curves[name] for draw in draws], 0) for name in rankings}
    expected = np.mean([draw.expected for draw in draws], 0)
    rows = zip(SHARES, *curves.values(), expected, strict=True)
    write_csv(paths.AUDIT_CURVES, ["recounted", *rankings, "expected"], rows, METRIC_DIGITS)
    source = "demo bins, rendered" if params.fetch.source == "demo" else params.fetch.source
    title = f"errors in {calibration.record_error_rate:.0%} of the records of {len(table):,} test bins ({source})"
    figures.save(figures.audit_figure(curves, expected, title), paths.AUDIT_FIGURE)


def _quantities(ids: Sequence[str]) -> list[list[int]]:
    """The quantity of every product of each bin."""
    reader, entries = ShardReader(paths.BINS), {entry.id: entry for entry in read_index(paths.BINS)}
    records = [json.loads(reader.record(entries[bin_id])) for bin_id in ids]
    return [[item["quantity"] for item in record["BIN_FCSKU_DATA"].values() if item["quantity"]] for record in records]


def _draw(bins: Bins, calibration: Calibration, random: np.random.Generator) -> Draw:
    """Inject errors once and rank the records."""
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
    return Draw(metrics, curves, expected)


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


def _resample_groups(groups: Sequence[str], random: np.random.Generator) -> list[int]:
    """The rows of as many groups, drawn with replacement: photographs of the same bin come together."""
    members: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    names = sorted(members)
    return [row for number in random.integers(len(names), size=len(names)) for row in members[names[number]]]


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
