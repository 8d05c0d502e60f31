"""Objects kept on disk while a fetch is under way, so that an interrupted one fetches nothing twice."""

import hashlib
import logging
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import PIL

from bintally.bins.objects import UNCHANGED, Unread
from bintally.bins.source import Source
from bintally.errors import UserError
from bintally.files import check_writable
from bintally.hashing import sha256_hex, source_code

log = logging.getLogger("bintally")
VERSION = 3  # of the file's format
ASKED_ONE_BY_ONE = 20_000  # objects; more are compared with the source's listing, of a thousand in each answer
CODE = sha256_hex(source_code("bins/images.py"), PIL.__version__.encode())[:16]  # that finds defects


class Staging:
    """Objects by key in one SQLite file, used by one process at a time.

    Each is complete or absent, even after the process is killed. What a later run finds here it uses only if the source
    says that it is unchanged; that an object was missing is not kept. Memory grows with objects without bytes alone.
    """

    def __init__(self, path: Path) -> None:
        """Raises UserError if the file cannot be written or another process uses it."""
        check_writable(path)
        self._path = path
        self._defects: dict[str, str] = {}  # of objects without bytes
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

    def verify(self, source: Source) -> None:
        """Find out from the source's listing, if it has one, which of many stored objects are unchanged."""
        with self._errors_as_user_errors():
            (stored,) = self._database.execute("SELECT count(*) FROM object").fetchone()
            if stored < ASKED_ONE_BY_ONE:
                return
            log.info("%d objects are here from an earlier fetch", stored)
            self._database.execute("BEGIN")
            same = "INSERT OR IGNORE INTO verified SELECT key FROM object WHERE key = ? AND md5 = ?"
            try:
                for key, md5 in source.digests():
                    self._database.execute(same, (key, bytes.fromhex(md5)))
            except UserError as error:
                log.info("the source cannot be listed, and is asked for each object: %s", error)
            finally:
                self._database.execute("COMMIT")

    def fetch(self, source: Source, keys: Iterable[str]) -> Iterator[str]:
        """Read objects from the source and store them; yield each key, those that this run has read before first."""
        requested = set(keys)
        again = {key for key in requested if key in self._without_bytes or self._is_verified(key)}
        yield from sorted(again)
        new = sorted(requested - again)
        stored = ((key, self._rows("SELECT md5 FROM object WHERE key = ?", key)) for key in new)
        known = {key: rows[0][0].hex() for key, rows in stored if rows}
        for key, body in source.read(new, known):
            if isinstance(body, bytes):
                md5 = hashlib.md5(body, usedforsecurity=False).digest()
                with self._errors_as_user_errors():
                    self._database.execute("BEGIN")
                    self._database.execute("DELETE FROM checked WHERE key = ?", (key,))
                    self._database.execute("INSERT OR REPLACE INTO object VALUES (?, ?, ?)", (key, md5, body))
                    self._database.execute("COMMIT")
            if isinstance(body, bytes) or body == UNCHANGED:
                with self._errors_as_user_errors():
                    self._database.execute("INSERT OR IGNORE INTO verified VALUES (?)", (key,))
            else:
                self._without_bytes[key] = body
            yield key

    def get(self, key: str) -> bytes | Unread | None:
        """Return the bytes of an object, None if it does not exist, or why it was not read.

        Raises KeyError if this run has not fetched it.
        """
        if not self._is_verified(key):
            return self._without_bytes[key]
        return bytes(self._rows("SELECT body FROM object WHERE key = ?", key)[0][0])

    def defect(self, key: str) -> str | None:
        """What :meth:`keep_defect` was told of an object, by an earlier run too if it is unchanged; None: nothing."""
        if key in self._without_bytes:
            return self._defects.get(key)
        kept = self._rows("SELECT defect FROM checked WHERE code = ? AND key = ?", CODE, key)
        return str(kept[0][0]) if kept else None

    def keep_defect(self, key: str, defect: str) -> None:
        """Keep what is wrong with an object that this run has fetched; "" for nothing."""
        if key in self._without_bytes:
            self._defects[key] = defect
            return
        with self._errors_as_user_errors():
            self._database.execute("INSERT OR REPLACE INTO checked VALUES (?, ?, ?)", (key, CODE, defect))

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
                for table in ("object", "checked", "verified"):
                    database.execute(f"DROP TABLE IF EXISTS {table}")
                # The body comes last: what stands before it is read without it.
                database.execute("CREATE TABLE object (key TEXT PRIMARY KEY, md5 BLOB NOT NULL, body BLOB NOT NULL)")
                database.execute("CREATE TABLE checked (key TEXT PRIMARY KEY, code TEXT, defect TEXT) WITHOUT ROWID")
                database.execute("CREATE TABLE verified (key TEXT PRIMARY KEY) WITHOUT ROWID")
                database.execute(f"PRAGMA user_version = {VERSION}")
            database.execute("DELETE FROM verified")  # by an earlier run: the source may have changed since
            database.execute("COMMIT")
        except BaseException:
            database.close()
            raise
        return database

    def _is_verified(self, key: str) -> bool:
        """Whether this run has stored an object, or has heard from the source that it is unchanged."""
        return bool(self._rows("SELECT 1 FROM verified WHERE key = ?", key))

    def _rows(self, query: str, *values: str) -> list[tuple[Any, ...]]:
        with self._errors_as_user_errors():
            return self._database.execute(query, values).fetchall()

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
