"""`bintally serve` under twice the load it can handle, and under bad input, as a process on loopback.

- `load`: photographs are sent at twice the measured throughput, whatever the responses; the server is stopped by
  SIGTERM halfway, started again, and stopped at the end, each time under load. A request is accepted once the server
  has sent `100 Continue`; every accepted request must be answered. A full queue takes slots / throughput seconds on
  average, so p99 must stay near that, and below the longest time that as many answers took. The memory of neither
  process may grow.
- `bad`: malformed requests of every kind; none may get a 5xx, or no response where one is due.

    python benchmarks/soak.py                           five minutes of load, then 10,000 bad requests
    python benchmarks/soak.py --load 20 --bad 300       a quick look
"""

import argparse
import asyncio
import base64
import io
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
from PIL import Image

from common import ROOT, environment, make_bins, report, rounded, say

HOST = "127.0.0.1"
IMAGE_BYTES = 50_000
MAX_CONNECTIONS = 192  # more than slots in the queue
START_TIMEOUT_S = 600.0
STOP_TIMEOUT_S = 60.0
RESPONSE_TIMEOUT_S = 60.0
WARM_UP_S = 60.0  # before memory is compared; at most a third of the time
LOST = (ConnectionError, asyncio.IncompleteReadError)


def main() -> None:
    arguments = _arguments()
    pictures = [one.image for one in make_bins(16, IMAGE_BYTES)]
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="bintally-soak-") as name:
        server = Server(arguments.model.resolve(), arguments.queue, Path(name))
        if arguments.load:
            figures["load"] = asyncio.run(_load(server, pictures, arguments.load, arguments.over))
        if arguments.bad:
            figures["bad"] = asyncio.run(_bad(server, pictures, arguments.bad, arguments.concurrency))
    report("soak", vars(arguments) | {"model": str(arguments.model)}, figures, ["fastapi", "uvicorn", "onnxruntime"])


class Server:
    """`bintally serve` on one port, started as often as needed."""

    def __init__(self, model: Path, queue: int, folder: Path) -> None:
        self.queue, self._model, self._folder = queue, model, folder
        with socket.create_server((HOST, 0)) as probe:
            self.port = probe.getsockname()[1]

    @contextmanager
    def running(self) -> Iterator["subprocess.Popen[bytes]"]:
        """Run the server, ready, until the block ends."""
        command = [sys.executable, "-c", "from bintally.cli import main; main()", "serve"]
        command += ["--model", str(self._model), "--queue", str(self.queue), "--port", str(self.port)]
        settings = environment(ROOT / "src", self._folder / "bytecode")
        process = subprocess.Popen(command, cwd=self._folder, env=settings, stdout=subprocess.DEVNULL)
        try:
            end = time.monotonic() + START_TIMEOUT_S
            while not self._ready():
                if process.poll() is not None or time.monotonic() > end:
                    raise SystemExit("the server did not start; its messages are above")
                time.sleep(0.2)
            yield process
        finally:
            stop(process)

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{HOST}:{self.port}/ready", timeout=10) as response:
                return bool(response.status == 200)
        except (URLError, OSError):
            return False


def stop(process: "subprocess.Popen[bytes]") -> int:
    """Stop a process by SIGTERM and return its exit code."""
    process.send_signal(signal.SIGTERM)
    try:
        return process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return -signal.SIGKILL


def resident_mib(process: "subprocess.Popen[bytes]") -> float:
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


# Load


@dataclass
class Outcomes:
    """Outcomes of requests."""

    statuses: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    """Time from the head of a request to its response, for status 200."""
    ends: list[float] = field(default_factory=list)
    """Monotonic time of these responses."""
    accepted: int = 0
    lost: int = 0
    stopping: bool = False
    """Whether the server is stopping; outcomes are then counted separately."""

    def count(self, outcome: object) -> None:
        self.statuses[f"{outcome} while stopping" if self.stopping else str(outcome)] += 1


