"""Compare the model with the published benchmark, the study and baselines that need no model."""

import json
from dataclasses import asdict

import numpy as np

from bintally import paths
from bintally.files import METRIC_DIGITS, read_csv, write_json, write_text
from bintally.params import Params
from bintally.scoring import figures
from bintally.scoring.calibration import load_calibration
from bintally.scoring.references import REFERENCES, BenchmarkRow, baselines
from bintally.stages import run

DEMO_NOTE = "The bins of this run are rendered demo bins: its figures are not comparable with those on real bins."


def main(params: Params) -> None:
    metrics = json.loads(paths.TEST_METRICS.read_text(encoding="utf-8"))
    table = read_csv(paths.SPLITS)
    answer_counts = load_calibration(paths.MODELS, beside_model=False).counts
    scored = [row for row in table if int(row["count"]) in answer_counts]
    train, test = (
        np.array([int(row["count"]) for row in scored if row["split"] == split]) for split in ("train", "test")
    )
    demo = params.fetch.source == "demo"
    # One row where the rule for accuracy and that for RMSE are the same.
    models = [
        BenchmarkRow(
            f"this model, {rule.replace('_', ' ')}",
            f"{metrics['images']:,} {'demo ' if demo else ''}test bins of this run",
            metrics[rule]["accuracy"],
            metrics[rule]["rmse"],
            accuracy_interval=tuple(metrics["interval_95"][rule]["accuracy"]),
            rmse_interval=tuple(metrics["interval_95"][rule]["rmse"]),
        )
        for rule in dict.fromkeys(metrics["decoding"].values())
    ]
    majority, mean, uniform = baselines(train, test, answer_counts)
    rows = [*models, majority, mean, uniform, *REFERENCES]
    note = DEMO_NOTE if demo else "Other test images than the published figures: compare with care."
    write_json(
        paths.BENCHMARK,
        {
            "comparable": not demo,
            "accuracy_above_majority": models[0].accuracy - majority.accuracy,
            "rmse_below_mean": (mean.rmse or 0) - (models[-1].rmse or 0),
            # `dvc metrics` leaves out lists; they are for the table.
            "notes": [note],
            "rows": [{name: value for name, value in asdict(row).items() if value is not None} for row in rows],
        },
        METRIC_DIGITS,
    )
    write_text(paths.BENCHMARK_TABLE, _markdown(rows, note))
    title = ("DEMO BINS, not comparable: " if demo else "") + "counting items in bins"
    figures.save(figures.benchmark_figure(rows, title), paths.BENCHMARK_FIGURE)


def _markdown(rows: list[BenchmarkRow], note: str) -> str:
    lines = [f"| {' | '.join((row.name, row.data, *row.cells()))} |" for row in rows]
    return "\n".join([f"**{note}**", "", "| | measured on | accuracy % | RMSE |", "|---|---|---|---|", *lines, ""])


if __name__ == "__main__":
    run("compare", main)
