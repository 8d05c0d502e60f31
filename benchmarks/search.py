"""The search behind docs/results.md: runs its rows as DVC experiments, writes its tables and its plot.

Every row of docs/search.yaml is `dvc exp run` with the options of a file in settings/ and some of its own, once a
seed. The figures of a finished run go to docs/search.json, and from there into docs/results.md between the markers;
its model and its predictions go to exports/search/ROW-SEED, where rows that learn from others look for them. A row
that is `of` another averages the answers of all its seeds on the test bins.

    python benchmarks/search.py                          write tables and plot anew
    python benchmarks/search.py --run f100 twins         run these rows first, the seeds that are not there yet
    python benchmarks/search.py --run f100 --again       run them whether there or not
    python benchmarks/search.py --run f100 --options '-S fetch.endpoint=http://127.0.0.1:8333'

Prints the figures of the rows as JSON.
"""

import argparse
import json
import shutil
import subprocess
import time
from typing import Any

import numpy as np
import yaml
from matplotlib.figure import Figure

from bintally.files import read_csv, write_json, write_text
from bintally.params import load_params
from bintally.scoring.figures import BLUE, GREY, ORANGE, save
from bintally.scoring.metrics import LabelledPredictions, evaluate
from common import ROOT, say

ROWS, FIGURES, PAGE, PLOT = (ROOT / "docs" / name for name in ("search.yaml", "search.json", "results.md", "bins.png"))
KEPT = ROOT / "exports/search"
START, END = "<!-- search.py: from here -->", "<!-- search.py: to here -->"
EXTRAPOLATED = 325_000
Figures = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", nargs="+", default=[], metavar="ROW", help="rows of docs/search.yaml")
    parser.add_argument("--again", action="store_true", help="also those that are in docs/search.json")
    parser.add_argument("--options", default="", help="for every run, such as '-S fetch.endpoint=...'")
    arguments = parser.parse_args()
    tables = yaml.safe_load(ROWS.read_text(encoding="utf-8"))
    rows = {row["name"]: row for table in tables for row in table["rows"]}
    figures: Figures = json.loads(FIGURES.read_text(encoding="utf-8")) if FIGURES.exists() else {}
    for name in arguments.run:
        if name not in rows:
            parser.error(f"--run: {ROWS} has no row '{name}'; take one of {', '.join(rows)}")
        row, seeds = rows[name], rows[name].get("seeds", [1])
        for seed in seeds:
            if arguments.again or str(seed) not in figures.get(name, {}):
                figures.setdefault(name, {})[str(seed)] = (
                    _together(rows[row["of"]]) if "of" in row else _run(row, seed, arguments.options)
                )
                write_json(FIGURES, dict(sorted(figures.items())))
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(START)
    written = "\n\n".join(_table(table, figures) for table in tables)
    write_text(PAGE, f"{before}{START}\n\n{written}\n\n{END}{rest.partition(END)[2]}")
    _draw([[*figures[name].values()] for name, row in rows.items() if "share" in row and name in figures])
    print(json.dumps({name: figures.get(name) for name in arguments.run or figures}, indent=2))


def command(row: Figures, seed: int) -> str:
    """What a person types for a row."""
    if "of" in row:
        return f"python benchmarks/search.py --run {row['of']} {row['name']}"
    own = [row["options"]] if row.get("options") else []
    of_seed = [f"-S train.seed={seed}"] if seed != 1 else []
    return " ".join(["dvc exp run", f"$(cat settings/{row['settings']})", *own, *of_seed])


def _run(row: Figures, seed: int, more: str) -> Figures:
    # Experiments start from the settings that lie there, and leave theirs.
    subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "params.yaml"], check=True, cwd=ROOT)
    line = command(row, seed)
    say(line)
    started = time.monotonic()
    try:
        # A shell, since the line is to work as it stands in the page.
        subprocess.run(f"{line} {more}", shell=True, check=True, cwd=ROOT)  # noqa: S602
    finally:
        subprocess.run(["git", "checkout", "--quiet", "--", "params.yaml"], check=True, cwd=ROOT)
    seconds = time.monotonic() - started
    folder = KEPT / f"{row['name']}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    for path in [*(ROOT / "models").iterdir(), ROOT / "data/predictions.csv"]:
        (folder / path.name).unlink(missing_ok=True)
        shutil.copyfile(path, folder / path.name)
    found = {name: json.loads((ROOT / f"metrics/{name}.json").read_text()) for name in ("validation", "test")}
    rules = found["test"]["decoding"]
    return {
        "seconds": round(seconds),
        "bins": round(
            row.get("share", 1.0) * sum(line["split"] == "train" for line in read_csv(ROOT / "data/splits.csv"))
        ),
        "decoding": rules,
        **{name: _of_rules(metrics, rules) for name, metrics in found.items()},
    }


