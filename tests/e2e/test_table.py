"""A table of photographs and counts as the source of the whole graph, where no record names its products."""

import json
from itertools import chain
from pathlib import Path

from bintally.files import read_csv
from project import make_project


def test_the_graph_runs_on_a_spreadsheet(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    project.must("python", "docs/example_stock.py", "exports/stock")
    project.must("bintally", "use", "exports/stock/columns.yaml")
    project.commit("Columns")
    changes = ["fetch.per_count=null", "fetch.counts=[1,2,3,4,5]", "fetch.open_ended=false"]
    settings = (("-S", change) for change in ("fetch.source=exports/stock/Bestand.csv", *changes))
    project.must("dvc", "exp", "run", *chain.from_iterable(settings))
    folder = project.folder
    assert len(read_csv(folder / "data/bins/index.csv")) == 60
    rejected = {row["reason"].rpartition(" row ")[2] for row in read_csv(folder / "data/bins/rejected.csv")}
    assert rejected == {"15 has no Bild", "16 names 'Fotos/Regal 9/Fach 02.jpg'"}
    audit = json.loads((folder / "metrics/audit.json").read_text())
    assert audit["error_shares"] == {"quantity": 1.0, "unlisted": 0.0, "missing": 0.0}
    assert set(audit["not_assumed"]) == {"only_by_one", "rate_3_percent", "rate_20_percent"}
    test = json.loads((folder / "metrics/test.json").read_text())
    assert test["given_products"]["loss"] == test["loss"]
    assert "given the products" not in (folder / "metrics/benchmark.md").read_text()
    assert "accuracy_above_list" not in json.loads((folder / "metrics/benchmark.json").read_text())
    project.must("bintally", "audit", "--budget", "5", "--by", "value")
    first = read_csv(folder / "exports/audit/audit.csv")[0]
    assert first["location"].startswith("R") and float(first["at_stake"]) > 0
    assert first["given_products_most_probable"] == ""
