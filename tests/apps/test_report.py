"""`bintally report`: a single file without any request, with the figures of this data."""

import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import astuple, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bintally import cli, paths
from bintally.apps.collection import load_collection
from bintally.apps.since import Answers, meaning, read_answers
from bintally.bins.images import decode_image
from bintally.bins.quality import Measures, measure
from bintally.bins.shards import write_shards
from bintally.errors import UserError
from bintally.files import write_csv, write_json
from bintally.model.card import DistanceReference
from bintally.scoring.calibration import model_name
from bintally.scoring.metrics import LabelledPredictions, evaluate
from small import CARD, bins

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
    write_quality([one.id for one in eight], {})
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


def write_quality(ids: list[str], near_duplicates: dict[str, str]) -> None:
    """What the stage quality writes for bins of small.bins(), each record less probable than the one before."""
    bodies = {one.id: one.image for one in bins()}
    measured = [measure(decode_image(bodies[one])) for one in ids]
    names = [field.name for field in fields(Measures)]
    rows = (
        (
            one,
            *astuple(measures),
            near_duplicates.get(one, ""),
            1 / (2 + n),
            "near_duplicate" * (one in near_duplicates),
        )
        for n, (one, measures) in enumerate(zip(ids, measured, strict=True))
    )
    write_csv(paths.QUALITY, ["id", *names, "near_duplicate_of", "record_probability", "reasons"], rows)


def run_report(monkeypatch: pytest.MonkeyPatch, *options: str) -> str:
    monkeypatch.setattr(sys, "argv", ["bintally", "report", "--to", "page.html", *options])
    cli.main()
    return Path("page.html").read_text(encoding="utf-8")


def test_the_page_contains_every_figure_and_requests_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_outs(SPLITS)
    page = run_report(monkeypatch)
    images = re.findall(r'<figure><img src="data:image/png;base64,[\w+/=]+" alt="[^"]+"><figcaption>[^<]+<', page)
    assert len(images) == page.count("data:image/png") == page.count("<h2>") - 2 == 15
    assert "://" not in page and "<script" not in page and "nan" not in re.sub('base64,[^"]*', "", page)
    assert "8 rendered demo bins: these figures say nothing about real ones." in page
    assert "&lt;script&gt;model</td><td>4 test bins of this run</td><td>75.0 (50.0–100.0)</td>" in page
    assert "of another project" not in page
    assert "Photographs of the same bin are a group; of 4 groups, 1 are in two splits." in page
    assert "4 bins were photographed more than once" in page


def test_bad_photographs_are_counted_and_leaks_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_outs(SPLITS)
    ids = [one.id for one in bins()[:8]]
    write_quality(ids, {ids[1]: ids[0], ids[7]: ids[0]})
    page = run_report(monkeypatch)
    assert "<h2>Blurred photographs: 0</h2>" in page and "<h2>Near-duplicates: 2</h2>" in page
    assert "1 are in another split than it, and make metrics too good." in page
    assert "the median is 18.3%" in page  # of 1/2, 1/3, ... 1/9


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


# --- compared with later predictions ----------------------------------------------------------------------


MODEL = "012345678901"  # a name that looks like a number


def save_card(reference: DistanceReference | None) -> None:
    paths.MODELS.mkdir(exist_ok=True)
    card = CARD.model_copy(update={"distances": reference, "counts": [1, 2, 3]})
    (paths.MODELS / "card.json").write_text(card.model_dump_json(), encoding="utf-8")


def write_later(path: Path, ranks: Sequence[float | None], unsure: bool = False, model: str = MODEL) -> None:
    """Predictions as `bintally predict` writes them, one a rank: three in four of 2 items, the others of 3."""
    number = len(ranks)
    is_two = np.arange(number) % 4 > 0
    answer = np.where(is_two, 2, 3)
    columns: dict[str, Any] = {"id": [f"{row:05}" for row in range(number)]}
    columns |= dict.fromkeys(("most_probable", "rounded_mean", "median", "low", "high"), answer)
    columns |= {"unsure": np.full(number, unsure), "p1": np.full(number, 0.1)}
    columns |= {
        "p2": np.where(is_two, 0.7, 0.2),
        "p3": np.where(is_two, 0.2, 0.7),
        "distance_rank": pa.array(ranks, pa.float64()),
        "model": pa.array([model] * number, pa.string()),
    }
    table = pa.table(columns)
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(table, path)
        return
    cells = [
        ["" if v is None else int(v) if isinstance(v, bool) else v for v in row.values()] for row in table.to_pylist()
    ]
    write_csv(path, table.column_names, cells)


