"""What waits is run together, while more is decoded; places bound it; one photograph never disturbs another."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from threading import Event
from typing import Any

import pytest
import torch

from bintally.errors import UserError
from bintally.serving.batching import Batcher, Full
from bintally.serving.metrics import ServerMetrics

LONG_S = 30.0


def pixels(body: bytes) -> torch.Tensor:
    if body == b"bad":
        raise UserError("it is bad")
    return torch.tensor(list(body))


def values(batch: Sequence[torch.Tensor]) -> list[int]:
    return [int(one.sum()) for one in batch]


def batcher(
    decode: Callable[[bytes], torch.Tensor] = pixels,
    run: Callable[[Sequence[torch.Tensor]], list[int]] = values,
    queue: int = 64,
    wait_s: float = LONG_S,
    rate: float = 1000.0,
) -> Batcher[int]:
    return Batcher(decode, run, 4, queue, wait_s, 1.0, rate, ServerMetrics())


def ran(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(work(), LONG_S))


def test_what_is_asked_for_together_runs_together_and_a_bad_photograph_disturbs_none() -> None:
    batches: list[int] = []

    def run(batch: Sequence[torch.Tensor]) -> list[int]:
        batches.append(len(batch))
        return values(batch)

    async def work() -> None:
        queue = batcher(run=run)
        bodies = [bytes([n]) for n in range(8)]
        results = await asyncio.gather(*queue.submit([*bodies[:3], b"bad", *bodies[3:]]))
        assert results[:3] + results[4:] == list(range(8)) and str(results[3]) == "it is bad"
        assert batches == [4, 4]
        queue.close()

    ran(work)


def test_photographs_are_decoded_while_others_run() -> None:
    later_is_decoded = Event()

    def decode(body: bytes) -> torch.Tensor:
        if body == b"later":
            later_is_decoded.set()
        return torch.tensor(list(body))

    def run(batch: Sequence[torch.Tensor]) -> list[int]:
        assert later_is_decoded.wait(LONG_S)
        return values(batch)

    async def work() -> None:
        queue = batcher(decode, run, wait_s=0)
        first = queue.submit([b"1234"])
        while not queue.running:
            await asyncio.sleep(0.001)
        await asyncio.gather(*first, *queue.submit([b"later"]))
        queue.close()

    ran(work)


def test_an_image_alone_waits_for_none() -> None:
    async def work() -> None:
        queue = batcher()
        assert await queue.submit([b"\x07"])[0] == 7
        queue.close()

    ran(work)


def test_a_batch_that_is_not_full_waits_only_so_long() -> None:
    has_run = Event()

    def decode(body: bytes) -> torch.Tensor:
        assert body != b"slow" or has_run.wait(LONG_S)
        return torch.tensor(list(body))

    def run(batch: Sequence[torch.Tensor]) -> list[int]:
        has_run.set()
        return values(batch)

    async def work() -> None:
        queue = batcher(decode, run, wait_s=0.01)
        await asyncio.gather(*queue.submit([b"slow", b"quick"]))
        queue.close()

    ran(work)


def test_what_nobody_waits_for_is_dropped() -> None:
    seen: list[int] = []
    go_on = Event()

    def run(batch: Sequence[torch.Tensor]) -> list[int]:
        assert go_on.wait(LONG_S)
        seen.extend(values(batch))
        return values(batch)

    async def work() -> None:
        queue = batcher(run=run, wait_s=0)
        first = queue.submit([b"\x01"])
        while not queue.running:
            await asyncio.sleep(0.001)
        dropped, kept = queue.submit([b"\x02", b"\x03"])
        dropped.cancel()
        go_on.set()
        assert await asyncio.gather(*first, kept) == [1, 3] and seen == [1, 3]
        queue.close()

    ran(work)


def test_a_batch_that_fails_is_an_error_for_those_in_it_alone() -> None:
    def run(batch: Sequence[torch.Tensor]) -> list[int]:
        if values(batch) == [13]:
            raise MemoryError
        return values(batch)

    async def work() -> None:
        queue = batcher(run=run)
        with pytest.raises(MemoryError):
            await queue.submit([b"\x0d"])[0]
        assert await queue.submit([b"\x01"])[0] == 1
        queue.close()

    ran(work)


def test_places_bound_what_is_admitted_and_how_long_it_waits() -> None:
    queue = batcher(queue=4)
    with queue.place() as place:
        place.take(3)
        with pytest.raises(Full) as caught, queue.place():
            pass
        assert caught.value.after_s == 1
    with queue.place() as place:
        with pytest.raises(Full):
            place.take(4)
        assert queue.taken == 1
    assert queue.taken == 0
    slow = batcher(rate=0.1)
    with slow.place(), pytest.raises(Full) as caught, slow.place():
        pass
    assert caught.value.after_s == 10
    queue.close()
    slow.close()
