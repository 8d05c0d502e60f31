"""`bintally audit`: records are ranked by their error probability, and the page for recounting works in a browser."""

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from bintally import cli, paths
from bintally.apps.audit_page import thumbnails
from bintally.bins.contents import read_contents
from bintally.bins.groups import group_bins
from bintally.bins.objects import image_key, record_key
from bintally.bins.products import UNNAMED, listed_products, product_arrays
from bintally.bins.record import parse_record
from bintally.bins.shards import Bin, write_shards
from bintally.bins.trained_on import FILE, photograph_digest, save_digests
from bintally.files import read_csv, write_csv
from bintally.params import load_params
from bintally.scoring.audit import estimate_recounts
from bintally.scoring.calibration import predict_counts
from bintally.scoring.explain import evidence
from bintally.scoring.judgement import judge
from bintally.scoring.lists import Lists
from bintally.scoring.record_model import save_record_model
from bintally.stages import split
from s3_stub import Answer, Request, error, stub_server
from small import CALIBRATION, LEARNED, bins, write_quality
from small_records import record_model, saw

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
    write_quality([one.id for one in audited])
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    save_digests(paths.MODELS / FILE, [photograph_digest(LEARNED)])
    save_record_model(paths.MODELS, record_model())
    return audited


def write_layout(folder: Path, made: list[Bin]) -> None:
    """Write bins as a folder laid out like the bucket."""
    for one in made:
        for key, body in ((image_key(one.id), one.image), (record_key(one.id), one.record)):
            path = folder / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(body)


def with_items(one: Bin, names: list[str]) -> Bin:
    """The same bin, with a record of one item of each name, as JSON escapes."""
    items = {f"B{number}": {"name": name, "quantity": 1} for number, name in enumerate(names)}
    record = json.dumps({"BIN_FCSKU_DATA": items, "EXPECTED_QUANTITY": len(names)})
    return replace(one, record=record.encode())


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["bintally", "audit", *arguments])
    cli.main()


def table() -> list[dict[str, str]]:
    return read_csv(Path("exports/audit/audit.csv"))


def test_records_are_ranked_by_their_error_probability(
    project: list[Bin], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "--budget", "3", "--error-rate", "0.2")
    seen = saw([one.image for one in project])
    probabilities = seen.probabilities
    model, lists = record_model(), Lists(*product_arrays([listed_products(one.record) for one in project]))
    judged = judge(model, probabilities, lists, 0.2)
    expected = judged.error
    rows = table()
    row_of_id = {one.id: row for row, one in enumerate(project)}
    order = [row_of_id[row["id"]] for row in rows]
    assert order == np.argsort(-expected).tolist()
    factors, judged = evidence(judged, 0.2), judged.take(np.array(order))
    for name, values in (
        ("error_probability", judged.error),
        ("error_by_list", judged.error_by_list),
        ("list_factor", factors.list[order]),
        ("photograph_factor", factors.photograph[order]),
    ):
        np.testing.assert_allclose([float(row[name]) for row in rows], values, rtol=1e-3)
    assert [int(row["likely_count"]) for row in rows] == np.array(COUNTS)[judged.counts.argmax(1)].tolist()
    alone = predict_counts(probabilities[order], CALIBRATION)
    given = predict_counts(model.count_given_products(probabilities, seen.tables, lists)[order], model.answers)
    for prefix, counted in (("", alone), ("given_products_", given)):
        assert [int(row[f"{prefix}most_probable"]) for row in rows] == counted.by_rule["most_probable"].tolist()
        assert [int(row[f"{prefix}low"]) for row in rows] == counted.low.tolist()
        assert [int(row[f"{prefix}high"]) for row in rows] == counted.high.tolist()
    assert all(row["verdict"].startswith("probably ") for row in rows)
    assert [row["recount"] for row in rows] == ["1"] * 3 + ["0"] * (len(rows) - 3)
    groups = group_bins({one.id: parse_record(one.record).asins for one in project})
    assert {row["id"]: row["group"] for row in rows} == groups
    estimate = estimate_recounts(expected, 3)
    output = capsys.readouterr().out
    assert f"{len(rows)} records ranked, {expected.sum():,.1f} expected to be wrong (20.0% before" in output
    assert rows[0]["verdict"] in output
    assert (
        f"find {estimate.errors:,.1f} wrong records, {estimate.recall:.1%} of all; "
        f"a random 3 would find {3 / len(rows):.1%}"
    ) in output
    assert output.endswith("exports/audit/audit.csv\nexports/audit/rejected.csv\nexports/audit/index.html\n")


