"""Bodies that are received take bounded memory together, and those that are complete are kept."""

import asyncio
from typing import Any

import pytest
from fastapi import HTTPException, Request

from bintally.serving.incoming import Incoming

TIMEOUT_S = 30.0


class Client:
    """A client whose body comes in the parts that a test puts."""

    def __init__(self, length: int) -> None:
        self.parts = asyncio.Queue[dict[str, Any]]()
        scope = {"type": "http", "headers": [(b"content-length", str(length).encode())]}
        self.request = Request(scope, receive=self.parts.get)
        self.kept = asyncio.Event()

    def send(self, body: bytes, more: bool = True) -> None:
        self.parts.put_nowait({"type": "http.request", "body": body, "more_body": more})

    async def received_by(self, incoming: Incoming) -> bytes:
        async with incoming.body(self.request) as body:
            await self.kept.wait()
            return body


def test_the_largest_incomplete_body_is_refused_when_all_take_too_much() -> None:
    async def work() -> None:
        incoming = Incoming(max_bytes=10, max_total=25)
        clients = [Client(10) for _ in range(4)]
        complete, large, small, late = (asyncio.ensure_future(one.received_by(incoming)) for one in clients)
        clients[0].send(b"0123456789", more=False)
        clients[1].send(bytes(9))
        clients[2].send(bytes(4))
        while incoming.bytes < 23:
            await asyncio.sleep(0)
        clients[3].send(b"abc", more=False)
        with pytest.raises(HTTPException) as caught:
            await large
        assert caught.value.status_code == 429 and caught.value.headers["retry-after"] == "1"  # type: ignore[index]
        assert "9 bytes came, and all requests together take more than 25" in caught.value.detail
        clients[2].send(b"end", more=False)
        for client in clients:
            client.kept.set()
        assert list(await asyncio.gather(complete, small, late)) == [b"0123456789", bytes(4) + b"end", b"abc"]
        assert incoming.bytes == 0

    asyncio.run(asyncio.wait_for(work(), TIMEOUT_S))


def test_a_body_that_is_longer_than_it_says_is_refused() -> None:
    async def work() -> None:
        incoming = Incoming(max_bytes=10)
        client = Client(3)
        client.send(bytes(6))
        client.send(bytes(6))
        with pytest.raises(HTTPException) as caught:
            await client.received_by(incoming)
        assert caught.value.status_code == 413 and incoming.bytes == 0

    asyncio.run(asyncio.wait_for(work(), TIMEOUT_S))
