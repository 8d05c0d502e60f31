"""`bintally predict`: a prediction for each photograph, in spite of missing or broken files and interruptions."""

import csv
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pyarrow.parquet as pq
import pytest
from torch.onnx.errors import OnnxExporterError

from bintally import cli, paths
from bintally.apps import predictions, scores
from bintally.apps.scores import PART
from bintally.bins.objects import image_key, record_key
from bintally.bins.products import listed_products, product_arrays
from bintally.bins.shards import write_shards
from bintally.files import SCRATCH, read_csv
from bintally.inference import runtime
from bintally.inference.predictor import Predictor
from bintally.model.encoding import BATCH
from bintally.scoring.calibration import model_name, predict_counts
from bintally.scoring.judgement import judge
from bintally.scoring.lists import Lists
from bintally.scoring.record_model import save_record_model
from s3_stub import Answer, Request, error, stub_server
from small import CALIBRATION, CARD, bins, counting_network
from small_records import older_network, older_record_model, record_model, record_text, save_older_model, saw

PARTS = 3
ROOT = Path(__file__).parents[2]


COMMAND = [sys.executable, "-c", "from bintally.cli import main; main()", "predict"]


@pytest.fixture
def project(model_workspace: Path) -> Path:
    """A folder with bins and a model, to work in."""
    write_shards(paths.BINS, bins())
    return model_workspace


@pytest.fixture
def album(project: Path) -> Path:
    """A folder of photographs for several parts, one of them a truncated file."""
    folder = project / "album"
    folder.mkdir()
    for number in range((PARTS - 1) * PART + 100):
        path = folder / f"{number:05}.jpg"
        original = folder / f"{number % len(bins()):05}.jpg"
        if number < len(bins()):
            path.write_bytes(bins()[number].image)
        else:
            path.hardlink_to(original)
    (folder / "00300.jpg").unlink()
    (folder / "00300.jpg").write_bytes(bins()[0].image[:900])
    return folder


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["bintally", "predict", *arguments])
    cli.main()


