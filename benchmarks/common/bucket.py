"""A bucket of any number of demo bins, served as S3 serves it and with the faults that a server has.

A few thousand photographs are rendered once; the bucket repeats them, in a few variants, under other ids. Which object
has which fault depends on its key alone. In a process of its own: `python -m common.bucket FOLDER --bins N --port P`.
"""

import argparse
import asyncio
import hashlib
import io
import json
import socket
import struct
import subprocess
import sys
import time
import urllib.request
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from PIL import Image, ImageEnhance, ImageOps

from bintally.apps.seaweedfs import free_ports
from bintally.bins.objects import IMAGES, RECORDS, image_key, record_key
from bintally.bins.shards import Bin, ShardReader, read_index, write_shards
from bintally.demo.warehouse import BLOCK, DemoWarehouse

NAME = "bins"
RENDERED = 333 * BLOCK  # bins, in whole blocks, so that photographs of one bin stay neighbours
VARIANTS = 4
UNUSABLE = {"broken image", "missing image", "broken record", "no expected quantity", "quantities disagree"}
PAGE = 1000  # keys
FAULTS = {"SlowDown": 503, "InternalError": 500, "reset": 0, "truncated": 0, "slow": 0}
IN_TEN_THOUSAND = {"SlowDown": 200, "InternalError": 50, "reset": 50, "truncated": 50, "slow": 5}  # objects
SLOW_S = 2.0  # of a slow body
PIECES = 8  # of a slow body
START_S = 60.0


def render(folder: Path, side: int, bins: int = RENDERED, seed: int = 1) -> None:
    """Render the photographs of bins in VARIANTS variants, no side longer than ``side``, unless they are there."""
    if (folder / "index.csv").exists():
        return
    numbers = range(1, bins + 1)
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        rendered = pool.map(partial(_rendered, seed, side), numbers, chunksize=16)
        write_shards(folder, (one for variants in rendered for one in variants))


def _rendered(seed: int, side: int, number: int) -> list[Bin]:
    warehouse = DemoWarehouse(seed)
    defect, photograph, record = warehouse.defect(number), warehouse.image(number), warehouse.record(number)
    state = "unusable" if defect in UNUSABLE else "good"
    return [
        Bin(f"{number}-{variant}", 0, state, _variant(photograph, defect == "broken image", side, variant), record)
        for variant in range(VARIANTS)
    ]