def _together(row: Figures) -> Figures:
    """Of the mean of the probabilities that the models of all seeds of a row give, by the rules of the first."""
    runs = [json.loads(FIGURES.read_text(encoding="utf-8"))[row["name"]][str(seed)] for seed in row["seeds"]]
    tables = [read_csv(KEPT / f"{row['name']}-{seed}/predictions.csv") for seed in row["seeds"]]
    counts = [int(name[1:]) for name in tables[0][0] if name[0] == "p" and name[1:].isdecimal()]
    answers = np.array([[[float(line[f"p{count}"]) for count in counts] for line in table] for table in tables])
    truth, groups = np.array([int(line["count"]) for line in tables[0]]), [line["group"] for line in tables[0]]
    params = load_params(ROOT / "params.yaml").evaluate
    mean = answers.mean(0)
    scored = LabelledPredictions(mean / mean.sum(1, keepdims=True), truth, groups, counts)
    return {
        "seconds": sum(run["seconds"] for run in runs),
        "bins": runs[0]["bins"],
        "decoding": runs[0]["decoding"],
        "test": _of_rules(evaluate(scored, params.resamples, params.seed), runs[0]["decoding"]),
    }


def _of_rules(metrics: Figures, rules: dict[str, str]) -> Figures:
    return {
        "images": metrics["images"],
        "loss": metrics["loss"],
        "calibration_error": metrics["calibration_error"],
        "interval_95": {key: metrics["interval_95"][rules[key]][key] for key in rules},
        **{key: metrics[rules[key]][key] for key in rules},
    }


def _table(table: Figures, figures: Figures) -> str:
    lines = [
        f"### {table['title']}",
        "",
        "| row | what | validation: accuracy %, RMSE, loss | test: accuracy % | RMSE "
        "| calibration error | minutes | line |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in table["rows"]:
        runs = list(figures.get(row["name"], {}).values())
        line = f"`{command(row, 1)}`"
        what = f"{row['what']}{f', {len(runs)} seeds' if len(runs) > 1 else ''}"
        if not runs:
            lines.append(f"| {row['name']} | {what} | not run | | | | | {line} |")
            continue
        validation = "not kept"
        if "validation" in runs[0]:
            accuracy, rmse, loss = (_mean(runs, "validation", key) for key in ("accuracy", "rmse", "loss"))
            validation = f"{100 * accuracy:.1f}, {rmse:.3f}, {loss:.3f}"
        ends = {key: [_mean(runs, "test", "interval_95", key, end) for end in (0, 1)] for key in ("accuracy", "rmse")}
        lines.append(
            f"| {row['name']} | {what} | {validation} "
            f"| {100 * _mean(runs, 'test', 'accuracy'):.1f} ({100 * ends['accuracy'][0]:.1f}–"
            f"{100 * ends['accuracy'][1]:.1f}) "
            f"| {_mean(runs, 'test', 'rmse'):.3f} ({ends['rmse'][0]:.3f}–{ends['rmse'][1]:.3f}) "
            f"| {_mean(runs, 'test', 'calibration_error'):.3f} "
            f"| {sum(run['seconds'] for run in runs) / len(runs) / 60:.0f} | {line} |"
        )
    return "\n".join(lines)


def _mean(runs: list[Figures], *keys: Any) -> float:
    """Of what lies under ``keys`` in each run."""
    total = 0.0
    for run in runs:
        value: Any = run
        for key in keys:
            value = value[key]
        total += value
    return total / len(runs)


def _draw(rows: list[list[Figures]]) -> None:
    """Accuracy and RMSE against the number of training bins, and a line through them as far as EXTRAPOLATED."""
    if len(rows) < 2:
        return
    bins = np.array([runs[0]["bins"] for runs in rows])
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, key, label in zip(
        figure.subplots(1, 2), ("accuracy", "rmse"), ("accuracy", "RMSE in items"), strict=True
    ):
        values = np.array([_mean(runs, "test", key) for runs in rows])
        slope, start = np.polyfit(np.log2(bins), values, 1)
        far = np.array([bins.min(), EXTRAPOLATED])
        axes.plot(far, start + slope * np.log2(far), color=GREY, linestyle="--", label="extrapolated")
        ends = np.array([[_mean(runs, "test", "interval_95", key, end) for runs in rows] for end in (0, 1)])
        axes.errorbar(bins, values, np.abs(ends - values), fmt="o", color=ORANGE, label="measured, 95 %")
        axes.axhline(0.5567 if key == "accuracy" else 0.930, color=BLUE, label="ABID challenge, 324,735 bins")
        axes.set(xscale="log", xlabel="training bins", ylabel=label)
        axes.legend()
        say(f"{key}: {slope:+.4f} a doubling, {start + slope * np.log2(EXTRAPOLATED):.3f} at {EXTRAPOLATED}")
    save(figure, PLOT)


if __name__ == "__main__":
    main()
