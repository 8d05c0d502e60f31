"""The scripts in docs/ that pages tell a reader to run."""

import runpy
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bintally import cli, paths
from bintally.bins.corrections import Correction, corrected_products, read_corrections
from bintally.bins.products import Product, product_arrays
from bintally.bins.shards import Bin, write_shards
from bintally.bins.trained_on import FILE, photograph_digest, save_digests
from bintally.demo.warehouse import DemoWarehouse
from bintally.files import read_csv
from bintally.scoring.judgement import judge
from bintally.scoring.lists import Lists
from bintally.scoring.record_model import RecordModel, save_record_model
from small import CALIBRATION, LEARNED, bins
from small_records import record_model

ROOT = Path(__file__).parents[2]
JUDGE, RECOUNT = ROOT / "docs/judge_bin.py", ROOT / "docs/recount_demo.py"
STOCK = ROOT / "docs/example_stock.py"
SEED = 3  # of the warehouse that `bins` are from


def run(script: Path, argument: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [script.name, argument])
    runpy.run_path(str(script), run_name="__main__")


def open_ended() -> RecordModel:
    """The small model with counts from 0 to "5 or more"."""
    answers = CALIBRATION.model_copy(update={"counts": list(range(6)), "open_ended": True})
    changes = {"answers": answers, "offsets": [0.2, 0.0, -0.1, 0.0, 0.1, 0.3], "with_list": None}
    return record_model().model_copy(update=changes)


@pytest.mark.parametrize(
    ("model", "quantities"),
    [
        *((record_model(), one) for one in ([2], [1, 1], [2, 1], [3, 2], [1, 1, 1])),
        *((open_ended(), one) for one in ([], [1], [2, 1], [7], [1, 1, 1], [4, 1, 3])),
    ],
)
def test_a_bin_is_judged_step_by_step_as_an_audit_judges_it(model: RecordModel, quantities: list[int]) -> None:
    sizes = [(4.0, 2.0, 1.0, 0.5), (3.0, 1.5, np.nan, 0.1), (5.0, 2.2, 1.3, 0.9)]
    products = [
        Product(f"B{place}", f"Item {place}", *one)
        for place, one in enumerate(zip(quantities, sizes[: len(quantities)], strict=True))
    ]
    lists = Lists(*product_arrays([products]))
    probabilities = np.linspace(1, 2, len(model.answers.counts))[None]
    probabilities = probabilities / probabilities.sum()
    found = runpy.run_path(str(JUDGE))["possibilities"](model, products, probabilities[0], 0.1)
    judged = judge(model, probabilities, lists, 0.1)
    whole = sum(one.weight for one in found)
    assert 1 - found[0].weight / whole == pytest.approx(judged.error[0], abs=1e-8)
    by_list = sum(one.by_list for one in found)
    assert 1 - found[0].by_list / by_list == pytest.approx(judged.error_by_list[0], abs=1e-8)
    unlisted = sum(one.weight for one in found if "not in the record" in one.words)
    assert unlisted / whole == pytest.approx(judged.unlisted[0].sum(), abs=1e-8)
    for place, one in enumerate(products):
        of_product = sum(other.weight for other in found if other.words.endswith(f"of {one.name}"))
        assert of_product / whole == pytest.approx(judged.quantities[0, place].sum(), abs=1e-8)


@pytest.fixture
def audited(model_workspace: Path, monkeypatch: pytest.MonkeyPatch) -> list[Bin]:
    """The demo bins that an audit has ranked, one of them with a record that is wrong."""
    warehouse = DemoWarehouse(SEED)
    right = [one for one in bins() if one.count in CALIBRATION.counts]
    other = next(number for number in range(13, 200) if warehouse.defect(number) == "wrong record")
    wrong = replace(right[0], id=f"{other:05d}", group=f"{other:05d}", record=warehouse.record(other))
    write_shards(paths.BINS, [*right, wrong])
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    params = (
        Path("params.yaml")
        .read_text(encoding="utf-8")
        .replace("  seed: 1\n  demo_bins", f"  seed: {SEED}\n  demo_bins")
    )
    Path("params.yaml").write_text(params, encoding="utf-8")
    save_digests(paths.MODELS / FILE, [photograph_digest(LEARNED)])
    save_record_model(paths.MODELS, record_model())
    monkeypatch.setattr(sys, "argv", ["bintally", "audit"])
    cli.main()
    return [*right, wrong]


