"""Ranks and faults, with real torchrun."""

import os
import re
import signal
import time
from pathlib import Path

import pytest
from project import Project


def curve(project: Project, split: str) -> list[float]:
    lines = (project.folder / f"plots/training/plots/metrics/{split}/loss.tsv").read_text().splitlines()[1:]
    return [float(line.split("\t")[1]) for line in lines]


@pytest.mark.parametrize(
    ("freeze", "lr", "others"),
    # Adam's first steps are as long as the learning rate whatever the gradient, so that it blows up the rounding of
    # gradients near zero; where batch statistics are learned through, only small steps show the arithmetic alone.
    [("true", 0.01, (2, 3)), ("false", 0.00001, (2,))],
)
def test_the_number_of_ranks_does_not_change_the_curve(
    project: Project, freeze: str, lr: float, others: tuple[int, ...]
) -> None:
    project.set(model__freeze=freeze, train__lr=lr, train__epochs=2, model__image_size=64)
    curves = {}
    for ranks in (1, *others):
        project.set(launch__ranks=ranks)
        project.must("dvc", "repro", "train")
        curves[ranks] = curve(project, "train") + curve(project, "validation")
    for ranks in others:
        assert curves[ranks] == pytest.approx(curves[1], rel=1e-4)


def _ranks(parent: int) -> list[int]:
    """Process ids of the training processes below a `dvc repro`."""
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(status.parent.name))
    below, found = [parent], []
    while below:
        process = below.pop()
        below += children.get(process, [])
        try:
            if b"TORCHELASTIC_RUN_ID" in Path(f"/proc/{process}/environ").read_bytes():
                found.append(process)
        except OSError:
            continue
    return found


def test_a_killed_training_goes_on_to_the_same_bytes(project: Project) -> None:
    project.set(train__epochs=150, train__lr=0.001)
    weights = project.folder / "models/model.safetensors"
    project.must("dvc", "repro", "train")
    undisturbed, history = weights.read_bytes(), curve(project, "train")

    run = project.start("dvc", "repro", "--force", "--single-item", "train")
    checkpoints = project.folder / ".bintally/train"
    deadline = time.monotonic() + 120
    while not list(checkpoints.glob("*/state.pt")):
        assert time.monotonic() < deadline and run.poll() is None
        time.sleep(0.01)
    for process in _ranks(run.pid):
        os.kill(process, signal.SIGKILL)
    text = run.communicate(timeout=60)[0]
    assert run.returncode != 0
    assert "SIGKILL" in text and "Traceback" not in text
    assert list(checkpoints.glob("*/state.pt")), "the kill came after the last epoch"

    text = project.must("dvc", "repro", "--force", "--single-item", "train")
    # It went on rather than starting anew, and the curves hold the epochs before the kill.
    assert int(re.search(r"train: (\d+) steps", text)[1]) < 150 * 3  # type: ignore[index]
    assert weights.read_bytes() == undisturbed
    assert curve(project, "train") == history
