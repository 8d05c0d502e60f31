"""Processes that work together: the process group, and collective operations."""

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn

import torch
from torch import distributed

from bintally.distributed.stores import rank_store
from bintally.errors import UserError


@dataclass(frozen=True)
class RankContext:
    """Rank and device of this process."""

    rank: int
    world_size: int
    device: torch.device
    is_main: bool
    """Whether it is the main process of its machine, which writes files and shows progress."""
    local_world_size: int = 1
    """Number of ranks on its machine."""


def is_main_process() -> bool:
    """Whether this process, started by torchrun, is the first on its machine."""
    return os.environ["LOCAL_RANK"] == "0"


class RanksLost(UserError):
    """The other ranks do not answer."""


@contextmanager
def process_group(timeout_s: float) -> Iterator[RankContext]:
    """Join the process group of torchrun's ranks: nccl if there is a GPU for each, else gloo.

    A process that has joined must end by :func:`exit_process`.

    Raises:
        RanksLost: other ranks cannot be reached, or do not answer for ``timeout_s`` seconds.
    """
    local, local_ranks = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    on_gpu = torch.cuda.is_available() and torch.cuda.device_count() >= local_ranks
    device = torch.device("cuda", local) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    use_deterministic_algorithms()
    try:
        rank, world_size, timeout = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), timedelta(seconds=timeout_s)
        distributed.init_process_group(
            "nccl" if on_gpu else "gloo",
            timeout=timeout,
            store=rank_store(world_size, timeout),
            rank=rank,
            world_size=world_size,
        )
        yield RankContext(rank, world_size, device, is_main_process(), local_ranks)
    except RuntimeError as error:
        if not _is_network_error(error):
            raise
        reason = re.sub(r"^\[.*?\] ", "", str(error).splitlines()[0])[:200]  # without gloo's file and line
        raise RanksLost(
            f"rank {os.environ['RANK']} lost the other ranks ({reason}): one of them stopped, or the network "
            f"between the machines failed; ranks wait launch.timeout_s ({timeout_s}) at most"
        ) from error


def use_deterministic_algorithms() -> None:
    """Same inputs, same bytes: let cuDNN choose no algorithms by timing."""
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def _is_network_error(error: RuntimeError) -> bool:
    # gloo raises plain RuntimeErrors that name a file of its source.
    return isinstance(error, distributed.DistError) or "gloo" in str(error)


def exit_process(code: int = 0) -> NoReturn:
    """End this process without destroying the process group.

    gloo's destructors have been seen to abort a process ("terminate called without an active exception").
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def all_reduce_sum(values: torch.Tensor) -> torch.Tensor:
    """Sum ``values`` over all ranks, in place."""
    distributed.all_reduce(values)
    return values


def start_sum(values: torch.Tensor, context: RankContext) -> Callable[[], list[float]]:
    """Start to sum ``values``, (n,), over all ranks, in place; the result waits for the sums and returns them.

    On a GPU the call does not wait, and its result not for work that was started after the call.
    """
    if context.world_size > 1:
        all_reduce_sum(values)
    if values.device.type != "cuda":
        return values.tolist
    copied = values.to("cpu", non_blocking=True)
    done = torch.cuda.current_stream(values.device).record_event()

    def read() -> list[float]:
        done.synchronize()
        return copied.tolist()

    return read


def all_gather(values: torch.Tensor, context: RankContext) -> torch.Tensor:
    """Stack the (n,) tensors of all ranks: (ranks, n)."""
    if context.world_size == 1:
        return values[None]
    rows = [torch.empty_like(values) for _ in range(context.world_size)]
    distributed.all_gather(rows, values)
    return torch.stack(rows)


def broadcast_bytes(content: bytes, source: int, context: RankContext) -> bytes:
    """Return the ``content`` of rank ``source`` on every rank."""
    size = torch.tensor([len(content) if context.rank == source else 0], device=context.device)
    buffer = torch.empty(int(all_reduce_sum(size)), dtype=torch.uint8, device=context.device)
    if context.rank == source:
        buffer.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
    distributed.broadcast(buffer, source)
    return bytes(buffer.cpu().numpy())


def require_same_key(key: str, context: RankContext) -> None:
    """Wait for all ranks. Raises UserError on each if their keys, hashes of what their work depends on, differ."""
    if len(all_gather(torch.tensor([int(key[:15], 16)], device=context.device), context).unique()) > 1:
        raise UserError(
            "the machines do not have the same parameters, data and code; bring all to the same commit and data"
        )
