"""Bins in a few tar files, with an index of where each member lies.

A member holds the exact bytes of the source. Few large files are pushed and pulled several times faster than
many small ones (benchmarks/transfer.py).
"""

import io
import itertools
import os
import tarfile
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from bintally.errors import disk_full_as_user_error
from bintally.files import read_csv, write_csv

SHARD_BYTES = 32 * 2**20


@dataclass(frozen=True)
class Entry:
    """A bin in the shards; offsets and sizes in bytes."""

    id: str
    count: int
    group: str
    shard: str
    image_offset: int
    image_size: int
    record_offset: int
    record_size: int


@dataclass(frozen=True)
class Bin:
    """A bin on its way into a shard."""

    id: str
    count: int
    group: str
    image: bytes
    record: bytes


def write_shards(folder: Path, bins: Iterable[Bin]) -> list[Entry]:
    """Write ``bins`` in their order to ``folder/bins-00000.tar``, … and ``folder/index.csv``.

    Every shard but the last holds at least SHARD_BYTES. Equal bins give equal bytes.
    """
    entries: list[Entry] = []
    waiting = iter(bins)
    one = next(waiting, None)
    with disk_full_as_user_error(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for shard in itertools.count():
            if one is None:
                break
            name = f"bins-{shard:05d}.tar"
            with tarfile.open(folder / name, "w", format=tarfile.USTAR_FORMAT) as tar:
                while one is not None and tar.offset < SHARD_BYTES:
                    image = _add(tar, f"{one.id}.jpg", one.image)
                    record = _add(tar, f"{one.id}.json", one.record)
                    entries.append(
                        Entry(one.id, one.count, one.group, name, image, len(one.image), record, len(one.record))
                    )
                    one = next(waiting, None)
        write_csv(folder / "index.csv", [field.name for field in fields(Entry)], map(astuple, entries))
    return entries


def _add(tar: tarfile.TarFile, name: str, body: bytes) -> int:
    """Append a member; return where its bytes begin. A fresh TarInfo has no owner and no time."""
    info = tarfile.TarInfo(name)
    info.size = len(body)
    start = tar.offset + tarfile.BLOCKSIZE
    tar.addfile(info, io.BytesIO(body))
    return start


def read_index(folder: Path) -> list[Entry]:
    """The entries of ``folder/index.csv`` in order of id."""
    places = ("image_offset", "image_size", "record_offset", "record_size")
    return [
        Entry(row["id"], int(row["count"]), row["group"], row["shard"], *(int(row[name]) for name in places))
        for row in read_csv(folder / "index.csv")
    ]


class ShardReader:
    """Reads members of shards by their place; may be shared between threads."""

    def __init__(self, folder: Path) -> None:
        self._files = {path.name: os.open(path, os.O_RDONLY) for path in folder.glob("*.tar")}

    def image(self, entry: Entry) -> bytes:
        """The photograph's bytes as they came from the source."""
        return self._read(entry.shard, entry.image_offset, entry.image_size)

    def record(self, entry: Entry) -> bytes:
        """The record's bytes as they came from the source."""
        return self._read(entry.shard, entry.record_offset, entry.record_size)

    def _read(self, shard: str, offset: int, size: int) -> bytes:
        return os.pread(self._files[shard], size, offset)

    def __del__(self) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)
