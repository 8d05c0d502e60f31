"""Bins that were recounted by a person: what is counted there, whatever the record says."""

import csv
from dataclasses import dataclass
from pathlib import Path

from bintally.bins.record import ID_PATTERN
from bintally.errors import UserError
from bintally.files import write_csv

HEADER = ["id", "count"]
MOST = 1000  # items of a bin


def read_corrections(path: Path) -> dict[str, int]:
    """The count of each bin that was recounted, none where there is no file.

    Raises UserError, with the line, where it is not ``id,count`` with each id once.
    """
    if not path.exists():
        return {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"'{path}' is not a CSV file that can be read: {error}") from error
    if not lines or lines[0] != HEADER:
        raise UserError(f"'{path}' must begin with the line id,count")
    counts: dict[str, int] = {}
    for number, line in enumerate(lines[1:], 2):
        if not line:
            continue
        said = f"'{path}', line {number}: '{','.join(line)[:80]}'"
        if len(line) != 2 or not ID_PATTERN.fullmatch(line[0]):
            raise UserError(f"{said} must be an id, a comma and a count")
        if not (line[1].isascii() and line[1].isdecimal() and len(line[1]) <= len(str(MOST)) and int(line[1]) <= MOST):
            raise UserError(f"{said} must have a count from 0 to {MOST}")
        if line[0] in counts:
            raise UserError(f"{said}: that bin stands further up already; take out one of the two")
        counts[line[0]] = int(line[1])
    return counts


@dataclass(frozen=True)
class Merged:
    """How many bins were new, had another count before, or are as they were."""

    new: int
    changed: int
    same: int


def merge_corrections(path: Path, marks: Path) -> Merged:
    """Take what ``marks`` says into the file ``path``, its counts over those there; sorted by id, whole or not at all.

    Raises UserError if one of them is malformed, or ``marks`` is not there.
    """
    if not marks.is_file():
        raise UserError(f"'{marks}' is not there: the audit's page exports it")
    before, said = read_corrections(path), read_corrections(marks)
    write_csv(path, HEADER, sorted((before | said).items()))
    changed = sum(one in before and before[one] != count for one, count in said.items())
    new = len(said.keys() - before.keys())
    return Merged(new, changed, len(said) - new - changed)
