"""A folder as a source of bins."""

import errno
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bintally.bins.objects import (
    IMAGES,
    RECORDS,
    Memory,
    Unread,
    max_bytes,
    read_concurrently,
    record_ids,
    too_large,
)
from bintally.errors import UserError


class FolderSource:
    """Bins in a folder; no link in it is followed out of it, and nothing but ordinary files is read."""

    def __init__(self, folder: Path, name: str, threads: int) -> None:
        """Raises UserError if a folder of the source is a link that leads out of it."""
        self._root, self._name, self._threads = folder.resolve(), name, threads
        for part in (RECORDS, IMAGES):
            path = self._root / part
            if path.exists() and not path.resolve().is_relative_to(self._root):
                remedy = "put the files there, or name the folder that holds both"
                raise UserError(f"fetch.source: '{name}/{part}' is a link that leads out of the folder: {remedy}")

    def ids(self) -> list[str]:
        folder = self._root / RECORDS
        try:
            with os.scandir(folder) as entries:
                return record_ids((entry.name for entry in entries), self._name)
        except FileNotFoundError:
            return record_ids([], self._name)
        except OSError as error:
            raise UserError(f"fetch.source: '{self._name}/{RECORDS}' cannot be listed: {error.strerror}") from error

    def digests(self) -> Iterator[tuple[str, str]]:
        return iter(())

    def read(
        self,
        keys: Sequence[str],
        known: Mapping[str, str] | None = None,  # not used: reading a file takes no longer than comparing it
    ) -> Iterator[tuple[str, bytes | Unread | None]]:
        return read_concurrently(keys, self._read, self._threads)

    def _read(self, key: str, memory: Memory) -> bytes | Unread | None:
        try:
            path = Path(os.path.realpath(self._root / key, strict=True))
            if not path.is_relative_to(self._root):
                return Unread("is a link that leads out of the source's folder")
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):  # to open another kind may already do something, or wait
                return Unread("is not an ordinary file")
            if status.st_size > max_bytes(key):
                return too_large(key)
            memory.reserve(status.st_size)
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            with os.fdopen(descriptor, "rb", buffering=0) as file:
                return file.read(status.st_size)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):  # no fault of this file
                raise UserError("too many files are open: lower fetch.concurrency, or raise `ulimit -n`") from error
            return Unread(f"cannot be read: {error.strerror}")
