"""`bintally serve` under twice the load it can handle, and under bad input, as a process on loopback.

- `load`: photographs are sent at twice the measured throughput, whatever the responses; the server is stopped by
  SIGTERM halfway, started again, and stopped at the end, each time under load. A request is accepted once the server
  has sent `100 Continue`; every accepted request must be answered, by 429 if the queue is full once its body is there.
  A full queue takes slots / throughput seconds on average, so p99 must stay near that, and below the longest time that
  as many answers took. The memory of neither process may grow.
- `bad`: malformed requests of every kind; none may get a 5xx, or no response where one is due. One honest client sends
  photographs meanwhile, each again until it is counted, and its p99 is over these times.

Throughout, hundreds of connections are held: idle, with half a head, with no body, with half a body. `/live` is asked
five times a second; its worst time is over the phase, before the server is told to stop. Memory is in MiB; the peak is
the kernel's, since the server was ready.

    python benchmarks/soak.py                           five minutes of load, then 10,000 bad requests
    python benchmarks/soak.py --load 20 --bad 300       a quick look
"""

import argparse
import asyncio
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np

from common import ROOT, environment, make_bins, report, rounded, say
from common.bad_requests import half_requests, kinds
from common.watch import Watch

HOST = "127.0.0.1"
IMAGE_BYTES = 50_000
MAX_CONNECTIONS = 192  # more than slots in the queue; with HELD fewer than the server keeps
HELD = 256
START_TIMEOUT_S = 600.0
STOP_TIMEOUT_S = 60.0
RESPONSE_TIMEOUT_S = 60.0
LOST = (ConnectionError, asyncio.IncompleteReadError)


def main() -> None:
    arguments = _arguments()
    pictures = [one.image for one in make_bins(16, IMAGE_BYTES)]
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="bintally-soak-") as name:
        server = Server(arguments.model.resolve(), arguments.queue, Path(name))
        if arguments.load:
            figures["load"] = asyncio.run(_load(server, pictures, arguments.load, arguments.over))
            figures["load"]["tracebacks"] = server.tracebacks()
        if arguments.bad:
            figures["bad"] = asyncio.run(_bad(server, pictures, arguments.bad, arguments.concurrency))
            figures["bad"]["tracebacks"] = server.tracebacks()
    report("soak", vars(arguments) | {"model": str(arguments.model)}, figures, ["fastapi", "uvicorn", "onnxruntime"])


class Server:
    """`bintally serve` on one port, started as often as needed."""

    def __init__(self, model: Path, queue: int, folder: Path) -> None:
        self.queue, self._model, self._folder, self._log = queue, model, folder, folder / "server.log"
        with socket.create_server((HOST, 0)) as probe:
            self.port = probe.getsockname()[1]

    @contextmanager
    def running(self) -> Iterator["subprocess.Popen[bytes]"]:
        """Run the server, ready, until the block ends."""
        command = [sys.executable, "-c", "from bintally.cli import main; main()", "serve"]
        command += ["--model", str(self._model), "--queue", str(self.queue), "--port", str(self.port)]
        settings = environment(ROOT / "src", self._folder / "bytecode")
        with self._log.open("ab") as log:
            process = subprocess.Popen(command, cwd=self._folder, env=settings, stdout=subprocess.DEVNULL, stderr=log)
        try:
            end = time.monotonic() + START_TIMEOUT_S
            while not self._ready():
                if process.poll() is not None or time.monotonic() > end:
                    raise SystemExit(f"the server did not start:\n{self._log.read_text(errors='replace')}")
                time.sleep(0.2)
            yield process
        finally:
            stop(process)

    def tracebacks(self) -> int:
        """Number of tracebacks in its messages since the last call; the first is printed."""
        text = self._log.read_text(errors="replace")
        self._log.write_text("")
        found = text.count("Traceback (most recent call last)")
        if found:
            print(text[text.index("Traceback (") :][:4000], file=sys.stderr)
        return found

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
            start = time.monotonic()
            first = len(outcomes.ends)
            async with _send_at_rate(server, pictures, over * rate, outcomes):
                async with _held(server):
                    with Watch(server.port, process.pid) as watch:
                        await asyncio.sleep(seconds / 2)
                up_s += time.monotonic() - start
                outcomes.stopping = True
                code = await asyncio.to_thread(stop, process)  # while requests come
            outcomes.stopping = False
            ends = np.array(outcomes.ends[first:])
            slowest = max(slowest, float((ends[server.queue :] - ends[: -server.queue]).max(initial=0)))
            halves.append({"exit_code": code, **watch.figures()})
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


@asynccontextmanager
async def _held(server: Server) -> AsyncIterator[None]:
    """Hold HELD connections while the block runs, each opened again when the server closes it."""

    async def hold(start: bytes) -> None:
        while True:
            with suppress(*LOST):
                async with _connection(server.port) as (reader, writer):
                    writer.write(start)
                    await reader.read()
            await asyncio.sleep(1)

    starts = half_requests(f"{HOST}:{server.port}")
    holding = [asyncio.create_task(hold(starts[number % len(starts)])) for number in range(HELD)]
    yield
    for one in holding:
        one.cancel()
    await asyncio.gather(*holding, return_exceptions=True)


async def _post(port: int, picture: bytes, outcomes: Outcomes) -> None:
    start, accepted = time.monotonic(), False
    head = f"POST /invocations HTTP/1.1\r\nhost: {HOST}:{port}\r\nexpect: 100-continue\r\n"
    head += f"content-length: {len(picture)}\r\n\r\n"
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


async def _bad(server: Server, pictures: Sequence[bytes], number: int, concurrency: int) -> dict[str, Any]:
    bad, dice = kinds(pictures, f"{HOST}:{server.port}"), random.Random(1)  # noqa: S311
    names = dice.choices(list(bad), [kind.weight for kind in bad.values()], k=number)
    statuses: dict[str, Counter[str]] = {name: Counter() for name in bad}
    limits = {True: asyncio.Semaphore(max(1, concurrency // 2)), False: asyncio.Semaphore(concurrency)}
    honest, times = Outcomes(), list[float]()

    async def send(name: str) -> None:
        kind = bad[name]
        async with limits[kind.slow]:
            statuses[name][await _outcome(server.port, kind.make(dice))] += 1

    async def send_honestly() -> None:
        while True:
            for picture in pictures:
                start, counted = time.monotonic(), len(honest.seconds)
                while len(honest.seconds) == counted:
                    await _post(server.port, picture, honest)
                times.append(time.monotonic() - start)

    with server.running() as process:
        for picture in pictures:
            await _post(server.port, picture, honest)
        start = time.monotonic()
        async with _held(server):
            with Watch(server.port, process.pid) as watch:
                sending = asyncio.create_task(send_honestly())
                await asyncio.gather(*(send(name) for name in names))
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
        seconds = time.monotonic() - start
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
        "server_errors": sum(number for status, number in (ends + honest.statuses).items() if status[0] == "5"),
        "no_answer": sum(counted["closed"] for name, counted in statuses.items() if not bad[name].closed),
        "no_end": ends["timeout"],
        "honest_statuses": dict(honest.statuses),
        "honest_answers": len(times),
        "honest_p50_s": rounded(float(np.percentile(times, 50))),
        "honest_p99_s": rounded(float(np.percentile(times, 99))),
        **watch.figures(),
        "resident_mib_over_time": [rounded(mib, 4) for mib in watch.resident[:: max(1, len(watch.resident) // 10)]],
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
