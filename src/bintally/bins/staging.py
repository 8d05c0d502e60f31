"""Objects kept on disk while a fetch is under way, so that an interrupted one fetches nothing twice."""

import hashlib
import logging
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bintally.bins.objects import UNCHANGED, Unread
from bintally.bins.source import Source
from bintally.errors import UserError
from bintally.files import check_writable

log = logging.getLogger("bintally")
VERSION = 2  # of the file's format


class Staging:
    """Objects by key in one SQLite file, used by one process at a time.

    Each is complete or absent, even after the process is killed. What a later run finds here it uses only if the source
    says that it is unchanged; that an object was missing is not kept.
    """

    def __init__(self, path: Path) -> None:
        """Raises UserError if the file cannot be written or another process uses it."""
        check_writable(path)
        self._path = path
        # Of this run; what an earlier one has stored may have changed at the source.
        self._verified: set[str] = set()
        self._without_bytes: dict[str, Unread | None] = {}
        with self._errors_as_user_errors():
            try:
                self._database = self._open()
            except sqlite3.DatabaseError as error:
                if _primary_code(error) not in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
                    raise
                log.info("%s is damaged (%s) and is made anew", path, error)
                for suffix in ("", "-wal", "-shm"):
                    path.with_name(path.name + suffix).unlink(missing_ok=True)
                self._database = self._open()

    def fetch(self, source: Source, keys: Iterable[str]) -> Iterator[str]:
        """Read objects from the source and store them; yield each key, those that this run has read before first."""
        requested = set(keys)
        again = requested & self._verified | requested & self._without_bytes.keys()
        yield from sorted(again)
        new = sorted(requested - again)
        with self._errors_as_user_errors():
            known = {key: hashlib.md5(body, usedforsecurity=False).hexdigest() for key, body in self._stored(new)}
        for key, body in source.read(new, known):
            if isinstance(body, bytes):
                with self._errors_as_user_errors():
                    self._database.execute("INSERT OR REPLACE INTO object VALUES (?, ?)", (key, body))
            if isinstance(body, bytes) or body == UNCHANGED:
                self._verified.add(key)
            else:
                self._without_bytes[key] = body
            yield key

    def get(self, key: str) -> bytes | Unread | None:
        """Return the bytes of an object, None if it does not exist, or why it was not read.

        Raises KeyError if this run has not fetched it.
        """
        if key not in self._verified:
            return self._without_bytes[key]
        with self._errors_as_user_errors():
            return next(body for _, body in self._stored([key]))

    def close(self) -> None:
        self._database.close()

    def _open(self) -> sqlite3.Connection:
        database = sqlite3.connect(self._path, isolation_level=None, timeout=0)
        try:
            database.execute("PRAGMA locking_mode = EXCLUSIVE")  # until it is closed: another process finds it locked
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
            database.execute("BEGIN IMMEDIATE")
            if database.execute("PRAGMA user_version").fetchone() != (VERSION,):
                database.execute("DROP TABLE IF EXISTS object")
                database.execute("CREATE TABLE object (key TEXT PRIMARY KEY, body BLOB NOT NULL)")
                database.execute(f"PRAGMA user_version = {VERSION}")
            database.execute("COMMIT")
        except BaseException:
            database.close()
            raise
        return database

    def _stored(self, keys: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        for key in keys:
            yield from self._database.execute("SELECT key, body FROM object WHERE key = ?", (key,)).fetchall()

    @contextmanager
    def _errors_as_user_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            if _primary_code(error) == sqlite3.SQLITE_BUSY:
                raise UserError("another fetch is under way in this folder: wait until it has ended") from error
            if _primary_code(error) == sqlite3.SQLITE_FULL:
                message = f"the disk is full: could not write {self._path}; free some space and run it again"
                raise UserError(message) from error
            raise UserError(f"{self._path} cannot be used ({error}); delete it to fetch everything again") from error


def _primary_code(error: sqlite3.Error) -> int:
    """SQLITE_BUSY, for example, also for SQLITE_BUSY_RECOVERY."""
    return error.sqlite_errorcode & 0xFF
