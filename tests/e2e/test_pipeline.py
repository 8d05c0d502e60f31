"""The graph run by DVC and git, as people run it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from bintally.apps.seaweedfs import Store
from bintally.bins.products import listed_products
from bintally.bins.shards import ShardReader, read_index
from bintally.files import read_csv
from bintally.scoring.decoding import DECODINGS, FOR_ACCURACY
from bintally.scoring.references import REFERENCES
from project import Project, make_project

CALIBRATION = "models/calibration.json"
ROUNDING = 1e-5  # metrics have six digits


def read_json(project: Project, name: str) -> Any:
    return json.loads((project.folder / name).read_text())


def ids_of(project: Project, split: str) -> list[str]:
    return [row["id"] for row in read_csv(project.folder / "data/splits.csv") if row["split"] == split]


def lock(project: Project) -> str:
    return (project.folder / "dvc.lock").read_text()


def test_nothing_is_run_twice_and_force_gives_the_same_bytes(project: Project) -> None:
    before = lock(project)
    assert "Running stage" not in project.must("dvc", "repro")
    project.must("dvc", "repro", "--force")
    assert lock(project) == before


def test_the_four_commands(project: Project) -> None:
    text = project.must("dvc", "exp", "run", "-S", "train.lr=1e-5")
    for stage in ("fetch", "split", "encode"):
        assert f"Stage '{stage}' didn't change, skipping" in text
    assert re.search(r"train\.lr\s+0\.01\s+1e-05", project.must("dvc", "params", "diff"))
    assert "most_probable.rmse" in project.must("dvc", "metrics", "diff")
    assert "1e-05" in project.must("dvc", "exp", "show", "--csv")
    project.must("dvc", "plots", "show")
    page = (project.folder / "dvc_plots" / "index.html").read_text()
    for title in (
        "Cross-entropy by epoch",
        "Accuracy by epoch",
        "Confusion of test bins",
        "Risk by coverage",
        "Wrong records found",
    ):
        assert title in page
    for picture in ("confusion.png", "examples.png", "benchmark.png", "audit.png"):
        assert picture in page


def test_every_test_image_is_scored_once(reproduced: Project) -> None:
    test = ids_of(reproduced, "test")
    predictions = read_csv(reproduced.folder / "data/predictions.csv")
    assert [row["id"] for row in predictions] == test
    metrics = read_json(reproduced, "metrics/test.json")
    assert metrics["images"] == len(test)
    inside = [int(row["low"]) <= int(row["count"]) <= int(row["high"]) for row in predictions]
    assert metrics["sets"]["coverage"] == pytest.approx(sum(inside) / len(test), rel=ROUNDING)
    answered = sum(row["unsure"] == "0" for row in predictions) / len(test)
    assert metrics["selective"]["answered"] == pytest.approx(answered, rel=ROUNDING)
    assert float(read_csv(reproduced.folder / "plots/risk.csv")[-1]["answered"]) == 1
    given_products = metrics["given_products"]
    right = [row["given_products_most_probable"] == row["count"] for row in predictions]
    assert given_products["images"] == len(test)
    assert given_products["most_probable"]["accuracy"] == pytest.approx(sum(right) / len(test), rel=ROUNDING)


def test_validation_chooses_the_decoding_with_the_least_rmse(reproduced: Project) -> None:
    validation, calibration = read_json(reproduced, "metrics/validation.json"), read_json(reproduced, CALIBRATION)
    assert validation["images"] == len(ids_of(reproduced, "validation"))
    assert validation["temperature"] == calibration["temperature"]
    chosen = {"accuracy": FOR_ACCURACY, "rmse": calibration["rmse_decoding"]}
    assert validation[chosen["rmse"]]["rmse"] == min(validation[rule]["rmse"] for rule in DECODINGS)
    assert read_json(reproduced, "metrics/test.json")["decoding"] == chosen
    assert "not comparable" in (reproduced.folder / "metrics/benchmark.md").read_text()
    benchmark = read_json(reproduced, "metrics/benchmark.json")
    assert len(benchmark["rows"]) == len(set(chosen.values())) + 3 + len(REFERENCES)
    assert not {row["name"] for row in benchmark["rows_given_products"]} & {row.name for row in REFERENCES}


def test_the_audit_is_compared_with_chance(reproduced: Project) -> None:
    audit = read_json(reproduced, "metrics/audit.json")
    assert audit["images"] == len(ids_of(reproduced, "test"))
    assert audit["chance"]["auc"] == 0.5 and audit["chance"]["found_at_20"] == pytest.approx(0.2, abs=0.02)
    for name in ("photograph_and_list", "photograph", "list", "disagreement"):
        low, high = audit[name]["interval_95"]["auc"]
        assert 0 <= low <= audit[name]["auc"] <= high <= 1
    curve = read_csv(reproduced.folder / "plots/audit.csv")
    assert [float(curve[0]["photograph and list"]), float(curve[-1]["photograph and list"])] == [0, 1]
    others = audit["not_assumed"]
    assert set(others["only_left_out"]) == {"photograph_and_list", "photograph"}
    assert others["rate_20_percent"]["photograph"]["expected_over_actual"] < 1
    assert float(curve[10]["disagreement"]) == pytest.approx(audit["disagreement"]["found_at_10"], abs=1e-5)


def test_a_recount_that_names_the_product_changes_the_label_and_what_is_learned(project: Project) -> None:
    learned = read_json(project, "models/records.json")["compositions"]
    train = set(ids_of(project, "train"))
    shards = ShardReader(project.folder / "data/bins")
    changed = []
    for entry in read_index(project.folder / "data/bins"):
        products = listed_products(shards.record(entry))
        if entry.id in train and len(products) == 1 and 1 < entry.count < 5:
            changed.append(f"{entry.id},{entry.count - 1},{products[0].key},{entry.count - 1}\n")
    (project.folder / "marks.csv").write_text("id,count,product,quantity\n" + "".join(changed))
    project.must("bintally", "audit", "--accept", "marks.csv")
    text = project.must("dvc", "repro", "calibrate")
    assert "Running stage 'fetch'" not in text and "Running stage 'encode'" not in text
    counts = {row["id"]: int(row["count"]) for row in read_csv(project.folder / "data/splits.csv")}
    assert len(changed) >= 2 and all(counts[line.split(",")[0]] == int(line.split(",")[1]) for line in changed)
    again = read_json(project, "models/records.json")["compositions"]
    assert again["quantities"][0] > learned["quantities"][0]  # more products of one item


def test_a_listed_test_set_and_fewer_counts_in_training_and_in_answers(project: Project) -> None:
    listed = ids_of(project, "validation")
    (project.folder / "test.txt").write_text("\n".join(listed))
    project.set(split__test_ids="test.txt", train__counts="[1, 2, 3]", calibrate__counts="[2, 3]")
    project.must("dvc", "repro")
    assert ids_of(project, "test") == listed
    assert read_json(project, "models/card.json")["counts"] == [1, 2, 3]
    assert read_json(project, CALIBRATION)["counts"] == [2, 3]
    test = {row["id"]: row["count"] for row in read_csv(project.folder / "data/splits.csv") if row["split"] == "test"}
    predictions = read_csv(project.folder / "data/predictions.csv")
    assert [row["id"] for row in predictions] == [bin_id for bin_id in listed if test[bin_id] in ("2", "3")]
    for row in predictions:
        assert {row[name] for name in (*DECODINGS, "low", "high")} <= {"2", "3"}
        assert float(row["p2"]) + float(row["p3"]) == pytest.approx(1, abs=1e-5)


def test_bad_photographs_and_improbable_records_are_left_out_of_training(project: Project) -> None:
    splits = {row["id"]: row["split"] for row in read_csv(project.folder / "data/splits.csv")}
    quality = read_csv(project.folder / "data/quality.csv")
    assert [row["id"] for row in quality] == list(splits)
    known = read_json(project, "metrics/quality.json")["known"]
    assert known["broken"] == {"precision": 1, "recall": 1} and known["blurred"]["precision"] == 1
    assert 0.5 < known["wrong_record"]["auc"] <= 1
    assert read_json(project, "metrics/test.json")["good_photographs"]["images"] == sum(
        not row["reasons"] for row in quality if splits[row["id"]] == "test"
    )
    project.set(split__exclude="[blurred, dark]", split__exclude_wrong="0.02")
    text = project.must("dvc", "repro", "train")
    assert "Stage 'quality' didn't change, skipping" in text and "Running stage 'train'" in text
    changed = {row["id"]: row["split"] for row in read_csv(project.folder / "data/splits.csv")}
    left_out = {one for one, split in changed.items() if split != splits[one]}
    blurred = {row["id"] for row in quality if "blurred" in row["reasons"] and splits[row["id"]] == "train"}
    assert blurred <= left_out and len(left_out) > len(blurred)
    assert {splits[one] for one in left_out} == {"train"} and {changed[one] for one in left_out} == {"left_out"}


def test_from_s3_and_back(tmp_path: Path, store: Store) -> None:
    """Fetch without keys, reproduce, push, clone, pull: nothing is left to do."""
    project = make_project(tmp_path / "project")
    project.set(fetch__source="s3://bins/abid", fetch__endpoint=store.endpoint)
    project.must("dvc", "remote", "modify", "store", "url", "s3://remote/dvc")
    project.must("dvc", "remote", "modify", "store", "endpointurl", store.endpoint)
    project.must("dvc", "repro")
    assert "comparable with those" not in (project.folder / "metrics/benchmark.md").read_text()
    project.commit("From S3")
    keys = (("access_key_id", store.access_key), ("secret_access_key", store.secret_key))
    for name, value in keys:
        project.must("dvc", "remote", "modify", "--local", "store", name, value)
    project.must("dvc", "push", "--run-cache")

    project.must("git", "clone", "-q", ".", str(tmp_path / "clone"))
    clone = Project(tmp_path / "clone")
    for name, value in keys:
        clone.must("dvc", "remote", "modify", "--local", "store", name, value)
    clone.must("dvc", "pull", "--run-cache")
    assert "up to date" in clone.must("dvc", "status")
    assert "Running stage" not in clone.must("dvc", "repro")
    assert (clone.folder / "data/bins/bins-00000.tar").read_bytes() == (
        project.folder / "data/bins/bins-00000.tar"
    ).read_bytes()


def test_the_whole_network_trains_from_pixels(project: Project) -> None:
    project.set(model__trainable="all", model__backbone="mobilenet_v3_small", model__weights="none", train__epochs=1)
    project.set(model__features="last", train__ordinal="true", train__initial_image_size=64)
    project.must("dvc", "repro")
    assert (project.folder / "data/encoded/encoding.json").read_text().count("pixels") == 1
