"""Processes that train together: start, sums over all of them, batch statistics over all of them."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn

import torch
from torch import distributed, nn

from bintally.faults import Fault


@dataclass(frozen=True)
class Place:
    """This process among the others."""

    rank: int
    ranks: int
    device: torch.device
    writes: bool
    """Whether it is the one on its machine that writes files and tells how far it is."""


class LostRanks(Fault):
    """The other ranks do not answer any more."""


@contextmanager
def joined(timeout_s: float) -> Iterator[Place]:
    """Join the processes torchrun started: nccl where each has a GPU of its own, else gloo.

    A process that joined ends by :func:`leave`. Raises LostRanks where the others cannot be reached, or do not
    answer for ``timeout_s`` seconds.
    """
    local, local_ranks = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    on_gpu = torch.cuda.is_available() and torch.cuda.device_count() >= local_ranks
    device = torch.device("cuda", local) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
        # Same inputs, same bytes: no algorithms chosen by the clock.
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
    try:
        distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=timedelta(seconds=timeout_s))
        yield Place(distributed.get_rank(), distributed.get_world_size(), device, writes=local == 0)
    except RuntimeError as error:
        if not _is_of_the_network(error):
            raise
        reason = re.sub(r"^\[.*?\] ", "", str(error).splitlines()[0])[:200]  # without the place in gloo's source
        raise LostRanks(
            f"rank {os.environ['RANK']} lost the other ranks ({reason}); one of "
            f"them stopped, or the network between the machines did; they wait launch.timeout_s ({timeout_s}) at most"
        ) from error


def _is_of_the_network(error: RuntimeError) -> bool:
    # gloo raises plain RuntimeErrors that name the file of its own they come from.
    return isinstance(error, distributed.DistError) or "gloo" in str(error)


def leave(code: int = 0) -> NoReturn:
    """End this process, its work done and its files closed, without taking the process group apart.

    Taken apart, gloo has been seen to abort the process ("terminate called without an active exception").
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def summed(values: torch.Tensor) -> torch.Tensor:
    """The sum of ``values`` over all processes, in place."""
    distributed.all_reduce(values)
    return values


def gathered(values: torch.Tensor, place: Place) -> torch.Tensor:
    """The (n,) tensors of all processes as (ranks, n)."""
    rows = [torch.empty_like(values) for _ in range(place.ranks)]
    distributed.all_gather(rows, values)
    return torch.stack(rows)


def sent(content: bytes, source: int, place: Place) -> bytes:
    """The bytes that rank ``source`` has, on every rank."""
    size = torch.tensor([len(content) if place.rank == source else 0], device=place.device)
    buffer = torch.empty(int(summed(size)), dtype=torch.uint8, device=place.device)
    if place.rank == source:
        buffer.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
    distributed.broadcast(buffer, source)
    return bytes(buffer.cpu().numpy())


class _SumOverRanks(torch.autograd.Function):
    """The sum over ranks, through which gradients flow: what one rank adds, every rank's loss feels."""

    @staticmethod
    def forward(_context: object, values: torch.Tensor) -> torch.Tensor:
        return summed(values.clone())

    @staticmethod
    def backward(_context: object, gradient: torch.Tensor) -> torch.Tensor:
        return summed(gradient.clone())


def _over_ranks(values: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = _SumOverRanks.apply(values)
    return result


class SharedBatchNorm(nn.BatchNorm2d):
    """Batch normalisation whose statistics are those of the global batch, on CPU and GPU alike.

    With it the result does not depend on how a batch is shared out, computed in float32.
    PyTorch's SyncBatchNorm needs GPUs.
    """

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(inputs)
        kind, inputs = inputs.dtype, inputs.float()
        number = _over_ranks(inputs.new_tensor(inputs.numel() / inputs.shape[1]))
        mean = _over_ranks(inputs.sum((0, 2, 3))) / number
        variance = _over_ranks((inputs - mean[:, None, None]).square().sum((0, 2, 3))) / number
        with torch.no_grad():
            assert self.running_mean is not None and self.running_var is not None
            momentum = self.momentum if self.momentum is not None else 0.1
            unbiased = variance * (number / (number - 1).clamp_min(1))
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(unbiased, momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        scale = (variance + self.eps).rsqrt() * self.weight
        result: torch.Tensor = inputs * scale[:, None, None] + (self.bias - mean * scale)[:, None, None]
        return result.to(kind)


def share_batch_norm(module: nn.Module) -> None:
    """Let every batch normalisation below ``module`` see the global batch."""
    for child in module.modules():
        if type(child) is nn.BatchNorm2d:
            child.__class__ = SharedBatchNorm
