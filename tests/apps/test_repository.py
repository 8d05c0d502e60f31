"""git and DVC that refuse, and what other tools left in the environment."""

import os
import subprocess
from pathlib import Path

import pytest

from bintally.apps.remote import default_remote
from bintally.apps.repository import git, open_repository
from bintally.errors import UserError
from project import ROOT, make_project


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder as the working directory, in no repository."""
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def one_sentence(caught: pytest.ExceptionInfo[UserError], *parts: str) -> None:
    text = str(caught.value)
    assert "\n" not in text and all(part in text for part in parts), text


def test_no_repository(folder: Path) -> None:
    for call in (lambda: git("rev-parse", "HEAD"), default_remote):
        with pytest.raises(UserError) as caught:
            call()
        one_sentence(caught, str(folder), "not a git repository", "run this in a clone")


def test_no_git(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(folder))
    with pytest.raises(UserError, match=r"git is not installed"):
        git("status")


def test_a_repository_of_another_owner(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git("init", "-q")
    (folder / ".dvc").mkdir()
    (folder / ".dvc/config").touch()
    if os.getuid() == 0:
        subprocess.run(["chown", "-R", "12345", str(folder)], check=True)
    else:
        monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    for call in (lambda: git("status"), default_remote):
        with pytest.raises(UserError) as caught:
            call()
        one_sentence(caught, "dubious ownership", f"safe.directory '{folder}'")


def test_no_commit_yet(folder: Path) -> None:
    git("init", "-q")
    with pytest.raises(UserError) as caught:
        git("rev-parse", "HEAD:src")
    one_sentence(caught, "HEAD", "run this in a clone")


@pytest.mark.parametrize(
    ("config", "reason"), [(None, "DVC"), ("[core\n", "config"), ("[core]\n    remote = store\n", "default DVC remote")]
)
def test_no_dvc_and_a_damaged_configuration(folder: Path, config: str | None, reason: str) -> None:
    git("init", "-q")
    if config:
        (folder / ".dvc").mkdir()
        (folder / ".dvc/config").write_text(config)
    with pytest.raises(UserError) as caught:
        default_remote()
    one_sentence(caught, reason)


def test_the_repository_of_a_hook_that_runs_this_is_forgotten(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path_factory.mktemp("other")
    subprocess.run(["git", "init", "-q", str(other)], check=True)
    git("init", "-q")
    (folder / ".dvc").mkdir()
    (folder / ".dvc/config").touch()
    for name, value in (
        ("GIT_DIR", other / ".git"),
        ("GIT_WORK_TREE", other),
        ("GIT_INDEX_FILE", other / "index"),
        ("DVC_ROOT", other),
        ("DVC_EXP_NAME", "another"),
    ):
        monkeypatch.setenv(name, str(value))
    assert git("rev-parse", "--show-toplevel").strip() == str(folder.resolve())
    with open_repository() as repo:
        assert Path(repo.root_dir) == folder.resolve()
    assert "GIT_DIR" not in os.environ and "DVC_EXP_NAME" not in os.environ, "nor do children see it"


def test_a_clone_by_a_git_that_converts_line_ends_has_the_bytes_that_were_committed(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    project.must("git", "clone", "-q", "-c", "core.autocrlf=true", ".", str(tmp_path / "clone"))
    names = [name for name in project.must("git", "ls-files", "-z").split("\0") if name]
    assert len(names) > 100 and (ROOT / ".gitattributes").exists()
    different = [
        name for name in names if (project.folder / name).read_bytes() != (tmp_path / "clone" / name).read_bytes()
    ]
    assert not different
