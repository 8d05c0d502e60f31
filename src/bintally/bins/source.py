"""Sources of bins: an S3 bucket, or a folder with the same layout.

A source has the objects ``metadata/<id>.json`` and ``bin-images/<id>.jpg``, as the public ABID bucket does.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from bintally.bins.folder import FolderSource
from bintally.bins.objects import Unread
from bintally.bins.s3 import S3Source
from bintally.bins.table_source import TableSource
from bintally.bins.tables import is_table
from bintally.errors import UserError
from bintally.params import Fetch


class Source(Protocol):
    """A store of bins. Both methods raise UserError if it cannot be read."""

    def ids(self) -> list[str]:
        """Return the id of every record, sorted."""

    def read(
        self, keys: Sequence[str], known: Mapping[str, str] | None = None
    ) -> Iterator[tuple[str, bytes | Unread | None]]:
        """Yield (key, bytes), (key, None) if the object does not exist, or (key, why it was not read), in any order.

        Args:
            known: MD5 of the bytes of objects that the caller has; UNCHANGED may be yielded for those that have them.
        """

    def digests(self) -> Iterator[tuple[str, str]]:
        """Yield keys with the MD5 of their bytes, as far as a listing has them; nothing where reading is as quick."""


def open_source(fetch: Fetch) -> Source:
    """Open the bucket, folder or table `fetch.source`. Raises UserError if it does not exist.

    `demo` is none of them; the caller opens it as a :class:`bintally.demo.warehouse.DemoSource`.
    """
    if is_table(fetch.source):
        return TableSource(fetch)
    if fetch.source.startswith("s3://"):
        return S3Source(fetch)
    folder = Path(fetch.source)
    if not folder.is_dir():
        kinds = "demo, nor s3://…, nor an existing folder, nor a table (.csv, .jsonl, .parquet)"
        raise UserError(f"fetch.source: '{fetch.source}' is neither {kinds}")
    return FolderSource(folder, fetch.source, fetch.concurrency)
