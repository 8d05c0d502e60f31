"""Calibrate the model on the validation bins: the count from the photograph, and the count given the products."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from bintally import paths
from bintally.bins.contents import read_contents
from bintally.errors import UserError
from bintally.files import METRIC_DIGITS, read_columns, write_json
from bintally.params import Params
from bintally.scoring.calibration import (
    Calibration,
    calibrated,
    fit_confidence_threshold,
    fit_conformal_threshold,
    fit_temperature,
    save_calibration,
)
from bintally.scoring.compositions import count_by_products, learn_compositions
from bintally.scoring.decoding import DECODINGS
from bintally.scoring.evidence import FEATURES, load_list_features, log_evidence
from bintally.scoring.lists import Lists
from bintally.scoring.metrics import DECIMALS, LabelledPredictions, evaluate
from bintally.scoring.outputs import read_outputs
from bintally.scoring.record_errors import Totals
from bintally.scoring.record_model import (
    ReadWithList,
    RecordModel,
    combined,
    fit_weights,
    log_probabilities,
    save_record_model,
    weighted,
)
from bintally.stages import run

SEED = 1  # of the bootstrap


def main(params: Params) -> None:
    counts = params.answer_counts
    ids, splits, bin_counts, bin_groups = read_columns(paths.SPLITS, "id", "split", "count", "group")
    bins = zip(splits, map(int, bin_counts), strict=True)
    rows = [row for row, (split, count) in enumerate(bins) if split == "validation" and count in counts]
    if not rows:
        raise UserError(f"no validation bin has one of the counts {counts}; change calibrate.counts or split.test_ids")
    truth = np.array([int(bin_counts[row]) for row in rows])
    answered, classes = np.searchsorted(params.model_counts, counts), len(params.model_counts)
    outputs = read_outputs(paths.LOG_PROBABILITIES, (len(ids), classes), rows)
    tables = read_outputs(paths.EVIDENCE, (len(ids), FEATURES, classes), rows)[..., answered]
    features = load_list_features(paths.MODELS / "card.json")

    temperature = fit_temperature(outputs[:, answered], np.searchsorted(counts, truth))
    probabilities = calibrated(outputs, params.model_counts, counts, temperature)
    groups = [bin_groups[row] for row in rows]
    photograph = LabelledPredictions(probabilities, truth, groups, counts)
    metrics = evaluate(photograph, params.evaluate.resamples, SEED)
    calibration = _calibration(params, photograph, temperature, metrics)

    totals = Totals(counts, calibration.open_ended)
    in_training = [bin_id for bin_id, split in zip(ids, splits, strict=True) if split == "train"]
    compositions = learn_compositions(paths.BINS, paths.CORRECTIONS, in_training, totals)
    lists, _ = Lists.of_contents(read_contents(paths.BINS, paths.CORRECTIONS, [ids[row] for row in rows]))
    logs = log_probabilities(probabilities)
    by_products = count_by_products(compositions, totals, lists)
    true_class = np.searchsorted(counts, truth)
    (weight,), offsets = fit_weights(by_products, [logs], true_class)
    read = log_evidence(tables, features.of(lists.present, lists.sizes))
    weights, offsets_with_list = fit_weights(by_products, [read, logs], true_class)
    both = combined(by_products, weighted([read, logs], weights, offsets_with_list), probabilities)
    given_products = LabelledPredictions(both, truth, groups, counts)
    metrics_given_products = evaluate(given_products, params.evaluate.resamples, SEED)
    model = RecordModel(
        compositions=compositions,
        photograph_weight=weight,
        offsets=offsets,
        with_list=ReadWithList(
            features=features, evidence_weight=weights[0], photograph_weight=weights[1], offsets=offsets_with_list
        ),
        error_shares=params.calibrate.error_shares,
        answers=_calibration(params, given_products, 1.0, metrics_given_products),
    )
    save_calibration(paths.MODELS, calibration)
    save_record_model(paths.MODELS, model)
    content = {"temperature": temperature, **metrics, "given_products": metrics_given_products}
    write_json(paths.VALIDATION_METRICS, content, METRIC_DIGITS)


def _calibration(
    params: Params, scored: LabelledPredictions, temperature: float, metrics: Mapping[str, Any]
) -> Calibration:
    """Decoding rule, prediction sets and thresholds for the validation bins' probabilities."""
    settings, counts = params.calibrate, scored.counts
    true_class = np.searchsorted(counts, scored.truth)
    threshold = fit_confidence_threshold(scored.probabilities, true_class, settings.target_precision)
    unsure = 1.0 if threshold is None else float((scored.probabilities.max(1) < threshold).mean())
    return Calibration(
        counts=list(counts),
        open_ended=params.fetch.open_ended and counts[-1] == params.fetch.counts[-1],
        temperature=temperature,
        # Of equal ones the first: further digits depend on the CPU.
        rmse_decoding=min(DECODINGS, key=lambda rule: round(metrics[rule]["rmse"], DECIMALS)),
        coverage=settings.coverage,
        conformal_threshold=fit_conformal_threshold(scored.probabilities, true_class, settings.coverage),
        target_precision=settings.target_precision,
        confidence_threshold=threshold,
        record_error_rate=settings.record_error_rate,
        unsure=round(unsure, METRIC_DIGITS),
    )


if __name__ == "__main__":
    run("calibrate", main)
