"""A DVC experiment as a child process: its epochs followed, stopped early, its metrics read from its commit."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from fcntl import LOCK_EX, flock
from pathlib import Path
from typing import Any

from bintally import paths
from bintally.apps.repository import dvc_command, git
from bintally.errors import UserError
from bintally.files import SCRATCH, check_writable
from bintally.hashing import sha256_hex
from bintally.interruption import terminate_with_parent
from bintally.monitor import EPOCHS_VARIABLE
from bintally.yaml_files import read_yaml

LOGS = SCRATCH / "experiments"
# Where `dvc exp run --temp` lists running experiments, and their working folders.
RUNNING, FOLDERS = Path(".dvc/tmp/exps/run"), Path(".dvc/tmp/exps/standalone")
POLL_S = 0.5
TERMINATE_S = 30.0
MAX_REASON = 300  # characters

Epoch = Mapping[str, float]


class ExperimentStopped(Exception):
    """The experiment was stopped early because ``should_stop`` returned True."""


def run_experiment(
    name: str, changes: Mapping[str, object], should_stop: Callable[[Sequence[Epoch]], bool]
) -> dict[str, Any]:
    """Run `dvc exp run` with changed parameters outside the workspace and return its validation metrics.

    Args:
        name: of the experiment; an existing one is replaced.
        changes: values by ``section.key``.
        should_stop: called twice a second with the epochs that training has finished since the last call.

    Raises ExperimentStopped after ``should_stop`` returned True, UserError with the stage's message if it fails.
    """
    values = sha256_hex(json.dumps(changes).encode())[:8]
    log, epochs, earlier = (LOGS / f"{name}{end}" for end in (".log", f"-{values}.jsonl", f"-{values}-earlier.jsonl"))
    check_writable(log)
    command = dvc_command("exp", "run", "--temp", "--name", name)
    command += [f"--set-param={key}={json.dumps(value)}" for key, value in changes.items()]
    stopped = ended = False
    shown = 0
    with log.open("ab") as output:
        # DVC and its stages, who write to it, hold the lock too: those of a killed search end before this one begins.
        flock(output, LOCK_EX)
        output.truncate(0)
        if _read_epochs(epochs):
            epochs.replace(earlier)
        epochs.write_bytes(b"")
        remove_experiment(name)
        # DVC does not stop its stage when it is stopped: in a session of their own both get the signal. If this process
        # dies, DVC gets SIGTERM, and the stage when DVC is gone.
        environment = os.environ | {EPOCHS_VARIABLE: str(epochs.resolve())}
        child = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True, preexec_fn=terminate_with_parent,
        )  # fmt: skip
        try:
            while not (stopped or ended):
                time.sleep(POLL_S)
                ended = child.poll() is not None
                done = _read_epochs(epochs)
                if ended and not done:  # the training that a killed search has finished comes from the run-cache
                    done = _read_epochs(earlier)
                stopped = not child.returncode and should_stop(done[shown:])
                shown = len(done)
        finally:
            _terminate(child)
            if child.returncode or stopped:
                remove_experiment(name)
    if stopped:
        raise ExperimentStopped
    if child.returncode:
        raise UserError(_reason(log))
    metrics = read_metrics(name)
    if metrics is None:
        raise UserError(f"DVC kept no experiment '{name}'; its output is in {log}")
    return metrics


def _read_epochs(file: Path) -> list[Epoch]:
    """The epochs in a log of a training; the last line may be on its way."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.exists() else []
    logged = [json.loads(line) for line in lines if line.endswith("\n")]
    return [line for line in logged if "epoch" in line]


def remove_experiment(name: str) -> None:
    """Remove an experiment and what is left of it if it was killed; nothing happens if there is none."""
    if _commit(name):
        done = subprocess.run(dvc_command("exp", "remove", name), check=False, capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"the experiment '{name}' cannot be removed: {' '.join(done.stderr.split())[:MAX_REASON]}")
    # DVC lists a killed experiment as running for ever, and keeps its folder.
    for running in RUNNING.glob("*"):  # not "*/*.run", which fails where a folder goes away meanwhile
        try:
            run = json.loads((running / f"{running.name}.run").read_text(encoding="utf-8"))
        except (ValueError, FileNotFoundError):  # of another experiment that starts or ends right now
            continue
        if run["name"] == name:
            folder = Path(run["root_dir"]).resolve()
            if folder.parent == FOLDERS.resolve():
                shutil.rmtree(folder, ignore_errors=True)
            with suppress(FileNotFoundError):  # an experiment that ends right now removes it, too
                shutil.rmtree(running)


def read_metrics(name: str) -> dict[str, Any] | None:
    """The validation metrics in the commit of an experiment; None if there is no such experiment."""
    commit = _commit(name)
    return dict(json.loads(git("show", f"{commit}:{paths.VALIDATION_METRICS}"))) if commit else None


def _terminate(child: subprocess.Popen[bytes]) -> None:
    """Stop a child and every process it has started, if any of them still run."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, number)
        except ProcessLookupError:
            break
        try:
            child.wait(TERMINATE_S)
        except subprocess.TimeoutExpired:
            continue
    child.wait()


def _reason(log: Path) -> str:
    """The last line that a stage has logged under its name, else the last line."""
    prefixes = tuple(f"{stage}: " for stage in read_yaml(Path("dvc.yaml"))["stages"])
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    messages = [line for line in lines if line.startswith(prefixes)] or lines or ["no reason was given"]
    return f"{messages[-1][:MAX_REASON]} (full output: {log})"


def _commit(name: str) -> str | None:
    refs = git("for-each-ref", "--format=%(objectname) %(refname)", "refs/exps").splitlines()
    return next((ref.split()[0] for ref in refs if ref.endswith(f"/{name}")), None)
