"""An equal share of this machine's cores and GPUs for each experiment, if several run at once.

`dvc queue start --jobs N` starts N processes `dvc exp queue-worker`; any number of `bintally tune` may be started. Each
of these processes is a worker: it runs one experiment at a time and gets the same share as the other workers of its
repository. They are counted when a stage starts. OMP_NUM_THREADS and CUDA_VISIBLE_DEVICES are kept if they are set.

On a CPU the last digits of a convolution depend on the number of threads, and training amplifies the difference. So an
experiment gives the same bytes beside others as alone only if its processes have the same number of threads: if
OMP_NUM_THREADS is set, or each has one in either case.
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
    """Limit this process, and the ``ranks`` it may start, to their share; to be called before it uses a GPU."""
    index, workers = worker_index_and_count(os.getpid())
    if "OMP_NUM_THREADS" not in os.environ:
        threads = max(1, available_cpus() // (ranks * workers))
        os.environ["OMP_NUM_THREADS"] = str(threads)
        if torch := sys.modules.get("torch"):  # it read the variable when it was imported
            torch.set_num_threads(min(threads, torch.get_num_threads()))
    if workers > 1 and "CUDA_VISIBLE_DEVICES" not in os.environ:
        from torch.cuda import device_count

        os.environ |= visible_devices(index, ranks, device_count())


def visible_devices(index: int, ranks: int, gpus: int) -> dict[str, str]:
    """The GPUs of a worker, one for each of its ranks, as an environment variable; none if they are too few.

    Workers share GPUs rather than get fewer: ranks without a GPU would train on the CPU, with another result.
    """
    if gpus < ranks:
        return {}
    return {"CUDA_VISIBLE_DEVICES": ",".join(str((index * ranks + rank) % gpus) for rank in range(ranks))}


def available_cpus(cgroup: Path = CGROUP) -> int:
    """Number of cores this process may use, by its affinity and its container's quota."""
    allowed = len(os.sched_getaffinity(0))
    quota = cgroup / "cpu.max"
    if quota.is_file():
        time_us, _, period_us = quota.read_text().partition(" ")
        if time_us != "max":
            allowed = min(allowed, max(1, int(time_us) // int(period_us)))
    return allowed


def default_device() -> "torch.device":
    """CUDA if it is available, else the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def worker_index_and_count(pid: int) -> tuple[int, int]:
    """The index, from 0, of the worker that a process belongs to, and the number of workers of its repository.

    A process that belongs to none, such as a run in the workspace, counts as another worker.
    """
    parents, found = _processes()
    # A process just started by a worker still has the worker's command line.
    repositories = {
        worker: repository
        for worker, (repository, command) in found.items()
        if parents[worker] not in found or found[parents[worker]][1] != command
    }
    ancestor = pid
    while ancestor in parents and ancestor not in repositories:
        ancestor = parents[ancestor]
    own = repositories.get(ancestor) or _repository(PROC / str(pid))
    workers = sorted(worker for worker, repository in repositories.items() if repository == own)
    return (workers.index(ancestor), len(workers)) if ancestor in workers else (len(workers), len(workers) + 1)


def _processes() -> tuple[dict[int, int], dict[int, tuple[Path, str]]]:
    """The parent of every process; the repository and command line of every worker."""
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
    """Whether it is Python running the script of a worker, not a shell that names one."""
    script = [Path(word).name for word in command[1:2]] + command[2:]
    return any(script[: len(words)] == words for words in WORKERS)


def _repository(process: Path) -> Path:
    """The root of the DVC repository that a process works in; its working directory if there is none."""
    folder = (process / "cwd").readlink()
    return next((parent for parent in (folder, *folder.parents) if (parent / ".dvc").is_dir()), folder)
