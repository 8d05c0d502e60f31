"""`bintally report`: one page that asks nothing of the network, with the figures of this data."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bintally import cli, paths
from bintally.apps.collection import load_collection
from bintally.bins.shards import write_shards
from bintally.files import write_csv, write_json
from bintally.scoring.metrics import LabelledPredictions, evaluate
from small import bins

SPLITS = ["train", "train", "train", "validation", "test", "test", "test", "test"]  # the second group is in two


def write_outs(splits: list[str], comparable: bool = False) -> None:
    """In the current folder, what the stages would write of eight bins, of which each two are one group."""
    eight = [replace(one, count=at % 3 + 1, group=f"group{at // 2}") for at, one in enumerate(bins()[:8])]
    write_shards(paths.BINS, eight)
    rows = [(one.id, one.count, one.group, split) for one, split in zip(eight, splits, strict=True)]
    write_csv(paths.SPLITS, ["id", "count", "group", "split"], rows)
    test = eight[4:]
    probabilities = np.array([[0.2, 0.7, 0.1], [0.05, 0.15, 0.8], [0.1, 0.6, 0.3], [0.3, 0.4, 0.3]])
    scored = LabelledPredictions(
        probabilities, np.array([one.count for one in test]), [one.group for one in test], [1, 2, 3]
    )
    header = ["id", "group", "count", "most_probable", "rounded_mean", "median", "low", "high", "unsure"]
    answers = probabilities.argmax(1) + 1
    write_csv(
        paths.PREDICTIONS,
        [*header, "p1", "p2", "p3"],
        [
            (one.id, one.group, one.count, answer, answer, answer, 1, 3, 0, *row)
            for one, answer, row in zip(test, answers, probabilities, strict=True)
        ],
    )
    rules = {"accuracy": "most_probable", "rmse": "rounded_mean"}
    write_json(paths.TEST_METRICS, {"decoding": rules, **evaluate(scored, resamples=10, seed=1)})
    here = "4 test bins of this run"
    table = [
        {"name": "<script>model", "data": here, "accuracy": 0.75, "rmse": 0.5, "accuracy_interval": [0.5, 1.0]},
        {"name": "always 1", "data": here, "accuracy": 0.25, "rmse": 1.118},
        {"name": "of others", "data": "other bins", "accuracy": 0.99},
    ]
    write_json(paths.BENCHMARK, {"comparable": comparable, "rows": table})


def report(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(sys, "argv", ["bintally", "report", "--to", "page.html"])
    cli.main()
    return Path("page.html").read_text(encoding="utf-8")


def test_the_page_has_every_figure_within_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_outs(SPLITS)
    page = report(monkeypatch)
    pictures = re.findall(r'<figure><img src="data:image/png;base64,[\w+/=]+" alt="[^"]+"><figcaption>[^<]+<', page)
    assert len(pictures) == page.count("<img") == page.count("<h2>") - 1 == 12
    assert "://" not in page and "<script" not in page and "nan" not in re.sub('base64,[^"]*', "", page)
    assert "8 rendered demo bins: what is shown says nothing about real ones." in page
    assert "&lt;script&gt;model</td><td>4 test bins of this run</td><td>75.0 (50.0–100.0)</td>" in page
    assert "of others" not in page
    assert "Photographs of one bin are a group: there are 4, of which 1 are in two splits." in page
    assert "4 bins were photographed more than once" in page


def test_real_bins_are_not_called_demo_bins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_outs(SPLITS, comparable=True)
    assert load_collection().about() == "8 bins."


@pytest.mark.parametrize(
    ("path", "says"),
    [
        (paths.BENCHMARK, "metrics/benchmark.json is not there: `dvc repro` makes it"),
        (paths.PREDICTIONS, "data/predictions.csv is not there: `dvc repro` makes it"),
    ],
)
def test_what_is_missing_is_named_with_what_makes_it(
    path: Path, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_outs(SPLITS)
    path.unlink()
    with pytest.raises(SystemExit):
        report(monkeypatch)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and says in said and not Path("page.html").exists()


def test_outs_of_other_bins_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_outs(SPLITS)
    lines = paths.SPLITS.read_text(encoding="utf-8").splitlines(keepends=True)
    paths.SPLITS.write_text("".join(lines[:-1]), encoding="utf-8")
    with pytest.raises(SystemExit):
        report(monkeypatch)
    assert "has other bins than data/bins: `dvc repro` mends that" in capsys.readouterr().err
