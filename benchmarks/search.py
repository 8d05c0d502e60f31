"""The experiments behind docs/results.md: run rows of benchmarks/search.yaml, and write the page's tables and plot.

A row is one line that a person can type too, `bintally use settings/... && dvc exp run -S ...`, once per seed. Metrics
of finished runs are kept in benchmarks/search.json; the tables are written from there into docs/results.md, between
the markers. A row with a commit needs options, presets or a script that have been removed since: its metrics are
history, and its line can be run at that commit.

    python benchmarks/search.py                          write tables and plot again
    python benchmarks/search.py --run real02             run this row first, the seeds that have no metrics yet
    python benchmarks/search.py --run real02 --again     run all its seeds
    python benchmarks/search.py --run real02 --options '-S fetch.endpoint=http://127.0.0.1:8333'

Prints the metrics of the rows as JSON.
"""

import argparse
import json
import subprocess
import time
from typing import Any

import numpy as np
import yaml
from matplotlib.figure import Figure

from bintally.files import read_csv, write_json, write_text
from bintally.scoring.figures import BLUE, GREY, ORANGE, save
from common import ROOT, say

ROWS, METRICS = ROOT / "benchmarks/search.yaml", ROOT / "benchmarks/search.json"
PAGE, PLOT = ROOT / "docs/results.md", ROOT / "docs/bins.png"
START, END = "<!-- search.py: from here -->", "<!-- search.py: to here -->"
FIRST = "0c62deb"  # where presets were files of options
CHALLENGE = {"bins": 324_735, "accuracy": 0.5567, "rmse": 0.930}  # ABID challenge
EXTRAPOLATED = 325_000
Json = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", nargs="+", default=[], metavar="ROW", help="rows of benchmarks/search.yaml")
    parser.add_argument("--again", action="store_true", help="run seeds that have metrics, too")
    parser.add_argument("--options", default="", help="for every run, such as '-S fetch.endpoint=...'")
    arguments = parser.parse_args()
    tables = yaml.safe_load(ROWS.read_text(encoding="utf-8"))
    rows = {row["name"]: row for table in tables for row in table["rows"]}
    metrics: Json = json.loads(METRICS.read_text(encoding="utf-8")) if METRICS.exists() else {}
    for name in arguments.run:
        if name not in rows:
            parser.error(f"--run: {ROWS} has no row '{name}', only {', '.join(rows)}")
        if "commit" in rows[name]:
            parser.error(f"--run: {name} needs what has been removed; run its line at commit {rows[name]['commit']}")
        for seed in rows[name].get("seeds", [1]):
            if arguments.again or str(seed) not in metrics.get(name, {}):
                metrics.setdefault(name, {})[str(seed)] = _run(rows[name], seed, arguments.options)
                write_json(METRICS, dict(sorted(metrics.items())))
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(START)
    written = "\n\n".join(_table(table, metrics) for table in tables)
    write_text(PAGE, f"{before}{START}\n\n{written}\n\n{END}{rest.partition(END)[2]}")
    _draw([[*metrics[name].values()] for name, row in rows.items() if "share" in row and name in metrics])
    print(json.dumps({name: metrics.get(name) for name in arguments.run or metrics}, indent=2))


def command(row: Json, seed: int) -> str:
    """The line that runs a row; at the row's commit if it has one."""
    if "script" in row:
        return f"python {row['script']}"
    if "of" in row:
        return f"python benchmarks/search.py --run {row['of']} {row['name']}"
    first = row.get("commit") == FIRST
    use = "" if first else f"bintally use settings/{row['settings']}.yaml && "
    settings = [f"$(cat settings/{row['settings']})"] if first else []
    options = [row["options"]] if "options" in row else []
    seeds = [f"-S train.seed={seed}"] if seed != 1 else []
    return use + " ".join(["dvc exp run", *settings, *options, *seeds])


def _run(row: Json, seed: int, options: str) -> Json:
    # Settings are put into the committed params.yaml, which comes back afterwards.
    subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "params.yaml"], check=True, cwd=ROOT)
    line = command(row, seed)
    say(line)
    start = time.monotonic()
    try:
        # A shell, since the line must work as the page has it.
        subprocess.run(f"{line} {options}", shell=True, check=True, cwd=ROOT)  # noqa: S602
    finally:
        subprocess.run(["git", "checkout", "--quiet", "--", "params.yaml"], check=True, cwd=ROOT)
    seconds = time.monotonic() - start
    metrics = {name: _read(name) for name in ("validation", "test")}
    rules, given_products = metrics["test"]["decoding"], metrics["test"]["given_products"]
    train = sum(line["split"] == "train" for line in read_csv(ROOT / "data/splits.csv"))
    return {
        "seconds": round(seconds),
        "bins": round(row.get("share", 1.0) * train),
        "decoding": rules,
        **{name: _by_chosen_rules(values, rules) for name, values in metrics.items()},
        "given_products": _by_chosen_rules(given_products, given_products["decoding"]),
        "lists_alone": _read("benchmark")["rows_given_products"][-2:],
        "audit": _read("audit"),
    }


