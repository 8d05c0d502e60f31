"""Photographs named on the command line: their ids in order, and how each file is read."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from bintally.bins.id_list import read_id_list
from bintally.bins.shards import ShardReader, read_index
from bintally.bins.source import Source, image_key, open_source, record_key
from bintally.demo.warehouse import DemoSource
from bintally.errors import UserError
from bintally.params import Fetch

SUFFIXES = (".jpg", ".jpeg", ".png")
READ_AHEAD = 256  # objects of a source read at a time; twice as many are in memory

ReadFile = Callable[[], bytes]
"""Returns a file's bytes; raises OSError, with a reason, if the file cannot be read."""
ReadFiles = Callable[[Sequence[str]], Iterator[tuple[str, ReadFile]]]
"""Yields ids in the order given, each with the function that reads its file; few files are in memory at a time."""


@dataclass(frozen=True)
class Photographs:
    """Photographs by id."""

    name: str
    """The source, for messages."""
    ids: list[str]
    """In the order to score them in, each once."""
    version: str
    """Differs where the source or a local file differs; overwritten objects of a bucket are not noticed."""
    images: ReadFiles
    records: ReadFiles | None
    """None if the source has no records."""


def open_photographs(
    source: str,
    bins: Path,
    fetch: Callable[[], Fetch],
    access: Mapping[str, object] | None = None,
    ids: Path | None = None,
) -> Photographs:
    """The photographs of ``source``.

    Args:
        source: ``data``, the bins in the folder ``bins``; a value of `fetch.source`; a folder with .jpg, .jpeg and .png
            files at any depth; or a text file that lists such files, or ids of bins in ``bins``, one a line.
        fetch: returns the parameters to open a source of bins with; not called for other photographs.
        access: replaces some of these parameters.
        ids: a file with the ids to use; None: all.

    Raises UserError if the source does not exist or is empty.
    """
    path = Path(source)
    if source == "demo" or source.startswith("s3:") or _is_bin_source(path):
        wanted = read_id_list(ids, "--ids") if ids else None
        return _from_bin_source(source, fetch().model_dump() | dict(access or {}) | {"source": source}, wanted)
    if source == "data":
        photographs = _from_shards(bins)
    elif path.is_dir():
        photographs = _from_files(source, [str(file.relative_to(path)) for file in _image_files(path)], path)
    elif path.is_file():
        photographs = _from_list(path, bins)
    else:
        raise UserError(f"'{source}' is neither data, demo, s3://…, nor a folder or list of photographs that exists")
    if ids is not None:
        wanted = _lines(ids, "--ids") if photographs.records is None else read_id_list(ids, "--ids")
        photographs = replace(photographs, ids=list(dict.fromkeys(wanted)))
    if not photographs.ids:
        raise UserError(f"{photographs.name} holds no photographs ({', '.join(SUFFIXES)})")
    return photographs


def _is_bin_source(folder: Path) -> bool:
    return (folder / "metadata").is_dir() and (folder / "bin-images").is_dir()


def _from_shards(bins: Path) -> Photographs:
    index = bins / "index.csv"
    if not index.is_file():
        raise UserError(f"{index} does not exist: `dvc repro` creates it, `bintally pull` fetches it")
    entries = {entry.id: entry for entry in read_index(bins)}
    reader = ShardReader(bins)

    def read(image: bool, bin_id: str) -> bytes:
        if bin_id not in entries:
            raise FileNotFoundError(f"no such bin in {bins}")
        return (reader.image if image else reader.record)(entries[bin_id])

    version = hashlib.sha256(index.read_bytes()).hexdigest()
    images, records = _read_each(partial(read, True)), _read_each(partial(read, False))
    return Photographs(str(bins), list(entries), version, images, records)


def _from_bin_source(source: str, fetch: dict[str, object], wanted: list[str] | None) -> Photographs:
    try:
        params = Fetch.model_validate(fetch)
    except ValidationError as error:
        raise UserError(error.errors()[0]["msg"].removeprefix("Value error, ")) from error
    opened: Source = DemoSource(params.demo_bins, params.seed) if source == "demo" else open_source(params)
    ids = wanted or opened.ids()  # a given list spares the listing, which may be forbidden
    folder = Path(source).resolve()
    local = f"{folder} {_file_stamps(folder / image_key(bin_id) for bin_id in ids)}" if folder.is_dir() else source
    version = f"{local} {params.endpoint} {params.demo_bins} {params.seed}"
    images, records = partial(_read_ahead, opened, image_key), partial(_read_ahead, opened, record_key)
    return Photographs(source, ids, version, images, records)


def _from_list(path: Path, bins: Path) -> Photographs:
    names = list(dict.fromkeys(_lines(path, "SOURCE")))
    if any(name.lower().endswith(SUFFIXES) for name in names):
        return _from_files(str(path), names, Path())
    return replace(_from_shards(bins), name=str(path), ids=names)


def _from_files(source: str, names: list[str], folder: Path) -> Photographs:
    if unprintable := next((name for name in names if not name.isprintable()), None):
        raise UserError(f"{source}: the file name {unprintable!a} has characters that cannot be printed; rename it")
    version = f"{folder.resolve()} {_file_stamps(folder / name for name in names)}"
    return Photographs(source, names, version, _read_each(lambda name: (folder / name).read_bytes()), None)


def _image_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())


def _lines(path: Path, argument: str) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{argument}: cannot read '{path}': {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{argument}: '{path}' is not a text file") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def _file_stamps(paths: Iterable[Path]) -> str:
    """A hash of the files' sizes and modification times."""
    digest = hashlib.sha256()
    for path in paths:
        stat = path.stat() if path.exists() else None
        digest.update(f"{stat and (stat.st_size, stat.st_mtime_ns)}\n".encode())
    return digest.hexdigest()


def _read_each(read: Callable[[str], bytes]) -> ReadFiles:
    return lambda ids: ((file_id, partial(read, file_id)) for file_id in ids)


def _read_ahead(source: Source, key: Callable[[str], str], ids: Sequence[str]) -> Iterator[tuple[str, ReadFile]]:
    """Objects in order; READ_AHEAD of them are read while the caller works on those before."""

    def read_chunk(chunk: Sequence[str]) -> dict[str, bytes | None]:
        return dict(source.read([key(bin_id) for bin_id in chunk]))

    chunks = [ids[start : start + READ_AHEAD] for start in range(0, len(ids), READ_AHEAD)]
    with ThreadPoolExecutor(1) as reader:
        following = reader.submit(read_chunk, chunks[0]) if chunks else None
        for number, chunk in enumerate(chunks):
            assert following is not None
            bodies = following.result()
            following = reader.submit(read_chunk, chunks[number + 1]) if number + 1 < len(chunks) else None
            for bin_id in chunk:
                yield bin_id, partial(_body_or_error, bodies.pop(key(bin_id)))


def _body_or_error(body: bytes | None) -> bytes:
    if body is None:
        raise FileNotFoundError("it is missing")
    return body
