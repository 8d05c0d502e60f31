"""Score the model on every test bin once."""

import numpy as np

from bintally import paths
from bintally.bins.images import decode_fetched
from bintally.bins.shards import ShardReader, read_index
from bintally.errors import UserError
from bintally.files import METRIC_DIGITS, read_csv, write_csv, write_json
from bintally.params import Params
from bintally.scoring import figures
from bintally.scoring.calibration import Calibration, CountPredictions, calibrated, load_calibration, predict_counts
from bintally.scoring.decoding import DECODINGS, FOR_ACCURACY
from bintally.scoring.metrics import (
    LabelledPredictions,
    confusion,
    evaluate,
    per_class,
    read_log_probabilities,
    reliability,
    risk_coverage,
)
from bintally.stages import run

SEED = 1  # of the bootstrap and of the examples
EXAMPLES = 8
PROBABILITY_DIGITS = 8  # enough to recompute every metric


def main(params: Params) -> None:
    calibration = load_calibration(paths.MODELS, beside_model=False)
    counts = calibration.counts
    table = read_csv(paths.SPLITS)
    rows = [number for number, row in enumerate(table) if row["split"] == "test" and int(row["count"]) in counts]
    if not rows:
        raise UserError(f"no test bin has one of the counts {counts}; change calibrate.counts or split.test_ids")
    log_probabilities = read_log_probabilities(paths.LOG_PROBABILITIES, len(table), len(params.model_counts), rows)
    ids = [table[row]["id"] for row in rows]
    scored = LabelledPredictions(
        calibrated(log_probabilities, params.model_counts, counts, calibration.temperature),
        np.array([int(table[row]["count"]) for row in rows]),
        [table[row]["group"] for row in rows],
        counts,
    )
    predictions = predict_counts(scored.probabilities, calibration)
    metrics = evaluate(scored, params.evaluate.resamples, SEED)
    _write_metrics(metrics, scored, predictions, calibration)
    _write_predictions(ids, scored, predictions)
    _write_tables(scored, predictions)
    source = figures.source_name(params.fetch.source)
    accuracy = metrics[FOR_ACCURACY]["accuracy"]
    title = f"{len(ids)} test bins ({source}), {FOR_ACCURACY.replace('_', ' ')}: {accuracy:.1%} right"
    figures.save(figures.confusion_figure(confusion(scored, FOR_ACCURACY), counts, title), paths.CONFUSION_FIGURE)
    _draw_examples(ids, scored, f"Test bins ({source}), drawn at random")


def _write_metrics(
    metrics: dict[str, object], scored: LabelledPredictions, predictions: CountPredictions, calibration: Calibration
) -> None:
    answered = ~predictions.unsure
    right = predictions.by_rule[FOR_ACCURACY] == scored.truth
    content = {
        "decoding": {"accuracy": FOR_ACCURACY, "rmse": calibration.rmse_decoding},
        **metrics,
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
    write_json(paths.TEST_METRICS, content, METRIC_DIGITS)


def _write_predictions(ids: list[str], scored: LabelledPredictions, predictions: CountPredictions) -> None:
    by_rule = [predictions.by_rule[rule] for rule in DECODINGS]
    columns = [ids, scored.groups, scored.truth, *by_rule, predictions.low, predictions.high]
    header = ["id", "group", "count", *DECODINGS, "low", "high", "unsure", *(f"p{count}" for count in scored.counts)]
    rows = zip(*columns, predictions.unsure.astype(int), *scored.probabilities.T.tolist(), strict=True)
    write_csv(paths.PREDICTIONS, header, rows, PROBABILITY_DIGITS)


def _write_tables(scored: LabelledPredictions, predictions: CountPredictions) -> None:
    pairs = zip(scored.truth, predictions.by_rule[FOR_ACCURACY], strict=True)
    write_csv(paths.CONFUSION, ["actual", "predicted"], pairs)
    for path, rows in (
        (paths.PER_CLASS, per_class(scored, FOR_ACCURACY)),
        (paths.RELIABILITY, reliability(scored)),
        (paths.RISK, risk_coverage(scored)),
    ):
        write_csv(path, list(rows[0]), [list(row.values()) for row in rows], METRIC_DIGITS)


def _draw_examples(ids: list[str], scored: LabelledPredictions, title: str) -> None:
    shown = np.sort(np.random.default_rng(SEED).permutation(len(ids))[:EXAMPLES])
    reader, entries = ShardReader(paths.BINS), {entry.id: entry for entry in read_index(paths.BINS)}
    images = (decode_fetched(reader.image(entries[ids[row]]), ids[row]) for row in shown)
    records = scored.truth[shown].tolist()
    figure = figures.examples_figure(images, records, scored.probabilities[shown], scored.counts, title)
    figures.save(figure, paths.EXAMPLES_FIGURE)


if __name__ == "__main__":
    run("evaluate", main)