async def _load(server: Server, pictures: Sequence[bytes], seconds: float, over: float) -> dict[str, Any]:
    halves: list[dict[str, Any]] = []
    outcomes, up_s, rate, slowest = Outcomes(), 0.0, 0.0, 0.0
    for half in range(2):
        with server.running() as process:
            if not half:
                rate = await _rate(server, pictures, min(15.0, seconds / 4))
                say(f"throughput {rate:.1f} images/s; now {over * rate:.1f} images/s are sent")
            resident: list[float] = []
            watching = asyncio.create_task(_watch(process, resident))
            start = time.monotonic()
            first = len(outcomes.ends)
            async with _send_at_rate(server, pictures, over * rate, outcomes):
                await asyncio.sleep(seconds / 2)
                watching.cancel()
                up_s += time.monotonic() - start
                outcomes.stopping = True
                code = await asyncio.to_thread(stop, process)  # while requests come
            outcomes.stopping = False
            ends = np.array(outcomes.ends[first:])
            slowest = max(slowest, float((ends[server.queue :] - ends[: -server.queue]).max(initial=0)))
            settled = resident[int(min(WARM_UP_S, len(resident) / 3)) :]
            halves.append(
                {
                    "exit_code": code,
                    "resident_mib": [rounded(resident[0], 4), rounded(resident[-1], 4)],
                    "resident_spread_mib": round(max(settled) - min(settled), 1),
                }
            )
    answered = len(outcomes.seconds) / up_s
    p50, p99 = np.percentile(outcomes.seconds, [50, 99])
    return {
        "seconds": rounded(up_s),
        "alone_images_per_s": rounded(rate),
        "offered_images_per_s": rounded(over * rate),
        "answered_images_per_s": rounded(answered),
        "statuses": dict(outcomes.statuses),
        "accepted": outcomes.accepted,
        "accepted_without_answer": outcomes.lost,
        "p50_s": rounded(float(p50)),
        "p99_s": rounded(float(p99)),
        "bound_s": rounded(server.queue / answered),
        "bound_at_the_slowest_s": rounded(slowest),
        "processes": halves,
    }


async def _watch(process: "subprocess.Popen[bytes]", resident: list[float]) -> None:
    while True:
        resident.append(resident_mib(process))
        await asyncio.sleep(1)


