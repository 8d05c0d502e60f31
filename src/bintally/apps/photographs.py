"""Photographs named on the command line: their ids in order, and how each file is read."""

import hashlib
import logging
import os
import stat
import threading
import unicodedata
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, TypeVar

from pydantic import ValidationError

from bintally import paths
from bintally.apps.arguments import require_outs
from bintally.bins.id_list import read_id_list, read_lines, with_lost_zeros
from bintally.bins.images import MAX_BYTES
from bintally.bins.objects import Unread, image_key, record_key
from bintally.bins.shards import ShardReader, read_index
from bintally.bins.source import Source, open_source
from bintally.bins.table_source import TableSource
from bintally.bins.tables import is_table
from bintally.demo.warehouse import DemoSource
from bintally.errors import UserError, disk_full_as_user_error, printable
from bintally.files import SCRATCH, check_writable
from bintally.params import Fetch, load_params

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".avif")
SPREADSHEETS = (".xlsx", ".xlsm", ".xls", ".ods")
READ_AHEAD = 256  # objects of a source read at a time
NAMED = 5  # links in a message

log = logging.getLogger("bintally")

T = TypeVar("T")
ReadFile = Callable[[], bytes]
"""Returns a file's bytes; raises OSError, with a reason, if the file cannot be read."""
ReadFiles = Callable[[Sequence[str]], Iterator[tuple[str, ReadFile]]]
"""Yields ids in the order given, each with the function that reads its file; few files are in memory at a time."""


@dataclass(frozen=True)
class Photographs:
    """Photographs by id."""

    name: str  # the source, for messages
    ids: list[str]  # in the order to score them in, each once
    version: str  # differs where the source or a local file differs; overwritten objects of a bucket are not noticed
    images: ReadFiles
    records: ReadFiles | None  # None if the source has no records
    path: Callable[[str], str] = lambda _: ""  # of a photograph whose id is not its path, where the source says so


def open_photographs(source: str, access: Mapping[str, object] | None = None, ids: Path | None = None) -> Photographs:
    """The photographs of ``source``.

    Args:
        source: ``data``, the bins of the last `dvc repro`; a value of `fetch.source`; a folder with files of SUFFIXES
            at any depth; such a file; or a text file that lists such files, or ids of the bins in ``data``,
            one a line.
        access: replaces some parameters of `fetch`, which are read for a value of `fetch.source` alone.
        ids: a file with the ids to use; None: all.

    Raises UserError if the source does not exist, cannot be read or is empty.
    """
    try:
        photographs = _open(source, access or {}, ids)
    except OSError as error:
        raise UserError(f"'{source[:200]}' cannot be read: {error.strerror}; check its name and permissions") from error
    if not photographs.ids:
        raise UserError(f"{photographs.name} holds no photographs ({', '.join(SUFFIXES)})")
    return photographs


def _open(source: str, access: Mapping[str, object], ids: Path | None) -> Photographs:
    path = Path(source)
    is_bin_source = (path / "metadata").is_dir() and (path / "bin-images").is_dir()
    if source == "demo" or source.startswith("s3:") or is_bin_source or is_table(source):
        return _from_bin_source(source, access, ids)
    if source.lower().endswith(SPREADSHEETS):
        raise UserError(f"'{source}' is a spreadsheet: save it as CSV and give that, with the columns of fetch.table")
    if source == "data":
        photographs = _from_shards()
    elif path.is_dir():
        photographs = _from_files(source, _names_in(path), path)
    elif path.is_file():
        is_photograph = source.lower().endswith(SUFFIXES)
        names = [source] if is_photograph else _once(read_lines(path, "SOURCE"), source)
        is_file_list = any(name.lower().endswith(SUFFIXES) for name in names)
        if is_file_list:
            photographs = _from_files(source, names, Path())
        else:
            shards = _from_shards()
            _refuse_lost_zeros(names, shards.ids, source)
            photographs = replace(shards, name=source, ids=list(map(_writable_name, names)))
    else:
        raise UserError(f"'{source}' is neither data, demo, s3://…, nor a folder or list of photographs that exists")
    if ids is not None:
        wanted = read_lines(ids, "--ids") if photographs.records is None else read_id_list(ids, "--ids")
        if photographs.records is not None:
            _refuse_lost_zeros(wanted, photographs.ids, str(ids))
        photographs = replace(photographs, ids=_once(wanted, str(ids)))
    return photographs


