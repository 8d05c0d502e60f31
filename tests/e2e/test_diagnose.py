"""`bintally diagnose` on a real project: its page, its JSON and its exit code."""

import json
from typing import Any

import pytest

from bintally.diagnosis.rules import RULES
from project import Project, Result


def run_diagnose(project: Project) -> tuple[Result, dict[str, Any]]:
    done = project.run("bintally", "diagnose", "--steps", "6")
    return done, json.loads((project.folder / "exports/diagnose/diagnosis.json").read_text())


def not_checked(diagnosis: dict[str, Any]) -> set[str]:
    return {finding["rule"] for finding in diagnosis["findings"] if finding["severity"] == "not_checked"}


def test_a_run_of_two_ranks_is_diagnosed(project: Project) -> None:
    project.set(launch__ranks=2)
    done, diagnosis = run_diagnose(project)
    assert done.code == {"fine": 0, "advice": 0, "warning": 10, "error": 20}[diagnosis["worst"]], done.text
    assert {finding["rule"] for finding in diagnosis["findings"]} == {rule.name for rule in RULES}
    assert not_checked(diagnosis) == {"batch too small", "oscillating", "early plateau"}, "too few bins and epochs"
    assert diagnosis["profile"]["ranks"] == 2 and len(diagnosis["epochs"]) == 3
    page = (project.folder / "exports/diagnose/index.html").read_text()
    assert page.count("<img") == 3 and "http" not in page.replace("http-equiv", "") and "<script" not in page
    assert (project.folder / "exports/diagnose/trace.json.gz").stat().st_size > 1000
    assert diagnosis["verdict"] in done.text and project.must("git", "status", "--porcelain", "dvc.lock") == ""


@pytest.mark.slow
def test_a_loss_that_does_not_fall_and_a_failed_run_are_diagnosed(project: Project) -> None:
    project.set(train__lr=1e-7)
    _, diagnosis = run_diagnose(project)
    assert {"near chance", "loss not falling"} <= not_checked(diagnosis), "the model has other parameters"

    project.must("dvc", "repro", "train")
    done, _ = run_diagnose(project)
    assert done.code == 20 and "error        loss not falling" in done.text, done.text

    project.set(train__optimizer="sgd", train__lr=10, train__weight_decay=1, train__epochs=40)
    assert "is not finite" in project.run("dvc", "repro", "train").text
    done, diagnosis = run_diagnose(project)
    assert done.code == 20 and diagnosis["verdict"].startswith("The run failed: "), done.text
