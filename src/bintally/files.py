"""Files that are written whole or not at all."""

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bintally.errors import disk_full_as_user_error

# Git ignores it and no stage declares it, so files here outlive an interrupted stage (see DESIGN.md).
SCRATCH = Path(".bintally")
METRIC_DIGITS = 6  # significant ones; the last of the sixteen that a float has depend on the CPU


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary file name beside ``path``, renamed to ``path`` when the block ends without an exception.

    Raises UserError if the disk is full.
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
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows if digits is None else (round_floats(row, digits) for row in rows))
    write_text(path, text.getvalue())


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows by column, as strings: an id such as ``00001`` must not become a number."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
