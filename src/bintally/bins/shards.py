"""Shards: bins in a few tar files, with an index of the members' offsets.

A member holds the exact bytes of the source. DVC pushes and pulls a few large files several times faster than many
small ones (benchmarks/transfer.py).
"""

import io
import itertools
import os
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from sys import intern

from bintally.errors import UserError, disk_full_as_user_error
from bintally.files import iter_csv, write_csv

SHARD_BYTES = 32 * 2**20


@dataclass(frozen=True, slots=True)
class Entry:
    """The index entry of a bin; offsets and sizes in bytes."""

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
    """A bin with its bytes, to be written to a shard."""

    id: str
    count: int
    group: str
    image: bytes
    record: bytes


def write_shards(folder: Path, bins: Iterable[Bin]) -> list[Entry]:
    """Write ``bins`` in order to ``folder/bins-00000.tar``, … and ``folder/index.csv``; return the index.

    Every shard but the last has at least SHARD_BYTES. Equal bins give equal files.
    """
    entries: list[Entry] = []
    remaining = iter(bins)
    current = next(remaining, None)
    shards = itertools.count()
    with disk_full_as_user_error(folder):
        folder.mkdir(parents=True, exist_ok=True)
        while current is not None:
            name = f"bins-{next(shards):05d}.tar"
            with tarfile.open(folder / name, "w", format=tarfile.USTAR_FORMAT) as tar:
                while current is not None and tar.offset < SHARD_BYTES:
                    image = _add_member(tar, f"{current.id}.jpg", current.image)
                    record = _add_member(tar, f"{current.id}.json", current.record)
                    entries.append(Entry(current.id, current.count, current.group, name, *image, *record))
                    current = next(remaining, None)
        write_csv(folder / "index.csv", [field.name for field in fields(Entry)], map(astuple, entries))
    return entries


def _add_member(tar: tarfile.TarFile, name: str, body: bytes) -> tuple[int, int]:
    """Append a member and return the offset and the size of its bytes."""
    info = tarfile.TarInfo(name)  # without an owner and a time, so that equal bins give equal files
    info.size = len(body)
    offset = tar.offset + tarfile.BLOCKSIZE
    tar.addfile(info, io.BytesIO(body))
    return offset, len(body)


def read_index(folder: Path) -> list[Entry]:
    """Read ``folder/index.csv``: the entries in order of id."""
    return list(iter_index(folder))


def iter_index(folder: Path) -> Iterator[Entry]:
    """Yield the entries of :func:`read_index`: all of half a million take 200 MiB."""
    integers = ("image_offset", "image_size", "record_offset", "record_size")
    for row in iter_csv(folder / "index.csv"):
        places = [int(row[name]) for name in integers]
        # The names of a group and a shard are those of many bins: interned, they are in memory once.
        yield Entry(intern(row["id"]), int(row["count"]), intern(row["group"]), intern(row["shard"]), *places)


class ShardReader:
    """Reads members of the shards in a folder by offset; safe to share between threads."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files = {path.name: os.open(path, os.O_RDONLY) for path in folder.glob("*.tar")}

    def image(self, entry: Entry) -> bytes:
        """The bytes of the photograph, unchanged from the source."""
        return self._read(entry.shard, entry.image_offset, entry.image_size)

    def record(self, entry: Entry) -> bytes:
        """The bytes of the record, unchanged from the source."""
        return self._read(entry.shard, entry.record_offset, entry.record_size)

    def _read(self, shard: str, offset: int, size: int) -> bytes:
        body = os.pread(self._files[shard], size, offset) if shard in self._files else b""
        if len(body) < size:
            raise UserError(f"'{self._folder / shard}' is missing or truncated: `dvc checkout --force` restores it")
        return body

    def __del__(self) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)
