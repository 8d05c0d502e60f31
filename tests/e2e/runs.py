"""Trainings to interrupt, and their outcomes.

`python tests/e2e/runs.py [TIMES]` kills a training TIMES times, at random moments, and compares the outcome of each,
after it was resumed, with that of an uninterrupted one, byte for byte.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from project import Project, make_project

WAIT_S = 120
CHECKPOINT_S = 0.1
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
    project.set(**{"train__epochs": 150, "train__lr": 0.00003, "launch__checkpoint_s": CHECKPOINT_S} | values)


def best_epoch(project: Project) -> int:
    return int(json.loads((project.folder / "metrics/train.json").read_text())["best_epoch"])


def steps_done(text: str) -> int:
    found = re.search(r"train: (\d+) steps in", text)
    assert found, text
    return int(found[1])


def checkpoints(project: Project) -> list[Path]:
    """Newest last."""
    return sorted((project.folder / ".bintally/train").glob("*/*.pt"))


def wait_for_steps(project: Project, run: subprocess.Popen[str], steps: int) -> int:
    """Wait until a checkpoint of that many steps or more is saved, and return its steps."""
    deadline = time.monotonic() + WAIT_S
    while not (saved := checkpoints(project)) or int(saved[-1].stem) < steps:
        assert time.monotonic() < deadline and run.poll() is None
        time.sleep(0.01)
    return int(saved[-1].stem)


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
    """Kill every process of a training `times` times, each after another number of steps."""
    chance = random.Random(1)  # noqa: S311
    with tempfile.TemporaryDirectory(prefix="bintally-kills-") as name:
        project = make_project(Path(name) / "project")
        project.must("dvc", "repro", "encode", "split")
        train_slowly(project, train__epochs=250, train__lr=0.00001)
        steps = steps_done(project.must(*TRAIN))
        uninterrupted = outcome(project)
        print(f"uninterrupted: {steps} steps, best epoch {best_epoch(project)}", flush=True)
        same = 0
        for number in range(1, times + 1):
            (project.folder / "models/model.safetensors").unlink(missing_ok=True)
            run = project.start(*TRAIN)
            # Not the very last steps: the training could end before they are seen.
            saved = wait_for_steps(project, run, chance.randint(1, steps * 9 // 10))
            time.sleep(chance.uniform(0, CHECKPOINT_S))
            for process in running_stages(project):
                os.kill(process, signal.SIGKILL)
            run.communicate(timeout=WAIT_S)
            done = steps_done(project.must(*TRAIN))
            same += outcome(project) == uninterrupted and done < steps
            print(
                f"kill {number}: {saved} steps saved, {done} done afterwards; the same bytes {same} of {number} times",
                flush=True,
            )
    sys.exit(same != times)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
