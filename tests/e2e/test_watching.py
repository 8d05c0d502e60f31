"""Several experiments at once, by DVC's own queue."""

import time
from collections.abc import Iterator

import pytest

from bintally.resources import available_cpus
from project import Project
from runs import processes

NAMES = ("fig", "plum")
QUEUE_S = 300


def wait_for_workers_to_end(project: Project) -> None:
    """They end some seconds after the last experiment."""
    deadline = time.monotonic() + QUEUE_S
    while processes(project, b"queue-worker"):
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.fixture
def queue(project: Project) -> Iterator[Project]:
    """A project; the workers of its queue end with the test."""
    yield project
    if processes(project, b"queue-worker"):
        project.run("dvc", "queue", "stop", "--kill")
        wait_for_workers_to_end(project)


@pytest.mark.slow
def test_queued_experiments_share_the_cores(queue: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name, rate in zip(NAMES, (0.02, 0.03), strict=True):
        queue.must("dvc", "exp", "run", "--queue", "-n", name, "-S", f"train.lr={rate}", "-S", "launch.ranks=1")
    queue.must("dvc", "queue", "start", "--jobs", "2")
    wait_for_workers_to_end(queue)
    logs = {name: queue.must("dvc", "queue", "logs", name) for name in NAMES}
    rows = [line.split() for line in queue.must("dvc", "queue", "status").splitlines()]
    states = {row[1]: row[-1] for row in rows if len(row) > 2 and row[1] in NAMES}
    assert states == dict.fromkeys(NAMES, "Success"), "\n".join(logs.values())
    for log in logs.values():
        assert f"ranks: 1, threads of each: {max(1, available_cpus() // 2)}\n" in log
    listed = queue.must("dvc", "exp", "list", "--name-only")
    assert sorted(listed.split()) == sorted(NAMES)
