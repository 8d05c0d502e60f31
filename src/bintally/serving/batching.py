"""A bounded queue that runs together what is asked for at the same time. Its state belongs to the event loop's thread.

A place in the queue is taken before a body is read and given back with the answer, so places bound memory and waiting.
"""

import asyncio
import math
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Generic, TypeVar

import torch

from bintally.errors import UserError
from bintally.serving.metrics import ServerMetrics

R = TypeVar("R")

RECENT = 0.2  # the weight of the last batch in the rate


class Full(Exception):
    """There is no place; in ``after_s`` seconds there may be one."""

    def __init__(self, after_s: float) -> None:
        super().__init__(after_s)
        self.after_s = max(1, math.ceil(after_s))


class Batcher(Generic[R]):
    """Decodes photographs in one pool of threads while one other thread runs those decoded before, a batch at a time.

    Args:
        decode: from a file to pixels, in several threads; may raise UserError.
        run: from pixels to one result each, in one thread.
        batch: photographs at most in a batch.
        queue: places, one a photograph.
        wait_s: how long a batch that is not full waits for photographs that are being decoded.
        timeout_s: nothing is admitted that would wait longer.
        rate: photographs a second, as long as nothing is known.
    """

    def __init__(
        self,
        decode: Callable[[bytes], torch.Tensor],
        run: Callable[[Sequence[torch.Tensor]], Sequence[R]],
        batch: int,
        queue: int,
        wait_s: float,
        timeout_s: float,
        rate: float,
        metrics: ServerMetrics,
    ) -> None:
        self.rate = rate
        self.taken = 0
        self.places = queue
        self._decode, self._run, self._batch = decode, run, batch
        self._wait_s, self._timeout_s = wait_s, timeout_s
        self._meters = metrics
        # One thread an image: nested thread teams would fight the network's for the cores.
        self._pool = ThreadPoolExecutor(
            len(os.sched_getaffinity(0)), "decode", initializer=torch.set_num_threads, initargs=(1,)
        )
        self._worker = ThreadPoolExecutor(1, "inference")
        self._decoding = 0
        self._ready: deque[tuple[asyncio.Future[R | UserError], torch.Tensor]] = deque()
        self.running = 0
        self._free_since = 0.0
        self._patience: asyncio.TimerHandle | None = None

    def place(self) -> "Place":
        """A place for one photograph, for as long as a ``with`` block lasts. Raises Full."""
        return Place(self)

    def submit(self, photographs: Sequence[bytes]) -> list["asyncio.Future[R | UserError]"]:
        """The results to come, in order; a photograph whose future is cancelled is dropped."""
        return [self._submit(photograph) for photograph in photographs]

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._worker.shutdown(cancel_futures=True)

    def _submit(self, photograph: bytes) -> "asyncio.Future[R | UserError]":
        loop = asyncio.get_running_loop()
        result: asyncio.Future[R | UserError] = loop.create_future()
        decoding = loop.run_in_executor(self._pool, self._decoded, photograph, result)
        decoding.add_done_callback(partial(self._take_decoded, result))
        self._decoding += 1
        return result

    def _decoded(self, photograph: bytes, result: "asyncio.Future[R | UserError]") -> torch.Tensor | UserError | None:
        if result.cancelled():
            return None
        with self._meters.decode.time():
            try:
                return self._decode(photograph)
            except UserError as fault:
                return fault

    def _take_decoded(
        self, result: "asyncio.Future[R | UserError]", decoding: "asyncio.Future[torch.Tensor | UserError | None]"
    ) -> None:
        self._decoding -= 1
        if not result.done():
            if error := decoding.exception():
                result.set_exception(error)
            elif isinstance(pixels := decoding.result(), torch.Tensor):
                self._ready.append((result, pixels))
            elif pixels is not None:
                result.set_result(pixels)
        self._start(patient=True)

    def _start(self, patient: bool) -> None:
        """Start what may start: one batch runs, and a full one may wait behind it, so that the thread never waits."""
        while self._ready and self.running < (2 if len(self._ready) >= self._batch else 1):
            if len(self._ready) < self._batch and self._decoding and patient and self._wait_s:
                if not self._patience:
                    self._patience = asyncio.get_running_loop().call_later(self._wait_s, self._start_at_last)
                return
            if self._patience:
                self._patience.cancel()
                self._patience = None
            batch: list[tuple[asyncio.Future[R | UserError], torch.Tensor]] = []
            while self._ready and len(batch) < self._batch:
                one = self._ready.popleft()
                if not one[0].cancelled():
                    batch.append(one)
            if batch:
                self._start_batch(batch)

    def _start_at_last(self) -> None:
        self._patience = None
        self._start(patient=False)

    def _start_batch(self, batch: "list[tuple[asyncio.Future[R | UserError], torch.Tensor]]") -> None:
        if not self.running:
            self._free_since = time.monotonic()
        self.running += 1
        running = asyncio.get_running_loop().run_in_executor(self._worker, self._timed, [pixels for _, pixels in batch])
        running.add_done_callback(partial(self._finish, [result for result, _ in batch]))

    def _timed(self, pixels: Sequence[torch.Tensor]) -> Sequence[R]:
        with self._meters.inference.time():
            return self._run(pixels)

    def _finish(
        self, results: "Sequence[asyncio.Future[R | UserError]]", running: "asyncio.Future[Sequence[R]]"
    ) -> None:
        self.running -= 1
        now = time.monotonic()
        self.rate += RECENT * (len(results) / max(now - self._free_since, 1e-6) - self.rate)
        self._free_since = now
        self._start(patient=True)  # before the answers, so that the thread goes on meanwhile
        self._meters.batches.observe(len(results))
        if error := running.exception():
            for result in results:
                if not result.done():
                    result.set_exception(error)
            return
        self._meters.images.inc(len(results))
        for result, value in zip(results, running.result(), strict=True):
            if not result.done():
                result.set_result(value)


class Place:
    """Places in a queue, first one and then as many as a request turns out to need."""

    def __init__(self, batcher: Batcher[R]) -> None:
        self._batcher = batcher
        self._taken = 0
        self.take(1)

    def take(self, places: int) -> None:
        """Take so many more. Raises Full."""
        queue = self._batcher
        wanted = queue.taken + places
        if wanted > queue.places or (queue.taken and wanted > queue.rate * queue._timeout_s):
            raise Full(queue.taken / queue.rate)
        queue.taken = wanted
        self._taken += places

    def __enter__(self) -> "Place":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._batcher.taken -= self._taken
