"""Corrections: the counts of bins that a person has recounted, which replace those of the records."""

import csv
from pathlib import Path
from typing import NamedTuple

from bintally.bins.record import ID_PATTERN
from bintally.errors import UserError
from bintally.files import write_csv

HEADER = ["id", "count"]
MAX_COUNT = 1000


def read_corrections(path: Path) -> dict[str, int]:
    """Return the corrected count of each bin; empty if the file does not exist.

    Raises UserError that names the line if the file is not a CSV of ``id,count`` with each id once.
    """
    if not path.exists():
        return {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"'{path}' is not a readable CSV file: {error}") from error
    if not lines or lines[0] != HEADER:
        raise UserError(f"'{path}' must begin with the line id,count")
    counts: dict[str, int] = {}
    for number, line in enumerate(lines[1:], 2):
        if not line:
            continue
        where = f"'{path}', line {number}: '{','.join(line)[:80]}'"
        if len(line) != 2 or not ID_PATTERN.fullmatch(line[0]):
            raise UserError(f"{where} must be an id, a comma and a count")
        # The length first: int() refuses numbers of thousands of digits.
        text = line[1]
        if not (text.isascii() and text.isdecimal() and len(text) <= len(str(MAX_COUNT)) and int(text) <= MAX_COUNT):
            raise UserError(f"{where} must have a count from 0 to {MAX_COUNT}")
        if line[0] in counts:
            raise UserError(f"{where} repeats an id; remove one of the two lines")
        counts[line[0]] = int(text)
    return counts


class Merged(NamedTuple):
    """Number of merged bins that are new, have another count than before, or the same."""

    new: int
    changed: int
    same: int


def merge_corrections(path: Path, marks: Path) -> Merged:
    """Merge the corrections of ``marks`` into the file ``path``, where they replace older ones; sort it by id.

    Raises UserError, and changes nothing, if one of the files is malformed or ``marks`` does not exist.
    """
    if not marks.is_file():
        raise UserError(f"'{marks}' does not exist; export it from the audit's page")
    old, new = read_corrections(path), read_corrections(marks)
    write_csv(path, HEADER, sorted((old | new).items()))
    changed = sum(bin_id in old and old[bin_id] != count for bin_id, count in new.items())
    added = len(new.keys() - old.keys())
    return Merged(added, changed, len(new) - added - changed)