def test_bins_that_are_not_ranked_are_counted_with_the_reason(
    project: list[Bin], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two, three, four, *rest = project
    paths.CORRECTIONS.write_text(f"id,count\n{two.id},2\n")
    write_layout(Path("layout"), project)
    seven = {"BIN_FCSKU_DATA": {"A": {"name": "Many", "quantity": 7}}, "EXPECTED_QUANTITY": 7}
    Path("layout", record_key(three.id)).write_text(json.dumps(seven))
    Path("layout", image_key(four.id)).write_bytes(b"garbage")
    run(monkeypatch, "layout", "--to", "all")
    output = capsys.readouterr().out
    assert "1 left out: recounted already" in output and "trained on" not in output
    assert "1 not ranked: the model does not predict the counts of their records, 7 (1)" in output
    rows = read_csv(Path("all/audit.csv"))
    assert {row["id"] for row in rows} == {made.id for made in (one, three, *rest)}
    last = rows[-1]
    assert (last["id"], last["record"], last["error_probability"], last["rank"]) == (three.id, "7", "", "")
    assert [row["id"] for row in read_csv(Path("all/rejected.csv"))] == [four.id]


def test_photographs_that_the_model_was_trained_on_are_left_out_wherever_they_come_from(
    project: list[Bin], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    learned = replace(with_items(project[0], ["a", "b"]), id="99999", image=LEARNED)
    unseen = {one.id for one in project}
    write_shards(paths.BINS, [*project, learned])
    write_layout(Path("layout"), [*project, learned])
    shutil.copytree("layout", "copy/of it")
    Path("link").symlink_to("layout")
    write_layout(Path("renamed"), [*project, replace(learned, id="00000")])
    shutil.copytree("models", "other")
    for source in ("data", "layout", "./layout/", str(Path("layout").resolve()), "link", "copy/of it", "renamed"):
        run(monkeypatch, source, "--model", "other")
        assert "1 left out: the model was trained on their photographs" in capsys.readouterr().out
        assert {row["id"] for row in table()} == unseen
        assert read_csv(Path("exports/audit/rejected.csv")) == []
    run(monkeypatch, "link", "--all")
    assert "left out" not in capsys.readouterr().out
    assert [row["id"] for row in read_csv(Path("exports/audit/rejected.csv"))] == [learned.id]  # LEARNED is no JPEG

    before = Path("exports/audit/audit.csv").read_bytes()
    write_layout(Path("only"), [learned])
    with pytest.raises(SystemExit):
        run(monkeypatch, "only")
    assert "only has no bin to audit: 1 left out: the model was trained" in capsys.readouterr().err
    assert Path("exports/audit/audit.csv").read_bytes() == before


def test_photographs_that_were_denied_are_read_when_they_are_allowed(
    project: list[Bin], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    objects = {record_key(one.id): one.record for one in project} | {image_key(one.id): one.image for one in project}
    Path("ids.txt").write_text("\n".join(one.id for one in project))
    denied = "bin-images/"

    def answer(request: Request) -> Answer:
        return error(403, "AccessDenied") if request.key.startswith(denied) else Answer(objects[request.key])

    with stub_server(answer) as stub:
        arguments = ["s3://b", "--endpoint", stub.endpoint, "--ids", "ids.txt"]
        with pytest.raises(SystemExit):
            run(monkeypatch, *arguments)
        assert "s3://b has no bin to audit: " in capsys.readouterr().err
        denied = "none"
        run(monkeypatch, *arguments)
        Path("marks.csv").write_text(f"id,count\n{project[0].id},7\n")
        run(monkeypatch, *arguments, "--accept", "marks.csv")  # listing is forbidden here, too
    assert {row["id"] for row in table()} == {one.id for one in project}
    assert paths.CORRECTIONS.read_text() == f"id,count\n{project[0].id},7\n"


def test_text_of_any_kind_in_records_stays_text(
    project: list[Bin], browser: Browser, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [
        "Dog toy \ud83d",  # half a surrogate pair
        "nul \0 escape \x1b[2J bell \x07",
        "\u202etxt.exe",  # written from right to left
        "two\nlines\u2028and a third",
        '=HYPERLINK("http://example.com")',
        "x;=cmd|'/c calc'!A0",
    ]
    odd = [with_items(one, [name, "Desk lamp"]) for one, name in zip(project, names, strict=False)]
    odd.append(with_items(project[len(names)], ["n" * 1_000_000, HOSTILE]))
    odd.append(replace(with_items(project[len(names) + 1], []), record=b'{"EXPECTED_QUANTITY": "=1+1"}'))
    write_layout(Path("odd"), odd)
    run(monkeypatch, "odd")
    rows = {row["id"]: row["items"] for row in table()}
    assert [rows[one.id] for one in odd[:6]] == [
        "1 × Dog toy \\ud83d; 1 × Desk lamp",
        "1 × nul \\x00 escape \\x1b[2J bell \\x07; 1 × Desk lamp",
        "1 × \\u202etxt.exe; 1 × Desk lamp",
        "1 × two lines and a third; 1 × Desk lamp",
        '1 × =HYPERLINK("http://example.com"); 1 × Desk lamp',
        "1 × x;'=cmd|'/c calc'!A0; 1 × Desk lamp",
    ]
    assert len(rows[odd[6].id]) < 300
    assert read_csv(Path("exports/audit/rejected.csv"))[0]["id"] == odd[7].id
    assert Path("exports/audit/index.html").stat().st_size < 1_000_000
    page = browser.new_page()
    page.goto(Path("exports/audit/index.html").resolve().as_uri())
    assert page.locator("article").count() == len(rows) and page.evaluate("window.hurt") is None
    assert "Dog toy \\ud83d" in str(page.locator("main").text_content())
    page.close()


def test_a_photograph_that_cannot_be_shown_has_the_reason_in_its_place(
    project: list[Bin], browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone() -> bytes:
        raise FileNotFoundError("it is missing")

    bodies = {"good": lambda: project[0].image, "bad": lambda: b"\xff\xd8\xff\xe0", "gone": gone}
    found = thumbnails(lambda ids: ((one, bodies[one]) for one in ids), list(bodies))
    assert list(found["good"]) == ["src"] and found["gone"] == {"reason": "it is missing"}
    assert "does not decode" in found["bad"]["reason"]

    run(monkeypatch)
    html = Path("exports/audit/index.html").read_text(encoding="utf-8")
    changed, number = re.subn(r'"src": "data:[^"]*"', '"reason": "\\\\u003cb>it is gone"', html, count=1)
    assert number == 1
    Path("page.html").write_text(changed, encoding="utf-8")
    page = browser.new_page()
    page.goto(Path("page.html").resolve().as_uri())
    assert page.locator("article > figure").all_text_contents()[:2] == ["no photograph: <b>it is gone", ""]
    page.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["album"], "album has no records to audit"),
        (["--model", "older"], "older/trained_on.bin does not exist: it lists what the model was trained on"),
        (["--model", "oldest"], "`dvc repro` makes one that can"),
        (["--accept", "misfit.csv"], "'misfit.csv', line 2: '{id},9,unlisted,1' does not fit the record"),
        (["--accept", "none.csv"], "'none.csv' does not exist"),
        (["--accept", "zeros.csv"], "there is no bin 1, but 00001: a spreadsheet removes zeros in front"),
        (["--ids", "zeros.txt"], "there is no bin 1, but 00001: a spreadsheet removes zeros in front"),
        (["--to", "album/one.jpg/there"], "album/one.jpg/there"),
        (["--to", "taken"], "'taken/index.html' cannot be written (it is a folder): give the name of a file"),
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
    Path("zeros.csv").write_text("id,count\n1,2\n")
    Path("zeros.txt").write_text("1\n")
    Path("taken/index.html").mkdir(parents=True)
    Path("misfit.csv").write_text(f"id,count,product,quantity\n{project[0].id},9,unlisted,1\n")
    shutil.copytree("models", "oldest")
    Path("oldest/records.json").unlink()
    shutil.copytree("models", "older")
    Path("older", FILE).unlink()
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, *arguments)
    err = capsys.readouterr().err
    assert caught.value.code == 1 and err.count("\n") == 1 and message.replace("{id}", project[0].id) in err
    assert not Path("exports/audit/audit.csv").exists() and not Path("data/corrections.csv").exists()


def test_an_audit_without_a_record_that_can_be_ranked_says_so(
    project: list[Bin], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_layout(Path("many"), [with_items(project[0], ["a"] * 7), with_items(project[1], [])])
    run(monkeypatch, "many")
    output = capsys.readouterr().out
    assert "2 not ranked: the model does not predict the counts of their records, 0 (1), 7 (1)" in output
    assert "recounting" not in output and [row["rank"] for row in table()] == ["", ""]
    write_layout(Path("bad"), [replace(project[0], record=b"{}"), replace(project[1], record=b"nothing")])
    with pytest.raises(SystemExit):
        run(monkeypatch, "bad")
    error = capsys.readouterr().err
    assert "bad has no bin to audit: 2 without a usable record or photograph (" in error
    assert len(table()) == 2


def test_marks_accepted_twice_give_the_same_and_those_of_no_bin_are_named(
    project: list[Bin], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("marks.csv").write_text(f"id;count\n{project[0].id};3\nelsewhere;1\n")
    for numbers in ("2 bins new, 0 changed, 0 unchanged", "0 bins new, 0 changed, 2 unchanged"):
        run(monkeypatch, "--accept", "marks.csv")
        output = capsys.readouterr().out
        assert numbers in output and paths.CORRECTIONS.read_text() == f"id,count\n{project[0].id},3\nelsewhere,1\n"
    assert "are not in data/bins" not in output


def test_a_table_with_faults_of_every_kind_is_audited_and_each_is_said(
    project: list[Bin], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    Path("stock").mkdir()
    for name in ("1.jpg", "1.png", "2.jpg"):
        Path("stock", name).write_bytes(project[0].image)
    columns = ["Bild", "Menge", "Preis"]
    lines = [("1.jpg", "3", "25,99 €"), ("1.png", "", "auf Anfrage"), ("2.jpg", "2", "$1,299.00"), ("3.jpg", "1", "")]
    rows = [json.dumps(dict(zip(columns, line, strict=True)), ensure_ascii=False) for line in lines]
    Path("stock/list.jsonl").write_text("\n".join(["{", *rows]))
    Path("stock/items.csv").write_text(
        "Artikel;;\n;;\nBild;product;quantity;Preis\n1.jpg;x;3;\n1.png;y;1;\n2.jpg;z;two;\n"
    )
    named = "{photograph: Bild, count: Menge, value: Preis, items_file: items.csv}"
    Path("columns.yaml").write_text(f"fetch: {{table: {named}}}")
    monkeypatch.setattr(sys, "argv", ["bintally", "use", "columns.yaml"])
    cli.main()
    run(monkeypatch, "stock/list.jsonl", "--by", "value")
    assert {row["photograph"]: row["items"] for row in table()} == {"1.jpg": "3 × x", "1.png": "1 × y"}
    assert {row["id"][:6] for row in table()} == {"1_jpg-", "1_png-"}
    rejected = {row["id"]: row["reason"] for row in read_csv(Path("exports/audit/rejected.csv"))}
    assert rejected["row-1"].startswith("record: it cannot be made: row 1 is not JSON")
    assert "row 4 has a wrong item: row 6 of items.csv has a wrong cell: quantity is 'two'" in rejected["2"]
    assert rejected["3"] == "it is missing: row 5 names '3.jpg'" and len(rejected) == 3
    for said in (
        "items.csv: 2 lines above the header are skipped",
        "1 values or sizes cannot be read, and the rows are taken without them: row 3, Preis is 'auf Anfrage', not a",
        "2 photographs have names that differ in their endings alone",
    ):
        assert said in caplog.text


def test_a_returned_count_sheet_is_checked_against_the_source_that_was_audited(
    project: list[Bin], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("stock").mkdir()
    Path("stock/007.jpg").write_bytes(project[0].image)
    Path("stock/list.csv").write_text("photograph,count\n007.jpg,3\n008.jpg,2\n")
    sheet = "id,location,expected,counted,difference,product,quantity\n{},,3,2,-1,,\n008,,2,,,,\n"
    Path("marks.csv").write_text(sheet.format("007"))
    Path("zeros.csv").write_text(sheet.format("7"))
    shutil.rmtree(paths.BINS)
    for words, said in (
        (["--accept", "marks.csv"], "data/bins does not exist, so the ids in 'marks.csv' cannot be checked: run `dvc"),
        (["stock", "--accept", "marks.csv"], "stock has no records that 'marks.csv' could correct"),
        (["stock/list.csv", "--accept", "zeros.csv"], "there is no bin 7, but 007: a spreadsheet removes zeros"),
    ):
        with pytest.raises(SystemExit):
            run(monkeypatch, *words)
        assert said in capsys.readouterr().err and not paths.CORRECTIONS.exists()
    run(monkeypatch, "stock/list.csv", "--accept", "marks.csv")
    output = capsys.readouterr().out
    assert "1 bins new" in output and "1 lines of 'marks.csv' have no count" in output
    assert paths.CORRECTIONS.read_text() == "id,count\n007,2\n"


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
    differences = {row["id"]: abs(int(row["likely_count"]) - int(row["record"])) for row in rows}
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
    lines = "".join(f"{one},,{record[one]},{n},{n - record[one]},,\n" for one, n in sorted(marks.items()))
    assert Path("marks.csv").read_text() == f"id,location,expected,counted,difference,product,quantity\n{lines}"
    page.evaluate("localStorage.clear()")
    page.reload()
    assert not any(page.locator("output").all_text_contents())
    page.set_input_files("#import", "marks.csv")
    expect(page.locator("#status")).to_contain_text("3 marks imported.")
    assert page.locator("output").all_text_contents()[1] == "recounted: wrong, 4 counted"
    page.evaluate("localStorage.clear()")
    page.reload()
    Path("saved.csv").write_text(f'\ufeff"id";"count"\r\n{ranked[1]};4,0;;\r\n', encoding="utf-8")
    page.set_input_files("#import", "saved.csv")
    expect(page.locator("#status")).to_contain_text("1 marks imported.")
    assert page.locator("output").all_text_contents()[1] == "recounted: wrong, 4 counted"
    Path("saved.csv").write_text(Path("marks.csv").read_text() + f"{ranked[3]},R 1,2,,,,\n{ranked[4]},,2\n")
    page.set_input_files("#import", "saved.csv")  # two bins were not counted
    expect(page.locator("#status")).to_contain_text("3 marks imported.")
    assert page.locator("output").all_text_contents()[2:4] == ["recounted: wrong, 12 counted", ""]
    Path("saved.csv").write_text(f"id,count\n{ranked[1]},1001\n")
    page.set_input_files("#import", "saved.csv")
    expect(page.locator("#status")).to_contain_text("numbers from 0 to 1000")
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert not errors and {one for one in requests if not one.startswith(("data:", "blob:"))} == {url}
    page.close()

    capsys.readouterr()
    run(monkeypatch, "--accept", "marks.csv")
    assert "data/corrections.csv: 3 bins new, 0 changed" in capsys.readouterr().out
    params = load_params()
    split.main(params.model_copy(update={"fetch": params.fetch.model_copy(update={"counts": [2, 3, 4, 5]})}))
    after = {row["id"]: row for row in read_csv(paths.SPLITS)}
    assert after[ranked[1]]["count"] == "4"
    assert (after[ranked[2]]["count"], after[ranked[2]]["split"]) == ("12", "left_out")
    run(monkeypatch, "--all")
    assert ranked[0] not in {row["id"] for row in table()}


def test_marks_name_the_item_that_was_wrong(
    project: list[Bin], browser: Browser, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lamps = {"B01": {"name": "Desk lamp", "quantity": 2}, "=B2": {"name": "Formula", "quantity": 1}}
    one, two, three, *rest = project
    odd = json.dumps({"BIN_FCSKU_DATA": lamps, "EXPECTED_QUANTITY": 3}).encode()
    listed = [replace(one, count=3, record=odd), with_items(two, ["a", "b"]), with_items(three, ["a", "b", "c"])]
    write_shards(paths.BINS, [*listed, *rest])
    run(monkeypatch)
    page = browser.new_page(viewport={"width": 1366, "height": 768})
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(Path("exports/audit/index.html").resolve().as_uri())

    def state(one: Bin) -> str:
        return str(page.locator(f"article[aria-label='bin {one.id}'] output").text_content())

    def item(one: Bin, name: str) -> Locator:
        return page.get_by_label(f"counted in bin {one.id}: {name}", exact=True)

    assert item(one, "Formula").count() == 0  # a CSV file would not keep its key
    item(one, "Desk lamp").fill("1")
    item(one, "Desk lamp").press("Enter")
    assert state(one) == "recounted: wrong, 2 counted, 1 of Desk lamp"
    expect(page.get_by_label(f"bin {one.id}", exact=True)).to_be_focused()
    page.keyboard.press("u")
    assert state(one) == "" and item(one, "Desk lamp").input_value() == "2"
    item(one, "Desk lamp").fill("5")
    item(one, "Desk lamp").press("Escape")
    assert state(one) == "" and item(one, "Desk lamp").input_value() == "2"
    item(one, "Desk lamp").fill("0")
    item(one, "Desk lamp").press("Enter")
    item(two, "something that is not in the record").fill("2")
    item(two, "a").focus()
    assert state(two) == "recounted: wrong, 4 counted, 2 of what is not in the record"
    item(two, "a").fill("3")  # a mark names one item
    item(two, "b").focus()
    assert state(two) == "recounted: wrong, 4 counted, 3 of a"
    assert item(two, "something that is not in the record").input_value() == "0"
    item(two, "a").fill("1")
    item(two, "a").press("Enter")
    assert state(two) == ""
    item(two, "a").fill("1001")
    item(two, "a").press("Enter")
    expect(page.locator("#status")).to_contain_text("at most 1000")
    page.get_by_label(f"bin {three.id}", exact=True).focus()
    page.keyboard.press("i")
    page.keyboard.type("3")
    page.keyboard.press("Enter")
    named = state(three)
    assert named.startswith("recounted: wrong, ") and " 3 of " in named
    with page.expect_download() as download:
        page.click("#export")
    download.value.save_as("marks.csv")
    lines = Path("marks.csv").read_text().splitlines()
    assert lines[0] == "id,location,expected,counted,difference,product,quantity" and len(lines) == 3
    assert f"{one.id},,3,1,-2,B01,0" in lines
    page.evaluate("localStorage.clear()")
    page.reload()
    saved = [line.replace(",", ";") for line in lines]
    Path("saved.csv").write_text("\ufeff" + "\r\n".join([*saved, f'"{two.id}";"";2;"9";7;B0;"9,0"']), encoding="utf-8")
    page.set_input_files("#import", "saved.csv")
    expect(page.locator("#status")).to_contain_text(
        "2 marks imported, 1 ignored: they are of no bin on this page or do"
    )
    assert state(three) == named and item(one, "Desk lamp").input_value() == "0"
    assert not errors
    page.close()
    capsys.readouterr()
    run(monkeypatch, "--accept", "marks.csv")
    assert "data/corrections.csv: 2 bins new, 0 changed" in capsys.readouterr().out
    assert f"{one.id},1,B01,0" in paths.CORRECTIONS.read_text().splitlines()


def test_the_page_has_a_filter_for_each_kind_of_error_and_says_both_counts(
    project: list[Bin], browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(monkeypatch)
    rows = table()
    page = browser.new_page()
    page.goto(Path("exports/audit/index.html").resolve().as_uri())
    said = {"quantity": r", not | than ", "unlisted": "something that is not in the record", "missing": "none of "}
    shown = []
    for kind, words in said.items():
        page.select_option("#error", kind)
        shown += visible_bins(page)
        assert all(re.search(words, str(one.text_content())) for one in page.locator("article:visible .verdict").all())
    rest = [row["verdict"] for row in rows if row["id"] not in shown]
    assert len(rest) + len(shown) == len(rows) and set(rest) <= {"probably as in the record"}
    page.select_option("#error", "")
    for row in rows:
        card = page.locator(f"article[aria-label='bin {row['id']}']")
        assert card.locator(".verdict").text_content() == row["verdict"]
        captions = zip(("photograph alone", "given the products"), ("", "given_products_"), strict=True)
        for number, (caption, prefix) in enumerate(captions):
            low, high = row[f"{prefix}low"], row[f"{prefix}high"]
            counted = f"{caption}{row[f'{prefix}most_probable']}, set {low}" + (f"–{high}" if high > low else "")
            assert str(card.locator("figcaption").nth(number).text_content()).startswith(counted)
    page.close()


def test_a_bin_without_named_products_is_counted_and_goes_into_the_count_sheet_with_its_location(
    project: list[Bin], browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *rest = project
    record = {"BIN_FCSKU_DATA": {UNNAMED: {"quantity": 3, "name": "its items"}}, "EXPECTED_QUANTITY": 3}
    said = {"location": '=1+1, "left"', "bin": "A", "photograph": "=Regal <b>/1.jpg"}
    bare = replace(first, count=3, record=json.dumps(record | said).encode())
    beside = replace(rest[0], count=3, record=json.dumps(record | {"bin": "B"}).encode())
    broken = replace(rest[1], record=json.dumps(record | {"photograph": "Regal 2.jpg"}).encode(), image=b"none")
    write_shards(paths.BINS, [bare, beside, broken, *rest[2:]])
    run(monkeypatch)
    (rejected,) = read_csv(Path("exports/audit/rejected.csv"))
    assert rejected["id"] == broken.id and rejected["reason"].endswith(": Regal 2.jpg")
    assert {row["group"] for row in table() if row["id"] in (bare.id, beside.id)} == {bare.id, beside.id}
    row = next(row for row in table() if row["id"] == bare.id)
    assert row["location"] == '\'=1+1, "left"' and row["given_products_most_probable"] == ""
    assert row["photograph"] == "'=Regal <b>/1.jpg"
    page = browser.new_page(viewport={"width": 1366, "height": 768})
    page.goto(Path("exports/audit/index.html").resolve().as_uri())
    card = page.get_by_label(f"bin {bare.id}", exact=True)
    expect(card.locator("h2")).to_contain_text('=1+1, "left"')
    expect(card.locator("> figure figcaption")).to_have_text("=Regal <b>/1.jpg")
    assert card.locator(".items li").count() == 0 and "given the products" not in card.inner_text()
    card.focus()
    page.keyboard.type("2")
    page.keyboard.press("Enter")
    with page.expect_download() as download:
        page.click("#export")
    download.value.save_as("marks.csv")
    assert Path("marks.csv").read_text().splitlines()[1:] == [f'{bare.id},"\'=1+1, ""left""",3,2,-1,,']
    page.close()
    run(monkeypatch, "--accept", "marks.csv")
    assert paths.CORRECTIONS.read_text() == f"id,count\n{bare.id},2\n"
    assert next(read_contents(paths.BINS, paths.CORRECTIONS, [bare.id])).products[0].quantity == 2
