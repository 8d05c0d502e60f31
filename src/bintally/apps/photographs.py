"""Photographs named on the command line: their ids in order, and how each file is read."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from bintally import paths
from bintally.apps.arguments import require_outs
from bintally.bins.id_list import read_id_list
from bintally.bins.shards import ShardReader, read_index
from bintally.bins.source import Source, image_key, open_source, record_key
from bintally.demo.warehouse import DemoSource
from bintally.errors import UserError
from bintally.params import Fetch, load_params

SUFFIXES = (".jpg", ".jpeg", ".png")
READ_AHEAD = 256  # objects of a source read at a time; twice as many are in memory

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


def open_photographs(source: str, access: Mapping[str, object] | None = None, ids: Path | None = None) -> Photographs:
    """The photographs of ``source``.

    Args:
        source: ``data``, the bins of the last `dvc repro`; a value of `fetch.source`; a folder with .jpg, .jpeg and
            .png files at any depth; or a text file that lists such files, or ids of the bins in ``data``, one a line.
        access: replaces some parameters of `fetch`, which are read for a value of `fetch.source` alone.
        ids: a file with the ids to use; None: all.

    Raises UserError if the source does not exist or is empty.
    """
    path = Path(source)
    is_bin_source = (path / "metadata").is_dir() and (path / "bin-images").is_dir()
    if source == "demo" or source.startswith("s3:") or is_bin_source:
        return _from_bin_source(source, access or {}, ids)
    if source == "data":
        photographs = _from_shards()
    elif path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        photographs = _from_files(source, [str(file.relative_to(path)) for file in files], path)
    elif path.is_file():
        names = list(dict.fromkeys(_lines(path, "SOURCE")))
        is_file_list = any(name.lower().endswith(SUFFIXES) for name in names)
        photographs = (
            _from_files(source, names, Path()) if is_file_list else replace(_from_shards(), name=source, ids=names)
        )
    else:
        raise UserError(f"'{source}' is neither data, demo, s3://…, nor a folder or list of photographs that exists")
    if ids is not None:
        wanted = _lines(ids, "--ids") if photographs.records is None else read_id_list(ids, "--ids")
        photographs = replace(photographs, ids=list(dict.fromkeys(wanted)))
    if not photographs.ids:
        raise UserError(f"{photographs.name} holds no photographs ({', '.join(SUFFIXES)})")
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
    local = f"{folder} {_file_stamps(folder / image_key(bin_id) for bin_id in ids)}" if folder.is_dir() else source
    version = f"{local} {fetch.endpoint} {fetch.demo_bins} {fetch.seed}"
    images, records = partial(_read_ahead, opened, image_key), partial(_read_ahead, opened, record_key)
    return Photographs(source, ids, version, images, records)


def _from_files(source: str, names: list[str], folder: Path) -> Photographs:
    if unprintable := next((name for name in names if not name.isprintable()), None):
        raise UserError(f"{source}: the file name {unprintable!a} has characters that cannot be printed; rename it")
    version = f"{folder.resolve()} {_file_stamps(folder / name for name in names)}"
    return Photographs(source, names, version, _read_each(lambda name: (folder / name).read_bytes()), None)


def _lines(path: Path, argument: str) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{argument}: cannot read '{path}': {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{argument}: '{path}' is not a text file") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def _file_stamps(files: Iterable[Path]) -> str:
    """A hash of the files' sizes and modification times."""
    digest = hashlib.sha256()
    for path in files:
        stat = path.stat() if path.exists() else None
        digest.update(f"{stat and (stat.st_size, stat.st_mtime_ns)}\n".encode())
    return digest.hexdigest()


def _read_each(read: Callable[[str], bytes]) -> ReadFiles:
    return lambda ids: ((file_id, partial(read, file_id)) for file_id in ids)


def _read_ahead(source: Source, key: Callable[[str], str], ids: Sequence[str]) -> Iterator[tuple[str, ReadFile]]:
    """Objects in order; READ_AHEAD of them are read while the caller works on those before."""

    def read(start: int) -> list[tuple[str, bytes | None]]:
        keys = {bin_id: key(bin_id) for bin_id in ids[start : start + READ_AHEAD]}
        bodies = dict(source.read(list(keys.values())))
        return [(bin_id, bodies[keys[bin_id]]) for bin_id in keys]

    with ThreadPoolExecutor(1) as reader:
        for chunk in one_ahead(reader.submit(read, start) for start in range(0, len(ids), READ_AHEAD)):
            for bin_id, body in chunk.result():
                yield bin_id, partial(_body_or_error, body)


def _body_or_error(body: bytes | None) -> bytes:
    if body is None:
        raise FileNotFoundError("it is missing")
    return body
