"""Processes that train together: the process group, collective operations, batch normalisation over all ranks."""

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

import torch
from torch import distributed, nn

from bintally.errors import UserError
from bintally.training.stores import rank_store


@dataclass(frozen=True)
class RankContext:
    """Rank and device of this process."""

    rank: int
    world_size: int
    device: torch.device
    is_main: bool
    """Whether it is the main process of its machine, which writes files and shows progress."""


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
        # Same inputs, same bytes: no algorithms chosen by timing.
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
    try:
        rank, world_size, timeout = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), timedelta(seconds=timeout_s)
        distributed.init_process_group(
            "nccl" if on_gpu else "gloo",
            timeout=timeout,
            store=rank_store(world_size, timeout),
            rank=rank,
            world_size=world_size,
        )
        yield RankContext(distributed.get_rank(), distributed.get_world_size(), device, is_main_process())
    except RuntimeError as error:
        if not _is_network_error(error):
            raise
        reason = re.sub(r"^\[.*?\] ", "", str(error).splitlines()[0])[:200]  # without gloo's file and line
        raise RanksLost(
            f"rank {os.environ['RANK']} lost the other ranks ({reason}): one of them stopped, or the network "
            f"between the machines failed; ranks wait launch.timeout_s ({timeout_s}) at most"
        ) from error


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


class _Normalise(torch.autograd.Function):
    """Batch normalisation over the global batch, with one exchange forward and one backward."""

    @staticmethod
    def forward(
        saved: Any, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
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
        saved.save_for_backward(centred, shift, weight, inverse, number)
        saved.mark_non_differentiable(whole, variance, number)
        scale = weight * inverse
        outputs = torch.addcmul((bias + shift * scale)[:, None, None], centred, scale[:, None, None])
        return outputs, whole, variance, number

    @staticmethod
    def backward(saved: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        centred, shift, weight, inverse, number = saved.saved_tensors
        gradient = gradients[0]
        total = gradient.sum((0, 2, 3))
        along = ((gradient * centred).sum((0, 2, 3)) + shift * total) * inverse
        # Every rank's loss depends on each image through the statistics; the gradients of weight and bias stay this
        # rank's share.
        total_all, along_all = all_reduce_sum(torch.cat([total, along])).chunk(2)
        scale = weight * inverse
        slope = -scale * inverse * along_all / number
        offset = slope * shift - scale * total_all / number
        result = torch.addcmul(offset[:, None, None], centred, slope[:, None, None])
        return result.addcmul_(gradient, scale[:, None, None]), along, total, None


class GlobalBatchNorm(nn.BatchNorm2d):
    """Batch normalisation with the statistics of the global batch, in float32, on CPU and GPU.

    With it the result does not depend on how a batch is divided between ranks. PyTorch's SyncBatchNorm needs GPUs.
    Backward follows Ioffe and Szegedy 2015, section 3.
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
    """Turn every nn.BatchNorm2d in ``module`` into a GlobalBatchNorm, in place."""
    for child in module.modules():
        if type(child) is nn.BatchNorm2d:
            child.__class__ = GlobalBatchNorm
