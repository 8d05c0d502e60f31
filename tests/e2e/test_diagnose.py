"""`bintally diagnose` on a real project: its page, its JSON and its exit code."""

import json

from project import Project

from bintally.diagnosis.rules import RULES


def test_a_run_is_diagnosed_and_one_whose_loss_does_not_fall_ends_in_an_error(project: Project) -> None:
    project.set(launch__ranks=2)
    said = project.run("bintally", "diagnose", "--steps", "6")
    folder = project.folder / "exports/diagnose"
    found = json.loads((folder / "diagnosis.json").read_text())
    assert said.code == {"fine": 0, "advice": 0, "warning": 10, "error": 20}[found["worst"]], said.text
    severities = {finding["rule"]: finding["severity"] for finding in found["findings"]}
    assert set(severities) == {rule.name for rule in RULES}
    unknown = {rule for rule, severity in severities.items() if severity == "not_checked"}
    assert unknown == {"batch too small", "oscillating", "plateau reached early"}, "so few bins and epochs"
    assert found["profile"]["ranks"] == 2 and len(found["epochs"]) == 3
    page = (folder / "index.html").read_text()
    assert page.count("<img") == 3 and "http" not in page.replace("http-equiv", "") and "<script" not in page
    assert (folder / "trace.json.gz").stat().st_size > 1000
    assert found["verdict"] in said.text and project.must("git", "status", "--porcelain", "dvc.lock") == ""

    project.set(train__lr=1e-7)
    said = project.run("bintally", "diagnose", "--steps", "6")
    found = json.loads((folder / "diagnosis.json").read_text())
    unknown = {finding["rule"] for finding in found["findings"] if finding["severity"] == "not_checked"}
    assert {"near chance", "loss not falling"} <= unknown, "the model that is here was trained by other parameters"

    project.must("dvc", "repro", "train")
    said = project.run("bintally", "diagnose", "--steps", "6")
    assert said.code == 20 and "error        loss not falling" in said.text, said.text

    project.set(train__optimizer="sgd", train__lr=10, train__weight_decay=1, train__epochs=40)
    assert "is not finite" in project.run("dvc", "repro", "train").text
    said = project.run("bintally", "diagnose", "--steps", "6")
    found = json.loads((folder / "diagnosis.json").read_text())
    assert said.code == 20 and found["verdict"].startswith("The run failed: "), said.text
