"""git and DVC in this repository: without what another tool left in the environment, refusals in one sentence."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bintally.errors import UserError
from bintally.interruption import terminate_with_parent

if TYPE_CHECKING:
    from dvc.repo import Repo

# A hook of git, `git rebase --exec` and a stage of DVC name their own repository and experiment in these.
INHERITED = (
    "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_NAMESPACE", "GIT_PREFIX",
    "DVC_ROOT", "DVC_STAGE", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV",
)  # fmt: skip


def forget_other_repository() -> None:
    """Drop the variables that name another repository from the environment of this process and its children."""
    for name in INHERITED:
        os.environ.pop(name, None)


def git(*arguments: str) -> str:
    """The output of git in the working directory. Raises UserError with git's reason if it refuses."""
    forget_other_repository()
    try:
        done = subprocess.run(
            ["git", *arguments],
            check=False, capture_output=True, encoding="utf-8", errors="replace", env=os.environ | {"LC_ALL": "C"},
        )  # fmt: skip
    except FileNotFoundError as error:
        raise UserError("git is not installed, and experiments are commits: install it") from error
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[0].removeprefix("fatal: ")
        remedy = "run this in a clone of the repository"
        if "dubious ownership" in reason:
            remedy = f"if you trust it, `git config --global --add safe.directory '{Path.cwd()}'`"
        raise UserError(f"git refuses '{Path.cwd()}': {reason}; {remedy}")
    return done.stdout


@contextmanager
def open_repository() -> Iterator["Repo"]:
    """The repository as DVC sees it. Raises UserError with DVC's reason if that refuses, in the block as well."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from scmrepo.exceptions import SCMError

    git("rev-parse")  # git's reason is clearer than what DVC makes of it
    try:
        with Repo() as repo:
            yield repo
    except (DvcException, SCMError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"DVC refuses '{Path.cwd()}': {reason}") from error


def dvc_command(*arguments: str) -> list[str]:
    """The command line of a DVC command that waits while another one locks the repository."""
    return [sys.executable, "-m", "dvc", "--wait-for-lock", *arguments]


def run_dvc(*arguments: str) -> None:
    """Run a DVC command, which ends with this process. Raises UserError if it fails."""
    forget_other_repository()
    if subprocess.run(dvc_command(*arguments), check=False, preexec_fn=terminate_with_parent).returncode:
        raise UserError(f"`dvc {' '.join(arguments)}` failed; its message is above")
