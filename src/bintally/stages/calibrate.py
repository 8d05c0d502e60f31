"""Calibrate the model on the validation bins."""

import numpy as np

from bintally import paths
from bintally.errors import UserError
from bintally.files import METRIC_DIGITS, read_csv, write_json
from bintally.params import Params
from bintally.scoring.calibration import (
    Calibration,
    calibrated,
    fit_confidence_threshold,
    fit_conformal_threshold,
    fit_temperature,
    save_calibration,
)
from bintally.scoring.decoding import DECODINGS
from bintally.scoring.metrics import LabelledPredictions, evaluate, read_log_probabilities
from bintally.stages import run

SEED = 1  # of the bootstrap


def main(params: Params) -> None:
    counts, settings = params.answer_counts, params.calibrate
    table = read_csv(paths.SPLITS)
    rows = [number for number, row in enumerate(table) if row["split"] == "validation" and int(row["count"]) in counts]
    if not rows:
        raise UserError(f"no validation bin has one of the counts {counts}; change calibrate.counts or split.test_ids")
    truth = np.array([int(table[row]["count"]) for row in rows])
    true_class = np.searchsorted(counts, truth)
    log_probabilities = read_log_probabilities(paths.LOG_PROBABILITIES, len(table), len(params.model_counts), rows)

    answered = np.searchsorted(params.model_counts, counts)
    temperature = fit_temperature(log_probabilities[:, answered], true_class)
    probabilities = calibrated(log_probabilities, params.model_counts, counts, temperature)
    groups = [table[row]["group"] for row in rows]
    metrics = evaluate(LabelledPredictions(probabilities, truth, groups, counts), params.evaluate.resamples, SEED)
    calibration = Calibration(
        counts=counts,
        open_ended=params.fetch.open_ended and counts[-1] == params.fetch.counts[-1],
        temperature=temperature,
        rmse_decoding=min(DECODINGS, key=lambda rule: metrics[rule]["rmse"]),
        coverage=settings.coverage,
        conformal_threshold=fit_conformal_threshold(probabilities, true_class, settings.coverage),
        target_precision=settings.target_precision,
        confidence_threshold=fit_confidence_threshold(probabilities, true_class, settings.target_precision),
        record_error_rate=settings.record_error_rate,
    )
    save_calibration(paths.MODELS, calibration)
    write_json(paths.VALIDATION_METRICS, {"temperature": temperature, **metrics}, METRIC_DIGITS)


if __name__ == "__main__":
    run("calibrate", main)
