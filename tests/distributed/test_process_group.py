"""Processes that work together: collective operations, and lost ranks."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bintally.distributed.process_group import (
    RankContext,
    all_gather,
    all_reduce_sum,
    broadcast_bytes,
    require_same_key,
)
from training_helpers import exit_codes, rank_result, run_two_ranks, single_rank, start_ranks


@pytest.fixture(scope="module")
def context() -> Iterator[RankContext]:
    with single_rank() as only:
        yield only


def differ(context: RankContext, _folder: Path) -> None:
    require_same_key("a" * 64, context)
    require_same_key(f"{context.rank}" * 64, context)


def exchange(context: RankContext, _folder: Path) -> dict[str, object]:
    def content(rank: int) -> bytes:
        return bytes(range(5 + 200 * rank))

    return {
        "context": [context.rank, context.world_size, context.is_main],
        "sum": all_reduce_sum(torch.tensor([1.5, 2.0 * context.rank])),
        "gathered": all_gather(torch.tensor([context.rank, 10 + context.rank]), context),
        "broadcast": [broadcast_bytes(content(context.rank), source, context) == content(source) for source in (0, 1)],
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


def test_ranks_with_different_keys_end_on_each_of_them(tmp_path: Path) -> None:
    message = "UserError: the machines do not have the same parameters, data and code; bring all to the same commit"
    for text in run_two_ranks(differ, tmp_path):
        assert text.startswith(message)


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