def one_ahead(items: Iterable[T]) -> Iterator[T]:
    """Yield each item after the next one has been taken: a future then runs while the caller uses the one before."""
    waiting: list[T] = []
    for item in items:
        yield from waiting
        waiting = [item]
    yield from waiting


def _from_shards() -> Photographs:
    index = paths.BINS / "index.csv"
    require_outs(index)
    entries = {entry.id: entry for entry in read_index(paths.BINS)}
    reader = ShardReader(paths.BINS)

    def read(image: bool, bin_id: str) -> bytes:
        if bin_id not in entries:
            raise FileNotFoundError(f"no such bin in {paths.BINS}")
        return (reader.image if image else reader.record)(entries[bin_id])

    version = hashlib.sha256(index.read_bytes()).hexdigest()
    images, records = _read_each(partial(read, True)), _read_each(partial(read, False))
    return Photographs(str(paths.BINS), list(entries), version, images, records)


def _from_bin_source(source: str, access: Mapping[str, object], listed: Path | None) -> Photographs:
    try:
        fetch = Fetch.model_validate(load_params().fetch.model_dump() | dict(access) | {"source": source})
    except ValidationError as error:
        raise UserError(error.errors()[0]["msg"].removeprefix("Value error, ")) from error
    opened: Source = DemoSource(fetch.demo_bins, fetch.seed) if source == "demo" else open_source(fetch)
    # A given list spares the listing, which may be forbidden.
    ids = read_id_list(listed, "--ids") if listed else opened.ids()
    folder = Path(source).resolve()
    if isinstance(opened, TableSource):
        local = f"{folder} {_file_stamps(opened.files())}"
    else:
        local = f"{folder} {_file_stamps(folder / image_key(bin_id) for bin_id in ids)}" if folder.is_dir() else source
    version = f"{local} {fetch.endpoint} {fetch.region} {fetch.anonymous} {fetch.demo_bins} {fetch.seed}"
    images, records = partial(_read_ahead, opened, image_key), partial(_read_ahead, opened, record_key)
    photographs = Photographs(source, ids, version, images, records)
    return replace(photographs, path=opened.path) if isinstance(opened, TableSource) else photographs


def _from_files(source: str, names: list[str], folder: Path) -> Photographs:
    files: dict[str, Path] = {}
    for name in names:
        file_id = _writable_name(name)
        while file_id in files:  # two names that are written alike
            file_id += "'"
        files[file_id] = folder / name
    version = f"{folder.resolve()} {_file_stamps(files.values())}"
    read = _read_each(lambda file_id: _read_file(files.get(file_id, folder / file_id)))
    return Photographs(source, list(files), version, read, None)


def _names_in(folder: Path) -> list[str]:
    """The names, relative to ``folder``, of the photographs in it at any depth, sorted, and of what cannot be listed.

    Each folder is listed once, linked ones last: a photograph has a name without a link if there is one. Raises OSError
    if ``folder`` itself cannot be listed.
    """
    names: list[str] = []
    linked: dict[bool, list[str]] = {True: [], False: []}  # those read, and those that lead to a folder read already
    seen: set[tuple[int, int]] = set()
    folders, links = deque([""]), deque[str]()
    while folders or links:
        is_link = not folders
        relative = (links if is_link else folders).popleft()
        try:
            status = (folder / relative).stat()
            new = (status.st_dev, status.st_ino) not in seen
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder / relative) as entries:
                found = sorted(entries, key=lambda entry: entry.name) if new else []
        except OSError:
            if not relative:
                raise
            names.append(relative)  # reading it gives the reason
            continue
        if is_link:
            linked[new].append(relative)
        for entry in found:
            name, link = str(Path(relative, entry.name)), entry.is_symlink()
            if _may_be_folder(entry):
                (links if link else folders).append(name)
            elif name.lower().endswith(SUFFIXES) or (link and not entry.is_file()):
                names.append(name)
    for new, what in ((True, "read, too"), (False, "left out, as they lead to folders that are read already")):
        if linked[new]:
            some = ", ".join(linked[new][:NAMED]) + (", …" if len(linked[new]) > NAMED else "")
            log.info("%s: %d linked folders are %s: %s", folder, len(linked[new]), what, some)
    return sorted(names)


