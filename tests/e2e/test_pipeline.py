"""The graph by the tools people use it with."""

import json
import re
from pathlib import Path

from project import Project, make_project

from bintally.apps.store import Store


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
    for title in ("Cross-entropy by epoch", "Share of right counts by epoch", "Confusion of test bins"):
        assert title in page
    for picture in ("confusion.png", "examples.png", "benchmark.png"):
        assert picture in page


def test_every_test_image_is_scored_once(reproduced: Project) -> None:
    rows = (reproduced.folder / "data/splits.csv").read_text().splitlines()[1:]
    test = [row.split(",")[0] for row in rows if row.endswith(",test")]
    predictions = (reproduced.folder / "data/predictions.csv").read_text().splitlines()[1:]
    assert [row.split(",")[0] for row in predictions] == test
    metrics = json.loads((reproduced.folder / "metrics/test.json").read_text())
    assert metrics["images"] == len(test)
    benchmark = (reproduced.folder / "metrics/benchmark.md").read_text()
    assert "not comparable" in benchmark
    assert len(json.loads((reproduced.folder / "metrics/benchmark.json").read_text())["rows"]) == 10


def test_from_s3_and_back(tmp_path: Path, store: Store) -> None:
    """Fetch without keys, run, push, lose everything, clone, pull: nothing is left to do."""
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


def test_everything_trains_from_pixels(project: Project) -> None:
    project.set(model__trained="all", model__trunk="mobilenet_v3_small", model__weights="none", train__epochs=1)
    project.must("dvc", "repro")
    assert (project.folder / "data/encoded/encoding.json").read_text().count("pixels") == 1
