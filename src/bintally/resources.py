"""A fair part of this machine's cores and GPUs for each experiment, where several run at once.

`dvc queue start --jobs N` starts N processes `dvc exp queue-worker`; any number of `bintally tune` may be started. Each
is a worker here, runs one experiment at a time, and gets as much as the others of its repository. They are counted when
a stage starts. OMP_NUM_THREADS and CUDA_VISIBLE_DEVICES, where they are set, stay as they are.

On a CPU the last digits of a convolution depend on the number of threads, and a training makes more of the difference.
So an experiment comes to the same bytes beside others as alone only where its processes have as many threads: where
OMP_NUM_THREADS is set, or each has one anyway.
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

WORKERS = (["dvc", "exp", "queue-worker"], ["bintally", "tune"])
PROC, CGROUP = Path("/proc"), Path("/sys/fs/cgroup")


def limit_resources(ranks: int = 1) -> None:
    """Hold this process, and the ``ranks`` it may start, to the part that is theirs; before it uses a GPU."""
    place, workers = worker_index_and_count(os.getpid())
    if "OMP_NUM_THREADS" not in os.environ:
        threads = max(1, available_cpus() // (ranks * workers))
        os.environ["OMP_NUM_THREADS"] = str(threads)
        if torch := sys.modules.get("torch"):  # read the variable when it was imported
            torch.set_num_threads(min(threads, torch.get_num_threads()))
    if workers > 1 and "CUDA_VISIBLE_DEVICES" not in os.environ:
        from torch.cuda import device_count

        os.environ |= visible_devices(place, ranks, device_count())


def visible_devices(place: int, ranks: int, gpus: int) -> dict[str, str]:
    """The GPUs of one worker, as a variable of the environment: one for each of its ranks.

    No fewer, even where workers then share them: ranks without a GPU of their own would train on the CPU, and come to
    another result. Where there are not as many none are used, and nothing is said.
    """
    if gpus < ranks:
        return {}
    return {"CUDA_VISIBLE_DEVICES": ",".join(str((place * ranks + rank) % gpus) for rank in range(ranks))}


def available_cpus(cgroup: Path = CGROUP) -> int:
    """How many cores this process may keep busy: those it may run on, or fewer where a container's quota says so."""
    allowed = len(os.sched_getaffinity(0))
    quota = cgroup / "cpu.max"
    if quota.is_file():
        time_us, _, period_us = quota.read_text().partition(" ")
        if time_us != "max":
            allowed = min(allowed, max(1, int(time_us) // int(period_us)))
    return allowed


def default_device() -> "torch.device":
    """CUDA where it is available, else the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def worker_index_and_count(pid: int) -> tuple[int, int]:
    """Which of the workers of its repository a process belongs to, from 0, and how many there are.

    One that belongs to none, as a run in the workspace, counts as one more.
    """
    parents, found = _processes()
    # A process that a worker is just starting still has its command line.
    repositories = {
        worker: at
        for worker, (at, command) in found.items()
        if parents[worker] not in found or found[parents[worker]][1] != command
    }
    mine = pid
    while mine in parents and mine not in repositories:
        mine = parents[mine]
    ours = repositories.get(mine) or _repository(PROC / str(pid))
    workers = sorted(worker for worker, at in repositories.items() if at == ours)
    return (workers.index(mine), len(workers)) if mine in workers else (len(workers), len(workers) + 1)


def _processes() -> tuple[dict[int, int], dict[int, tuple[Path, str]]]:
    """The parent of every process, and the repository and command line of those that are workers."""
    parents, workers = {}, {}
    for process in PROC.glob("[0-9]*"):
        try:
            parents[int(process.name)] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            command = (process / "cmdline").read_text(errors="replace")
            if _is_worker(command.split("\0")):
                workers[int(process.name)] = _repository(process), command
        except OSError:  # it has ended, or is another user's
            continue
    return parents, workers


def _is_worker(command: list[str]) -> bool:
    """Whether it is a Python with the script of a worker: not a shell that names one."""
    script = [Path(word).name for word in command[1:2]] + command[2:]
    return any(script[: len(words)] == words for words in WORKERS)


def _repository(process: Path) -> Path:
    """The folder of the DVC repository that a process works in; where it is none, that folder."""
    at = (process / "cwd").readlink()
    return next((folder for folder in (at, *at.parents) if (folder / ".dvc").is_dir()), at)
