"""Clients of `POST /invocations`, each on one connection that stays open, each sending its next request once answered.

Run by its path, so that it imports the standard library alone and leaves the cores to the server. The measurement
starts when every client has been answered and `--warm-up` is over; requests in flight at its end are answered, but not
counted, so that the next measurement finds an idle server.

Prints {"latencies": [seconds], "cpu": seconds of this process}.
"""

import argparse
import asyncio
import json
import re
import time
from pathlib import Path

TIMEOUT_S = 120.0
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


def request(photograph: bytes, port: int) -> bytes:
    fields = f"host: localhost:{port}\r\ncontent-type: image/jpeg\r\ncontent-length: {len(photograph)}"
    return f"POST /invocations HTTP/1.1\r\n{fields}\r\n\r\n".encode() + photograph


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request_bytes: bytes) -> None:
    """Send a request and read the response. Raises SystemExit if its status is not 200."""
    writer.write(request_bytes)
    await writer.drain()
    head = await reader.readuntil(b"\r\n\r\n")
    length = LENGTH.search(head)
    body = await reader.readexactly(int(length[1])) if length else b""
    if head.split(b" ", 2)[1] != b"200":
        raise SystemExit(f"answered with {head.splitlines()[0].decode()}: {body[:200].decode(errors='replace')}")


class Clients:
    """The clients of one measurement."""

    def __init__(self, port: int, requests: list[bytes]) -> None:
        self._port = port
        self._requests = requests
        self._unanswered = 0
        self._warm = asyncio.Event()
        self._counting = self._over = False
        self._latencies: list[float] = []

    async def measure(self, clients: int, seconds: float, warm_up: float) -> dict[str, object]:
        self._unanswered = clients
        async with asyncio.timeout(TIMEOUT_S + warm_up + seconds), asyncio.TaskGroup() as group:
            for number in range(clients):
                group.create_task(self._client(number))
            await asyncio.sleep(warm_up)
            await self._warm.wait()
            cpu, self._counting = time.process_time(), True
            await asyncio.sleep(seconds)
            cpu, self._counting, self._over = time.process_time() - cpu, False, True
        return {"latencies": self._latencies, "cpu": cpu}

    async def _client(self, number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        answered = False
        while not self._over:
            start = time.perf_counter()
            await exchange(reader, writer, self._requests[number % len(self._requests)])
            if self._counting:
                self._latencies.append(time.perf_counter() - start)
            if not answered:
                answered = True
                self._unanswered -= 1
                if not self._unanswered:
                    self._warm.set()
            number += 1
        writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--images", type=Path, required=True, help="a folder of JPEG files")
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--warm-up", type=float, required=True, help="seconds")
    arguments = parser.parse_args()
    requests = [request(path.read_bytes(), arguments.port) for path in sorted(arguments.images.iterdir())]

    async def measure() -> dict[str, object]:
        clients = Clients(arguments.port, requests)
        return await clients.measure(arguments.clients, arguments.seconds, arguments.warm_up)

    print(json.dumps(asyncio.run(measure())))


if __name__ == "__main__":
    main()
