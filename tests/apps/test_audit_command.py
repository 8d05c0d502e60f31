"""`bintally audit`: records are ranked by their error probability, and the page for recounting works in a browser."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect

from bintally import cli, paths
from bintally.bins.groups import group_bins
from bintally.bins.record import parse_record
from bintally.bins.shards import Bin, write_shards
from bintally.bins.source import image_key, record_key
from bintally.files import read_csv, write_csv
from bintally.inference.predictor import Predictor
from bintally.params import load_params
from bintally.scoring.audit import error_probability, estimate_recounts
from bintally.stages import split
from small import CALIBRATION, CARD, bins, counting_network

ROOT = Path(__file__).parents[2]
HOSTILE = "</script><script>window.hurt = 1</script><img src=x onerror='window.hurt = 2'>"
COUNTS = CALIBRATION.counts


def bins_with_counts_in_turn() -> list[Bin]:
    """Demo bins whose records have COUNTS in turn; the first item of the first bin has a hostile name."""
    changed = []
    for row, one in enumerate(bins()):
        count = COUNTS[row % len(COUNTS)]
        record = json.loads(one.record)
        items = record["BIN_FCSKU_DATA"]
        for item in items.values():
            item["quantity"] = 0
        next(iter(items.values())).update(quantity=count, name=HOSTILE if row == 0 else "Desk lamp")
        record["EXPECTED_QUANTITY"] = count
        changed.append(replace(one, count=count, record=json.dumps(record).encode()))
    return changed


@pytest.fixture
def project(model_workspace: Path) -> list[Bin]:
    """The bins of the working directory, which has a model, and all of them in the test split."""
    audited = bins_with_counts_in_turn()
    write_shards(paths.BINS, audited)
    write_csv(paths.SPLITS, ["id", "count", "group", "split"], [(one.id, one.count, one.id, "test") for one in audited])
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    return audited


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["bintally", "audit", *arguments])
    cli.main()


def table() -> list[dict[str, str]]:
    return read_csv(Path("exports/audit/audit.csv"))


def test_records_are_ranked_by_their_error_probability(
    project: list[Bin], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "--budget", "3", "--error-rate", "0.2")
    probabilities = Predictor(counting_network(), CARD, CALIBRATION)([one.image for one in project])
    expected = error_probability(probabilities, COUNTS, np.array([one.count for one in project]), 0.2)
    rows = table()
    row_of_id = {one.id: row for row, one in enumerate(project)}
    order = [row_of_id[row["id"]] for row in rows]
    assert order == np.argsort(-expected).tolist()
    np.testing.assert_allclose([float(row["error_probability"]) for row in rows], expected[order], rtol=1e-5)
    assert [row["recount"] for row in rows] == ["1"] * 3 + ["0"] * (len(rows) - 3)
    groups = group_bins({one.id: parse_record(one.record).asins for one in project})
    assert {row["id"]: row["group"] for row in rows} == groups
    estimate = estimate_recounts(expected, 3)
    output = capsys.readouterr().out
    assert f"{len(rows)} records ranked, {expected.sum():,.1f} expected to be wrong (20.0% before" in output
    assert (
        f"find {estimate.errors:,.1f} wrong records, {estimate.recall:.1%} of all; "
        f"a random 3 would find {3 / len(rows):.1%}"
    ) in output
    assert output.endswith("exports/audit/audit.csv\nexports/audit/rejected.csv\nexports/audit/index.html\n")


def test_bins_that_are_not_ranked_are_counted_with_the_reason(
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
    output = capsys.readouterr().out
    assert "1 left out: recounted already" in output and "trained on them" not in output
    assert "1 not ranked: the model does not predict the counts of their records, 7 (1)" in output
    rows = read_csv(Path("all/audit.csv"))
    assert {row["id"] for row in rows} == {made.id for made in (one, three, *rest)}
    last = rows[-1]
    assert (last["id"], last["record"], last["error_probability"], last["rank"]) == (three.id, "7", "", "")
    assert [row["id"] for row in read_csv(Path("all/rejected.csv"))] == [four.id]
    for arguments, left_out in ((["data"], True), (["data", "--all"], False)):
        run(monkeypatch, *arguments)
        assert ("1 left out: the model was trained on them" in capsys.readouterr().out) == left_out
        assert (one.id in {row["id"] for row in table()}) == (not left_out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["album"], "album has no records to audit"),
        ([], "data/splits.csv, which lists the training bins, does not exist"),
        (["--accept", "none.csv"], "'none.csv' does not exist"),
    ],
)
def test_an_impossible_audit_is_refused_in_one_line(
    project: list[Bin],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    Path("album").mkdir()
    Path("album/one.jpg").write_bytes(project[0].image)
    paths.SPLITS.unlink()
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, *arguments)
    err = capsys.readouterr().err
    assert caught.value.code == 1 and err.count("\n") == 1 and message in err


def visible_bins(page: Page) -> list[str]:
    return [str(one.get_attribute("aria-label")).removeprefix("bin ") for one in page.locator("article:visible").all()]


def test_recounting_by_the_page_changes_a_label(
    project: list[Bin], browser: Browser, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "--budget", "2")
    rows = table()
    ranked = [row["id"] for row in rows]
    record = {row["id"]: int(row["record"]) for row in rows}
    page = browser.new_page(viewport={"width": 1366, "height": 768})
    errors: list[str] = []
    requests: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None)
    page.on("request", lambda request: requests.append(request.url))
    url = Path("exports/audit/index.html").resolve().as_uri()
    page.goto(url)
    assert visible_bins(page) == ranked
    assert page.locator(".recount").count() == 2
    for image in page.locator("img").all():
        image.scroll_into_view_if_needed()
        expect(image).to_have_js_property("complete", True)
        assert image.evaluate("image => image.naturalWidth") > 0
    assert page.evaluate("window.hurt") is None and HOSTILE in str(page.locator("main").text_content())

    page.select_option("#order", "id")
    assert visible_bins(page) == sorted(ranked)
    page.select_option("#order", "difference")
    differences = {row["id"]: abs(int(row["most_probable"]) - int(row["record"])) for row in rows}
    ordered = [differences[bin_id] for bin_id in visible_bins(page)]
    assert ordered == sorted(ordered, reverse=True)
    page.select_option("#order", "probability")
    page.select_option("#record", "3")
    assert visible_bins(page) == [one for one in ranked if record[one] == 3]
    page.select_option("#record", "")
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    page.keyboard.type("WINDOW.HURT")
    assert visible_bins(page) == [project[0].id]
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
    assert visible_bins(page) == ranked[3:]
    with page.expect_download() as download:
        page.click("#export")
    download.value.save_as("marks.csv")
    assert Path("marks.csv").read_text() == "id,count\n" + "".join(f"{one},{n}\n" for one, n in sorted(marks.items()))
    page.evaluate("localStorage.clear()")
    page.reload()
    assert not any(page.locator("output").all_text_contents())
    page.set_input_files("#import", "marks.csv")
    expect(page.locator("#status")).to_contain_text("3 marks imported.")
    assert page.locator("output").all_text_contents()[1] == "recounted: wrong, 4 counted"
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert not errors and {one for one in requests if not one.startswith(("data:", "blob:"))} == {url}
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
