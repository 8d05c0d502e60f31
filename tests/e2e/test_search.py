"""`bintally tune` with real experiments: killed and resumed, and shared by two processes through PostgreSQL."""

import os
import signal
import time
from pathlib import Path

from bintally.files import read_csv
from project import Project


def experiments(project: Project) -> list[str]:
    """The lines of `dvc exp show` about trials: experiment and learning rate."""
    text = project.must("dvc", "exp", "show", "--csv", "--drop", ".*", "--keep", "Experiment|train.lr")
    return [line for line in text.splitlines() if "tune-" in line]


def rows(project: Project) -> list[dict[str, str]]:
    return read_csv(project.folder / "plots/tune/trials.csv")


def test_a_killed_search_resumes_and_its_best_trial_can_be_applied(project: Project) -> None:
    before = (project.folder / "params.yaml").read_text()
    killed = project.start("bintally", "tune", "--trials", "3")
    while sum(name.startswith("tune-") for name in refs(project)) < 1:
        time.sleep(0.2)
        assert killed.poll() is None
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    output = project.must("bintally", "tune", "--trials", "3")

    done = rows(project)
    assert len(done) == 3 and {row["state"] for row in done} <= {"done", "stopped early"}
    assert len({(row["train.lr"], row["train.batch_size"]) for row in done}) == 3
    listed = experiments(project)
    assert len(listed) == sum(row["state"] == "done" for row in done)
    assert (project.folder / "params.yaml").read_text() == before, "a search leaves the workspace alone"

    best = max((row for row in done if row["state"] == "done"), key=lambda row: float(row["accuracy"]))
    apply = next(line for line in output.splitlines() if "dvc exp apply" in line).removeprefix("Best:").split()
    project.must(*apply)
    assert f"lr: {best['train.lr']}" in (project.folder / "params.yaml").read_text()
    assert "up to date" in project.must("dvc", "status")


def refs(project: Project) -> list[str]:
    listed = project.must("git", "for-each-ref", "--format=%(refname)", "refs/exps")
    return [line.rpartition("/")[2] for line in listed.splitlines()]


def test_two_processes_share_a_study_in_postgresql(project: Project, tmp_path: Path, postgres: str) -> None:
    project.must("git", "clone", "-q", ".", str(tmp_path / "other"))
    other = Project(tmp_path / "other")
    other.must("dvc", "cache", "dir", "--local", str(project.folder / ".dvc/cache"))
    other.must("dvc", "checkout")
    workers = [
        one.start("bintally", "tune", "--trials", "4", "--jobs", "1", "--storage", postgres) for one in (project, other)
    ]
    outputs = [worker.communicate(timeout=600)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(outputs)

    mine, theirs = ({name for name in refs(one) if name.startswith("tune-")} for one in (project, other))
    last = max((rows(one) for one in (project, other)), key=lambda table: sum(row["state"] == "done" for row in table))
    assert len(last) == 4 and {row["state"] for row in last} <= {"done", "stopped early"}
    assert mine and theirs and not mine & theirs
    assert len(mine | theirs) == sum(row["state"] == "done" for row in last)
    assert len({(row["train.lr"], row["train.batch_size"]) for row in last}) == 4