def _read(name: str) -> Json:
    content: Json = json.loads((ROOT / f"metrics/{name}.json").read_text(encoding="utf-8"))
    return content


def _by_chosen_rules(metrics: Json, rules: dict[str, str]) -> Json:
    """Metrics, accuracy and RMSE each by the decoding rule that was chosen for it on validation."""
    return {
        "images": metrics["images"],
        "loss": metrics["loss"],
        "calibration_error": metrics["calibration_error"],
        "interval_95": {
            **{key: metrics["interval_95"][rules[key]][key] for key in rules},
            **{key: metrics["interval_95"][key] for key in ("loss", "calibration_error")},
        },
        **{key: metrics[rules[key]][key] for key in rules},
    }


def _table(table: Json, metrics: Json) -> str:
    lines = [
        f"### {table['title']}",
        "",
        "| row | settings | validation: accuracy %, RMSE, loss | test: accuracy % | RMSE | calibration error "
        "| given the products, test: accuracy %, RMSE, calibration error | minutes | commit | line |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in table["rows"]:
        runs = list(metrics.get(row["name"], {}).values())
        end = f"{row.get('commit', '')} | `{command(row, 1)}` |"
        what = f"{row['what']}{f', {len(runs)} seeds' if len(runs) > 1 else ''}"
        if not runs:
            lines.append(f"| {row['name']} | {what} | not run | | | | | | {end}")
            continue
        validation = "not kept"
        if "validation" in runs[0]:
            accuracy, rmse, loss = (_mean(runs, "validation", key) for key in ("accuracy", "rmse", "loss"))
            validation = f"{100 * accuracy:.1f}, {rmse:.3f}, {loss:.3f}"
        given_products = "not measured"
        if given := [run for run in runs if "given_products" in run]:
            given_products = ", ".join(_with_intervals(given, "given_products"))
            given_products += f" ({len(given)} of {len(runs)} seeds)" if len(given) < len(runs) else ""
        lines.append(
            f"| {row['name']} | {what} | {validation} | {' | '.join(_with_intervals(runs, 'test'))} | {given_products} "
            f"| {_minutes(runs)} | {end}"
        )
    return "\n".join(lines)


def _minutes(runs: list[Json]) -> str:
    """The mean duration of the runs that were timed, of which there may be none."""
    timed = [run["seconds"] for run in runs if run["seconds"] is not None]
    return f"{sum(timed) / len(timed) / 60:.0f}" if timed else "not timed"


def _with_intervals(runs: list[Json], name: str) -> tuple[str, str, str]:
    """Accuracy in per cent and RMSE, each with its interval, and calibration error: means over the runs."""
    low, high = ({key: _mean(runs, name, "interval_95", key, side) for key in ("accuracy", "rmse")} for side in (0, 1))
    return (
        f"{100 * _mean(runs, name, 'accuracy'):.1f} ({100 * low['accuracy']:.1f}–{100 * high['accuracy']:.1f})",
        f"{_mean(runs, name, 'rmse'):.3f} ({low['rmse']:.3f}–{high['rmse']:.3f})",
        f"{_mean(runs, name, 'calibration_error'):.3f}",
    )


def _mean(runs: list[Json], *keys: Any) -> float:
    """The mean over runs of the value under nested keys."""
    total = 0.0
    for run in runs:
        value: Any = run
        for key in keys:
            value = value[key]
        total += value
    return total / len(runs)


def _draw(rows: list[list[Json]]) -> None:
    """Plot accuracy and RMSE against the number of training bins, with a line extrapolated to EXTRAPOLATED."""
    if len(rows) < 2:
        return
    bins = np.array([runs[0]["bins"] for runs in rows])
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, key, label in zip(
        figure.subplots(1, 2), ("accuracy", "rmse"), ("accuracy", "RMSE in items"), strict=True
    ):
        values = np.array([_mean(runs, "test", key) for runs in rows])
        slope, intercept = np.polyfit(np.log2(bins), values, 1)
        ends = np.array([bins.min(), EXTRAPOLATED])
        axes.plot(ends, intercept + slope * np.log2(ends), color=GREY, linestyle="--", label="extrapolated")
        interval = np.array([[_mean(runs, "test", "interval_95", key, side) for runs in rows] for side in (0, 1)])
        axes.errorbar(bins, values, np.abs(interval - values), fmt="o", color=ORANGE, label="mean of seeds, 95 %")
        seeds = [(run["bins"], run["test"][key]) for runs in rows for run in runs]
        axes.scatter(*zip(*seeds, strict=True), s=12, color=GREY, zorder=3, label="a seed")
        axes.axhline(CHALLENGE[key], color=BLUE, label=f"ABID challenge, {CHALLENGE['bins']:,} bins")
        axes.set(xscale="log", xlabel="training bins", ylabel=label)
        axes.legend()
        say(f"{key}: {slope:+.4f} per doubling, {intercept + slope * np.log2(EXTRAPOLATED):.3f} at {EXTRAPOLATED:,}")
    save(figure, PLOT)


if __name__ == "__main__":
    main()
