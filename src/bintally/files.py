"""Files that are whole or not there at all."""

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bintally.errors import disk_full_as_user_error

# Git ignores it and no stage declares it, so what lies here outlives an interrupted stage (see DESIGN.md).
SCRATCH = Path(".bintally")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path`` to write to, renamed to ``path`` when the block ends well.

    Raises UserError if the disk is full; the earlier file stays as it was whatever happens.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with disk_full_as_user_error(path):
            yield temporary
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, content: Any) -> None:
    """Indented JSON with a closing newline; not-a-number is refused with ValueError."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, text.getvalue())


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows as strings: ids such as ``00001`` must never become numbers."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
