"""Score the model on every test image once."""

from collections.abc import Callable

import numpy as np
import torch

from bintally.bins.shards import ShardReader, read_index
from bintally.files import read_csv, write_csv, write_json
from bintally.memory import keep_freed_memory
from bintally.model.decoding import DECODINGS, decode_counts
from bintally.model.encoded import load_encoded
from bintally.model.network import distribution, views
from bintally.model.saved import default_device, load_model
from bintally.params import Params
from bintally.progress import progress
from bintally.scoring import plots
from bintally.scoring.metrics import Floats, Scored, confusion, evaluate, per_class, reliability
from bintally.stages import paths, run

BATCH = 32
EXAMPLES = 8


def main(params: Params) -> None:
    keep_freed_memory()
    table = read_csv(paths.SPLITS)
    rows = np.array([row for row, line in enumerate(table) if line["split"] == "test"])
    test = [table[row] for row in rows]
    counts, rule = params.fetch.counts, params.evaluate.decoding
    truth = np.array([int(line["count"]) for line in test])
    scored = Scored(_predict(rows), truth, [line["group"] for line in test], counts)
    decoded = {name: decode_counts(scored.probabilities, counts, name) for name in DECODINGS}

    figures = evaluate(scored, params.evaluate.resamples, params.evaluate.seed)
    classes = per_class(scored, rule)
    write_json(
        paths.TEST_METRICS,
        {
            "decoding": rule,
            **figures,
            "per_class": {str(row["count"]): {k: row[k] for k in ("images", "accuracy", "rmse")} for row in classes},
        },
    )
    write_csv(
        paths.PREDICTIONS,
        ["id", "group", "count", *DECODINGS, *(f"p{count}" for count in counts)],
        (
            [line["id"], line["group"], line["count"], *(decoded[name][at] for name in DECODINGS)]
            + [f"{p:.6f}" for p in scored.probabilities[at]]
            for at, line in enumerate(test)
        ),
    )
    write_csv(paths.CONFUSION, ["actual", "predicted"], zip(truth, decoded[rule], strict=True))
    write_csv(paths.PER_CLASS, list(classes[0]), [list(row.values()) for row in classes])
    calibration = reliability(scored)
    write_csv(paths.RELIABILITY, list(calibration[0]), [list(row.values()) for row in calibration])

    whose = "demo bins, rendered" if params.fetch.source == "demo" else params.fetch.source
    accuracy = figures[rule]["accuracy"]
    title = f"{len(test)} test bins ({whose}), {rule.replace('_', ' ')}: {accuracy:.1%} right"
    plots.save(plots.confusion_picture(confusion(scored, rule), counts, title), paths.CONFUSION_PICTURE)

    shown = np.sort(np.random.default_rng(params.evaluate.seed).permutation(len(test))[:EXAMPLES])
    reader, entries = ShardReader(paths.BINS), {entry.id: entry for entry in read_index(paths.BINS)}
    images = [reader.image(entries[test[at]["id"]]) for at in shown]
    picture = plots.examples_picture(
        images,
        truth[shown].tolist(),
        scored.probabilities[shown],
        counts,
        f"Test bins ({whose}), drawn at random",
    )
    plots.save(picture, paths.EXAMPLES_PICTURE)


def _predict(rows: np.ndarray) -> Floats:
    """The distribution over counts of encoded bins, float64 (rows, classes)."""
    network, card = load_model(paths.MODELS)
    encoded = load_encoded(paths.ENCODED)
    device = default_device()
    network.to(device)
    predict: Callable[[torch.Tensor], torch.Tensor]
    if encoded.encoding.kind == "features":
        predict = lambda batch: distribution(network.head, batch)  # noqa: E731
    else:
        predict = lambda batch: distribution(network, views(batch, card.mirror))  # noqa: E731
    result = []
    with torch.inference_mode(), progress("evaluate", len(rows), "images") as advance:
        for start in range(0, len(rows), BATCH):
            chosen = rows[start : start + BATCH]
            result.append(predict(torch.from_numpy(encoded.rows.take(chosen)).to(device)).cpu().double())
            advance(len(chosen))
    return torch.cat(result).numpy()


if __name__ == "__main__":
    run("evaluate", main)
