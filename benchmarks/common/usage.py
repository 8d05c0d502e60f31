"""Time, memory and disk that a command takes, its child processes included."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

SAMPLE_S = 0.2
DISK_SAMPLE_S = 1.0
MIB = 2**20


@dataclass
class Usage:
    """What a command took."""

    seconds: float = 0.0
    peak_mib: float = 0.0
    """Memory of the process tree, shared pages divided by those who share them (PSS)."""
    peak_disk: int = 0
    """Bytes on the disk in its folder, scratch files included."""
    was_killed: bool = False


def run_measured(
    command: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    kill_when: Callable[[float], bool] = lambda _seconds: False,
) -> Usage:
    """Run a command in a folder, and kill it and its children with SIGKILL when it is time.

    Args:
        kill_when: called again and again with the seconds since the start.

    Raises CalledProcessError if it fails.
    """
    usage, start, looked_at_disk = Usage(), time.monotonic(), 0.0
    process = subprocess.Popen(command, cwd=folder, env=dict(environment), stdout=sys.stderr, start_new_session=True)
    try:
        while process.poll() is None:
            usage.peak_mib = max(usage.peak_mib, sum(map(_pss, _tree(process.pid))) / MIB)
            now = time.monotonic() - start
            if now - looked_at_disk > DISK_SAMPLE_S:
                usage.peak_disk = max(usage.peak_disk, disk_usage(folder))
                looked_at_disk = time.monotonic() - start
            if kill_when(now):
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                usage.was_killed = True
                break
            time.sleep(SAMPLE_S)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    usage.seconds = time.monotonic() - start
    usage.peak_disk = max(usage.peak_disk, disk_usage(folder))
    if process.returncode and not usage.was_killed:
        raise subprocess.CalledProcessError(process.returncode, command)
    return usage


def disk_usage(folder: Path) -> int:
    """Bytes that the files in a folder take on the disk; files that come and go meanwhile are left out."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += Path(place, name).lstat().st_blocks * 512
    return total


def _tree(pid: int) -> list[int]:
    """A process and all below it."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return [pid]
    return [pid, *(below for child in children for below in _tree(child))]


def _pss(pid: int) -> int:
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(rollup.partition("\nPss:")[2].split()[0]) * 1024 if "\nPss:" in rollup else 0
