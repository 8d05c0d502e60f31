"""The queue runs waiting images in batches, bounds them by slots, and keeps each image's outcome apart."""

import asyncio
import os
import time
from collections.abc import Callable, Coroutine, Sequence
from threading import Event
from typing import Any

import pytest
import torch

from bintally.errors import UserError
from bintally.serving.batching import RATE_SMOOTHING, Batcher, QueueFull
from bintally.serving.metrics import ServerMetrics

TIMEOUT_S = 30.0


def decode(body: bytes) -> torch.Tensor:
    if body == b"bad":
        raise UserError("it is bad")
    return torch.tensor(list(body))


def sums(batch: Sequence[torch.Tensor]) -> list[int]:
    return [int(one.sum()) for one in batch]


def batcher(
    decode: Callable[[bytes], torch.Tensor] = decode,
    run: Callable[[Sequence[torch.Tensor]], list[int]] = sums,
    slots: int = 64,
    wait_s: float = TIMEOUT_S,
    rate: float = 1000.0,
) -> Batcher[int]:
    return Batcher(decode, run, 4, slots, wait_s, 1.0, rate, ServerMetrics())


def run_async(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(work(), TIMEOUT_S))


def test_waiting_images_run_in_one_batch_and_a_bad_one_does_not_affect_them() -> None:
    batches: list[int] = []

    def run(batch: Sequence[torch.Tensor]) -> list[int]:
        batches.append(len(batch))
        return sums(batch)

    async def work() -> None:
        queue = batcher(run=run)
        bodies = [bytes([n]) for n in range(8)]
        predicting = map(queue.predict, [*bodies[:3], b"bad", *bodies[3:]])
        results = await asyncio.gather(*predicting, return_exceptions=True)
        assert results[:3] + results[4:] == list(range(8)) and str(results[3]) == "it is bad"
        assert batches == [4, 4]
        queue.close()

    run_async(work)


def test_images_are_decoded_while_a_batch_runs() -> None:
    later_is_decoded = Event()

    def decode(body: bytes) -> torch.Tensor:
        if body == b"later":
            later_is_decoded.set()
        return torch.tensor(list(body))

    def run(batch: Sequence[torch.Tensor]) -> list[int]:
        assert later_is_decoded.wait(TIMEOUT_S)
        return sums(batch)

    async def work() -> None:
        queue = batcher(decode, run, wait_s=0)
        first = asyncio.ensure_future(queue.predict(b"1234"))
        while not queue.running:
            await asyncio.sleep(0.001)
        await asyncio.gather(first, queue.predict(b"later"))
        queue.close()

    run_async(work)


def test_a_single_image_does_not_wait() -> None:
    async def work() -> None:
        queue = batcher()
        assert await queue.predict(b"\x07") == 7
        queue.close()

    run_async(work)


def test_a_batch_that_is_not_full_waits_for_a_limited_time() -> None:
    has_run = Event()

    def decode(body: bytes) -> torch.Tensor:
        assert body != b"slow" or has_run.wait(TIMEOUT_S)
        return torch.tensor(list(body))

    def run(batch: Sequence[torch.Tensor]) -> list[int]:
        has_run.set()
        return sums(batch)

    async def work() -> None:
        queue = batcher(decode, run, wait_s=0.01)
        await asyncio.gather(queue.predict(b"slow"), queue.predict(b"quick"))
        queue.close()

    run_async(work)


@pytest.mark.parametrize("decoded", [False, True])
def test_a_cancelled_image_is_not_run(decoded: bool) -> None:
    seen: list[int] = []
    go_on = Event()
    go_on_decoding = Event()

    def decode(body: bytes) -> torch.Tensor:
        assert body == b"\x01" or go_on_decoding.wait(TIMEOUT_S)
        return torch.tensor(list(body))

    def run(batch: Sequence[torch.Tensor]) -> list[int]:
        assert go_on.wait(TIMEOUT_S)
        seen.extend(sums(batch))
        return sums(batch)

    async def work() -> None:
        queue = batcher(decode, run, wait_s=0)
        first = asyncio.ensure_future(queue.predict(b"\x01"))
        while not queue.running:
            await asyncio.sleep(0.001)
        dropped, kept = (asyncio.ensure_future(queue.predict(body)) for body in (b"\x02", b"\x03"))
        await asyncio.sleep(0)  # so that decoding starts
        while decoded and len(queue._decoded) < 2:
            go_on_decoding.set()
            await asyncio.sleep(0.001)
        dropped.cancel()
        go_on.set()
        go_on_decoding.set()
        assert list(await asyncio.gather(first, kept)) == [1, 3] and seen == [1, 3]
        queue.close()

    run_async(work)


def test_a_batch_that_fails_does_not_affect_the_next() -> None:
    def run(batch: Sequence[torch.Tensor]) -> list[int]:
        if sums(batch) == [13]:
            raise MemoryError
        return sums(batch)

    async def work() -> None:
        queue = batcher(run=run)
        with pytest.raises(MemoryError):
            await queue.predict(b"\x0d")
        assert await queue.predict(b"\x01") == 1
        queue.close()

    run_async(work)


def test_the_time_to_decode_bounds_how_many_are_admitted() -> None:
    def decode(body: bytes) -> torch.Tensor:
        time.sleep(0.1)
        raise UserError("it is bad")

    async def work() -> None:
        queue = batcher(decode, rate=1e9)
        with pytest.raises(UserError):
            await queue.predict(b"")
        assert queue.rate <= len(os.sched_getaffinity(0)) / (RATE_SMOOTHING * 0.1)
        queue.close()

    run_async(work)


def test_slots_bound_the_images_admitted_and_how_long_they_wait() -> None:
    queue = batcher(slots=4)
    with queue.slot() as slot:
        slot.take(3)
        with pytest.raises(QueueFull) as caught, queue.slot():
            pass
        assert caught.value.retry_after_s == 1
    with queue.slot() as slot:
        with pytest.raises(QueueFull):
            slot.take(4)
        assert queue.taken == 1
    assert queue.taken == 0
    slow = batcher(rate=0.1)
    with slow.slot(), pytest.raises(QueueFull) as caught, slow.slot():
        pass
    assert caught.value.retry_after_s == 10
    queue.close()
    slow.close()
