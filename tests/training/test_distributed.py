"""Processes that train together: collective operations, global batch statistics, and lost ranks."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bintally.training.distributed import (
    GlobalBatchNorm,
    RankContext,
    all_gather,
    all_reduce_sum,
    broadcast_bytes,
    convert_batch_norm,
)
from training_helpers import Tensors, exit_codes, rank_result, run_two_ranks, single_rank, start_ranks


@pytest.fixture(scope="module")
def context() -> Iterator[RankContext]:
    with single_rank() as only:
        yield only


def global_batch() -> torch.Tensor:
    """Seven images of three channels: more on the first of two ranks than on the second, and unlike those."""
    batch = torch.randn(7, 3, 4, 5, generator=torch.Generator().manual_seed(2)) * 2 + 1
    batch[:4] += 3
    return batch


def run_batch_norm(norm: nn.BatchNorm2d, images: torch.Tensor) -> Tensors:
    """Two steps of batch normalisation: the last's outputs and gradients, the statistics, and their use."""
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, 1.0, 2.0]))
        norm.bias.copy_(torch.tensor([-1.0, 0.0, 1.0]))
    weights = torch.linspace(0, 1, images[0].numel(), device=images.device).view(images.shape[1:])
    for _ in range(2):
        inputs = images.clone().requires_grad_()
        norm.zero_grad()
        outputs = norm(inputs)
        (outputs.sigmoid() * weights).sum().backward()
    gradients = (inputs.grad, norm.weight.grad, norm.bias.grad)
    names = ("inputs' gradient", "weight's gradient", "bias's gradient")
    tensors = {name: gradient for name, gradient in zip(names, gradients, strict=True) if gradient is not None}
    tensors["outputs"] = outputs
    tensors |= {f"its {name}": buffer for name, buffer in norm.named_buffers()}
    tensors["outputs in use"] = norm.eval()(global_batch().to(images.device))
    return {name: tensor.detach().cpu() for name, tensor in tensors.items()}


def run_share(context: RankContext) -> Tensors:
    """The results of a rank with its share of the batch."""
    mine = np.array_split(np.arange(7), context.world_size)[context.rank]
    return run_batch_norm(GlobalBatchNorm(3).to(context.device), global_batch()[mine].to(context.device))


def exchange(context: RankContext, _folder: Path) -> dict[str, object]:
    def content(rank: int) -> bytes:
        return bytes(range(5 + 200 * rank))

    return {
        "context": [context.rank, context.world_size, context.is_main],
        "sum": all_reduce_sum(torch.tensor([1.5, 2.0 * context.rank])),
        "gathered": all_gather(torch.tensor([context.rank, 10 + context.rank]), context),
        "broadcast": [broadcast_bytes(content(context.rank), source, context) == content(source) for source in (0, 1)],
        "batch norm": run_share(context),
    }


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    """The results of two processes."""
    return list(run_two_ranks(exchange, tmp_path_factory.mktemp("two")))


def test_ranks_sum_gather_and_broadcast(context: RankContext, two: list[dict[str, object]]) -> None:
    assert [one["context"] for one in two] == [[0, 2, True], [1, 2, False]]
    for one in two:
        torch.testing.assert_close(one["sum"], torch.tensor([3.0, 2.0]))
        torch.testing.assert_close(one["gathered"], torch.tensor([[0, 10], [1, 11]]))
        assert one["broadcast"] == [True, True]
    assert (context.rank, context.world_size, context.is_main) == (0, 1, True)
    assert broadcast_bytes(b"alone", 0, context) == b"alone"
    assert all_gather(torch.tensor([3, 4]), context).tolist() == [[3, 4]]


def test_batch_statistics_are_those_of_the_global_batch(context: RankContext, two: list[dict[str, Tensors]]) -> None:
    expected = run_batch_norm(nn.BatchNorm2d(3), global_batch())
    assert len(expected) == 8
    first, second = (one["batch norm"] for one in two)
    joint = dict(first)
    for name in ("outputs", "inputs' gradient"):
        joint[name] = torch.cat([first[name], second[name]])
    for name in ("weight's gradient", "bias's gradient"):
        joint[name] = first[name] + second[name]
    torch.testing.assert_close(run_share(context), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(joint, expected, atol=1e-5, rtol=1e-4)


def test_only_plain_batch_normalisation_is_converted() -> None:
    class Own(nn.BatchNorm2d):
        pass

    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(nn.BatchNorm2d(3)), Own(3))
    state = {name: value.clone() for name, value in network.state_dict().items()}
    convert_batch_norm(network)
    assert [type(module) for module in network.modules()] == [
        nn.Sequential,
        nn.Conv2d,
        nn.Sequential,
        GlobalBatchNorm,
        Own,
    ]
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


# --- lost ranks ----------------------------------------------------------------------------------------


def die_or_sum(context: RankContext, _folder: Path) -> None:
    all_reduce_sum(torch.ones(1))
    if context.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    all_reduce_sum(torch.ones(1))


def sleep_or_sum(context: RankContext, folder: Path) -> None:
    all_reduce_sum(torch.ones(1))
    while context.rank == 1 and not (folder / "0.pt").exists():
        time.sleep(0.05)
    all_reduce_sum(torch.ones(1))


def assert_lost(folder: Path, timeout_s: int) -> None:
    message = rank_result(0, folder)
    assert message.startswith("RanksLost: rank 0 lost the other ranks (") and "\n" not in message
    assert f"ranks wait launch.timeout_s ({timeout_s}) at most" in message


def test_a_rank_that_dies_is_reported_by_the_others(tmp_path: Path) -> None:
    assert exit_codes(start_ranks(die_or_sum, tmp_path)) == [0, -signal.SIGKILL]
    assert_lost(tmp_path, timeout_s=60)


def test_a_rank_that_does_not_answer_is_given_up(tmp_path: Path) -> None:
    assert exit_codes(start_ranks(sleep_or_sum, tmp_path, timeout_s=2)) == [0, 0]
    assert_lost(tmp_path, timeout_s=2)


def test_a_rank_that_never_starts_is_given_up(tmp_path: Path) -> None:
    assert exit_codes(start_ranks(sleep_or_sum, tmp_path, ranks=[0], timeout_s=2)) == [0]
    assert_lost(tmp_path, timeout_s=2)


def raise_another_error(_context: RankContext, _folder: Path) -> None:
    raise RuntimeError("of another kind")


def test_another_error_is_not_reported_as_a_lost_rank(tmp_path: Path) -> None:
    assert run_two_ranks(raise_another_error, tmp_path) == ("RuntimeError: of another kind",) * 2
