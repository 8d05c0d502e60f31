"""Score the model on every test bin once: the count from the photograph alone, and the count given the products."""

from dataclasses import replace
from typing import Any

import numpy as np

from bintally import paths
from bintally.bins.contents import read_contents
from bintally.bins.images import decode_fetched
from bintally.bins.shards import ShardReader, iter_index
from bintally.errors import UserError
from bintally.files import METRIC_DIGITS, read_columns, write_csv, write_json
from bintally.params import Params
from bintally.scoring import figures
from bintally.scoring.calibration import Calibration, calibrated, load_calibration, predict_counts
from bintally.scoring.decoding import DECODINGS, FOR_ACCURACY, decode_counts
from bintally.scoring.evidence import FEATURES
from bintally.scoring.lists import Lists
from bintally.scoring.metrics import (
    LabelledPredictions,
    confusion,
    evaluate,
    per_class,
    reliability,
    risk_coverage,
)
from bintally.scoring.outputs import read_outputs
from bintally.scoring.record_model import require_record_model
from bintally.stages import run

SEED = 1  # of the bootstrap and of the examples
EXAMPLES = 8
COUNTS_FROM = ("from the photograph alone", "given the products in the record")
PROBABILITY_DIGITS = 8  # enough to recompute every metric


def main(params: Params) -> None:
    calibration = load_calibration(paths.MODELS, beside_model=False)
    counts = calibration.counts
    all_ids, splits, bin_counts, bin_groups = read_columns(paths.SPLITS, "id", "split", "count", "group")
    bins = zip(splits, map(int, bin_counts), strict=True)
    rows = [row for row, (split, count) in enumerate(bins) if split == "test" and count in counts]
    if not rows:
        raise UserError(f"no test bin has one of the counts {counts}; change calibrate.counts or split.test_ids")
    outputs = read_outputs(paths.LOG_PROBABILITIES, (len(all_ids), len(params.model_counts)), rows)
    ids = [all_ids[row] for row in rows]
    photograph = LabelledPredictions(
        calibrated(outputs, params.model_counts, counts, calibration.temperature),
        np.array([int(bin_counts[row]) for row in rows]),
        [bin_groups[row] for row in rows],
        counts,
    )
    records = require_record_model(paths.MODELS, beside_calibration=False)
    answered = np.searchsorted(params.model_counts, counts)
    evidence = read_outputs(paths.EVIDENCE, (len(all_ids), FEATURES, len(params.model_counts)), rows)[..., answered]
    lists, _ = Lists.of_contents(read_contents(paths.BINS, paths.CORRECTIONS, ids))
    both = records.count_given_products(photograph.probabilities, evidence, lists)
    given_products = replace(photograph, probabilities=both)
    content = _metrics(photograph, calibration, params.evaluate.resamples)
    bad = {one for one, reasons in zip(*read_columns(paths.QUALITY, "id", "reasons"), strict=True) if reasons}
    content["good_photographs"] = _without(photograph, [one in bad for one in ids], params.evaluate.resamples)
    content["given_products"] = _metrics(given_products, records.answers, params.evaluate.resamples)
    write_json(paths.TEST_METRICS, content, METRIC_DIGITS)
    _write_predictions(ids, photograph, calibration, given_products, records.answers)
    _write_tables(photograph)
    source = figures.source_name(params.fetch.source)
    accuracies = [one[FOR_ACCURACY]["accuracy"] for one in (content, content["given_products"])]
    tables = {
        f"{name}: {accuracy:.1%} right": confusion(scored, FOR_ACCURACY)
        for name, accuracy, scored in zip(COUNTS_FROM, accuracies, (photograph, given_products), strict=True)
    }
    title = f"{len(ids)} test bins ({source}), {FOR_ACCURACY.replace('_', ' ')} count"
    figures.save(figures.confusions_figure(tables, counts, title), paths.CONFUSION_FIGURE)
    _draw_examples(ids, photograph, f"Test bins ({source}), drawn at random")


