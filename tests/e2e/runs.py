"""Trainings to interrupt, and their outcomes.

`python tests/e2e/runs.py [TIMES]` kills a training TIMES times, at random moments, and compares the outcome of each,
after it was resumed, with that of an uninterrupted one, byte for byte.
"""

import json
import os
import random
import re
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from project import Project, make_project

WAIT_S = 120
TRAIN = ("python", "-m", "bintally.stages.train")


@dataclass(frozen=True)
class Outcome:
    """The outs of a training that show all of it."""

    weights: bytes
    curve: list[float]
    """Training and validation loss by epoch."""


def outcome(project: Project) -> Outcome:
    losses = []
    for split in ("train", "validation"):
        path = project.folder / f"plots/training/plots/metrics/{split}/loss.tsv"
        losses += [float(line.split("\t")[1]) for line in path.read_text().splitlines()[1:]]
    return Outcome((project.folder / "models/model.safetensors").read_bytes(), losses)


def train_slowly(project: Project, **values: object) -> None:
    """Make a training take some seconds, with its best epochs last, so that the weights kept show all of it."""
    project.set(**{"train__epochs": 150, "train__lr": 0.00003, "launch__checkpoint_s": 0.1} | values)


def best_epoch(project: Project) -> int:
    return int(json.loads((project.folder / "metrics/train.json").read_text())["best_epoch"])


def steps_done(text: str) -> int:
    found = re.search(r"train: (\d+) steps in", text)
    assert found, text
    return int(found[1])


def checkpoints(project: Project) -> list[Path]:
    """Newest last."""
    return sorted((project.folder / ".bintally/train").glob("*/*.pt"))


def wait_for_checkpoint(project: Project) -> float:
    """Wait for a checkpoint; the time at which it exists."""
    deadline = time.monotonic() + WAIT_S
    while not checkpoints(project):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return time.monotonic()


def running_stages(project: Project) -> list[int]:
    """Processes of stages that run in the project, the launcher of a training before its ranks."""
    return processes(project, b"bintally.stages")


def processes(project: Project, word: bytes) -> list[int]:
    """Processes that run in the project with ``word`` in their command line."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").readlink() == project.folder and word in (process / "cmdline").read_bytes():
                found.append(int(process.name))
        except OSError:
            continue
    return sorted(found)


def main(times: int) -> None:
    """Kill every process of a training `times` times, each at another moment after its first checkpoint."""
    chance = random.Random(1)  # noqa: S311
    with tempfile.TemporaryDirectory(prefix="bintally-kills-") as name:
        project = make_project(Path(name) / "project")
        project.must("dvc", "repro", "encode", "split")
        train_slowly(project, train__epochs=250, train__lr=0.00001)
        run = project.start(*TRAIN)
        start = wait_for_checkpoint(project)
        run.communicate(timeout=WAIT_S)
        life = time.monotonic() - start
        undisturbed = outcome(project)
        print(f"undisturbed: {life:.1f} s after its first checkpoint, best epoch {best_epoch(project)}", flush=True)
        same = 0
        for number in range(1, times + 1):
            run = project.start(*TRAIN)
            moment = chance.uniform(0, life)
            wait_for_checkpoint(project)
            time.sleep(moment)
            at = checkpoints(project)
            for process in running_stages(project):
                os.kill(process, signal.SIGKILL)
            run.communicate(timeout=WAIT_S)
            (project.folder / "models/model.safetensors").unlink(missing_ok=True)
            steps = steps_done(project.must(*TRAIN))
            same += outcome(project) == undisturbed
            done = int(at[-1].stem) if at else 0
            print(
                f"kill {number}: after {moment:.1f} s, at {done} steps saved, {steps} done afterwards; "
                f"the same bytes {same} of {number} times",
                flush=True,
            )
    sys.exit(same != times)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
