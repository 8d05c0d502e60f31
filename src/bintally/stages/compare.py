"""Compare the model with the published benchmark, the study and baselines that need no model.

The benchmark's models saw photographs alone, so it stands beside the count from the photograph; the count given the
products has a table of its own.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from bintally import paths
from bintally.bins.contents import read_contents
from bintally.files import METRIC_DIGITS, read_csv, write_json, write_text
from bintally.params import Params
from bintally.scoring import figures
from bintally.scoring.compositions import count_by_products
from bintally.scoring.lists import Lists
from bintally.scoring.record_model import require_record_model
from bintally.scoring.references import REFERENCES, BenchmarkRow, baselines, list_row, products_baseline
from bintally.stages import run

DEMO_NOTE = "The bins of this run are rendered demo bins: its figures are not comparable with those on real bins."
PRODUCTS_NOTE = (
    "These know which products the record lists, not how many of each. The benchmark's and the study's models saw "
    "photographs alone, so they are not in this table."
)


def main(params: Params) -> None:
    metrics = json.loads(paths.TEST_METRICS.read_text(encoding="utf-8"))
    records = require_record_model(paths.MODELS, beside_calibration=False)
    counts = records.answers.counts
    scored = [row for row in read_csv(paths.SPLITS) if int(row["count"]) in counts]
    train, test = ([row for row in scored if row["split"] == split] for split in ("train", "test"))
    train_counts, test_counts = (np.array([int(row["count"]) for row in rows]) for rows in (train, test))
    demo = params.fetch.source == "demo"
    models = _model_rows("this model", metrics, demo)
    majority, mean, uniform = baselines(train_counts, test_counts, counts)
    rows = [*models, majority, mean, uniform, *REFERENCES]

    train_lists, test_lists = _lists(train), _lists(test)
    by_products = count_by_products(records.compositions, records.totals, test_lists)
    given = _model_rows("this model, given the products", metrics["given_products"], demo)
    by_number = products_baseline(
        np.stack([train_lists.present.sum(1), train_counts], 1),
        np.stack([test_lists.present.sum(1), test_counts], 1),
        counts,
    )
    by_list = list_row("the products and their sizes alone", by_products, test_counts, counts)
    alone = replace(models[0], name="this model, the photograph alone")
    all_named = bool(test_lists.named.all())
    rows_given_products = [*given, alone, by_list, by_number] if all_named else []

    note = DEMO_NOTE if demo else "Other test images than the published figures: compare with care."
    content = {
        "comparable": not demo,
        "accuracy_above_majority": models[0].accuracy - majority.accuracy,
        "rmse_below_mean": (mean.rmse or 0) - (models[-1].rmse or 0),
        **({"accuracy_above_list": given[0].accuracy - by_list.accuracy} if all_named else {}),
        # `dvc metrics` leaves out lists; they are for the tables.
        "notes": [note, PRODUCTS_NOTE],
        "rows": _as_dicts(rows),
        "rows_given_products": _as_dicts(rows_given_products),
    }
    write_json(paths.BENCHMARK, content, METRIC_DIGITS)
    table = _markdown(rows, note)
    if rows_given_products:
        table += "\n" + _markdown(rows_given_products, PRODUCTS_NOTE)
    write_text(paths.BENCHMARK_TABLE, table)
    title = ("DEMO BINS, not comparable: " if demo else "") + "counting items in bins, from the photograph alone"
    figures.save(figures.benchmark_figure(rows, title), paths.BENCHMARK_FIGURE)


def _model_rows(name: str, metrics: Mapping[str, Any], demo: bool) -> list[BenchmarkRow]:
    """One row where the rule for accuracy and that for RMSE are the same, otherwise two."""
    return [
        BenchmarkRow(
            f"{name}, {rule.replace('_', ' ')}",
            f"{metrics['images']:,} {'demo ' if demo else ''}test bins of this run",
            metrics[rule]["accuracy"],
            metrics[rule]["rmse"],
            accuracy_interval=tuple(metrics["interval_95"][rule]["accuracy"]),
            rmse_interval=tuple(metrics["interval_95"][rule]["rmse"]),
        )
        for rule in dict.fromkeys(metrics["decoding"].values())
    ]


def _lists(rows: Sequence[Mapping[str, str]]) -> Lists:
    return Lists.of_contents(read_contents(paths.BINS, paths.CORRECTIONS, [row["id"] for row in rows]))[0]


def _as_dicts(rows: Sequence[BenchmarkRow]) -> list[dict[str, object]]:
    return [{name: value for name, value in asdict(row).items() if value is not None} for row in rows]


def _markdown(rows: Sequence[BenchmarkRow], note: str) -> str:
    lines = [f"| {' | '.join((row.name, row.data, *row.cells()))} |" for row in rows]
    return "\n".join([f"**{note}**", "", "| | measured on | accuracy % | RMSE |", "|---|---|---|---|", *lines, ""])


if __name__ == "__main__":
    run("compare", main)