def _without(scored: LabelledPredictions, bad: list[bool], resamples: int) -> dict[str, Any]:
    """Metrics of the bins that are not ``bad``; their number alone if none is left."""
    rows = np.flatnonzero(~np.array(bad))
    groups = [scored.groups[row] for row in rows.tolist()]
    good = replace(scored, probabilities=scored.probabilities[rows], truth=scored.truth[rows], groups=groups)
    return evaluate(good, resamples, SEED) if len(rows) else {"images": 0}


def _metrics(scored: LabelledPredictions, calibration: Calibration, resamples: int) -> dict[str, Any]:
    """What metrics/test.json says about one of the two counts."""
    predictions = predict_counts(scored.probabilities, calibration)
    answered = ~predictions.unsure
    right = predictions.by_rule[FOR_ACCURACY] == scored.truth
    return {
        "decoding": {"accuracy": FOR_ACCURACY, "rmse": calibration.rmse_decoding},
        **evaluate(scored, resamples, SEED),
        "sets": {
            "target_coverage": calibration.coverage,
            "coverage": float(((predictions.low <= scored.truth) & (scored.truth <= predictions.high)).mean()),
            "mean_size": float((predictions.high - predictions.low + 1).mean()),
        },
        "selective": {
            "target_precision": calibration.target_precision,
            "answered": float(answered.mean()),
            "accuracy": float(right[answered].mean()) if answered.any() else None,
        },
        "risk": float(np.mean([row["risk"] for row in risk_coverage(scored)])),
        "per_class": {
            str(row["count"]): {name: value for name, value in row.items() if name != "count"}
            for row in per_class(scored, FOR_ACCURACY)
        },
    }


def _write_predictions(
    ids: list[str],
    photograph: LabelledPredictions,
    calibration: Calibration,
    given_products: LabelledPredictions,
    answers: Calibration,
) -> None:
    header, columns = ["id", "group", "count"], [ids, photograph.groups, photograph.truth]
    for prefix, scored, fitted in (("", photograph, calibration), ("given_products_", given_products, answers)):
        predictions = predict_counts(scored.probabilities, fitted)
        names = [*DECODINGS, "low", "high", "unsure", *(f"p{count}" for count in scored.counts)]
        header += [prefix + name for name in names]
        by_rule = [predictions.by_rule[rule] for rule in DECODINGS]
        columns += [*by_rule, predictions.low, predictions.high, predictions.unsure.astype(int)]
        columns += list(scored.probabilities.T)
    write_csv(paths.PREDICTIONS, header, zip(*columns, strict=True), PROBABILITY_DIGITS)


def _write_tables(scored: LabelledPredictions) -> None:
    pairs = zip(scored.truth, decode_counts(scored.probabilities, scored.counts, FOR_ACCURACY), strict=True)
    write_csv(paths.CONFUSION, ["actual", "predicted"], pairs)
    for path, rows in (
        (paths.PER_CLASS, per_class(scored, FOR_ACCURACY)),
        (paths.RELIABILITY, reliability(scored)),
        (paths.RISK, risk_coverage(scored)),
    ):
        write_csv(path, list(rows[0]), [list(row.values()) for row in rows], METRIC_DIGITS)


def _draw_examples(ids: list[str], scored: LabelledPredictions, title: str) -> None:
    shown = np.sort(np.random.default_rng(SEED).permutation(len(ids))[:EXAMPLES])
    chosen = {ids[row] for row in shown}
    reader, entries = ShardReader(paths.BINS), (entry for entry in iter_index(paths.BINS) if entry.id in chosen)
    images = (decode_fetched(reader.image(entry), entry.id) for entry in entries)
    records = scored.truth[shown].tolist()
    figure = figures.examples_figure(images, records, scored.probabilities[shown], scored.counts, title)
    figures.save(figure, paths.EXAMPLES_FIGURE)


if __name__ == "__main__":
    run("evaluate", main)