def test_scripts_read_what_an_audit_wrote(
    audited: list[Bin], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    first = read_csv(Path("exports/audit/audit.csv"))[0]
    run(JUDGE, first["id"], monkeypatch)
    printed = capsys.readouterr().out
    right = next(line for line in printed.splitlines() if line.startswith("| as in the record |"))
    assert float(right.split("|")[-2].strip(" %")) == pytest.approx(
        100 - 100 * float(first["error_probability"]), abs=0.06
    )

    run(RECOUNT, "1000", monkeypatch)
    ranked = sum(bool(row["rank"]) for row in read_csv(Path("exports/audit/audit.csv")))
    assert f"{ranked} bins recounted" in capsys.readouterr().out
    marks = read_corrections(Path("marks.csv"))
    for one in audited[:-1]:
        assert marks[one.id] == Correction(one.count)
    wrong = audited[-1]
    assert marks[wrong.id].count == DemoWarehouse(SEED).bin(int(wrong.id)).count


def test_a_recount_names_the_product_that_explains_the_difference() -> None:
    recount = runpy.run_path(str(RECOUNT))["recount"]
    nothing = (np.nan,) * 4
    listed = [Product("B1", "Lamp", 2, nothing), Product("B2", "Mug", 1, nothing)]
    lamp, mug, tea = listed[0], listed[1], Product("B3", "Tea", 2, nothing)
    assert recount(listed, [mug, lamp]) == Correction(3)
    assert recount(listed, [mug]) == Correction(1, "B1", 0)
    assert recount(listed, [*listed, tea]) == Correction(5, "unlisted", 2)
    assert recount(listed, [lamp, tea]) == Correction(4)
    assert corrected_products(listed, recount(listed, [mug])) == [mug]


def test_the_worked_bin_in_the_page_can_be_checked_with_a_calculator() -> None:
    page = (ROOT / "docs/judging.md").read_text(encoding="utf-8")
    table = page.split("| what may lie there | items | frequency |")[1].split("\n\n")[0].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    whole = float(rows[-1][5])
    weights = [float(row[5]) for row in rows[:-1]]
    for row, weight in zip(rows, weights, strict=False):
        frequency, error, photograph = map(float, row[2:5])
        assert frequency * error * photograph == pytest.approx(weight, rel=0.02), row
        assert 100 * weight / whole == pytest.approx(float(row[6].rstrip("%")), abs=0.15), row
    assert sum(weights) == pytest.approx(whole, rel=0.01)
    assert sum(weights[1:]) / weights[0] == pytest.approx(15.1, rel=0.01)


def test_an_office_s_photographs_and_spreadsheet_are_audited(
    model_workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_digests(paths.MODELS / FILE, [photograph_digest(LEARNED)])
    save_record_model(paths.MODELS, record_model())
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    run(STOCK, "exports/stock", monkeypatch)

    def bintally(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["bintally", *words])
        cli.main()
        return capsys.readouterr().out

    assert "fetch.table.count:" in bintally("use", "exports/stock/columns.yaml")
    printed = bintally("audit", "exports/stock/Bestand.csv", "--budget", "10")
    table = read_csv(Path("exports/audit/audit.csv"))
    assert len(table) == 60 and sum(row["recount"] == "1" for row in table) == 10
    assert all(row["location"].startswith("R") and not row["given_products_most_probable"] for row in table)
    assert table[0]["location"] in printed and "of its items" in printed
    reasons = [row["reason"] for row in read_csv(Path("exports/audit/rejected.csv"))]
    assert len(reasons) == 2 and all("row 1" in reason for reason in reasons)
    assert "of value in items" in bintally("audit", "exports/stock/Bestand.csv", "--by", "value", "--tolerance", "1")
    stakes = [float(row["at_stake"]) for row in read_csv(Path("exports/audit/audit.csv")) if row["rank"]]
    assert stakes == sorted(stakes, reverse=True) and stakes[0] > 1
