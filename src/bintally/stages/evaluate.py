"""Score the model on every test image once."""

import numpy as np

from bintally import paths
from bintally.bins.shards import ShardReader, read_index
from bintally.errors import UserError
from bintally.files import read_csv, write_csv, write_json
from bintally.inference.predictor import predict_encoded
from bintally.memory import configure_malloc
from bintally.model.card import load_model
from bintally.model.encoded import load_encoded
from bintally.params import Params
from bintally.scoring import figures
from bintally.scoring.calibration import answer, calibrated, load_calibration
from bintally.scoring.decoding import DECODINGS, FOR_ACCURACY
from bintally.scoring.metrics import LabelledPredictions, confusion, evaluate, per_class, reliability, risk_coverage
from bintally.stages import run

EXAMPLES = 8


def main(params: Params) -> None:
    configure_malloc()
    calibration = load_calibration(paths.MODELS)
    counts, rule = calibration.counts, FOR_ACCURACY
    table = read_csv(paths.SPLITS)
    rows = np.array([at for at, line in enumerate(table) if line["split"] == "test" and int(line["count"]) in counts])
    if not len(rows):
        raise UserError(f"no test bin has one of the counts {counts}; change calibrate.counts or split.test_ids")
    test = [table[row] for row in rows]
    truth = np.array([int(line["count"]) for line in test])
    network, card = load_model(paths.MODELS)
    logs = predict_encoded(network, card, load_encoded(paths.ENCODED), rows)
    probabilities = calibrated(logs, card.counts, counts, calibration.temperature)
    scored = LabelledPredictions(probabilities, truth, [line["group"] for line in test], counts)
    answers = answer(probabilities, calibration)
    sure = ~answers.unsure

    metrics = evaluate(scored, params.evaluate.resamples, SEED)
    classes = per_class(scored, rule)
    risk = risk_coverage(scored)
    write_json(
        paths.TEST_METRICS,
        {
            "decoding": {"accuracy": rule, "rmse": calibration.rmse_decoding},
            **metrics,
            "sets": {
                "promised": calibration.coverage,
                "coverage": float(((answers.low <= truth) & (truth <= answers.high)).mean()),
                "mean_size": float((answers.high - answers.low + 1).mean()),
            },
            "sure": {
                "promised": calibration.sure,
                "answered": float(sure.mean()),
                "accuracy": float((answers.decoded[rule] == truth)[sure].mean()) if sure.any() else None,
            },
            "risk": float(np.mean([row["risk"] for row in risk])),
            "per_class": {str(row["count"]): {k: row[k] for k in ("images", "accuracy", "rmse")} for row in classes},
        },
    )
    write_csv(
        paths.PREDICTIONS,
        ["id", "group", "count", *DECODINGS, "low", "high", "unsure", *(f"p{count}" for count in counts)],
        (
            [line["id"], line["group"], line["count"], *(answers.decoded[name][at] for name in DECODINGS)]
            + [answers.low[at], answers.high[at], int(answers.unsure[at])]
            + [f"{p:.8g}" for p in probabilities[at]]
            for at, line in enumerate(test)
        ),
    )
    write_csv(paths.CONFUSION, ["actual", "predicted"], zip(truth, answers.decoded[rule], strict=True))
    write_csv(paths.PER_CLASS, list(classes[0]), [list(row.values()) for row in classes])
    calibration_curve = reliability(scored)
    write_csv(paths.RELIABILITY, list(calibration_curve[0]), [list(row.values()) for row in calibration_curve])
    write_csv(paths.RISK, list(risk[0]), [list(row.values()) for row in risk])

    whose = "demo bins, rendered" if params.fetch.source == "demo" else params.fetch.source
    accuracy = metrics[rule]["accuracy"]
    title = f"{len(test)} test bins ({whose}), {rule.replace('_', ' ')}: {accuracy:.1%} right"
    figures.save(figures.confusion_picture(confusion(scored, rule), counts, title), paths.CONFUSION_FIGURE)

    shown = np.sort(np.random.default_rng(SEED).permutation(len(test))[:EXAMPLES])
    reader, entries = ShardReader(paths.BINS), {entry.id: entry for entry in read_index(paths.BINS)}
    images = [reader.image(entries[test[at]["id"]]) for at in shown]
    picture = figures.examples_picture(
        images,
        truth[shown].tolist(),
        probabilities[shown],
        counts,
        f"Test bins ({whose}), drawn at random",
    )
    figures.save(picture, paths.EXAMPLES_FIGURE)


if __name__ == "__main__":
    run("evaluate", main)
