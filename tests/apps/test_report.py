"""`bintally report`: a single file without any request, with the figures of this data."""

import json
import os
import re
import sys
from collections.abc import Callable
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

SPLITS = ["train", "train", "train", "validation", "test", "test", "test", "test"]  # the second group is in two splits


def write_outs(splits: list[str], comparable: bool = False, name: str | None = None, groups: int = 4) -> None:
    """Write the outs of the stages for eight bins, in as many groups, to the current folder.

    Args:
        name: of the one item in the record of every bin; None: as in the demo.
    """
    eight = [replace(one, count=n % 3 + 1, group=f"group{n * groups // 8}") for n, one in enumerate(bins()[:8])]
    if name:
        record = {"BIN_FCSKU_DATA": {"A": {"name": name, "quantity": 1}, "B": {"name": "none", "quantity": 0}}}
        eight = [replace(one, record=json.dumps(record).encode()) for one in eight]
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
    data = "4 test bins of this run"
    table = [
        {"name": "<script>model", "data": data, "accuracy": 0.75, "rmse": 0.5, "accuracy_interval": [0.5, 1.0]},
        {"name": "always 1", "data": data, "accuracy": 0.25, "rmse": 1.118},
        {"name": "of another project", "data": "other bins", "accuracy": 0.99},
    ]
    write_json(paths.BENCHMARK, {"comparable": comparable, "rows": table})


def run_report(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(sys, "argv", ["bintally", "report", "--to", "page.html"])
    cli.main()
    return Path("page.html").read_text(encoding="utf-8")


def test_the_page_contains_every_figure_and_requests_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_outs(SPLITS)
    page = run_report(monkeypatch)
    images = re.findall(r'<figure><img src="data:image/png;base64,[\w+/=]+" alt="[^"]+"><figcaption>[^<]+<', page)
    assert len(images) == page.count("data:image/png") == page.count("<h2>") - 2 == 11
    assert "://" not in page and "<script" not in page and "nan" not in re.sub('base64,[^"]*', "", page)
    assert "8 rendered demo bins: these figures say nothing about real ones." in page
    assert "&lt;script&gt;model</td><td>4 test bins of this run</td><td>75.0 (50.0–100.0)</td>" in page
    assert "of another project" not in page
    assert "Photographs of the same bin are a group; of 4 groups, 1 are in two splits." in page
    assert "4 bins were photographed more than once" in page


def test_doubted_records_are_cards_with_the_least_likely_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_outs(SPLITS)
    cards = re.findall(r"<article>.*?</article>", run_report(monkeypatch), re.DOTALL)
    ids = [one.id for one in bins()[4:8]]
    shown = [
        re.search(r"<b>(\w+)</b>: record (\d), model (\d), set 1–3, P\(record\) ([\d.]+)%", card) for card in cards
    ]
    assert [found and found.groups() for found in shown] == [
        (ids[2], "1", "2", "10.0"),
        (ids[3], "2", "2", "40.0"),
        (ids[0], "2", "2", "70.0"),
        (ids[1], "3", "3", "80.0"),
    ]
    assert all(
        card.count('<img src="data:image/jpeg;base64,') == card.count('class="bars record"') == 1 for card in cards
    )
    assert all(" × " in card for card in cards)


def test_real_bins_are_not_called_demo_bins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_outs(SPLITS, comparable=True)
    assert load_collection().description() == "8 bins."


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (paths.BENCHMARK, "metrics/benchmark.json does not exist; run `dvc repro`"),
        (paths.PREDICTIONS, "data/predictions.csv does not exist; run `dvc repro`"),
    ],
)
def test_a_missing_out_is_named_with_the_command_that_makes_it(
    path: Path, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_outs(SPLITS)
    path.unlink()
    with pytest.raises(SystemExit):
        run_report(monkeypatch)
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error and not Path("page.html").exists()


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda: change(paths.SPLITS, f"{bins()[7].id},", "other,"), "splits.csv has other bins than data/bins"),
        (lambda: change(paths.SPLITS, ",test", ",train"), "predictions.csv has other test bins than data/splits.csv"),
        (lambda: change(paths.PREDICTIONS, ",group3,", ",group3,1"), "predictions.csv has other test bins than"),
        (lambda: change(paths.TEST_METRICS, '"accuracy": 0.75', '"accuracy": 0.5'), "is not of data/predictions.csv"),
        (lambda: change(paths.TEST_METRICS, "{", "["), "is damaged or of another version ("),
        (lambda: change(paths.TEST_METRICS, '"most_probable"', '"mode"'), "is damaged or of another version ("),
        (lambda: change(paths.BENCHMARK, '"data"', '"bins"'), "is damaged or of another version ("),
        (lambda: change(paths.PREDICTIONS, ",p1,", ",q1,"), "predictions.csv has other test bins than"),
        (lambda: paths.PREDICTIONS.write_text("id,count\n"), "is damaged or of another version ("),
        (lambda: (paths.BINS / "bins-00000.tar").unlink(), "data/bins/bins-00000.tar"),
        (lambda: os.truncate(paths.BINS / "bins-00000.tar", 5000), "data/bins/bins-00000.tar"),
    ],
)
def test_outs_that_do_not_belong_together_are_refused_in_one_sentence(
    spoil: Callable[[], object],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_outs(SPLITS)
    Path("page.html").write_text("earlier")
    spoil()
    with pytest.raises(SystemExit):
        run_report(monkeypatch)
    error = capsys.readouterr().err.splitlines()
    assert message in error[-1] and "dvc" in error[-1] and "Traceback" not in error
    assert Path("page.html").read_text() == "earlier"


def test_names_of_items_stay_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_outs(SPLITS, name="</ul><script>\ud83d\x1b\u202e" + "n" * 100_000)
    page = run_report(monkeypatch)
    assert r"<li>1 × &lt;/ul&gt;&lt;script&gt;\ud83d\x1b\u202enn" in page and "n" * 121 not in page
    assert "<script" not in page and "default-src 'none'" in page


def test_bins_photographed_once_without_weights_have_no_figures_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_outs(SPLITS, name="lamp", groups=8)
    page = re.sub('base64,[^"]*', "", run_report(monkeypatch))
    assert "Median weight unknown, median longest side unknown" in page
    assert "Photographs of the same bin</h2>" not in page and "nan" not in page


def test_a_page_that_cannot_be_written_is_said_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("page.html").mkdir()
    with pytest.raises(SystemExit):
        run_report(monkeypatch)
    assert "'page.html' cannot be written (it is a folder)" in capsys.readouterr().err