EVENLY, FAR = np.linspace(0, 1, 200).tolist(), np.linspace(0.7, 1, 200).tolist()
REFERENCE = DistanceReference(components=4, photographs=500, quantiles=[0.0, 1.0, 2.0])
LATER: dict[str, tuple[list[float | None], bool, DistanceReference | None, str]] = {
    "alike": (EVENLY, False, REFERENCE, "Nothing speaks against the metrics above for these photographs"),
    "drifted": (FAR, False, REFERENCE, "These photographs are not like those that the model was validated on"),
    "few": ([0.9, 0.4, 0.8], False, REFERENCE, "Nothing speaks against the metrics above"),
    "unsure": (EVENLY, True, REFERENCE, "more answers are unsure, 100% instead of 0%"),
    "older": ([None] * 8, False, None, "is not known, as it was trained before models kept what is needed"),
}


@pytest.mark.parametrize("name", LATER)
def test_later_predictions_are_read_in_every_form_and_told_in_a_sentence(tmp_path: Path, name: str) -> None:
    ranks, unsure, reference, sentence = LATER[name]
    half = len(ranks) // 2 // 4 * 4  # so that both have the same three in four
    for part, some in ((1, ranks[:half]), (2, ranks[half:])):
        write_later(tmp_path / f"later/part-{part}-of-2.parquet", some, unsure)
    (tmp_path / "later/_rejected-1-of-2.csv").write_text("id,reason\n")
    of_three = -(-len(ranks) // 4)
    measured = Answers.of(
        [1, 2, 3], np.array([2, 3, 2, 2]), np.array([0.7, 0.8, 0.6, 0.4]), np.zeros(4, bool), np.full(4, np.nan)
    )
    for file in ("later", "later.csv", "later.parquet"):
        if file != "later":
            write_later(tmp_path / file, ranks, unsure)
        answers = read_answers(tmp_path / file, [1, 2, 3], MODEL)
        assert answers.by_count.tolist() == [0, len(ranks) - of_three, of_three]
        assert answers.by_confidence.sum() == answers.photographs == len(ranks)
        assert answers.confidence == pytest.approx(0.7 * len(ranks))
        assert answers.unsure == (len(ranks) if unsure else 0)
        assert sentence in meaning(answers, measured, reference)


def test_the_page_compares_later_predictions_with_the_test_bins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_outs(SPLITS)
    save_card(REFERENCE)
    (paths.MODELS / "calibration.json").write_text("{}")
    write_later(Path("later.csv"), FAR, model=model_name(paths.MODELS))
    page = run_report(monkeypatch, "--since", "later.csv")
    section = re.sub('base64,[^"]*', "", page[page.index("Since then") : page.index("Bins by count")])
    assert LATER["drifted"][3] in section and "nan" not in section and section.count("<img") == 1
    assert "<td>photographs</td><td>4</td><td>200</td>" in section
    assert "0.50 in validation</td><td>0.85 ± 0.03</td>" in section


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "later.csv is not what `bintally predict --to` writes"),
        (lambda path: path.write_text("id\n"), "has no column distance_rank: predict anew"),
        (lambda path: change(path, ",p3,", ",p4,"), "has no column p3: predict anew"),
        (lambda path: change(path, "id,", "p0,"), "probabilities of other counts than [1, 2, 3]"),
        (lambda path: change(path, "00001,2", "00001,two"), "later.csv is not what `bintally predict --to` writes"),
        (lambda path: path.write_text(path.read_text().splitlines()[0] + "\n"), "later.csv has no predictions"),
        (lambda path: change(path, ",model\n", ",x\n"), "has no column model: predict anew"),
        (lambda path: write_later(path, EVENLY, model="e1"), "by the model 'e1', and this report is of '012345678901'"),
    ],
)
def test_predictions_that_cannot_be_compared_are_told_in_a_sentence(
    spoil: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    file = tmp_path / "later.csv"
    write_later(file, EVENLY)
    spoil(file)
    with pytest.raises(UserError) as error:
        read_answers(file, [1, 2, 3], MODEL)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_dataset_without_all_its_parts_is_refused(tmp_path: Path) -> None:
    write_later(tmp_path / "part-1-of-2.parquet", EVENLY)
    with pytest.raises(UserError, match="has 1 of 2 parts; predict the others first"):
        read_answers(tmp_path, [1, 2, 3], MODEL)
    with pytest.raises(UserError, match=r"holds no part-\*\.parquet"):
        read_answers(tmp_path / "..", [1, 2, 3], MODEL)
