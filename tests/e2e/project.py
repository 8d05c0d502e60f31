"""A scratch copy of this repository that end-to-end tests may run the real tools in."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "fetch.demo_bins": 120,
    "fetch.per_count": 12,
    "model.image_size": 96,
    "train.epochs": 3,
    "train.batch_size": 16,
    "train.hidden": 16,
    "evaluate.resamples": 100,
    "audit.draws": 10,
}


@dataclass(frozen=True)
class Result:
    """The exit code of a finished command, and its stdout and stderr together."""

    code: int
    text: str


@dataclass(frozen=True)
class Project:
    """A scratch repository with a small demo."""

    folder: Path

    def environment(self) -> dict[str, str]:
        # Without SHELL, DVC runs stages in /bin/sh, which unlike bash may stay on as the parent of its last command.
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("AWS_", "DVC_")) and name != "SHELL"
        }
        return inherited | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(self.folder / "src"),
            "GIT_CONFIG_GLOBAL": os.devnull,
            **{f"GIT_{who}_{what}": "test@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
        }

    def run(self, *command: str, timeout: float = 300) -> Result:
        try:
            done = subprocess.run(
                command,
                cwd=self.folder,
                env=self.environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired as expired:
            output = (expired.stdout or b"").decode(errors="replace")  # bytes, whatever was asked for
            raise AssertionError(f"{' '.join(command)} has not ended after {timeout} s:\n{output}") from expired
        return Result(done.returncode, done.stdout)

    def must(self, *command: str) -> str:
        """The output of a command that has to succeed."""
        done = self.run(*command)
        assert done.code == 0, f"{' '.join(command)} ended with {done.code}:\n{done.text}"
        return done.text

    def start(self, *command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def set(self, **values: object) -> None:
        """Set parameters, named with __ for the dot; comments and order of the file stay."""
        for name, value in values.items():
            set_parameter(self.folder / "params.yaml", name.replace("__", "."), value)

    def commit(self, message: str) -> None:
        self.must("git", "add", "-A")
        self.must("git", "commit", "-qm", message)


def set_parameter(path: Path, name: str, value: object) -> None:
    section, key = name.split(".")
    inside = found = False
    lines = []
    for line in path.read_text().splitlines():
        if not line.startswith((" ", "#")):
            inside = line == f"{section}:"
        elif inside and line.startswith(f"  {key}:"):
            line = f"  {key}: {value}"
            found = True
        lines.append(line)
    assert found, f"params.yaml has no {name}"
    path.write_text("\n".join(lines) + "\n")


def make_project(folder: Path) -> Project:
    """Copy the working tree's files that git does not ignore, make the parameters small, and commit."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        # Without the outs that git tracks: the copy makes its own.
        if (ROOT / name).is_file() and not name.startswith(("metrics/", "plots/")) and name != "dvc.lock":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    for name, value in SMALL.items():
        set_parameter(folder / "params.yaml", name, value)
    project = Project(folder)
    project.must("git", "init", "-q", "-b", "main")
    project.commit("A small copy")
    return project
