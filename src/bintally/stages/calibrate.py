"""Learn on validation how to read what the model says: temperature, decoding, sets, when to be unsure."""

import numpy as np

from bintally import paths
from bintally.errors import UserError
from bintally.files import read_csv, write_json
from bintally.inference.predictor import predict_encoded
from bintally.memory import configure_malloc
from bintally.model.card import load_model
from bintally.model.encoded import load_encoded
from bintally.model.kinship import fit_kinship
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
from bintally.scoring.metrics import LabelledPredictions, evaluate
from bintally.stages import run


def main(params: Params) -> None:
    configure_malloc()
    counts, asked = params.answer_counts, params.calibrate
    table = read_csv(paths.SPLITS)
    rows = np.array(
        [at for at, line in enumerate(table) if line["split"] == "validation" and int(line["count"]) in counts]
    )
    if not len(rows):
        raise UserError(f"no validation bin has one of the counts {counts}; change calibrate.counts or split.test_ids")
    truth = np.array([int(table[row]["count"]) for row in rows])
    classes = np.searchsorted(counts, truth)
    network, card = load_model(paths.MODELS)
    logs = predict_encoded(network, card, load_encoded(paths.ENCODED), rows)
    among = np.log(calibrated(logs, card.counts, counts, 1.0).clip(1e-300))
    temperature = fit_temperature(among, classes)
    probabilities = calibrated(logs, card.counts, counts, temperature)
    scored = LabelledPredictions(probabilities, truth, [table[row]["group"] for row in rows], counts)
    figures = evaluate(scored, params.evaluate.resamples, SEED)
    save_calibration(
        paths.MODELS,
        Calibration(
            counts=counts,
            open_ended=params.fetch.open_ended and counts[-1] == params.fetch.counts[-1],
            temperature=temperature,
            rmse_decoding=min(DECODINGS, key=lambda rule: figures[rule]["rmse"]),
            coverage=asked.coverage,
            mass=fit_conformal_threshold(probabilities, classes, asked.coverage),
            sure=asked.sure,
            confidence=fit_confidence_threshold(probabilities, classes, asked.sure),
            record_error_rate=asked.record_error_rate,
            kinship=fit_kinship(probabilities, classes, counts, scored.groups),
        ),
    )
    write_json(paths.VALIDATION_METRICS, {"temperature": temperature, **figures})


if __name__ == "__main__":
    run("calibrate", main)
