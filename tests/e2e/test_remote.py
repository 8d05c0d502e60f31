"""`bintally repro` and `bintally pull` with the default remote: what was pushed is there, whatever stood in the way."""

import os
import shutil
import signal
import socket
import time
from pathlib import Path

import pytest

from project import Project
from runs import processes, running_stages, train_slowly, wait_for_steps

DEADLINE_S = 60


def test_what_is_pushed_can_be_pulled_though_the_store_was_removed_and_another_program_has_its_port(
    reproduced: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a proxy, with an unknown AWS profile, from a git hook of another repository, in folders of odd names."""
    project, clone = Project(tmp_path / "a project, ü"), Project(tmp_path / "a clone #2")
    shutil.copytree(reproduced.folder, project.folder, symlinks=True)
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        project.must("dvc", "remote", "modify", "store", "endpointurl", f"http://127.0.0.1:{port}")
        project.commit("Another port")
        monkeypatch.setattr(
            Project,
            "environment",
            lambda self, original=Project.environment: (
                original(self)
                | {"HTTP_PROXY": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9", "AWS_PROFILE": "nobody"}
                | {"GIT_DIR": str(tmp_path / "other/.git"), "DVC_ROOT": str(tmp_path / "other")}
            ),
        )
        first = project.must("bintally", "repro")
        assert "files pushed" in first and "test bins" in first
        (project.folder / ".store/data").rename(tmp_path / "data of before")
        shutil.rmtree(project.folder / ".store")
        again = project.must("bintally", "repro")
        assert "Running stage" not in again and "files pushed" in again
        monkeypatch.undo()

        project.must("git", "clone", "-q", ".", str(clone.folder))
        shutil.copytree(project.folder / ".store", clone.folder / ".store", ignore=shutil.ignore_patterns("*.sock"))
        clone.must("bintally", "pull")
    assert "up to date" in clone.must("dvc", "status")
    assert clone.must("git", "status", "--porcelain") == ""


def test_a_killed_repro_leaves_no_process(project: Project) -> None:
    train_slowly(project, train__epochs=5000)
    run = project.start("bintally", "repro")
    wait_for_steps(project, run, 1)
    os.kill(run.pid, signal.SIGKILL)
    run.communicate(timeout=DEADLINE_S)
    deadline = time.monotonic() + DEADLINE_S
    while left := processes(project, b"dvc") + running_stages(project):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def test_what_cannot_be_pushed_or_read_is_named_before_the_work(project: Project) -> None:
    lock = project.folder / "dvc.lock"
    text = lock.read_text()
    lock.write_text(f"<<<<<<< ours\n{text}=======\n{text}>>>>>>> theirs\n")
    done = project.run("bintally", "repro")
    assert done.code == 1 and "Traceback" not in done.text
    assert "dvc.lock" in done.text and "bintally: `dvc repro` failed" in done.text
    lock.write_text(text)
    store = project.folder / ".store"
    store.rmdir()
    store.touch()
    assert_refused_at_once(project, "'.store/lock' cannot be written")
    store.unlink()
    project.must("dvc", "config", "--unset", "core.remote")
    assert_refused_at_once(project, "there is no default DVC remote")


def assert_refused_at_once(project: Project, reason: str) -> None:
    """Check that `bintally repro` fails in one sentence before DVC does anything."""
    done = project.run("bintally", "repro")
    assert done.code == 1 and reason in done.text and len(done.text.splitlines()) == 1, done.text
