"""Trainings to interrupt, and their outcomes."""

import json
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from project import Project

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
    return sorted((project.folder / ".bintally/train").glob("*/*/*.pt"))


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
