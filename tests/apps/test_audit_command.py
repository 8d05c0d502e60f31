"""`bintally audit`: every record is judged as `wrong` says, and the page to recount by works in a browser."""

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from bintally import cli, paths
from bintally.bins.groups import group_bins
from bintally.bins.record import parse_record
from bintally.bins.shards import Bin, write_shards
from bintally.bins.source import image_key, record_key
from bintally.files import read_csv, write_csv
from bintally.inference.predictor import Predictor
from bintally.model.card import save_model
from bintally.params import load_params
from bintally.scoring.audit import budget, wrong
from bintally.scoring.calibration import save_calibration
from bintally.stages import split
from ready import by_pytorch
from small import CALIBRATION, CARD, bins, counter

ROOT = Path(__file__).parents[2]
HOSTILE = "</script><script>window.hurt = 1</script><img src=x onerror='window.hurt = 2'>"
COUNTS = CALIBRATION.counts


def miscounted() -> list[Bin]:
    """Demo bins whose records say one of the counts in turn; the first item of the first has a hostile name."""
    made = []
    for at, one in enumerate(bins()):
        record = json.loads(one.record)
        items = record["BIN_FCSKU_DATA"]
        for item in items.values():
            item["quantity"] = 0
        next(iter(items.values())).update(quantity=COUNTS[at % 3], name=HOSTILE if at == 0 else "Desk lamp")
        record["EXPECTED_QUANTITY"] = COUNTS[at % 3]
        made.append(replace(one, count=COUNTS[at % 3], record=json.dumps(record).encode()))
    return made


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Bin]:
    """The bins of a folder with a model that errs alike on twins."""
    monkeypatch.chdir(tmp_path)
    by_pytorch(monkeypatch)
    made = miscounted()
    write_shards(paths.BINS, made)
    write_csv(paths.SPLITS, ["id", "count", "group", "split"], [(one.id, one.count, one.id, "test") for one in made])
    save_model(paths.MODELS, counter(), CARD)
    save_calibration(paths.MODELS, CALIBRATION.model_copy(update={"kinship": 1.0}))
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    return made


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["bintally", "audit", *arguments])
    cli.main()


def table() -> list[dict[str, str]]:
    return read_csv(Path("exports/audit/audit.csv"))


def test_each_record_is_as_likely_wrong_as_is_said_of_it(
    project: list[Bin], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "--budget", "3", "--wrong", "0.2")
    probabilities = Predictor(counter(), CARD, CALIBRATION)([one.image for one in project])
    records = np.array([one.count for one in project])
    groups = group_bins({one.id: parse_record(one.record).asins for one in project})
    of_bins = [groups[one.id] for one in project]
    alone = wrong(probabilities, COUNTS, records, 0.2)
    expected = wrong(probabilities, COUNTS, records, 0.2, of_bins, 1.0)
    assert np.abs(alone - expected).max() > 0.01  # so that twins say something
    rows = table()
    at = {one.id: place for place, one in enumerate(project)}
    order = [at[row["id"]] for row in rows]
    assert order == np.argsort(-expected).tolist()
    np.testing.assert_allclose([float(row["wrong"]) for row in rows], expected[order], rtol=1e-6)
    np.testing.assert_allclose([float(row["wrong_alone"]) for row in rows], alone[order], rtol=1e-6)
    assert [row["recount"] for row in rows] == ["1"] * 3 + ["0"] * (len(rows) - 3)
    for row in rows:
        others = {one for one in groups if groups[one] == groups[row["id"]]} - {row["id"]}
        assert set(row["twins"].split()) == others
    worth = budget(expected, 3)
    said = capsys.readouterr().out
    assert f"{len(rows)} records judged; {expected.sum():,.1f} of them are expected to be wrong" in said
    assert (
        f"find {worth.errors:,.1f} wrong records, {worth.share:.1%} of all; any 3 would find {3 / len(rows):.1%}"
        in said
    )
    assert said.endswith("exports/audit/audit.csv\nexports/audit/rejected.csv\nexports/audit/index.html\n")


