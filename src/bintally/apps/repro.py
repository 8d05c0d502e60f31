"""`bintally repro`: rebuild what changed, push it, and print the metrics."""

import argparse
import json
from pathlib import Path

from bintally import paths
from bintally.apps.remote import check_remote, remote_server
from bintally.apps.repository import run_dvc
from bintally.params import load_params

PAGE = Path("dvc_plots/index.html")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(func=run)


def run(_arguments: argparse.Namespace) -> None:
    """Run `dvc repro`, push data and run-cache, write the plots page, and print the metrics.

    Raises UserError if a step fails.
    """
    load_params()
    check_remote()
    run_dvc("repro")
    with remote_server():
        run_dvc("push", "--run-cache")
    run_dvc("plots", "show")
    print(_summary())


def _summary() -> str:
    test = json.loads(paths.TEST_METRICS.read_text(encoding="utf-8"))
    benchmark = json.loads(paths.BENCHMARK.read_text(encoding="utf-8"))
    rows = []
    for rule in ("most_probable", "rounded_mean"):
        low, high = test["interval_95"][rule]["accuracy"]
        rows.append({"name": f"{rule.replace('_', ' ')} (95 %: {low:.1%} to {high:.1%})"} | test[rule])
    rows += benchmark["rows"][1:4]
    table = "\n".join(f"{row['name']:44}{row['accuracy']:10.1%}{row['rmse']:8.3f}" for row in rows)
    return f"""
{"":44}{"accuracy":>10}{"RMSE":>8}
{table}
{test["images"]} test bins, calibration error {test["calibration_error"]:.3f}. {benchmark["notes"][0]}

Plots:  {PAGE}   (figures in plots/, table in {paths.BENCHMARK_TABLE})
Next:   . .venv/bin/activate
        dvc exp run -S train.lr=0.0037      another learning rate, seconds of work
        dvc metrics diff                    what it changed
        dvc exp show                        all experiments in a table"""
