"""The launcher: real ranks, forked from the agent and started as new processes, and how their failures are reported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import bintally
import sockets

# Ranks that exchange a sum; then those named by FAIL fail in the way named by HOW.
MODULE = """
import os, signal
import torch
import torch.distributed
from bintally.distributed.process_group import all_reduce_sum, process_group
from sockets import listening

def run_rank():
    signal.signal(signal.SIGTERM, lambda *_: None)
    with process_group(60) as context:
        total = all_reduce_sum(torch.ones(1)).item()
        failing = os.environ["FAIL"] == str(context.rank) and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
        how = os.environ["HOW"] if failing else "succeed"
        for process in (os.getpid(), os.getppid()):
            for address, _ in listening(process):
                os.write(1, f"{'rank' if process == os.getpid() else 'agent'} listens on {address}\\n".encode())
        torch.distributed.barrier()
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "raise":
        raise KeyError("a bug")
    if how == "exit":
        os.write(2, b"the reason\\n")
        return 3
    os.write(1, f"rank {context.rank} of {context.world_size} sum {total}\\n".encode())  # a line at once
    return 0
"""
# Launches one after the other, each with its start method, failing rank and restarts.
LAUNCHER = """
import os, sys
from bintally.errors import UserError
from bintally.params import Launch
from bintally.distributed import launch

for line in sys.argv[1:]:
    start, os.environ["FAIL"], os.environ["HOW"], restarts = line.split()
    launch._can_fork = lambda _settings: start == "fork"
    settings = Launch(ranks=2, nnodes=1, rdzv_endpoint="localhost:29500", timeout_s=60, max_restarts=int(restarts),
                      checkpoint_s=60)
    try:
        launch.launch(settings, "work_of_a_rank")
        print("done", flush=True)
    except UserError as error:
        print(error, flush=True)
"""
LAUNCHES = (
    "fork - succeed 0",
    "fork 1 exit 0",
    "fork 0 kill 0",
    "fork 1 raise 0",
    "fork 1 kill 1",
    "spawn - succeed 0",
    "spawn 1 kill 0",
)
SUCCESS = ["done", "rank 0 of 2 sum 2.0", "rank 1 of 2 sum 2.0"]


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, list[str]], Path]:
    """The lines printed by each launch, sorted, and the folder for temporary files."""
    folder = tmp_path_factory.mktemp("launch")
    (folder / "work_of_a_rank.py").write_text(MODULE)
    (folder / "tmp").mkdir()
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(
            map(str, (folder, Path(sockets.__file__).parent, Path(bintally.__file__).parents[1]))
        ),
        "TMPDIR": str(folder / "tmp"),
        "OMP_NUM_THREADS": "1",
        # As in a job that another torchrun has started, on another interface.
        "TORCHELASTIC_RUN_ID": "other",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "MASTER_PORT": "1",
        "GLOO_SOCKET_IFNAME": "eth7",
    }
    done = subprocess.run(
        [sys.executable, "-c", LAUNCHER, *LAUNCHES],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=True,
    )
    result: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in done.stdout.splitlines():
        lines.append(line)
        if line == "done" or line.endswith("`dvc repro` resumes it"):
            result[LAUNCHES[len(result)]] = sorted(lines)
            lines = []
    assert len(result) == len(LAUNCHES), done.stdout
    return result, folder / "tmp"


def test_ranks_train_together_and_a_restart_makes_good_for_a_killed_one(
    launched: tuple[dict[str, list[str]], Path],
) -> None:
    lines, _ = launched
    for start in ("fork", "spawn"):
        assert [line for line in lines[f"{start} - succeed 0"] if "listens" not in line] == SUCCESS
    assert set(SUCCESS) <= set(lines["fork 1 kill 1"])


def test_on_one_machine_nothing_listens_beyond_loopback(launched: tuple[dict[str, list[str]], Path]) -> None:
    sockets_of = {line for lines in launched[0].values() for line in lines if "listens" in line}
    assert sockets_of == {"rank listens on 127.0.0.1"}  # gloo's


def test_a_failed_rank_is_one_sentence(launched: tuple[dict[str, list[str]], Path]) -> None:
    lines, _ = launched
    sentence = "rank {} was ended by SIGKILL, as the system does when memory is short; `dvc repro` resumes it"
    assert sentence.format(0) in lines["fork 0 kill 0"]
    assert sentence.format(1) in lines["spawn 1 kill 0"]
    assert "rank 1 failed with exit code 3, the reason is above; `dvc repro` resumes it" in lines["fork 1 exit 0"]
    assert "the reason" in lines["fork 1 exit 0"]
    for launch in ("fork 0 kill 0", "fork 1 exit 0", "spawn 1 kill 0"):
        assert not any("Traceback" in line or "torch" in line for line in lines[launch])


def test_a_bug_in_a_rank_shows_its_traceback(launched: tuple[dict[str, list[str]], Path]) -> None:
    assert launched[0]["fork 1 raise 0"].count("KeyError: 'a bug'") == 1


def test_nothing_is_left_in_the_folder_for_temporary_files(launched: tuple[dict[str, list[str]], Path]) -> None:
    assert [path.name for path in launched[1].iterdir() if not path.name.startswith("torchinductor_")] == []


def test_a_machine_that_is_cut_off_says_so_and_leaves_no_folder(tmp_path: Path) -> None:
    (tmp_path / "ranks-0").touch()
    script = (
        "import subprocess, sys; from pathlib import Path; from types import SimpleNamespace\n"
        "from bintally.distributed import launch\n"
        "rank, has_ended = subprocess.Popen(['sleep', '60']), launch._has_ended\n"
        "launch._has_ended = lambda pid: has_ended(pid) or rank.kill()  # it ends once it has been seen\n"
        "settings = SimpleNamespace(timeout_s=0, rdzv_endpoint='east:29500')\n"
        "launch._exit_when_cut_off(settings, Path(sys.argv[1]), lambda error: print(error, flush=True))"
    )
    done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "east:29500 does not answer: is the network up?" in done.stdout
    assert not tmp_path.exists()
