"""Kills stages and commands at random moments, runs each again, and compares its outs with an undisturbed run's.

`python tests/e2e/kills.py [TIMES]` spreads TIMES kills over every stage and over `predict`, `audit --accept`, `export`
and `tune`, and prints a line for each; it exits with 1 if any outs differ by a byte.
"""

import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

from bintally.bins.shards import ShardReader, read_index
from bintally.files import read_csv, write_csv
from bintally.hashing import sha256_hex
from project import Project, make_project
from runs import CHECKPOINT_S, WAIT_S, processes, train_slowly


@dataclass(frozen=True)
class Work:
    """Something that is killed: a command, what it must do anew each time, and its result."""

    name: str
    project: Project
    command: tuple[str, ...]
    result: Callable[[], object]
    reset: Callable[[], None] = lambda: None
    again: tuple[str, ...] | None = None
    """The command that repeats it after a kill, where a person would type another one."""


def stages(project: Project) -> list[Work]:
    pipeline = yaml.safe_load((project.folder / "dvc.yaml").read_text())["stages"]
    repro = ("dvc", "repro", "--no-run-cache", "--single-item")

    def outs(stage: str) -> dict[str, str]:
        found: dict[str, str] = {}
        for kind in ("outs", "metrics", "plots"):
            for out in pipeline[stage].get(kind, []):
                path = project.folder / (out if isinstance(out, str) else next(iter(out)))
                files = sorted(path.rglob("*")) if path.is_dir() else [path]
                found |= {str(file): sha256_hex(file.read_bytes()) for file in files if file.is_file()}
        return found | {"dvc.lock": sha256_hex((project.folder / "dvc.lock").read_bytes())}

    def work(stage: str) -> Work:
        return Work(stage, project, (*repro, "--force", stage), lambda: outs(stage), again=(*repro, stage))

    return [work(stage) for stage in pipeline]


def commands(project: Project, other: Project) -> list[Work]:
    """Works in ``project``; that of the corrections, which the stages read, in ``other``."""
    folder = project.folder
    reader, photographs = ShardReader(folder / "data/bins"), folder / "photographs"
    photographs.mkdir()
    entries = read_index(folder / "data/bins")
    for copy in range(20):
        for entry in entries:
            (photographs / f"{entry.id}_{copy}.jpg").write_bytes(reader.image(entry))
    counts = folder / "predicted.csv"

    def start_anew(*paths: str) -> Callable[[], None]:
        def reset() -> None:
            for path in map(folder.joinpath, paths):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

        return reset

    def files(path: str) -> dict[str, bytes]:
        return {str(file): file.read_bytes() for file in sorted((folder / path).rglob("*")) if file.is_file()}

    def before_marks() -> None:
        write_csv(other.folder / "data/corrections.csv", ["id", "count"], [(f"old{n}", 1) for n in range(1000)])
        write_csv(other.folder / "marks.csv", ["id", "count"], [(entry.id, 7) for entry in entries])

    def trials() -> list[list[str]]:
        return sorted(list(row.values())[1:] for row in read_csv(folder / "plots/tune/trials.csv"))

    def forget_study() -> None:
        start_anew(".bintally/tune.db", "plots/tune", ".dvc/cache/runs")()
        project.must("dvc", "exp", "remove", "--all-commits")

    predict = ("bintally", "predict", "photographs", "--to", "predicted.csv")
    return [
        Work(
            "predict",
            project,
            predict,
            counts.read_bytes,
            start_anew("predicted.csv", ".bintally/predict", ".bintally/onnx"),
        ),
        Work(
            "audit --accept",
            other,
            ("bintally", "audit", "--accept", "marks.csv"),
            (other.folder / "data/corrections.csv").read_bytes,
            before_marks,
        ),
        Work(
            "export",
            project,
            ("bintally", "export", "--to", "exported"),
            lambda: files("exported"),
            start_anew("exported"),
        ),
        Work("tune", project, ("bintally", "tune", "--trials", "2", "--jobs", "1"), trials, forget_study),
    ]


def end(project: Project) -> None:
    """Kill every process that works in the project, as when the machine loses its power."""
    while running := [pid for pid in processes(project, b"") if pid != os.getpid()]:
        for process in running:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.05)


def kill_and_repeat(work: Work, moment: float) -> bool:
    """Kill the work after ``moment`` seconds and repeat it; whether it was still running."""
    work.reset()
    run = work.project.start(*work.command)
    time.sleep(moment)
    killed = run.poll() is None
    end(work.project)
    run.communicate(timeout=WAIT_S)
    work.project.must(*(work.again or work.command))
    return killed


def main(times: int) -> None:
    chance = random.Random(1)  # noqa: S311
    with tempfile.TemporaryDirectory(prefix="bintally-kills-") as name:
        project = make_project(Path(name) / "project")
        train_slowly(project, train__epochs=80, launch__checkpoint_s=CHECKPOINT_S)
        project.commit("A training of some seconds")
        project.must("dvc", "repro")
        project.commit("Its outs")
        other = Project(Path(name) / "other")
        shutil.copytree(project.folder, other.folder, symlinks=True)
        works = stages(project) + commands(project, other)
        seconds, undisturbed = {}, {}
        for work in works:
            work.reset()
            start = time.monotonic()
            work.project.must(*work.command)
            seconds[work.name], undisturbed[work.name] = time.monotonic() - start, work.result()
            print(f"undisturbed: {work.name}, {seconds[work.name]:.1f} s", flush=True)
        same = 0
        for number in range(1, times + 1):
            work = works[number % len(works)]
            moment = chance.uniform(0, 0.95 * seconds[work.name])
            while not kill_and_repeat(work, moment):
                moment /= 2  # it had ended: this run was quicker than the first
            alike = work.result() == undisturbed[work.name]
            same += alike
            outs = "the same" if alike else "OTHER"
            print(f"{number}: {work.name} killed after {moment:.2f} s, {outs} outs", flush=True)
        print(f"the outs of an undisturbed run: {same} of {times} times", flush=True)
    sys.exit(same != times)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 30)
