"""Processes that train together: start, sums over all of them, batch statistics over all of them."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

import torch
from torch import distributed, nn

from bintally.errors import UserError


@dataclass(frozen=True)
class Place:
    """This process among the others."""

    rank: int
    ranks: int
    device: torch.device
    is_main_process: bool
    """Whether it is the one on its machine that writes files and tells how far it is."""


def is_main_process() -> bool:
    """Whether this process of torchrun's is the first on its machine."""
    return os.environ["LOCAL_RANK"] == "0"


class RanksLost(UserError):
    """The other ranks do not answer any more."""


@contextmanager
def process_group(timeout_s: float) -> Iterator[Place]:
    """Join the processes torchrun started: nccl where each has a GPU of its own, else gloo.

    A process that joined ends by :func:`leave`. Raises RanksLost where the others cannot be reached, or do not
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
        yield Place(distributed.get_rank(), distributed.get_world_size(), device, is_main_process())
    except RuntimeError as error:
        if not _is_of_the_network(error):
            raise
        reason = re.sub(r"^\[.*?\] ", "", str(error).splitlines()[0])[:200]  # without the place in gloo's source
        raise RanksLost(
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


def all_reduce_sum(values: torch.Tensor) -> torch.Tensor:
    """The sum of ``values`` over all processes, in place."""
    distributed.all_reduce(values)
    return values


def all_gather(values: torch.Tensor, place: Place) -> torch.Tensor:
    """The (n,) tensors of all processes as (ranks, n)."""
    if place.ranks == 1:
        return values[None]
    rows = [torch.empty_like(values) for _ in range(place.ranks)]
    distributed.all_gather(rows, values)
    return torch.stack(rows)


def broadcast_bytes(content: bytes, source: int, place: Place) -> bytes:
    """The bytes that rank ``source`` has, on every rank."""
    size = torch.tensor([len(content) if place.rank == source else 0], device=place.device)
    buffer = torch.empty(int(all_reduce_sum(size)), dtype=torch.uint8, device=place.device)
    if place.rank == source:
        buffer.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
    distributed.broadcast(buffer, source)
    return bytes(buffer.cpu().numpy())


class _Normalise(torch.autograd.Function):
    """Batch normalisation over the batch of all ranks, with one exchange forward and one backward."""

    @staticmethod
    def forward(
        context: Any, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        number = inputs.new_tensor([inputs.numel() / inputs.shape[1]])
        mean = inputs.mean((0, 2, 3))
        centred = inputs - mean[:, None, None]
        variance = (centred * centred).mean((0, 2, 3))  # torch.var_mean takes ten times as long on a CPU
        rows = [torch.empty(2 * len(mean) + 1, device=inputs.device) for _ in range(distributed.get_world_size())]
        distributed.all_gather(rows, torch.cat([number, mean, variance]))
        numbers, means, variances = torch.stack(rows).split([1, len(mean), len(mean)], dim=1)
        number = numbers.sum()
        whole = (means * numbers).sum(0) / number
        variance = ((variances + (means - whole).square()) * numbers).sum(0) / number
        inverse, shift = (variance + eps).rsqrt(), mean - whole
        context.save_for_backward(centred, shift, weight, inverse, number)
        context.mark_non_differentiable(whole, variance, number)
        scale = weight * inverse
        outputs = torch.addcmul((bias + shift * scale)[:, None, None], centred, scale[:, None, None])
        return outputs, whole, variance, number

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        centred, shift, weight, inverse, number = context.saved_tensors
        gradient = gradients[0]
        total = gradient.sum((0, 2, 3))
        along = ((gradient * centred).sum((0, 2, 3)) + shift * total) * inverse
        # Every rank's loss feels each image through the statistics; its own parameters' gradients are its own share.
        total_all, along_all = all_reduce_sum(torch.cat([total, along])).chunk(2)
        scale = weight * inverse
        slope = -scale * inverse * along_all / number
        offset = slope * shift - scale * total_all / number
        result = torch.addcmul(offset[:, None, None], centred, slope[:, None, None])
        return result.addcmul_(gradient, scale[:, None, None]), along, total, None


class GlobalBatchNorm(nn.BatchNorm2d):
    """Batch normalisation whose statistics are those of the global batch, on CPU and GPU alike.

    With it the result does not depend on how a batch is shared out, computed in float32.
    PyTorch's SyncBatchNorm needs GPUs. Backward follows Ioffe and Szegedy 2015, section 3.
    """

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(inputs)
        outputs, mean, variance, number = _Normalise.apply(inputs.float(), self.weight, self.bias, self.eps)
        with torch.no_grad():
            assert self.running_mean is not None and self.running_var is not None
            momentum = self.momentum if self.momentum is not None else 0.1
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * (number / (number - 1).clamp_min(1)), momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        normalised: torch.Tensor = outputs.to(inputs.dtype)
        return normalised


def convert_batch_norm(module: nn.Module) -> None:
    """Let every batch normalisation below ``module`` see the global batch."""
    for child in module.modules():
        if type(child) is nn.BatchNorm2d:
            child.__class__ = GlobalBatchNorm
