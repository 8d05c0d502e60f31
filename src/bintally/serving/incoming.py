"""Reading of request bodies, with bounds on the time and bytes of one and on the bytes of all of them together."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fastapi import HTTPException, Request

BODY_TIMEOUT_S = 10.0
MAX_TOTAL = 2**28  # bytes of all bodies in memory, unless two of the largest need more


@dataclass(eq=False)
class _Body:
    timeout: asyncio.Timeout
    size: int = 0
    refused: bool = False


class Incoming:
    """The bodies in memory. Where they become too many bytes, the largest one that is incomplete is refused."""

    def __init__(self, max_bytes: int, max_total: int = MAX_TOTAL) -> None:
        self.bytes = 0
        self._max_bytes, self._max_total = max_bytes, max(max_total, 2 * max_bytes)
        self._incomplete: set[_Body] = set()

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """The whole body, counted until the block ends.

        Raises HTTPException 413 if it is too large, 408 if it is too slow, 429 if there is no memory for it.
        """
        coming = _Body(asyncio.timeout(BODY_TIMEOUT_S))
        self._incomplete.add(coming)
        try:
            content = [await self._read(request, coming)]
            self._incomplete.remove(coming)
            yield content.pop()  # so that the caller holds the only reference
        finally:
            self._incomplete.discard(coming)
            if not coming.refused:
                self.bytes -= coming.size

    async def _read(self, request: Request, coming: _Body) -> bytes:
        limit, chunks = self._max_bytes, []
        too_large = HTTPException(413, f"the body has more than {limit:,} bytes; send smaller or fewer images")
        length = request.headers.get("content-length", "0")
        if len(length) > len(str(limit)) or int(length) > limit:
            raise too_large
        try:
            async with coming.timeout:
                async for chunk in request.stream():
                    if coming.refused:
                        raise TimeoutError
                    coming.size += len(chunk)
                    self.bytes += len(chunk)
                    if coming.size > limit:
                        raise too_large
                    chunks.append(chunk)
                    self._make_room()
        except TimeoutError:
            came = f"{coming.size:,} bytes came"
            if coming.refused:
                detail = f"{came}, and all requests together take more than {self._max_total:,}; try again in 1 s"
                raise HTTPException(429, detail, {"connection": "close", "retry-after": "1"}) from None
            detail = f"{came} within {BODY_TIMEOUT_S:.0f} s and the body is incomplete; send it faster"
            raise HTTPException(408, detail, {"connection": "close"}) from None
        return b"".join(chunks)

    def _make_room(self) -> None:
        if self.bytes > self._max_total and self._incomplete:
            largest = max(self._incomplete, key=lambda one: one.size)
            self._incomplete.remove(largest)
            self.bytes -= largest.size
            largest.refused = True
            if not largest.timeout.expired():
                largest.timeout.reschedule(0)
