"""Photographs to be scored, wherever they lie: their ids in order, and how each is read."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from bintally.bins.shards import ShardReader, read_index
from bintally.bins.source import Source, image_key, open_source, record_key
from bintally.bins.subset import read_id_list
from bintally.errors import UserError
from bintally.params import Fetch

SUFFIXES = (".jpg", ".jpeg", ".png")
READ_AHEAD = 256  # objects of a source asked for at once; twice as many are in memory

Read = Callable[[], bytes]
"""Gives a file's bytes; raises OSError, with a reason, where it cannot be had."""
Reads = Callable[[Sequence[str]], Iterator[tuple[str, Read]]]
"""The ids as given, each with how its file is read; only some of them are in memory at a time."""


@dataclass(frozen=True)
class Photographs:
    """Photographs by id."""

    name: str
    """What a person calls the source."""
    ids: list[str]
    """In the order they are to be scored in, each once."""
    version: str
    """Another one where the source or a local file is another; not where an object of a bucket was overwritten."""
    images: Reads
    records: Reads | None
    """None: the source has no records."""


def open_photographs(
    source: str,
    bins: Path,
    fetch: Callable[[], Fetch],
    access: Mapping[str, object] | None = None,
    ids: Path | None = None,
) -> Photographs:
    """The photographs that ``source`` names.

    Args:
        source: ``data``, the bins of ``bins``; what `fetch.source` may be; a folder with .jpg, .jpeg and .png files at
            any depth; or a text file that lists such files, or ids of bins of ``bins``, one a line.
        fetch: what a source of bins is opened with, its `source` aside; only called for such a one.
        access: what is to be otherwise in it.
        ids: a file of the ids to keep to; None: all.

    Raises UserError if there is no such source, or nothing in it.
    """
    path = Path(source)
    if source == "demo" or source.startswith("s3:") or _laid_out(path):
        wanted = read_id_list(ids, "--ids") if ids else None
        return _of_source(source, fetch().model_dump() | dict(access or {}) | {"source": source}, wanted)
    if source == "data":
        found = _of_shards(bins)
    elif path.is_dir():
        found = _of_files(source, [str(one.relative_to(path)) for one in _pictures(path)], path)
    elif path.is_file():
        found = _listed(path, bins)
    else:
        raise UserError(f"'{source}' is neither data, demo, s3://…, a folder nor a list of photographs that exists")
    if ids is not None:
        wanted = _lines(ids, "--ids") if found.records is None else read_id_list(ids, "--ids")
        found = replace(found, ids=list(dict.fromkeys(wanted)))
    if not found.ids:
        raise UserError(f"{found.name} holds no photographs ({', '.join(SUFFIXES)})")
    return found


def _laid_out(folder: Path) -> bool:
    return (folder / "metadata").is_dir() and (folder / "bin-images").is_dir()


def _of_shards(bins: Path) -> Photographs:
    if not (bins / "index.csv").is_file():
        raise UserError(f"{bins / 'index.csv'} is not there: `dvc repro` makes it, `bintally pull` fetches it")
    entries = {entry.id: entry for entry in read_index(bins)}
    reader = ShardReader(bins)

    def read(image: bool, one: str) -> bytes:
        if one not in entries:
            raise FileNotFoundError(f"no such bin in {bins}")
        return (reader.image if image else reader.record)(entries[one])

    version = hashlib.sha256((bins / "index.csv").read_bytes()).hexdigest()
    return Photographs(str(bins), list(entries), version, _each(partial(read, True)), _each(partial(read, False)))


def _of_source(source: str, fetch: dict[str, object], wanted: list[str] | None) -> Photographs:
    try:
        checked = Fetch.model_validate(fetch)
    except ValidationError as error:
        raise UserError(error.errors()[0]["msg"].removeprefix("Value error, ")) from error
    opened = open_source(checked)
    ids = wanted or opened.ids()  # a list that is given spares the listing, which may be forbidden
    folder = Path(source).resolve()
    local = f"{folder} {_stamp(folder / image_key(one) for one in ids)}" if folder.is_dir() else source
    version = f"{local} {checked.endpoint} {checked.demo_bins} {checked.seed}"
    return Photographs(source, ids, version, partial(_ahead, opened, image_key), partial(_ahead, opened, record_key))


def _listed(path: Path, bins: Path) -> Photographs:
    names = list(dict.fromkeys(_lines(path, "SOURCE")))
    if any(name.lower().endswith(SUFFIXES) for name in names):
        return _of_files(str(path), names, Path())
    return replace(_of_shards(bins), name=str(path), ids=names)


def _of_files(name: str, names: list[str], folder: Path) -> Photographs:
    if odd := next((one for one in names if not one.isprintable()), None):
        raise UserError(f"{name}: the file name {odd!a} has characters that cannot be written; rename it")
    version = f"{folder.resolve()} {_stamp([folder / one for one in names])}"
    return Photographs(name, names, version, _each(lambda one: (folder / one).read_bytes()), None)


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())


def _lines(path: Path, what: str) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{what}: cannot read '{path}': {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{what}: '{path}' is not a text file") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def _stamp(paths: Iterable[Path]) -> str:
    """A hash of the sizes and times of local files."""
    digest = hashlib.sha256()
    for path in paths:
        about = path.stat() if path.exists() else None
        digest.update(f"{about and (about.st_size, about.st_mtime_ns)}\n".encode())
    return digest.hexdigest()


def _each(read: Callable[[str], bytes]) -> Reads:
    return lambda ids: ((one, partial(read, one)) for one in ids)


def _ahead(source: Source, key: Callable[[str], str], ids: Sequence[str]) -> Iterator[tuple[str, Read]]:
    """Objects in order, READ_AHEAD of them read while those before are worked on."""

    def bodies(part: Sequence[str]) -> dict[str, bytes | None]:
        return dict(source.read([key(one) for one in part]))

    parts = [ids[start : start + READ_AHEAD] for start in range(0, len(ids), READ_AHEAD)]
    with ThreadPoolExecutor(1) as reader:
        following = reader.submit(bodies, parts[0]) if parts else None
        for number, part in enumerate(parts):
            assert following is not None
            found = following.result()
            following = reader.submit(bodies, parts[number + 1]) if number + 1 < len(parts) else None
            for one in part:
                yield one, partial(_body, found.pop(key(one)))


def _body(body: bytes | None) -> bytes:
    if body is None:
        raise FileNotFoundError("it is missing")
    return body
