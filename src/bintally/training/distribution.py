"""Processes that train together: start, sums over all of them, batch statistics over all of them."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn

import torch
from torch import distributed, nn

TIMEOUT = timedelta(minutes=5)


@dataclass(frozen=True)
class Place:
    """This process among the others."""

    rank: int
    ranks: int
    device: torch.device


@contextmanager
def joined() -> Iterator[Place]:
    """Join the processes torchrun started: nccl where each has a GPU of its own, else gloo."""
    local, local_ranks = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    on_gpu = torch.cuda.is_available() and torch.cuda.device_count() >= local_ranks
    device = torch.device("cuda", local) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=TIMEOUT)
    try:
        yield Place(distributed.get_rank(), distributed.get_world_size(), device)
    finally:
        distributed.destroy_process_group()


def leave() -> NoReturn:
    """End this process, its work done and its files closed, without taking the process group apart.

    Taken apart, gloo has been seen to abort the process ("terminate called without an active exception").
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def summed(values: torch.Tensor) -> torch.Tensor:
    """The sum of ``values`` over all processes, in place."""
    distributed.all_reduce(values)
    return values


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

    With it the result does not depend on how a batch is shared out; PyTorch's SyncBatchNorm needs GPUs.
    """

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(inputs)
        number = _over_ranks(inputs.new_tensor(inputs.numel() / inputs.shape[1]))
        mean = _over_ranks(inputs.sum((0, 2, 3))) / number
        variance = _over_ranks((inputs - mean[:, None, None]).square().sum((0, 2, 3))) / number
        with torch.no_grad():
            assert self.running_mean is not None and self.running_var is not None
            momentum = self.momentum if self.momentum is not None else 0.1
            unbiased = variance * (number / (number - 1).clamp_min(1))
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(unbiased, momentum)
        scale = (variance + self.eps).rsqrt() * self.weight
        result: torch.Tensor = inputs * scale[:, None, None] + (self.bias - mean * scale)[:, None, None]
        return result


def share_batch_norm(module: nn.Module) -> None:
    """Let every batch normalisation below ``module`` see the global batch."""
    for child in module.modules():
        if type(child) is nn.BatchNorm2d:
            child.__class__ = SharedBatchNorm