def _variant(photograph: bytes | None, is_broken: bool, side: int, variant: int) -> bytes:
    """The photograph smaller, and from the second variant on mirrored, darker or cropped; b"" for a missing one."""
    if photograph is None:
        return b""
    if is_broken:
        return photograph
    picture = Image.open(io.BytesIO(photograph))
    picture.thumbnail((side, side))
    width, height = picture.size
    changed = [
        picture,
        ImageOps.mirror(picture),
        ImageEnhance.Brightness(picture).enhance(0.7),
        picture.crop((width // 12, height // 12, width, height)),
    ][variant]
    file = io.BytesIO()
    changed.save(file, "JPEG", quality=80)
    return file.getvalue()


class Bucket:
    """The objects of bins 1 to ``bins``: a function of their numbers."""

    def __init__(self, rendered: Path, bins: int) -> None:
        reader = ShardReader(rendered)
        entries = {entry.id: entry for entry in read_index(rendered)}
        self.bins = bins
        self._width = len(str(bins))
        self._rendered = len(entries) // VARIANTS
        numbers = range(1, self._rendered + 1)
        self._images = [
            [reader.image(entries[f"{number}-{variant}"]) for variant in range(VARIANTS)] for number in numbers
        ]
        first = [entries[f"{number}-0"] for number in numbers]
        self._records = [reader.record(entry) for entry in first]
        self._is_good = [entry.group == "good" for entry in first]

    def id(self, number: int) -> str:
        return f"{number:0{self._width}}"

    def is_good(self, number: int) -> bool:
        """Whether the bin can be used."""
        return self._is_good[(number - 1) % self._rendered]

    def image(self, number: int) -> bytes | None:
        """A photograph with the id in a comment, so that no two files are equal; None if there is none."""
        turn, place = divmod(number - 1, self._rendered)
        image, comment = self._images[place][turn % VARIANTS], self.id(number).encode()
        segment = b"\xff\xfe" + struct.pack(">H", len(comment) + 2) + comment
        return image[:2] + segment + image[2:] if image else None

    def record(self, number: int) -> bytes:
        """A record with the id in a key that nobody reads."""
        return b'{"copy": "%s",' % self.id(number).encode() + self._records[(number - 1) % self._rendered][1:]

    def object(self, key: str) -> bytes | None:
        """The object of a key; None if there is none."""
        stem = key.rpartition("/")[2].partition(".")[0]
        number = int(stem) if stem.isdecimal() else 0
        if not 1 <= number <= self.bins or stem != self.id(number):
            return None
        if key == record_key(stem):
            return self.record(number)
        return self.image(number) if key == image_key(stem) else None

    def page(self, folder: str, first: int) -> Iterator[tuple[str, bytes]]:
        """The keys and objects of a page of a listing, from a bin's number on."""
        key = {f"{RECORDS}/": record_key, f"{IMAGES}/": image_key}[folder]
        for number in range(first, min(first + PAGE, self.bins + 1)):
            body = self.record(number) if key is record_key else self.image(number)
            if body:
                yield key(self.id(number)), body


def fault_of(key: str) -> str | None:
    """The fault of the first request for a key, one of FAULTS, if it has one."""
    place = zlib.crc32(key.encode()) % 10_000
    for fault, share in IN_TEN_THOUSAND.items():
        if place < share:
            return fault
        place -= share
    return None


class _Connection(asyncio.Protocol):
    """One connection of the server, on which requests follow each other."""

    def __init__(self, bucket: Bucket, served: Counter[str], failed: set[str]) -> None:
        self._bucket, self._served, self._failed = bucket, served, failed
        self._received = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, rest = self._received.partition(b"\r\n\r\n")
        if end:
            self._received = rest
            self._answer(head.decode("latin-1"))

    def _answer(self, head: str) -> None:
        split = urlsplit(head.split(" ", 2)[1])
        key, query = unquote(split.path).removeprefix(f"/{NAME}").removeprefix("/"), parse_qs(split.query)
        if split.path == "/served":
            self._send(200, json.dumps(self._served).encode())
            return
        self._served["requests"] += 1
        name = key or split.query
        fault = fault_of(name) if name not in self._failed else None
        if fault:
            self._failed.add(name)
            self._served[fault] += 1
        if status := FAULTS.get(fault or ""):
            self._send(status, b"<Error><Code>%s</Code></Error>" % str(fault).encode())
        elif fault == "reset":
            connection = self._transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()
        elif "list-type" in query:
            self._send(200, self._page(query["prefix"][0], int(query.get("continuation-token", ["1"])[0])))
        else:
            self._send_object(key, head, fault)

    def _send_object(self, key: str, head: str, fault: str | None) -> None:
        body = self._bucket.object(key)
        if body is None:
            self._send(404, b"<Error><Code>NoSuchKey</Code></Error>")
            return
        condition = head.lower().partition("if-none-match:")[2].partition("\r\n")[0].strip(' "')
        if condition and condition == hashlib.md5(body, usedforsecurity=False).hexdigest():
            self._served["unchanged"] += 1
            self._send(304, b"")
        elif fault == "truncated":
            self._send(200, body[: len(body) // 2], len(body))
            self._transport.close()
        elif fault == "slow":
            self._send(200, b"", len(body))
            size = -(-len(body) // PIECES)
            loop = asyncio.get_running_loop()
            for piece in range(PIECES):
                part = body[piece * size : (piece + 1) * size]
                loop.call_later(SLOW_S * (piece + 1) / PIECES, self._transport.write, part)
        else:
            self._served["objects"] += 1
            self._send(200, body)

    def _page(self, folder: str, first: int) -> bytes:
        contents = []
        for key, body in self._bucket.page(folder, first):
            digest = hashlib.md5(body, usedforsecurity=False).hexdigest()
            contents.append(f"<Contents><Key>{key}</Key><ETag>&quot;{digest}&quot;</ETag></Contents>")
        is_last = first + PAGE > self._bucket.bins
        more = "" if is_last else f"<NextContinuationToken>{first + PAGE}</NextContinuationToken>"
        truncated = f"<IsTruncated>{'false' if is_last else 'true'}</IsTruncated>"
        return f"<ListBucketResult>{truncated}{more}{''.join(contents)}</ListBucketResult>".encode()

    def _send(self, status: int, body: bytes, length: int | None = None) -> None:
        size = len(body) if length is None else length
        self._transport.write(b"HTTP/1.1 %d -\r\nContent-Length: %d\r\n\r\n" % (status, size) + body)


class BucketServer:
    """The server in a process of its own, which can be restarted as if its machine had gone down."""

    def __init__(self, rendered: Path, bins: int) -> None:
        self.port = free_ports(1)[0]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self._command = [sys.executable, "-m", "common.bucket", str(rendered), "--bins", str(bins)]
        self._command += ["--port", str(self.port)]
        self._before = Counter[str]()
        self._start()

    def served(self) -> Counter[str]:
        """How many requests came and how many faults were served, those before restarts included."""
        with urllib.request.urlopen(f"{self.endpoint}/served", timeout=START_S) as answer:  # noqa: S310 (http)
            return self._before + Counter(json.loads(answer.read()))

    def restart(self) -> None:
        self._before = self.served() + Counter(restart=1)
        self.stop()
        self._start()

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    def _start(self) -> None:
        self._process = subprocess.Popen(self._command, cwd=Path(__file__).parents[1])
        deadline = time.monotonic() + START_S
        while True:
            try:
                self.served()
                return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)


@contextmanager
def bucket_server(rendered: Path, bins: int) -> Iterator[BucketServer]:
    """A server of the bucket until the block ends."""
    server = BucketServer(rendered, bins)
    try:
        yield server
    finally:
        server.stop()


async def _serve(bucket: Bucket, port: int) -> None:
    served, failed = Counter[str](), set[str]()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(bucket, served, failed), "127.0.0.1", port, backlog=256)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rendered", type=Path)
    parser.add_argument("--bins", type=int, required=True)
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    asyncio.run(_serve(Bucket(arguments.rendered, arguments.bins), arguments.port))


if __name__ == "__main__":
    main()