async def _rate(server: Server, pictures: Sequence[bytes], seconds: float) -> float:
    """Images per second with clients for three quarters of the slots."""
    outcomes, end = Outcomes(), time.monotonic() + seconds

    async def client(number: int) -> None:
        while time.monotonic() < end:
            await _post(server.port, pictures[number % len(pictures)], outcomes)

    start = time.monotonic()
    await asyncio.gather(*(client(number) for number in range(server.queue * 3 // 4)))
    return len(outcomes.seconds) / (time.monotonic() - start)


@asynccontextmanager
async def _send_at_rate(
    server: Server, pictures: Sequence[bytes], rate: float, outcomes: Outcomes
) -> AsyncIterator[None]:
    """Send requests at a rate while the block runs, whatever the responses; then wait for all of them."""
    in_flight: set[asyncio.Task[None]] = set()

    async def send() -> None:
        start, number = time.monotonic(), 0
        while True:
            number += 1
            await asyncio.sleep(max(0.0, start + number / rate - time.monotonic()))
            if len(in_flight) >= MAX_CONNECTIONS:
                outcomes.count("not sent")
                continue
            one = asyncio.create_task(_post(server.port, pictures[number % len(pictures)], outcomes))
            in_flight.add(one)
            one.add_done_callback(in_flight.discard)

    sending = asyncio.create_task(send())
    yield
    sending.cancel()
    await asyncio.gather(*in_flight)


async def _post(port: int, picture: bytes, outcomes: Outcomes) -> None:
    start, accepted = time.monotonic(), False
    head = f"POST /invocations HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: {len(picture)}\r\n\r\n"
    try:
        async with asyncio.timeout(RESPONSE_TIMEOUT_S), _connection(port) as (reader, writer):
            writer.write(head.encode())
            status = await _status(reader)
            if status == 100:
                accepted = True
                outcomes.accepted += 1
                writer.write(picture)
                status = await _status(reader)
                if status == 200:
                    outcomes.ends.append(time.monotonic())
                    outcomes.seconds.append(outcomes.ends[-1] - start)
            outcomes.count(status)
    except ConnectionRefusedError:
        outcomes.count("refused")
    except (*LOST, TimeoutError):
        outcomes.count("lost" if accepted else "closed before it was accepted")
        outcomes.lost += accepted


@asynccontextmanager
async def _connection(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def _status(reader: asyncio.StreamReader) -> int:
    """Read a whole response."""
    head = await reader.readuntil(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1])
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            await reader.readexactly(int(line.partition(b":")[2]))
    return status


# Bad input


@dataclass(frozen=True)
class BadRequest:
    """A kind of malformed request."""

    make: Callable[[random.Random], bytes]
    closed: bool = False
    """Whether the server may close the connection without a response."""
    weight: float = 1.0
    slow: bool = False


async def _bad(server: Server, pictures: Sequence[bytes], number: int, concurrency: int) -> dict[str, Any]:
    kinds, dice = _kinds(pictures), random.Random(1)  # noqa: S311
    names = dice.choices(list(kinds), [kind.weight for kind in kinds.values()], k=number)
    statuses: dict[str, Counter[str]] = {name: Counter() for name in kinds}
    limits = {True: asyncio.Semaphore(max(1, concurrency // 2)), False: asyncio.Semaphore(concurrency)}
    quick = Outcomes()

    async def send(name: str) -> None:
        kind = kinds[name]
        async with limits[kind.slow]:
            statuses[name][await _outcome(server.port, kind.make(dice))] += 1

    with server.running() as process:
        await asyncio.gather(*(_post(server.port, picture, quick) for picture in pictures))
        resident: list[float] = []
        watching = asyncio.create_task(_watch(process, resident))
        start = time.monotonic()
        await asyncio.gather(*(send(name) for name in names))
        seconds = time.monotonic() - start
        await asyncio.gather(*(_post(server.port, picture, quick) for picture in pictures))
        watching.cancel()
        alive = process.poll() is None
        code = await asyncio.to_thread(stop, process)
    ends = Counter[str]()
    for counted in statuses.values():
        ends.update(counted)
    return {
        "seconds": rounded(seconds),
        "requests": sum(ends.values()),
        "statuses": dict(ends),
        "by_kind": {name: dict(counted) for name, counted in statuses.items() if counted},
        "server_errors": sum(times for status, times in ends.items() if status[0] == "5"),
        "no_answer": sum(counted["closed"] for name, counted in statuses.items() if not kinds[name].closed),
        "no_end": ends["timeout"],
        "resident_mib_over_time": [rounded(mib, 4) for mib in resident[:: max(1, len(resident) // 10)]],
        "good_answers": f"{quick.statuses['200']} of {2 * len(pictures)}",
        "alive": alive,
        "exit_code": code,
    }


async def _outcome(port: int, request: bytes) -> str:
    try:
        async with asyncio.timeout(RESPONSE_TIMEOUT_S), _connection(port) as (reader, writer):
            with suppress(ConnectionError):  # the response may come before the request is complete
                writer.write(request)
                await writer.drain()
            return str(await _status(reader))
    except LOST:
        return "closed"
    except TimeoutError:
        return "timeout"


def _request(
    body: bytes, content_type: str = "image/jpeg", path: str = "/invocations", length: int | None = None
) -> bytes:
    length = len(body) if length is None else length
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: {content_type}\r\ncontent-length: {length}\r\n\r\n"
    return head.encode() + body


def _kinds(pictures: Sequence[bytes]) -> dict[str, BadRequest]:
    good, png = pictures[0], _png(64, 64, bytes(64 * 193))
    form = "multipart/form-data; boundary=b"
    part = b'--b\r\ncontent-disposition: form-data; name="images"; filename="a"\r\n\r\n%b\r\n'

    field = b'--b\r\ncontent-disposition: form-data; name="x"\r\n\r\n\r\n'

    def cut(content: bytes) -> Callable[[random.Random], bytes]:
        return lambda dice: _request(content[: dice.randrange(1, len(content) - 2)])

    def same(*arguments: Any, **more: Any) -> Callable[[random.Random], bytes]:
        request = _request(*arguments, **more)
        return lambda _: request

    def raw(content: bytes) -> Callable[[random.Random], bytes]:
        return lambda _: content

    def flip_bits(dice: random.Random) -> bytes:
        changed = bytearray(good)
        for _ in range(20):
            changed[dice.randrange(len(changed))] ^= 1 << dice.randrange(8)
        return _request(bytes(changed))

    def as_json(*images: bytes, **more: Any) -> bytes:
        listed = [{"data": base64.b64encode(image).decode(), **more} for image in images]
        return json.dumps({"images": listed}).encode()

    start = b"POST /invocations HTTP/1.1\r\nhost: x\r\n"
    chunked = start + b"transfer-encoding: chunked\r\n\r\n"
    return {
        "empty": BadRequest(same(b"")),
        "cut JPEG": BadRequest(cut(good)),
        "cut PNG": BadRequest(cut(png)),
        "flip_bits bits": BadRequest(flip_bits),
        "noise": BadRequest(lambda dice: _request(dice.randbytes(dice.randrange(1, 20_000)))),
        "GIF": BadRequest(same(_drawn("GIF"))),
        "BMP": BadRequest(same(_drawn("BMP"))),
        "TIFF": BadRequest(same(_drawn("TIFF"))),
        "WebP": BadRequest(same(_drawn("WEBP"))),
        "huge PNG": BadRequest(same(_png(30_000, 30_000, b"\0"))),
        "largest PNG": BadRequest(same(_png(7_000, 7_000, bytes(7_000 * 21_001))), weight=0.02),
        "huge JPEG": BadRequest(same(_stretched(good))),
        "GIF before JPEG": BadRequest(same(_drawn("GIF") + good)),
        "JPEG before ZIP": BadRequest(same(good + b"PK\x03\x04" + bytes(500))),
        "page as JPEG": BadRequest(same(b"\xff\xd8\xff\xe0<script>alert(1)</script>")),
        "other type": BadRequest(same(good, "text/html")),
        "record below 0": BadRequest(same(good, path="/invocations?expected=-1")),
        "record of 9,999 digits": BadRequest(same(good, path="/invocations?expected=" + "9" * 9_999)),
        "two records": BadRequest(same(good, path="/invocations?expected=1&expected=2")),
        "half JSON": BadRequest(same(as_json(good)[:-9], "application/json")),
        "deep JSON": BadRequest(same(b"[" * 100_000, "application/json")),
        "other JSON": BadRequest(same(b'{"pictures":[1]}', "application/json")),
        "numbers as JSON images": BadRequest(same(b'{"images":[1,2,3]}', "application/json")),
        "no Base64": BadRequest(same(b'{"images":[{"data":"%%%"}]}', "application/json")),
        "bad image in JSON": BadRequest(same(as_json(good, b"bad"), "application/json")),
        "record as word in JSON": BadRequest(same(as_json(good, expected="x"), "application/json")),
        "65 in JSON": BadRequest(same(as_json(*[b"x"] * 65), "application/json")),
        "form without boundary": BadRequest(same(part % good, "multipart/form-data")),
        "form cut short": BadRequest(same(part % good, form)),
        "noise as form": BadRequest(lambda dice: _request(dice.randbytes(2_000), form)),
        "65 in a form": BadRequest(same(part % b"x" * 65 + b"--b--\r\n", form)),
        "many fields": BadRequest(same(field * 20_000 + b"--b--\r\n", form)),
        "oversize": BadRequest(same(bytes(11 * 2**20)), weight=0.2),
        "oversize by its head": BadRequest(same(b"", length=10**15)),
        "oversize in chunks": BadRequest(
            raw(
                start
                + b"transfer-encoding: chunked\r\n\r\n"
                + (b"100000\r\n" + bytes(2**20) + b"\r\n") * 11
                + b"0\r\n\r\n"
            ),
            weight=0.2,
        ),
        "bad chunk": BadRequest(raw(chunked + b"xyz\r\n")),
        "two lengths": BadRequest(raw(start + b"content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n")),
        "length below 0": BadRequest(raw(start + b"content-length: -1\r\n\r\n")),
        "no HTTP": BadRequest(lambda dice: b"\x16\x03\x01" + dice.randbytes(200) + b"\r\n\r\n"),
        "endless head": BadRequest(raw(start + b"x: " + b"x" * 300_000)),
        "other method": BadRequest(raw(b"PUT /invocations HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")),
        "other path": BadRequest(same(good, path="/../../etc/passwd")),
        "slow body": BadRequest(same(good[:99], length=len(good)), weight=0.1, slow=True),
        "slow chunk": BadRequest(raw(chunked + b"5\r\nab"), weight=0.1, slow=True),
        "slow head": BadRequest(raw(start), closed=True, weight=0.1, slow=True),
        "silence": BadRequest(raw(b""), closed=True, weight=0.1, slow=True),
    }


def _drawn(kind: str) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (64, 48), "green").save(content, kind)
    return content.getvalue()


def _png(width: int, height: int, rows: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def _stretched(jpeg: bytes) -> bytes:
    """A JPEG whose header declares 65,000 x 65,000 pixels."""
    frame = max(jpeg.find(b"\xff\xc0"), jpeg.find(b"\xff\xc2"))
    return jpeg[: frame + 5] + struct.pack(">HH", 65_000, 65_000) + jpeg[frame + 9 :]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("models"), help="default: %(default)s")
    parser.add_argument("--queue", type=int, default=64, help="slots (default: %(default)s)")
    parser.add_argument("--load", type=float, default=300, metavar="SECONDS", help="0: skip (default: %(default)s)")
    parser.add_argument("--over", type=float, default=2.0, help="multiple of the throughput (default: %(default)s)")
    parser.add_argument("--bad", type=int, default=10_000, metavar="NUMBER", help="0: skip (default: %(default)s)")
    parser.add_argument("--concurrency", type=int, default=32, help="of bad requests (default: %(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
