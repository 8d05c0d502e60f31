"""Start torchrun's agent, which starts a process for each rank, and report a failed rank in one sentence.

It is what this command line does, but for the two points below:

    torchrun --nnodes=<launch.nnodes> --nproc-per-node=<launch.ranks> --max-restarts=<launch.max_restarts> \
        --rdzv-backend=c10d --rdzv-endpoint=<launch.rdzv_endpoint> -m bintally.distributed.rank <module>

On one machine without an accelerator, ranks are forked from the agent, which has imported torch and has computed
nothing yet: importing it takes seconds in each process. Elsewhere they are started as torchrun does, since a process
that has initialised CUDA cannot be forked. Agents and ranks find each other as :mod:`bintally.distributed.stores` says.
"""

import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch.distributed import DistError
from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from bintally.distributed import rank as rank_module
from bintally.distributed.network_address import route_to
from bintally.distributed.process_group import exit_process
from bintally.distributed.rank import STOPPED
from bintally.distributed.stores import FOLDER_VARIABLE, RENDEZVOUS
from bintally.errors import UserError
from bintally.params import Launch

RESUMES = "`dvc repro` resumes it"
INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")

log = logging.getLogger("bintally")


def launch(
    settings: Launch,
    module: str,
    on_cut_off: Callable[[UserError], object] = lambda _error: None,
    preload: Sequence[str] = (),
) -> None:
    """Run a module in `launch.ranks` processes on each of `launch.nnodes` machines, and wait for them.

    Args:
        module: defines ``run_rank() -> int``, which does the work of one rank and returns its exit code.
        on_cut_off: called before this process exits because the other machines cannot be reached.
        preload: other modules that the ranks need, imported before they are forked.

    Raises:
        UserError: a rank failed, or the machines could not meet.
    """
    log.info("ranks: %d, threads of each: %s", settings.ranks, os.environ["OMP_NUM_THREADS"])
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # every retry of a connection is a page of warnings otherwise
    # The store torchrun would share with its ranks keeps, over a restart, the addresses of ranks that have died.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    for name in [name for name in logging.root.manager.loggerDict if name.startswith("torch.")]:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with tempfile.TemporaryDirectory(prefix="bintally-") as scratch:
            if settings.nnodes > 1:
                arguments = settings, Path(scratch), on_cut_off
                threading.Thread(target=_exit_when_cut_off, args=arguments, daemon=True).start()
            config = LaunchConfig(
                min_nodes=settings.nnodes,
                max_nodes=settings.nnodes,
                nproc_per_node=settings.ranks,
                max_restarts=settings.max_restarts,
                run_id="bintally",
                logs_specs=DefaultLogsSpecs(log_dir=scratch),
                rdzv_backend=RENDEZVOUS,
                **_rendezvous(settings, Path(scratch)),
            )
            if _can_fork(settings):
                config.start_method = "fork"
                for name in (module, *preload, "torch._dynamo"):  # the last by the first optimizer, in seconds
                    import_module(name)
                elastic_launch(config, _forked_rank)(module)
            else:
                elastic_launch(config, sys.executable)("-u", "-m", rank_module.__name__, module)
    except ChildFailedError as error:
        raise UserError(f"{_reason(*error.get_first_failure())}; {RESUMES}") from error
    except SignalException as error:
        raise UserError(f"stopped by {error.sigval.name}, the state is saved; {RESUMES}") from error
    except (RendezvousError, DistError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"{settings.nnodes} machines could not meet at launch.rdzv_endpoint ({settings.rdzv_endpoint}): {reason}; "
            f"check that each of them reaches it and runs the same command; {RESUMES}"
        ) from error


def _rendezvous(settings: Launch, scratch: Path) -> dict[str, Any]:
    """How the machines find each other, and the address by which ranks reach this one."""
    if settings.nnodes == 1:
        address, interface, _ = route_to("127.0.0.1:1")
        # Whatever another launcher left in the environment: all listen on loopback.
        os.environ |= dict.fromkeys(INTERFACE_VARIABLES, interface) | {FOLDER_VARIABLE: str(scratch)}
        return {"rdzv_endpoint": str(scratch / "rendezvous"), "local_addr": address}
    address, interface, is_host = route_to(settings.rdzv_endpoint)
    if address.startswith("127."):
        raise UserError(
            f"launch.rdzv_endpoint: '{settings.rdzv_endpoint}' is an address inside this machine, as /etc/hosts often "
            "has its own name; give one by which the other machines reach it"
        )
    for name in INTERFACE_VARIABLES:
        os.environ.setdefault(name, interface)
    os.environ.pop(FOLDER_VARIABLE, None)
    wait = settings.timeout_s
    configs = {"is_host": is_host, "read_timeout": wait, "join_timeout": wait}
    return {"rdzv_endpoint": settings.rdzv_endpoint, "rdzv_configs": configs, "local_addr": address}


def _can_fork(settings: Launch) -> bool:
    return settings.nnodes == 1 and not torch.accelerator.is_available()


def _forked_rank(module: str) -> None:
    """One rank. Its process must end by returning if it succeeds: the agent waits for the result."""
    try:
        status = import_module(module).run_rank()
    except Exception:  # noqa: BLE001 (a bug, which the agent would not show)
        traceback.print_exc()
        status = 1
    if status:
        exit_process(status)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)  # waits for the other ranks from here on, and has nothing to save


def _reason(rank: int, failure: ProcessFailure) -> str:
    if failure.exitcode == -signal.SIGKILL:
        return f"rank {rank} was ended by SIGKILL, as the system does when memory is short"
    if failure.exitcode < 0:
        return f"rank {rank} was ended by {signal.Signals(-failure.exitcode).name}"
    if failure.exitcode == STOPPED:
        return f"rank {rank} was stopped by a signal"
    return f"rank {rank} failed with exit code {failure.exitcode}, the reason is above"


def _exit_when_cut_off(settings: Launch, scratch: Path, on_cut_off: Callable[[UserError], object]) -> None:
    """Remove ``scratch`` and end this process if its ranks have ended and the agent waits on for `launch.timeout_s`.

    The agent first consults the other machines, and waits for their answer for ever if the network is down.
    """
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    idle_since = float("inf")
    while True:
        time.sleep(1)
        alive = [pid for pid in children.read_text().split() if not _has_ended(pid)]
        idle_since = time.monotonic() if alive else idle_since
        if time.monotonic() - idle_since > settings.timeout_s:
            endpoint = settings.rdzv_endpoint
            on_cut_off(UserError(f"its ranks have ended and {endpoint} does not answer: is the network up? {RESUMES}"))
            shutil.rmtree(scratch, ignore_errors=True)
            os._exit(1)


def _has_ended(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
