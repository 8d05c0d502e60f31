"""Files that are written whole or not at all."""

import csv
import errno
import fcntl
import glob
import json
import os
import re
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from sys import intern
from typing import Any

from bintally.errors import UserError, disk_full_as_user_error

# Git ignores it and no stage declares it, so files here outlive an interrupted stage.
SCRATCH = Path(".bintally")
METRIC_DIGITS = 6  # significant ones; the last of the sixteen that a float has depend on the CPU


ABANDONED_S = 10.0
UNSUPPORTED = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)  # by a file system
REMEDIES = {
    errno.EACCES: "choose a place where you may write",
    errno.EPERM: "choose a place where you may write",
    errno.EROFS: "choose a place where you may write",
    errno.EISDIR: "give the name of a file",
    errno.ENOTDIR: "give a path whose folders are folders",
    errno.EEXIST: "give a path whose folders are folders",
    errno.ENAMETOOLONG: "give a shorter name",
}


@contextmanager
def atomic_write(path: Path, mode: int = 0o666) -> Iterator[Path]:
    """A temporary file of its own beside ``path``, renamed to ``path`` when the block ends without an exception.

    Args:
        mode: permissions of the file, less those of the umask.

    Raises UserError if ``path`` cannot be written or the disk is full.
    """
    with disk_full_as_user_error(path):
        temporary, lock = _create_temporary(path, mode)
        try:
            _remove_abandoned(path)
            yield temporary
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            temporary.chmod(os.fstat(lock).st_mode & 0o777)  # where a library has put a file of its own there
            temporary.replace(path)
            _sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
            os.close(lock)


def check_writable(path: Path) -> None:
    """Find out before the work whether :func:`atomic_write` can write ``path``. Raises UserError if not."""
    with disk_full_as_user_error(path):
        temporary, lock = _create_temporary(path)
        temporary.unlink()
        os.close(lock)


def _create_temporary(path: Path, mode: int = 0o666) -> tuple[Path, int]:
    """Create the temporary file, and hold a lock on it for as long as the descriptor is open."""
    temporary = path.with_name(f".{path.name[:50]}.{secrets.token_hex(8)}.tmp")
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        remedy = REMEDIES.get(error.errno or 0, "give another path")
        raise UserError(f"'{path}' cannot be written ({(error.strerror or '').lower()}): {remedy}") from error
    _lock(lock)
    return temporary, lock


def _remove_abandoned(path: Path) -> None:
    """Remove the temporary files that killed processes have left for ``path``: old ones that nobody holds a lock on."""
    for temporary in path.parent.glob(f".{glob.escape(path.name[:50])}.{'[0-9a-f]' * 16}.tmp"):
        try:
            with temporary.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # A new one may be about to be locked, or of a library that has replaced the locked one.
                if time.time() - os.fstat(file.fileno()).st_mtime > ABANDONED_S:
                    temporary.unlink()
        except OSError:
            continue  # in use, or another process has removed it


def _sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` outlast a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, *UNSUPPORTED):
            raise
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    """Wait for the lock of a file; on a file system without locks, go on without it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Let one process at a time read, change and write ``path``; others wait until the block ends.

    It locks the folder of ``path``, so that no lock file is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        _lock(descriptor)
        yield
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 with the line ends of ``text``."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, content: Any, digits: int | None = None) -> None:
    """Write indented JSON, floats rounded to ``digits`` significant digits; ValueError for NaN and infinity."""
    if digits is not None:
        content = round_floats(content, digits)
    write_text(path, json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def round_floats(content: Any, digits: int) -> Any:
    """The same numbers, lists and dicts with every float rounded to ``digits`` significant digits."""
    match content:
        case float():
            # Twice: the last digit must not decide how a value half-way between two results, such as 1/16, is rounded.
            return float(f"{float(f'{content:.12g}'):.{digits}g}")
        case dict():
            return {key: round_floats(value, digits) for key, value in content.items()}
        case list() | tuple():
            return [round_floats(value, digits) for value in content]
    return content


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]], digits: int | None = None) -> None:
    """Write a CSV file; ``digits`` as in :func:`write_json`."""
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows if digits is None else (round_floats(row, digits) for row in rows))


def spreadsheet_text(text: str) -> str:
    """``text`` as a spreadsheet must take it: as text, never as a formula.

    An apostrophe is put before a character that begins a formula (OWASP, "CSV injection"), also behind a semicolon or
    tab, at which some spreadsheets begin another cell.
    """
    return re.sub(r"(^|[;\t]\s*)([=+@\t\r\n-])", r"\1'\2", text)


def iter_csv(path: Path) -> Iterator[dict[str, str]]:
    """Yield the rows by column, as strings: an id such as ``00001`` must not become a number."""
    with path.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def read_columns(path: Path, *names: str) -> list[list[str]]:
    """The columns of these names, in much less memory than the rows: equal strings are there once."""
    columns: list[list[str]] = [[] for _ in names]
    for row in iter_csv(path):
        for name, column in zip(names, columns, strict=True):
            column.append(intern(row[name]))
    return columns


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of :func:`iter_csv`."""
    return list(iter_csv(path))
