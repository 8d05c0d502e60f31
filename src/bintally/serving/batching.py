"""A bounded queue that decodes images in parallel and runs them in batches.

A request takes a slot once its body is there and releases it with its response, so the number of slots bounds memory
and waiting time. All state belongs to the thread of the event loop, but for the time that decoding takes.
"""

import asyncio
import math
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Generic, TypeVar

import torch

from bintally.serving.metrics import ServerMetrics

R = TypeVar("R")
T = TypeVar("T")

RATE_SMOOTHING = 0.2  # weight of the last batch, or image decoded, in the moving average


class QueueFull(Exception):
    """No slot is free; ``retry_after_s`` estimates when one will be, in whole seconds."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(retry_after_s)
        self.retry_after_s = max(1, math.ceil(retry_after_s))


class Batcher(Generic[R]):
    """Decodes images in a pool of threads while one other thread runs batches of decoded images.

    Args:
        decode: file to pixels; called in several threads; may raise UserError.
        run: pixels to one result each; called in one thread.
        batch_size: maximum number of images in a batch.
        slots: maximum number of images in the queue.
        wait_s: how long a batch that is not full waits for images being decoded.
        timeout_s: refuse images that would wait longer.
        rate: estimate of images per second, used until batches have been timed.
    """

    def __init__(
        self,
        decode: Callable[[bytes], torch.Tensor],
        run: Callable[[Sequence[torch.Tensor]], Sequence[R]],
        batch_size: int,
        slots: int,
        wait_s: float,
        timeout_s: float,
        rate: float,
        metrics: ServerMetrics,
    ) -> None:
        self.slots, self.taken, self.running = slots, 0, 0
        self._decode, self._run, self._metrics = decode, run, metrics
        self._batch_size, self._wait_s, self._timeout_s = batch_size, wait_s, timeout_s
        self._batch_rate, self._decode_s, self._threads = rate, 0.0, len(os.sched_getaffinity(0))
        # One thread per image: nested thread teams would compete with the network for the cores.
        self._decoders = ThreadPoolExecutor(self._threads, "decode", initializer=torch.set_num_threads, initargs=(1,))
        self._worker = ThreadPoolExecutor(1, "inference")
        self._decoding = 0
        self._decoded: deque[tuple[asyncio.Future[R], torch.Tensor]] = deque()
        self._rate_since = 0.0
        self._batch_timer: asyncio.TimerHandle | None = None

    @property
    def rate(self) -> float:
        """Images per second: of decoding or of the network, whichever is slower."""
        return min(self._batch_rate, self._threads / max(self._decode_s, 1e-6))

    def require_room(self, images: int = 1) -> None:
        """Raise QueueFull if so many more images have no slots, or would wait too long."""
        wanted, rate = self.taken + images, self.rate
        if wanted > self.slots or (self.taken and wanted > rate * self._timeout_s):
            raise QueueFull(self.taken / rate)

    async def in_decoder(self, work: Callable[..., T], *arguments: object) -> T:
        """What a function returns in a thread that decodes."""
        return await asyncio.get_running_loop().run_in_executor(self._decoders, work, *arguments)

    def slot(self) -> "QueueSlot":
        """A slot for one image, released at the end of a ``with`` block. Raises QueueFull."""
        return QueueSlot(self)

    async def predict(self, image: bytes) -> R:
        """The result for an image; cancelling drops it. Raises what ``decode`` and ``run`` raise."""
        result: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._decoding += 1
        try:
            self._decoded.append((result, await self.in_decoder(self._decode_image, image)))
        finally:
            self._decoding -= 1
            self._start_batches(may_wait=True)
        return await result

    def close(self) -> None:
        self._decoders.shutdown(cancel_futures=True)
        self._worker.shutdown(cancel_futures=True)

    def _decode_image(self, image: bytes) -> torch.Tensor:
        start = time.monotonic()
        try:
            with self._metrics.decode.time():
                return self._decode(image)
        finally:  # two threads at once lose one of their times: no harm
            self._decode_s += RATE_SMOOTHING * (time.monotonic() - start - self._decode_s)

    def _run_batch(self, pixels: Sequence[torch.Tensor]) -> Sequence[R]:
        with self._metrics.inference.time():
            return self._run(pixels)

    def _start_batches(self, may_wait: bool) -> None:
        """Start a batch if none is running; queue a full one behind it, so that the worker never idles."""
        while self._decoded and self.running < (2 if len(self._decoded) >= self._batch_size else 1):
            if len(self._decoded) < self._batch_size and self._decoding and may_wait and self._wait_s:
                if not self._batch_timer:
                    self._batch_timer = asyncio.get_running_loop().call_later(self._wait_s, self._on_batch_timer)
                return
            if self._batch_timer:
                self._batch_timer.cancel()
                self._batch_timer = None
            batch: list[tuple[asyncio.Future[R], torch.Tensor]] = []
            while self._decoded and len(batch) < self._batch_size:
                item = self._decoded.popleft()
                if not item[0].cancelled():
                    batch.append(item)
            if batch:
                self._start_batch(batch)

    def _on_batch_timer(self) -> None:
        self._batch_timer = None
        self._start_batches(may_wait=False)

    def _start_batch(self, batch: Sequence[tuple[asyncio.Future[R], torch.Tensor]]) -> None:
        if not self.running:
            self._rate_since = time.monotonic()
        self.running += 1
        pixels = [pixels for _, pixels in batch]
        running = asyncio.get_running_loop().run_in_executor(self._worker, self._run_batch, pixels)
        running.add_done_callback(partial(self._on_batch_done, [result for result, _ in batch]))

    def _on_batch_done(self, results: Sequence[asyncio.Future[R]], running: asyncio.Future[Sequence[R]]) -> None:
        self.running -= 1
        now = time.monotonic()
        self._batch_rate += RATE_SMOOTHING * (len(results) / max(now - self._rate_since, 1e-6) - self._batch_rate)
        self._rate_since = now
        self._start_batches(may_wait=True)  # before setting results, so that the worker is busy meanwhile
        self._metrics.batches.observe(len(results))
        error = running.exception()
        if not error:
            self._metrics.images.inc(len(results))
        for number, result in enumerate(results):
            if result.done():
                continue
            if error:
                result.set_exception(error)
            else:
                result.set_result(running.result()[number])


class QueueSlot:
    """Slots that one request holds: one at first, more when its body turns out to hold several images."""

    def __init__(self, batcher: Batcher[R]) -> None:
        self._batcher = batcher
        self._held = 0
        self.take(1)

    def take(self, slots: int) -> None:
        """Take more slots. Raises QueueFull."""
        self._batcher.require_room(slots)
        self._batcher.taken += slots
        self._held += slots

    def __enter__(self) -> "QueueSlot":
        return self

    def __exit__(self, *_: object) -> None:
        self._batcher.taken -= self._held