def test_what_was_learned_recounted_or_is_no_answer_is_counted_and_not_judged(
    project: list[Bin], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two, three, four, *rest = project
    write_csv(paths.SPLITS, ["id", "split"], [(one.id, "train"), *((other.id, "test") for other in project[1:])])
    paths.CORRECTIONS.write_text(f"id,count\n{two.id},2\n")
    seven = {"BIN_FCSKU_DATA": {"A": {"name": "Many", "quantity": 7}}, "EXPECTED_QUANTITY": 7}
    for made in project:
        for key, body in ((image_key(made.id), made.image), (record_key(made.id), made.record)):
            path = Path("layout", key)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(body)
    Path("layout", record_key(three.id)).write_text(json.dumps(seven))
    Path("layout", image_key(four.id)).write_bytes(b"garbage")
    run(monkeypatch, "layout", "--to", "all")
    said = capsys.readouterr().out
    assert "1 left out: recounted already" in said and "the model learned" not in said
    assert "1 not judged: their record is no count the model answers with, but 7 (1)" in said
    rows = read_csv(Path("all/audit.csv"))
    assert {row["id"] for row in rows} == {made.id for made in (one, three, *rest)}
    assert (rows[-1]["id"], rows[-1]["record"], rows[-1]["wrong"], rows[-1]["rank"]) == (three.id, "7", "", "")
    assert [row["id"] for row in read_csv(Path("all/rejected.csv"))] == [four.id]
    for arguments, left_out in ((["data"], True), (["data", "--all"], False)):
        run(monkeypatch, *arguments)
        assert ("1 left out: the model learned from them" in capsys.readouterr().out) == left_out
        assert (one.id in {row["id"] for row in table()}) == (not left_out)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["album"], "album has no records to audit"),
        ([], "data/splits.csv, which says what the model learned from, is not there"),
        (["--accept", "none.csv"], "'none.csv' is not there"),
    ],
)
def test_what_cannot_be_is_one_line(
    project: list[Bin],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    Path("album").mkdir()
    Path("album/one.jpg").write_bytes(project[0].image)
    paths.SPLITS.unlink()
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, *arguments)
    err = capsys.readouterr().err
    assert caught.value.code == 1 and err.count("\n") == 1 and said in err


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        yield started
        started.close()


def shown(page: Page) -> list[str]:
    return [str(one.get_attribute("aria-label")).removeprefix("bin ") for one in page.locator("article:visible").all()]


def test_recounting_by_the_page_changes_a_label(
    project: list[Bin], browser: Browser, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "--budget", "2")
    rows = table()
    ranked = [row["id"] for row in rows]
    record = {row["id"]: int(row["record"]) for row in rows}
    page = browser.new_page(viewport={"width": 1366, "height": 768})
    faults: list[str] = []
    asked: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text) if message.type in ("error", "warning") else None)
    page.on("request", lambda request: asked.append(request.url))
    url = Path("exports/audit/index.html").resolve().as_uri()
    page.goto(url)
    assert shown(page) == ranked
    assert page.locator(".worth").count() == 2
    assert page.locator(".twins").count() > 0
    for image in page.locator("img").all():
        image.scroll_into_view_if_needed()
        expect(image).to_have_js_property("complete", True)
        assert image.evaluate("image => image.naturalWidth") > 0
    assert page.evaluate("window.hurt") is None and HOSTILE in str(page.locator("main").text_content())

    page.select_option("#order", "id")
    assert shown(page) == sorted(ranked)
    page.select_option("#order", "difference")
    far = [
        abs(int(row["most_probable"]) - int(row["record"])) for one in shown(page) for row in rows if row["id"] == one
    ]
    assert far == sorted(far, reverse=True)
    page.select_option("#order", "wrong")
    page.select_option("#record", "3")
    assert shown(page) == [one for one in ranked if record[one] == 3]
    page.select_option("#record", "")
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    page.keyboard.type("WINDOW.HURT")
    assert shown(page) == [project[0].id]
    page.fill("#text", "")
    page.keyboard.press("Escape")

    page.keyboard.press("j")
    expect(page.get_by_label(f"bin {ranked[0]}", exact=True)).to_be_focused()
    page.keyboard.press("r")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("4")
    page.keyboard.press("j")
    page.keyboard.press("w")
    page.keyboard.type("12")
    page.keyboard.press("Enter")
    page.keyboard.press("k")
    page.keyboard.press("1")
    page.keyboard.press("u")
    marks = {ranked[0]: record[ranked[0]], ranked[1]: 4, ranked[2]: 12}
    page.reload()
    assert page.locator("output").all_text_contents()[:4] == [
        "recounted: right",
        "recounted: wrong, 4 counted",
        "recounted: wrong, 12 counted",
        "",
    ]
    page.select_option("#marked", "no")
    assert shown(page) == ranked[3:]
    with page.expect_download() as download:
        page.click("#export")
    download.value.save_as("marks.csv")
    assert Path("marks.csv").read_text() == "id,count\n" + "".join(f"{one},{n}\n" for one, n in sorted(marks.items()))
    page.evaluate("localStorage.clear()")
    page.reload()
    assert not any(page.locator("output").all_text_contents())
    page.set_input_files("#import", "marks.csv")
    expect(page.locator("#status")).to_contain_text("3 marks taken.")
    assert page.locator("output").all_text_contents()[1] == "recounted: wrong, 4 counted"
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert not faults and {one for one in asked if not one.startswith(("data:", "blob:"))} == {url}
    page.close()

    capsys.readouterr()
    run(monkeypatch, "--accept", "marks.csv")
    assert "data/corrections.csv: 3 bins new, 0 with another count" in capsys.readouterr().out
    params = load_params()
    split.main(params.model_copy(update={"fetch": params.fetch.model_copy(update={"counts": [2, 3, 4, 5]})}))
    after = {row["id"]: row for row in read_csv(paths.SPLITS)}
    assert after[ranked[1]]["count"] == "4"
    assert (after[ranked[2]]["count"], after[ranked[2]]["split"]) == ("12", "left_out")
    run(monkeypatch, "--all")
    assert ranked[0] not in {row["id"] for row in table()}
