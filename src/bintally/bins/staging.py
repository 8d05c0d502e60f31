"""Objects kept on disk while a fetch is under way, so that an interrupted one fetches nothing twice."""

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from bintally.bins.source import Source
from bintally.errors import UserError


class Staging:
    """Objects by key in one SQLite file; each is complete or absent, even after the process is killed."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._database = sqlite3.connect(path, isolation_level=None)
        with self._database_errors_as_user_errors():
            self._database.executescript(
                "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;"
                "CREATE TABLE IF NOT EXISTS object (key TEXT PRIMARY KEY, body BLOB)"
            )

    def fetch(self, source: Source, keys: Iterable[str]) -> Iterable[str]:
        """Read the objects that are not stored yet and store them; yield each key, the ones already stored first."""
        requested = list(keys)
        stored = [key for key in requested if self._has(key)]
        yield from stored
        for key, body in source.read(sorted(set(requested).difference(stored))):
            with self._database_errors_as_user_errors():
                self._database.execute("INSERT INTO object VALUES (?, ?)", (key, body))
            yield key

    def get(self, key: str) -> bytes | None:
        """Return the bytes of a fetched object; None if the source does not have it. Raises KeyError if not fetched."""
        row = self._database.execute("SELECT body FROM object WHERE key = ?", (key,)).fetchone()
        if row is None:
            raise KeyError(key)
        return row[0]  # type: ignore[no-any-return]

    def _has(self, key: str) -> bool:
        with closing(self._database.execute("SELECT 1 FROM object WHERE key = ?", (key,))) as found:
            return found.fetchone() is not None

    @contextmanager
    def _database_errors_as_user_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            if "full" in str(error):
                message = f"the disk is full: could not write {self._path}; free some space and run it again"
                raise UserError(message) from error
            raise UserError(f"{self._path} cannot be used ({error}); delete it to fetch everything again") from error

    def close(self) -> None:
        self._database.close()
