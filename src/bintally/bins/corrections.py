"""Corrections: the counts of bins that a person has recounted, which replace those of the records."""

import csv
import io
import re
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from bintally.bins.id_list import with_lost_zeros
from bintally.bins.record import ID_PATTERN, MAX_COUNT
from bintally.errors import UserError, printable
from bintally.files import file_lock, write_csv

HEADER = ["id", "count"]
SEPARATORS = ",;\t"
# A spreadsheet may give a count decimals. No more digits: int() refuses thousands of them.
_COUNT = re.compile(r"([0-9]{1,4})([.,]0{1,9})?")
# What a spreadsheet makes of an id such as 1200000000000.
_SCIENTIFIC = re.compile(r"[0-9]+([.,][0-9]+)?E\+[0-9]+")


def read_corrections(path: Path) -> dict[str, int]:
    """Return the corrected count of each bin; empty if the file does not exist.

    It is a CSV file of ``id,count`` with each id once, as the audit's page exports it or as a spreadsheet saves that:
    with other separators, quotes, empty columns, decimals of a count, or a byte order mark.

    Raises UserError that names the line if it is not.
    """
    if not path.exists():
        return {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            text = file.read()
        separator = next((one for one in SEPARATORS if one in text.partition("\n")[0]), ",")
        lines = [_without_empty_end(line) for line in csv.reader(io.StringIO(text, newline=""), delimiter=separator)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"'{path}' is not a readable CSV file in UTF-8: {error}") from error
    if not lines or lines[0] != HEADER:
        raise UserError(f"'{path}' must begin with the line id,count")
    counts: dict[str, int] = {}
    for number, line in enumerate(lines[1:], 2):
        if not line:
            continue
        where = f"'{path}', line {number}: '{printable(separator.join(line)[:80])}'"
        if _SCIENTIFIC.fullmatch(line[0]):
            raise UserError(f"{where} has a number in place of its id, which a spreadsheet made of it; export it again")
        if len(line) != 2 or not ID_PATTERN.fullmatch(line[0]):
            raise UserError(f"{where} must be an id, a comma and a count")
        found = _COUNT.fullmatch(line[1])
        if not found or int(found[1]) > MAX_COUNT:
            raise UserError(f"{where} must have a count from 0 to {MAX_COUNT}")
        if line[0] in counts:
            raise UserError(f"{where} repeats an id; remove one of the two lines")
        counts[line[0]] = int(found[1])
    return counts


def _without_empty_end(line: list[str]) -> list[str]:
    cells = [cell.strip() for cell in line]
    while cells and not cells[-1]:
        cells.pop()
    return cells


class Merged(NamedTuple):
    """What was merged."""

    new: int
    """Number of bins that had no correction,"""
    changed: int
    """that had another count,"""
    same: int
    """that had the same."""
    unknown: tuple[str, ...] = ()
    """The ids that are not among the known ones, in order."""


def merge_corrections(path: Path, marks: Path, known: Collection[str] = ()) -> Merged:
    """Merge the corrections of ``marks`` into the file ``path``, where they replace older ones; sort it by id.

    Args:
        known: the ids of bins there are; empty: not known.

    Raises UserError, and changes nothing, if one of the files is malformed, ``marks`` does not exist, or one of its
    ids has probably lost its leading zeros.
    """
    if not marks.is_file():
        raise UserError(f"'{marks}' does not exist; export it from the audit's page")
    new = read_corrections(marks)
    with file_lock(path):
        old = read_corrections(path)
        unknown = sorted(new.keys() - old.keys() - set(known)) if known else []
        if lost := with_lost_zeros(unknown, [*known, *old]):
            bin_id, likely = next(iter(lost.items()))
            more = f" (and {len(lost) - 1:,} more like it)" if len(lost) > 1 else ""
            raise UserError(
                f"'{marks}': there is no bin {bin_id}, but {likely}{more}: a spreadsheet removes zeros in front; write "
                f"the ids with them, or add the line to '{path}' yourself if {bin_id} is meant"
            )
        write_csv(path, HEADER, sorted((old | new).items()))
    changed = sum(bin_id in old and old[bin_id] != count for bin_id, count in new.items())
    added = len(new.keys() - old.keys())
    return Merged(added, changed, len(new) - added - changed, tuple(unknown))
