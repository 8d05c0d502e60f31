"""`bintally errors`: the page shows the bins the model finds least likely, and nothing of a record runs in it."""

import base64
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bintally import cli
from bintally.bins.shards import write_shards
from bintally.files import write_csv
from bintally.stages import paths
from small import bins


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["bintally", "errors", *arguments])
    cli.main()


def test_the_least_likely_records_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    record = {"BIN_FCSKU_DATA": {"A": {"name": "<script>x</script>", "quantity": 2}}, "EXPECTED_QUANTITY": 2}
    three = [replace(one, record=json.dumps(record).encode()) for one in bins()[:3]]
    write_shards(paths.BINS, three)
    header = ["id", "group", "count", "most_probable", "rounded_mean", "median", "low", "high", "unsure", "p1", "p2"]
    rows = [[one.id, one.id, 2, 1, 1, 1, 1, 2, 0, 1 - p, p] for one, p in zip(three, (0.4, 0.1, 0.3), strict=True)]
    write_csv(paths.PREDICTIONS, header, rows)
    run(monkeypatch, "--to", "page.html", "--number", "2")
    page = Path("page.html").read_text(encoding="utf-8")
    assert re.findall(r"<b>(\w+)</b>", page) == [three[1].id, three[2].id]
    assert base64.b64encode(three[1].image).decode() in page and base64.b64encode(three[0].image).decode() not in page
    assert "P(record) 10.0%" in page and "2 × &lt;script&gt;" in page and "<script" not in page


def test_without_predictions_one_line_says_what_makes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch)
    said = capsys.readouterr().err
    assert caught.value.code == 1 and said.count("\n") == 1 and "data/predictions.csv is not there: `dvc repro`" in said
