"""One DVC experiment as a child process: followed while it trains, ended early, its metrics read from its commit."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from bintally import paths, stages
from bintally.errors import UserError
from bintally.files import SCRATCH
from bintally.interruption import terminate_with_parent
from bintally.monitor import FOLLOWED

LOGS = SCRATCH / "experiments"
# Where `dvc exp run --temp` notes what it runs, and runs it.
UNDER_WAY, FOLDERS = Path(".dvc/tmp/exps/run"), Path(".dvc/tmp/exps/standalone")
LOOK_EVERY_S = 0.5
END_WITHIN_S = 30.0
REASON_CHARACTERS = 300

Curve = Mapping[str, float]


class Ended(Exception):
    """The experiment was ended before it was done, as ``look`` asked for."""


def run_experiment(name: str, changes: Mapping[str, object], look: Callable[[Sequence[Curve]], bool]) -> dict[str, Any]:
    """Run `dvc exp run` with some parameters changed, away from the workspace; the metrics of validation.

    Args:
        name: of the experiment; one of that name is replaced.
        changes: values by ``section.key``.
        look: is called twice a second with the epochs the train stage has reported since; True ends the experiment.

    Raises Ended after ``look`` said so, UserError with the stage's own reason if the experiment fails.
    """
    LOGS.mkdir(parents=True, exist_ok=True)
    told, log = LOGS / f"{name}.jsonl", LOGS / f"{name}.log"
    told.write_bytes(b"")
    remove_experiment(name)
    command = [sys.executable, "-m", "dvc", "exp", "run", "--temp", "--name", name]
    for key, value in changes.items():
        command += ["-S", f"{key}={json.dumps(value)}"]
    environment = os.environ | {FOLLOWED: str(told.resolve())}
    with log.open("wb") as output:
        # A session of its own: DVC leaves its child alive when it is ended, so all of them are. A stage ends with DVC,
        # and DVC with this process, however that ends.
        child = subprocess.Popen(
            command,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=terminate_with_parent,
        )
        try:
            with told.open(encoding="utf-8") as epochs:
                while child.poll() is None:
                    time.sleep(LOOK_EVERY_S)
                    said = [json.loads(line) for line in epochs.readlines()]
                    if look([line for line in said if "epoch" in line]):
                        raise Ended
        finally:
            _end(child)
            if child.returncode:
                remove_experiment(name)
    if child.returncode:
        raise UserError(_reason(log))
    metrics = read_metrics(name)
    if metrics is None:
        raise UserError(f"DVC has kept no experiment '{name}' (all it said: {log})")
    return metrics


def remove_experiment(name: str) -> None:
    """Remove an experiment, or what one that was ended has left; nothing happens where there is none of that name."""
    if _commit(name):
        subprocess.run([sys.executable, "-m", "dvc", "exp", "remove", name], check=True, capture_output=True)
    # DVC says "Running" for ever of one that was ended, and keeps its folder.
    for told in UNDER_WAY.glob("*/*.run"):
        try:
            run = json.loads(told.read_text(encoding="utf-8"))
        except (ValueError, FileNotFoundError):  # another's, just being written or removed
            continue
        if run["name"] == name:
            folder = Path(run["root_dir"]).resolve()
            if folder.parent == FOLDERS.resolve():
                shutil.rmtree(folder, ignore_errors=True)
            shutil.rmtree(told.parent)


def _end(child: subprocess.Popen[bytes]) -> None:
    """End a child and all it has started, if they are still there."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, sign)
        except ProcessLookupError:
            break
        try:
            child.wait(END_WITHIN_S)
        except subprocess.TimeoutExpired:
            continue
    child.wait()


def _reason(log: Path) -> str:
    """The last line a stage failed with, or the last line there is."""
    names = tuple(f"{stage.name}: " for stage in iter_modules(stages.__path__))
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    told = [line for line in lines if line.startswith(names)] or lines or ["no reason was given"]
    return f"{told[-1][:REASON_CHARACTERS]} (all of it: {log})"


def read_metrics(name: str) -> dict[str, Any] | None:
    """The metrics of validation in the commit of an experiment; None if there is none of that name."""
    commit = _commit(name)
    if not commit:
        return None
    content: dict[str, Any] = json.loads(_git("show", f"{commit}:{paths.VALIDATION_METRICS}"))
    return content


def _commit(name: str) -> str | None:
    listed = _git("for-each-ref", "--format=%(objectname) %(refname)", "refs/exps").splitlines()
    return next((line.split()[0] for line in listed if line.endswith(f"/{name}")), None)


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout
