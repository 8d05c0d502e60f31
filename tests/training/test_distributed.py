"""Processes together: what they exchange, statistics of the whole batch, and what is said when one is lost."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from toys import Tensors, alone, both, ended, outcome, start

from bintally.training.distributed import (
    GlobalBatchNorm,
    Place,
    all_gather,
    all_reduce_sum,
    broadcast_bytes,
    convert_batch_norm,
)


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with alone() as one:
        yield one


def whole_batch() -> torch.Tensor:
    """Seven images of three channels: more on the first of two ranks than on the second, and unlike those."""
    batch = torch.randn(7, 3, 4, 5, generator=torch.Generator().manual_seed(2)) * 2 + 1
    batch[:4] += 3
    return batch


def normalised(norm: nn.BatchNorm2d, images: torch.Tensor) -> Tensors:
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
    tensors["outputs in use"] = norm.eval()(whole_batch().to(images.device))
    return {name: tensor.detach().cpu() for name, tensor in tensors.items()}


def share_normalised(place: Place) -> Tensors:
    """What a rank comes to with its share of the batch."""
    mine = np.array_split(np.arange(7), place.ranks)[place.rank]
    return normalised(GlobalBatchNorm(3).to(place.device), whole_batch()[mine].to(place.device))


def exchange(place: Place, _folder: Path) -> dict[str, object]:
    def content(rank: int) -> bytes:
        return bytes(range(5 + 200 * rank))

    return {
        "place": [place.rank, place.ranks, place.is_main_process],
        "summed": all_reduce_sum(torch.tensor([1.5, 2.0 * place.rank])),
        "gathered": all_gather(torch.tensor([place.rank, 10 + place.rank]), place),
        "sent": [broadcast_bytes(content(place.rank), source, place) == content(source) for source in (0, 1)],
        "normalised": share_normalised(place),
    }


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    """What each of two processes comes to."""
    return list(both(exchange, tmp_path_factory.mktemp("two")))


def test_ranks_sum_gather_and_send(place: Place, two: list[dict[str, object]]) -> None:
    assert [one["place"] for one in two] == [[0, 2, True], [1, 2, False]]
    for one in two:
        torch.testing.assert_close(one["summed"], torch.tensor([3.0, 2.0]))
        torch.testing.assert_close(one["gathered"], torch.tensor([[0, 10], [1, 11]]))
        assert one["sent"] == [True, True]
    assert (place.rank, place.ranks, place.is_main_process) == (0, 1, True)
    assert broadcast_bytes(b"alone", 0, place) == b"alone"
    assert all_gather(torch.tensor([3, 4]), place).tolist() == [[3, 4]]


def test_batch_statistics_are_those_of_the_whole_batch(place: Place, two: list[dict[str, Tensors]]) -> None:
    expected = normalised(nn.BatchNorm2d(3), whole_batch())
    assert len(expected) == 8
    first, second = (one["normalised"] for one in two)
    joint = dict(first)
    for name in ("outputs", "inputs' gradient"):
        joint[name] = torch.cat([first[name], second[name]])
    for name in ("weight's gradient", "bias's gradient"):
        joint[name] = first[name] + second[name]
    torch.testing.assert_close(share_normalised(place), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(joint, expected, atol=1e-5, rtol=1e-4)


def test_only_plain_batch_normalisation_is_made_to_share() -> None:
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


def die_or_sum(place: Place, _folder: Path) -> None:
    all_reduce_sum(torch.ones(1))
    if place.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    all_reduce_sum(torch.ones(1))


def sleep_or_sum(place: Place, folder: Path) -> None:
    all_reduce_sum(torch.ones(1))
    while place.rank == 1 and not (folder / "0.pt").exists():
        time.sleep(0.05)
    all_reduce_sum(torch.ones(1))


def assert_lost(folder: Path, timeout_s: int) -> None:
    said = outcome(0, folder)
    assert said.startswith("RanksLost: rank 0 lost the other ranks (") and "\n" not in said
    assert f"they wait launch.timeout_s ({timeout_s}) at most" in said


def test_a_rank_that_dies_is_missed_by_the_others(tmp_path: Path) -> None:
    assert ended(start(die_or_sum, tmp_path)) == [0, -signal.SIGKILL]
    assert_lost(tmp_path, timeout_s=60)


def test_a_rank_that_does_not_answer_is_given_up(tmp_path: Path) -> None:
    assert ended(start(sleep_or_sum, tmp_path, timeout_s=2)) == [0, 0]
    assert_lost(tmp_path, timeout_s=2)


def test_a_rank_that_never_comes_is_given_up(tmp_path: Path) -> None:
    assert ended(start(sleep_or_sum, tmp_path, ranks=[0], timeout_s=2)) == [0]
    assert_lost(tmp_path, timeout_s=2)


def stumble(_place: Place, _folder: Path) -> None:
    raise RuntimeError("of another kind")


def test_an_error_of_another_kind_is_not_taken_for_a_lost_rank(tmp_path: Path) -> None:
    assert both(stumble, tmp_path) == ("RuntimeError: of another kind",) * 2
