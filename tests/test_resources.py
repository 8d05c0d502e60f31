"""Shares of this machine: real processes that look like workers, and the share of each."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bintally.resources import available_cpus, visible_devices, worker_index_and_count

# Its child takes the place of a stage.
WORKER = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"
Start = Callable[..., int]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a worker in a repository; the number of its child."""
    for name in ("bin/dvc", "bin/bintally"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(WORKER)
    started = []

    def start_worker(repository: str, script: str, *words: str) -> int:
        (tmp_path / repository / ".dvc").mkdir(parents=True, exist_ok=True)
        (tmp_path / repository / "inside").mkdir(exist_ok=True)
        command = [sys.executable, str(tmp_path / "bin" / script), *words]
        started.append(subprocess.Popen(command, cwd=tmp_path / repository / "inside", stdin=subprocess.PIPE))
        children = Path(f"/proc/{started[-1].pid}/task/{started[-1].pid}/children")
        deadline = time.monotonic() + 30
        while not children.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return int(children.read_text())

    yield start_worker
    for process in started:
        process.communicate(b"\n")


def test_the_workers_of_a_repository_are_counted(start: Start, tmp_path: Path) -> None:
    first = start("ours", "dvc", "exp", "queue-worker", "dvc-exp-0123-1@localhost", "--clean")
    assert worker_index_and_count(first) == (0, 1)
    start("theirs", "bintally", "tune")
    start("ours", "dvc", "exp", "run")
    start("ours", "bintally", "report")
    assert worker_index_and_count(first) == (0, 1)
    second = start("ours", "dvc", "exp", "queue-worker", "dvc-exp-0123-2@localhost")
    third = start("ours", "bintally", "tune", "--trials", "3")
    places = [worker_index_and_count(child) for child in (first, second, third)]
    assert places == [(0, 3), (1, 3), (2, 3)]
    alone = start("ours", "dvc", "repro")
    assert worker_index_and_count(alone) == (3, 4), "a run in the workspace beside three workers"


def test_a_shell_that_names_a_worker_is_not_counted(start: Start, tmp_path: Path) -> None:
    child = start("ours", "dvc", "exp", "queue-worker", "one")
    shell = ["sh", "-c", "read line; true", "bintally", "tune"]
    with subprocess.Popen(shell, cwd=tmp_path / "ours", stdin=subprocess.PIPE) as process:
        assert worker_index_and_count(child) == (0, 1)
        process.communicate(b"\n")


@pytest.mark.parametrize(("quota", "expected"), [("max 100000", 9), ("250000 100000", 2), ("50000 100000", 1)])
def test_a_containers_quota_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, expected: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(9)))
    assert available_cpus(tmp_path) == 9
    (tmp_path / "cpu.max").write_text(quota + "\n")
    assert available_cpus(tmp_path) == expected


def test_every_worker_has_its_own_gpus_if_there_are_enough() -> None:
    def shares(workers: int, ranks: int, gpus: int) -> list[str]:
        return [visible_devices(index, ranks, gpus).get("CUDA_VISIBLE_DEVICES", "") for index in range(workers)]

    assert shares(workers=2, ranks=2, gpus=4) == ["0,1", "2,3"]
    assert shares(workers=3, ranks=1, gpus=2) == ["0", "1", "0"]
    assert shares(workers=2, ranks=4, gpus=4) == ["0,1,2,3", "0,1,2,3"], "fewer would make it train on the CPU"
    assert shares(workers=2, ranks=2, gpus=1) == ["", ""]


LIMIT = """
import os, sys
import torch
from bintally import resources
resources.available_cpus = lambda: 12
resources.worker_index_and_count = lambda _pid: (1, 2)
torch.cuda.device_count = lambda: 4
torch.set_num_threads(8)
resources.limit_resources(ranks=2)
print(os.environ["OMP_NUM_THREADS"], os.environ["CUDA_VISIBLE_DEVICES"], torch.get_num_threads())
"""


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({}, "3 2,3 3"), ({"OMP_NUM_THREADS": "5", "CUDA_VISIBLE_DEVICES": "3"}, "5 3 8")],
)
def test_variables_set_by_the_user_stay(environment: dict[str, str], expected: str) -> None:
    inherited = {
        name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
    }
    done = subprocess.run(
        [sys.executable, "-c", LIMIT], env=inherited | environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == expected