def _may_be_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return True  # listing it fails, and is reported


def _read_file(path: Path) -> bytes:
    """The bytes of a file. Raises OSError if it cannot be read, is not regular, or is larger than a photograph is."""

    def without_waiting(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NONBLOCK)  # a named pipe would wait for someone who writes to it

    with open(path, "rb", opener=without_waiting) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError("it is not a regular file")
        if status.st_size > MAX_BYTES:
            raise OSError(f"file of {status.st_size:,} bytes is too large; at most {MAX_BYTES:,} are allowed")
        return file.read(MAX_BYTES + 1)


def _writable_name(name: str) -> str:
    """The name of a file as UTF-8 in one line: other bytes, control characters and line ends as escapes."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(printable(c) if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in text)


def _refuse_lost_zeros(ids: Sequence[str], known: Sequence[str], where: str) -> None:
    if lost := with_lost_zeros(set(ids).difference(known), known):
        bin_id, likely = min(lost.items())
        more = f" (and {len(lost) - 1:,} more like it)" if len(lost) > 1 else ""
        raise UserError(
            f"'{where}': there is no bin {bin_id}, but {likely}{more}: a spreadsheet removes zeros in front; write the "
            "ids with them"
        )


def _once(names: list[str], where: str) -> list[str]:
    once = list(dict.fromkeys(names))
    if len(once) < len(names):
        log.info("%s lists %d photographs more than once; each is taken once", where, len(names) - len(once))
    return once


def _file_stamps(files: Iterable[Path]) -> str:
    """A hash of what changes where a file is written or replaced, also where its size and its time stay the same."""
    digest = hashlib.sha256()
    for path in files:
        try:
            status = path.stat()
        except OSError as error:
            digest.update(f"{error.errno}\n".encode())
        else:
            digest.update(f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}\n".encode())
    return digest.hexdigest()


def _read_each(read: Callable[[str], bytes]) -> ReadFiles:
    return lambda ids: ((file_id, partial(read, file_id)) for file_id in ids)


def _read_ahead(source: Source, key: Callable[[str], str], ids: Sequence[str]) -> Iterator[tuple[str, ReadFile]]:
    """Objects in order; READ_AHEAD of them are read while the caller works on those before.

    They wait on disk, as all of them may be as large as a photograph is allowed to be.
    """

    stopped = threading.Event()

    def read(start: int) -> list[tuple[str, ReadFile]]:
        keys = {bin_id: key(bin_id) for bin_id in ids[start : start + READ_AHEAD]}
        with disk_full_as_user_error(SCRATCH):
            check_writable(SCRATCH / "objects")
            file = TemporaryFile(dir=SCRATCH)  # noqa: SIM115 (closed when nobody can read from it any more)
            bodies: dict[str, ReadFile] = {}
            for name, body in source.read(list(keys.values())):
                if stopped.is_set():
                    return []
                if body is None:
                    bodies[name] = partial(_fail, "it is missing")
                elif isinstance(body, Unread):
                    bodies[name] = partial(_fail, f"it {body.reason}")
                else:
                    bodies[name] = partial(_read_part, file, file.tell(), len(body))
                    file.write(body)
            file.flush()
        return [(bin_id, bodies[keys[bin_id]]) for bin_id in keys]

    with ThreadPoolExecutor(1) as reader:
        try:
            for chunk in one_ahead(reader.submit(read, start) for start in range(0, len(ids), READ_AHEAD)):
                yield from chunk.result()
        finally:
            stopped.set()


def _fail(reason: str) -> bytes:
    raise OSError(reason)


def _read_part(file: IO[bytes], start: int, size: int) -> bytes:
    return os.pread(file.fileno(), size, start)  # by any thread at any time
