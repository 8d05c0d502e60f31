"""`bintally predict`: what the model says of each photograph, once, whatever is missing, broken or interrupted."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from bintally import cli, paths
from bintally.apps.predict import PART
from bintally.bins.shards import write_shards
from bintally.files import SCRATCH, read_csv
from bintally.inference.predictor import Predictor
from bintally.model.card import save_model
from bintally.scoring.calibration import answer, save_calibration
from ready import IN_ANOTHER_PROCESS, by_pytorch
from small import CALIBRATION, CARD, bins, counter

PARTS = 3


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with bins and a model, to work in."""
    monkeypatch.chdir(tmp_path)
    by_pytorch(monkeypatch)
    write_shards(paths.BINS, bins())
    save_model(paths.MODELS, counter(), CARD)
    save_calibration(paths.MODELS, CALIBRATION)
    return tmp_path


@pytest.fixture
def album(project: Path) -> Path:
    """A folder of photographs of several parts, one of which is cut short."""
    folder = project / "album"
    folder.mkdir()
    for number in range((PARTS - 1) * PART + 100):
        one = folder / f"{number:05}.jpg"
        original = folder / f"{number % len(bins()):05}.jpg"
        if number < len(bins()):
            one.write_bytes(bins()[number].image)
        else:
            one.hardlink_to(original)
    (folder / "00300.jpg").unlink()
    (folder / "00300.jpg").write_bytes(bins()[0].image[:900])
    return folder


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["bintally", "predict", *arguments])
    cli.main()


def test_it_says_what_the_predictor_says_in_both_formats(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "--to", "out/said.csv")
    run(monkeypatch, "data", "--to", "out/said.parquet")
    assert f"out/said.csv: {len(bins())} photographs of data/bins" in capsys.readouterr().out
    expected = Predictor(counter(), CARD, CALIBRATION)([one.image for one in bins()])
    answers = answer(expected, CALIBRATION)
    table = pq.read_table("out/said.parquet")
    with Path("out/said.csv").open(encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == table.column_names
    assert header == ["id", "most_probable", "rounded_mean", "median", "low", "high", "unsure", "p2", "p3", "p5"]
    probabilities = np.stack([table.column(name).to_numpy() for name in ("p2", "p3", "p5")], 1)
    np.testing.assert_array_equal(probabilities, expected)
    assert table.column("most_probable").to_pylist() == answers.decoded["most_probable"].tolist()
    assert table.column("unsure").to_pylist() == answers.unsure.tolist()
    of_parquet = [
        [str(int(value)) if isinstance(value, bool) else f"{value:.8g}" if isinstance(value, float) else str(value)]
        for row in table.to_pylist()
        for value in row.values()
    ]
    assert [[value] for row in rows for value in row] == of_parquet
    assert [row[0] for row in rows] == [one.id for one in bins()]
    assert list((SCRATCH / "predict").iterdir()) == [SCRATCH / "predict/lock"]


def test_what_is_missing_or_broken_is_told_apart_and_stops_nothing(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("good.jpg").write_bytes(bins()[0].image)
    Path("bad.png").write_bytes(b"garbage")
    Path("list.txt").write_text("none.jpg\ngood.jpg\nbad.png\n")
    run(monkeypatch, "list.txt", "--to", "said.csv")
    assert [row["id"] for row in read_csv(Path("said.csv"))] == ["good.jpg"]
    assert read_csv(Path("said-rejected.csv")) == [
        {"id": "none.jpg", "reason": "No such file or directory"},
        {"id": "bad.png", "reason": "an image of 7 bytes does not decode: it is neither JPEG nor PNG"},
    ]
    assert "said-rejected.csv: 2 that could not be scored" in capsys.readouterr().out
    Path("ids.txt").write_text(f"99\n{bins()[2].id}\n")
    run(monkeypatch, "--ids", "ids.txt", "--to", "said.csv")
    assert [row["id"] for row in read_csv(Path("said.csv"))] == [bins()[2].id]
    assert read_csv(Path("said-rejected.csv")) == [{"id": "99", "reason": "no such bin in data/bins"}]
    Path("ids.txt").write_text("99\n")
    for name in ("said.csv", "said.parquet"):
        run(monkeypatch, "--ids", "ids.txt", "--to", name)
    assert read_csv(Path("said.csv")) == [] and pq.read_table("said.parquet").num_rows == 0


def test_one_that_is_killed_goes_on_and_ends_with_the_same_bytes(
    album: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """While it lives, another of the same ends with a sentence."""
    run(monkeypatch, "album", "--to", "whole.csv")
    command = [*IN_ANOTHER_PROCESS, "predict", "album", "--to", "killed.csv"]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    killed = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        while not list(SCRATCH.glob("predict/*/000000000.parquet")):
            assert killed.poll() is None, killed.stdout and killed.stdout.read()
            time.sleep(0.02)
        with pytest.raises(SystemExit):
            run(monkeypatch, "album", "--to", "second.csv")
        assert "album is being scored by another process already: wait for it, or end it" in capsys.readouterr().err
        assert killed.poll() is None
    finally:
        os.kill(killed.pid, signal.SIGKILL)
        killed.communicate()
    assert not Path("killed.csv").exists()
    assert len(list(SCRATCH.glob("predict/*/*.parquet"))) < PARTS
    with caplog.at_level("INFO", "bintally"):
        run(monkeypatch, "album", "--to", "killed.csv")
    assert "predict: going on after " in caplog.text
    for name in ("{}.csv", "{}-rejected.csv"):
        assert Path(name.format("killed")).read_bytes() == Path(name.format("whole")).read_bytes()
    assert [row["id"] for row in read_csv(Path("whole-rejected.csv"))] == ["00300.jpg"]
    assert len(read_csv(Path("whole.csv"))) == (PARTS - 1) * PART + 99


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--to", "said.txt"], "--to: 'said.txt' must end in .csv or .parquet"),
        (["--to", "params.yaml/said.csv"], "--to: cannot write to params.yaml"),
        (["--to", "said.csv", "--model", "other"], "other/model.safetensors is not there: `dvc repro` makes it"),
        (["s3://bucket", "--to", "said.csv", "--endpoint", "nowhere"], "'nowhere' must be of the form http://host"),
        (["nowhere", "--to", "said.csv"], "'nowhere' is neither data, demo"),
    ],
)
def test_what_cannot_be_is_one_line(
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    Path("params.yaml").write_bytes((Path(__file__).parents[2] / "params.yaml").read_bytes())
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, *arguments)
    err = capsys.readouterr().err
    assert caught.value.code == 1 and err.count("\n") == 1 and said in err