def test_both_formats_have_the_predictors_probabilities(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "--to", "out/predicted.csv")
    run(monkeypatch, "data", "--to", "out/predicted.parquet")
    assert f"out/predicted.csv: {len(bins())} photographs of data/bins" in capsys.readouterr().out
    expected = Predictor(counting_network(), CARD, CALIBRATION)([one.image for one in bins()])
    predicted = predict_counts(expected, CALIBRATION)
    table = pq.read_table("out/predicted.parquet")
    with Path("out/predicted.csv").open(encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == table.column_names
    assert header == [*OF_PHOTOGRAPH, "distance_rank", "model"]
    expected_ranks = saw([one.image for one in bins()]).distance_ranks
    np.testing.assert_allclose(table.column("distance_rank").to_numpy(), expected_ranks, atol=1e-4)
    assert expected_ranks.std() > 0.1
    probabilities = np.stack([table.column(name).to_numpy() for name in ("p2", "p3", "p5")], 1)
    np.testing.assert_array_equal(probabilities, expected)
    assert set(table.column("model").to_pylist()) == {model_name(paths.MODELS)}
    assert table.column("most_probable").to_pylist() == predicted.by_rule["most_probable"].tolist()
    assert table.column("unsure").to_pylist() == predicted.unsure.tolist()
    of_parquet = [
        [str(int(value)) if isinstance(value, bool) else f"{value:.8g}" if isinstance(value, float) else str(value)]
        for row in table.to_pylist()
        for value in row.values()
    ]
    assert [[value] for row in rows for value in row] == of_parquet
    assert [row[0] for row in rows] == [one.id for one in bins()]
    assert list((SCRATCH / "predict").iterdir()) == [SCRATCH / "predict/lock"]


OF_PHOTOGRAPH = ["id", "most_probable", "rounded_mean", "median", "low", "high", "unsure", "p2", "p3", "p5"]
OF_RECORD = ["record", *(f"given_products_{name}" for name in OF_PHOTOGRAPH[1:])]
OF_JUDGEMENT = ["error_probability", "likely_count", "verdict"]


def write_layout(folder: Path, records: dict[str, bytes]) -> None:
    """The bins as a folder laid out like the bucket, with these records in place of theirs; empty: none."""
    for one in bins():
        record = records.get(one.id, one.record)
        for key, body in ((image_key(one.id), one.image), (record_key(one.id), record)):
            path = folder / key
            path.parent.mkdir(parents=True, exist_ok=True)
            if body:
                path.write_bytes(body)


def test_records_add_columns_and_leave_the_photographs_own_as_they_are(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_record_model(paths.MODELS, record_model())
    monkeypatch.setattr(scores, "PART", BATCH["cpu"])  # several parts
    garbage, missing, of_four, *rest = [one.id for one in bins()]
    records = {garbage: b"garbage", missing: b"", of_four: record_text(A=2, B=2).encode()}
    records |= {one: record_text(A=1, B=1 + n % 2).encode() for n, one in enumerate(rest)}
    write_layout(Path("layout"), records)
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    Path("ids.txt").write_text("\n".join(one.id for one in bins()))
    run(monkeypatch, "layout", "--ids", "ids.txt", "--to", "alone.csv")
    capsys.readouterr()
    for name in ("predicted.csv", "predicted.parquet"):
        run(monkeypatch, "layout", "--ids", "ids.txt", "--to", name, "--records")
        out = capsys.readouterr().out
        assert f"{name}: {len(bins())} photographs of layout\n" in out
        assert "predicted-rejected.csv: 0 that could not be scored, 2 that have no usable record" in out
        assert "1 records not judged: the model does not predict their numbers of items" in out
        rejected = [
            {"id": garbage, "reason": "record: is not JSON"},
            {"id": missing, "reason": "record: it is missing"},
        ]
        assert read_csv(Path("predicted-rejected.csv")) == rejected

    rows = read_csv(Path("predicted.csv"))
    assert [*rows[0]] == [*OF_PHOTOGRAPH, "distance_rank", "model", *OF_RECORD, *OF_JUDGEMENT]
    of_both = (*OF_PHOTOGRAPH, "distance_rank", "model")
    assert [{name: row[name] for name in of_both} for row in rows] == read_csv(Path("alone.csv"))
    by_id = {row["id"]: row for row in rows}
    for bin_id, empty in (
        (garbage, OF_RECORD + OF_JUDGEMENT),
        (missing, OF_RECORD + OF_JUDGEMENT),
        (of_four, OF_JUDGEMENT),
    ):
        assert {name for name, value in by_id[bin_id].items() if not value} == set(empty)
    assert by_id[of_four]["record"] == "4"

    model, table = record_model(), pq.read_table("predicted.parquet").to_pylist()
    lists = Lists(*product_arrays([listed_products(records[one]) for one in rest]))
    by_row = {row["id"]: row for row in table}
    probabilities = np.array([[by_row[one][name] for name in ("p2", "p3", "p5")] for one in rest])
    judged = judge(model, probabilities, lists, CALIBRATION.record_error_rate)
    np.testing.assert_allclose([by_row[one]["error_probability"] for one in rest], judged.error, atol=1e-9)
    tables = saw([one.image for one in bins()[-len(rest) :]]).tables
    given = model.count_given_products(probabilities, tables, lists)
    swapped = model.count_given_products(probabilities, np.roll(tables, 1, 0), lists)
    found = np.array([[by_row[one][f"given_products_{name}"] for name in ("p2", "p3", "p5")] for one in rest])
    np.testing.assert_allclose(found, given, atol=1e-4)
    assert np.abs(found - swapped).max(1).min() > 0.01, "else equality would show nothing"
    answers = predict_counts(found, model.answers)
    assert [by_row[one]["given_products_low"] for one in rest] == answers.low.tolist()
    assert [by_row[one]["given_products_unsure"] for one in rest] == answers.unsure.tolist()
    assert all(by_row[one]["verdict"].startswith("probably ") for one in rest)
    assert by_row[garbage]["verdict"] is None and by_row[garbage]["record"] is None


def test_an_older_model_reads_records_without_evidence_and_beside_parts_without_photographs(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_older_model(paths.MODELS)
    monkeypatch.setattr(runtime, "trace", Mock(side_effect=OnnxExporterError("this would take a while")))
    monkeypatch.setattr(scores, "PART", BATCH["cpu"])
    part, rest = bins()[: BATCH["cpu"]], bins()[BATCH["cpu"] :]
    write_shards(paths.BINS, [*(replace(one, image=b"garbage") for one in part), *rest])
    run(monkeypatch, "--records", "--to", "predicted.parquet")
    table = pq.read_table("predicted.parquet").to_pylist()
    assert [row["id"] for row in table] == [one.id for one in rest]
    assert all(row["distance_rank"] is None for row in table)
    lists = Lists(*product_arrays([listed_products(one.record) for one in rest]))
    expected = saw([one.image for one in rest], older_network())
    assert expected.tables.size == 0
    given = older_record_model().count_given_products(expected.probabilities, expected.tables, lists)
    found = [[row[f"given_products_{name}"] for name in ("p2", "p3", "p5")] for row in table]
    np.testing.assert_allclose(found, given, atol=1e-4)


def test_missing_and_broken_files_are_rejected_with_the_reason(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("good.jpg").write_bytes(bins()[0].image)
    Path("bad.png").write_bytes(b"garbage")
    Path("list.txt").write_text("none.jpg\ngood.jpg\nbad.png\n")
    run(monkeypatch, "list.txt", "--to", "predicted.csv")
    assert [row["id"] for row in read_csv(Path("predicted.csv"))] == ["good.jpg"]
    assert read_csv(Path("predicted-rejected.csv")) == [
        {"id": "none.jpg", "reason": "No such file or directory"},
        {"id": "bad.png", "reason": "image does not decode: it is neither JPEG, PNG, WebP, TIFF nor AVIF"},
    ]
    assert "predicted-rejected.csv: 2 that could not be scored" in capsys.readouterr().out
    Path("ids.txt").write_text(f"99\n{bins()[2].id}\n")
    run(monkeypatch, "--ids", "ids.txt", "--to", "predicted.csv")
    assert [row["id"] for row in read_csv(Path("predicted.csv"))] == [bins()[2].id]
    assert read_csv(Path("predicted-rejected.csv")) == [{"id": "99", "reason": "no such bin in data/bins"}]
    Path("ids.txt").write_text("99\n")
    for name in ("predicted.csv", "predicted.parquet"):
        run(monkeypatch, "--ids", "ids.txt", "--to", name)
    assert read_csv(Path("predicted.csv")) == [] and pq.read_table("predicted.parquet").num_rows == 0


def test_odd_names_and_odd_files_do_not_stop_the_others(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No formula starts a cell of a CSV, and no name that is not UTF-8 ends the run."""
    source = Path(os.fsdecode(b"caf\xe9"))
    source.mkdir()
    for name in ("=1+1.jpg", "@x.jpg", "棚\u3000一.jpg", "a\nb.jpg", os.fsdecode(b"\xff.jpg")):
        (source / name).write_bytes(bins()[0].image)
    for name in ("-empty.jpg", "garbage\x1b[31m.png"):
        (source / name).write_bytes(b"" if "empty" in name else b"garbage")
    os.mkfifo(source / "pipe.jpg")
    run(monkeypatch, str(source), "--to", "predicted.csv")
    out = capsys.readouterr().out
    assert "predicted.csv: 5 photographs of caf\\udce9\n" in out
    assert [row["id"] for row in read_csv(Path("predicted.csv"))] == [
        "'=1+1.jpg",
        "'@x.jpg",
        "a\\nb.jpg",
        "棚\u3000一.jpg",
        "\\xff.jpg",
    ]
    rejected = {row["id"]: row["reason"] for row in read_csv(Path("predicted-rejected.csv"))}
    assert rejected.keys() == {"'-empty.jpg", "garbage\\x1b[31m.png", "pipe.jpg"}
    assert rejected["pipe.jpg"] == "it is not a regular file"
    run(monkeypatch, str(source), "--to", "predicted.parquet")
    assert pq.read_table("predicted.parquet")["id"].to_pylist()[:2] == ["=1+1.jpg", "@x.jpg"]


def test_a_rejected_photograph_of_a_table_is_found_again(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    Path("stock").mkdir()
    Path("stock/good.jpg").write_bytes(bins()[0].image)
    Path("stock/货架三.jpg").write_bytes(b"nothing")
    Path("stock/list.csv").write_text("photograph,count\ngood.jpg,1\n货架三.jpg,2\nnone.jpg,1\n")
    run(monkeypatch, "stock/list.csv", "--to", "predicted.csv")
    reasons = [row["reason"] for row in read_csv(Path("predicted-rejected.csv"))]
    assert reasons[0].endswith(": 货架三.jpg") and reasons[1] == "it is missing: row 4 names 'none.jpg'"


def test_scoring_asks_nobody_and_leaves_nothing_in_the_home_folder(project: Path) -> None:
    """What goes to another machine would go to a proxy that refuses it."""
    home, asked = project / "home", []
    home.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        proxy.settimeout(0.2)
        address = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        names = [f"{scheme}_proxy" for scheme in ("http", "https", "all")]
        proxies = {name: address for lower in names for name in (lower, lower.upper())}
        without = {"ORT_DISABLE_TELEMETRY", "CI", "XDG_CACHE_HOME"}
        environment = {name: value for name, value in os.environ.items() if name not in without}
        command = [*COMMAND, "--to", "predicted.csv"]
        process = subprocess.Popen(command, env=environment | proxies | {"HOME": str(home)})
        while process.poll() is None:
            try:
                connection, peer = proxy.accept()
            except TimeoutError:
                continue
            connection.close()
            asked.append(peer)
    assert process.returncode == 0 and Path("predicted.csv").is_file()
    assert not asked
    assert not [path for path in home.rglob("*") if path.is_file()]


def test_what_could_not_be_read_is_read_again_and_nothing_else(
    project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(scores, "PART", BATCH["cpu"])
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    ids = [one.id for one in bins()]
    images = {image_key(one.id): one.image for one in bins()} | {image_key(ids[-1]): b"garbage"}
    denied = image_key(ids[0])  # of the first part, while the second one is complete
    Path("ids.txt").write_text("\n".join(ids))

    def answer(request: Request) -> Answer:
        return error(403, "AccessDenied") if request.key == denied else Answer(images[request.key])

    with stub_server(answer) as stub:
        arguments = ["s3://b", "--endpoint", stub.endpoint, "--ids", "ids.txt", "--to", "predicted.csv"]
        with monkeypatch.context() as killed, pytest.raises(SystemExit):
            # After all parts are written.
            killed.setattr(predictions, "write_predictions", Mock(side_effect=KeyboardInterrupt))
            run(monkeypatch, *arguments)
        denied = ""
        stub.requests.clear()
        with caplog.at_level("INFO", "bintally"):
            run(monkeypatch, *arguments)
    assert {request.key for request in stub.requests} == {image_key(one) for one in ids[: BATCH["cpu"]]}
    assert f"predict: continuing after {len(ids) - BATCH['cpu']} of {len(ids)}" in caplog.text
    assert [row["id"] for row in read_csv(Path("predicted.csv"))] == ids[:-1]
    assert [row["id"] for row in read_csv(Path("predicted-rejected.csv"))] == ids[-1:]


def test_a_damaged_part_of_an_interrupted_run_is_a_user_error(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as broken, pytest.raises(ZeroDivisionError):
        broken.setattr(predictions, "write_predictions", lambda *_: 1 / 0)  # after all parts are written
        run(monkeypatch, "--to", "predicted.csv")
    (part,) = SCRATCH.glob("predict/*/*.parquet")
    part.write_bytes(part.read_bytes()[:-20])
    capsys.readouterr()
    with pytest.raises(SystemExit):
        run(monkeypatch, "--to", "predicted.csv")
    assert f"bintally: {part} is damaged: remove {part.parent} and run it again\n" in capsys.readouterr().err


def test_a_run_that_is_killed_continues_and_ends_with_the_same_bytes(
    album: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Until then, a second run of the same is refused."""
    run(monkeypatch, "album", "--to", "whole.csv")
    command = [*COMMAND, "album", "--to", "killed.csv"]
    killed = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        while not list(SCRATCH.glob("predict/*/000000000.parquet")):
            assert killed.poll() is None, killed.stdout and killed.stdout.read()
            time.sleep(0.02)
        with pytest.raises(SystemExit):
            run(monkeypatch, "album", "--to", "second.csv")
        assert "another process is scoring album: wait for it, or end it first" in capsys.readouterr().err
        assert killed.poll() is None
    finally:
        os.kill(killed.pid, signal.SIGKILL)
        killed.communicate()
    assert not Path("killed.csv").exists()
    assert 1 <= len(list(SCRATCH.glob("predict/*/*.parquet"))) < PARTS
    for moment in (0.5, 1.5):  # while it loads, at the latest
        again = subprocess.Popen(command)
        time.sleep(moment)
        again.kill()
        again.wait()
    with caplog.at_level("INFO", "bintally"):
        run(monkeypatch, "album", "--to", "killed.csv")
    assert "predict: continuing after " in caplog.text
    for name in ("{}.csv", "{}-rejected.csv"):
        assert Path(name.format("killed")).read_bytes() == Path(name.format("whole")).read_bytes()
    assert [row["id"] for row in read_csv(Path("whole-rejected.csv"))] == ["00300.jpg"]
    assert len(read_csv(Path("whole.csv"))) == (PARTS - 1) * PART + 99


def test_parts_are_one_dataset_with_the_rows_of_one_run(
    album: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "album", "--to", "whole.parquet")
    capsys.readouterr()
    order = [4, 1, 3, 5, 2]
    for number in order[:-1]:
        run(monkeypatch, "album", "--to", "parts", "--part", f"{number}/5")
    assert "parts: 4 of 5 parts; missing: 2\n" in capsys.readouterr().out
    run(monkeypatch, "album", "--to", "parts", "--part", "2/5")  # one of the five is empty: there are three files
    assert capsys.readouterr().out.endswith("parts: complete, 5 parts\n")
    assert pq.read_table("parts").equals(pq.read_table("whole.parquet"))
    rejected = [row for file in sorted(Path("parts").glob("_rejected-*.csv")) for row in read_csv(file)]
    assert rejected == read_csv(Path("whole-rejected.csv"))
    (album / "00700.jpg").hardlink_to(album / "00000.jpg")
    run(monkeypatch, "album", "--to", "parts", "--part", "5/5")
    others = "of another model or source, or damaged: 1, 2, 3, 4"
    assert capsys.readouterr().out.endswith(f"parts: 1 of 5 parts; {others}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "parts", "--part", "0/4"], "--part: '0/4' must be K/N, such as 3/16, with K from 1 to N"),
        (["--to", "parts", "--part", "5/4"], "--part: '5/4' must be K/N"),
        (["--to", "parts.parquet", "--part", "1/4"], "must be the name of a folder with --part, not of a file"),
        (["--to", "seven", "--part", "1/4"], "seven holds part-1-of-7.parquet, which is not one of 4 parts; take"),
        (["stock.xlsx", "--to", "predicted.csv"], "'stock.xlsx' is a spreadsheet: save it as CSV and give that"),
        (["--to", "predicted.txt"], "--to: 'predicted.txt' must end in .csv or .parquet"),
        (["--to", "params.yaml/predicted.csv"], "'params.yaml/predicted.csv' cannot be written (file exists): give a"),
        (["--to", "models"], "--to: 'models' must end in .csv or .parquet"),
        (["--to", "folder.csv"], "'folder.csv' cannot be written (it is a folder): give the name of a file"),
        (["--to", "other.csv"], "'other-rejected.csv' cannot be written (it is a folder): give the name of a file"),
        (["--to", f"{'x' * 300}.csv"], "cannot be written (file name too long): give a shorter name"),
        (
            ["--to", "predicted.csv", "--model", "other"],
            "other/model.safetensors does not exist: `dvc repro` creates it",
        ),
        (
            ["s3://bucket", "--to", "predicted.csv", "--endpoint", "nowhere"],
            "'nowhere' must be of the form http://host",
        ),
        (["nowhere", "--to", "predicted.csv"], "'nowhere' is neither data, demo"),
        (["--to", "predicted.csv", "--records"], "so this model cannot read records: it was made before"),
        (
            ["album", "--to", "predicted.csv", "--records", "--model", "complete"],
            "album has no records to read: leave out --records",
        ),
    ],
)
def test_unusable_arguments_end_with_one_line(
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    Path("params.yaml").write_bytes((Path(__file__).parents[2] / "params.yaml").read_bytes())
    for name in ("folder.csv", "other-rejected.csv", "album", "seven"):
        Path(name).mkdir()
    Path("seven/part-1-of-7.parquet").touch()
    Path("album/one.jpg").write_bytes(bins()[0].image)
    shutil.copytree("models", "complete")
    save_record_model(Path("complete"), record_model())
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, *arguments)
    err = capsys.readouterr().err
    assert caught.value.code == 1 and err.count("\n") == 1 and message in err
    assert not (SCRATCH / "predict").exists()  # before any work


def test_files_of_another_model_are_a_user_error(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    card = paths.MODELS / "card.json"
    card.write_text(CARD.model_copy(update={"data": "other"}).model_dump_json())
    with pytest.raises(SystemExit):
        run(monkeypatch, "--to", "predicted.csv")
    err = capsys.readouterr().err
    assert "bintally: models: calibration.json was fitted for another model than model.safetensors and card.json" in err
    assert not Path("predicted.csv").exists()


def test_a_scratch_folder_that_cannot_be_written_is_a_user_error(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(SCRATCH)
    SCRATCH.touch()
    with pytest.raises(SystemExit):
        run(monkeypatch, "--to", "predicted.csv")
    assert "bintally: '.bintally/predict/lock' cannot be written" in capsys.readouterr().err
