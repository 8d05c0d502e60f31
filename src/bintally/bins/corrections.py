"""Corrections: what a person has counted in bins, which replaces what their records say."""

import csv
import io
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import NamedTuple

from bintally.bins.id_list import with_lost_zeros
from bintally.bins.products import Product, are_named, recounted_products
from bintally.bins.record import ID_PATTERN, MAX_COUNT
from bintally.errors import UserError, printable
from bintally.files import file_lock, write_csv

HEADER = ("id", "count")
HEADER_WITH_ITEMS = (*HEADER, "product", "quantity")
# What the audit's page exports: a count sheet, of which the count is called "counted" here.
SHEET = ("id", "location", "expected", "counted", "difference", "product", "quantity")
UNLISTED = "unlisted"  # in place of a product: something that the record does not list
SEPARATORS = ",;\t"
PRODUCT_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,100}")  # the keys that a correction can name
# A spreadsheet may give a number decimals; 1,000 may mean a thousand. int() refuses thousands of digits.
_COUNT = re.compile(r"([0-9]{1,4})([.,](0{1,2}|0{4,9}))?")
# What a spreadsheet makes of an id such as 1200000000000.
_SCIENTIFIC = re.compile(r"[0-9]+([.,][0-9]+)?E\+[0-9]+")


@dataclass(frozen=True)
class Correction:
    """What was counted in a bin."""

    count: int
    """The number of items."""
    product: str | None = None
    """The key of the one product whose quantity was wrong, or UNLISTED; None: not named."""
    quantity: int | None = None
    """How many items of it were counted."""


def corrected_products(listed: Sequence[Product], correction: Correction | None) -> list[Product] | None:
    """What lies in a bin whose record lists these products; None if the correction does not tell."""
    if correction is None:
        return list(listed)
    if not are_named(listed):
        contents = [replace(one, quantity=correction.count) for one in listed]
    elif correction.product is None:
        contents = list(listed)
    else:
        contents = recounted_products(listed, correction.product, correction.quantity or 0)
    return contents if sum(one.quantity for one in contents) == correction.count else None


def read_corrections(path: Path) -> dict[str, Correction]:
    """Return the correction of each bin; empty if the file does not exist.

    It is a CSV file of ``id,count``, ``id,count,product,quantity`` or SHEET with each id once, as the audit's page
    exports it or as a spreadsheet saves that: with other separators, quotes, empty columns, decimals of a number, or a
    byte order mark. A line of SHEET without a count is of a bin that was not counted.

    Raises UserError that names the line if it is not.
    """
    return {bin_id: line.correction for bin_id, line in _read(path)[0].items()}


class _Line(NamedTuple):
    correction: Correction
    where: str
    """The file, the number of the line and what it says."""


def _read(path: Path) -> tuple[dict[str, _Line], int]:
    """The line of each bin, and the number of lines of bins that were not counted."""
    if not path.exists():
        return {}, 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            text = file.read()
        separator = next((one for one in SEPARATORS if one in text.partition("\n")[0]), ",")
        lines = [_without_empty_end(line) for line in csv.reader(io.StringIO(text, newline=""), delimiter=separator)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"'{path}' is not a readable CSV file in UTF-8: {error}") from error
    if not lines or tuple(lines[0]) not in (HEADER, HEADER_WITH_ITEMS, SHEET):
        kinds = ", ".join(map(",".join, (HEADER, HEADER_WITH_ITEMS)))
        raise UserError(f"'{path}' must begin with the line {kinds} or {','.join(SHEET)}")
    is_sheet = tuple(lines[0]) == SHEET
    found: dict[str, _Line] = {}
    uncounted = 0
    for number, line in enumerate(lines[1:], 2):
        if not line:
            continue
        where = f"'{path}', line {number}: '{printable(separator.join(line)[:80])}'"
        if is_sheet:
            cells = [*line, *[""] * (len(SHEET) - len(line))]
            line = _without_empty_end([cells[0], cells[3], *cells[5:]])
            if len(line) < 2:  # nothing was counted, and no item of it
                uncounted += 1
                continue
        bin_id, correction = _parse(line, len(HEADER if tuple(lines[0]) == HEADER else HEADER_WITH_ITEMS), where)
        if bin_id in found:
            raise UserError(f"{where} repeats an id; remove one of the two lines")
        found[bin_id] = _Line(correction, where)
    return found, uncounted


def _without_empty_end(line: list[str]) -> list[str]:
    cells = [cell.strip() for cell in line]
    while cells and not cells[-1]:
        cells.pop()
    return cells


def _parse(line: list[str], columns: int, where: str) -> tuple[str, Correction]:
    if any(_SCIENTIFIC.fullmatch(cell) for cell in line[::2]):
        what = "id" if _SCIENTIFIC.fullmatch(line[0]) else "product"
        raise UserError(f"{where} has a number in place of its {what}, which a spreadsheet made of it; export it again")
    if len(line) not in (2, columns) or not ID_PATTERN.fullmatch(line[0]):
        more = ", and the key of a product with its quantity or neither" if columns > 2 else ""
        raise UserError(f"{where} must be an id, a comma and a count{more}")
    count = _number(line[1], "count", where)
    if len(line) == 2:
        return line[0], Correction(count)
    if not PRODUCT_PATTERN.fullmatch(line[2]):
        raise UserError(f"{where} must have the key of a product in the record, or {UNLISTED}, in the third column")
    quantity = _number(line[3], "quantity", where)
    if quantity > count:
        raise UserError(f"{where} has {quantity} items of one product among {count}; correct one of the two")
    return line[0], Correction(count, line[2], quantity)


def _number(text: str, what: str, where: str) -> int:
    found = _COUNT.fullmatch(text)
    if not found or int(found[1]) > MAX_COUNT:
        raise UserError(f"{where} must have a {what} from 0 to {MAX_COUNT}")
    return int(found[1])


class Merged(NamedTuple):
    """What was merged."""

    new: int
    """Number of bins that had no correction,"""
    changed: int
    """that had another one,"""
    same: int
    """that had the same."""
    unknown: tuple[str, ...] = ()
    """The ids that are not among the known ones, in order."""
    uncounted: int = 0
    """Number of lines of a count sheet without a count."""


def merge_corrections(
    path: Path,
    marks: Path,
    known: Collection[str] = (),
    products: Callable[[str], Sequence[Product]] | None = None,
) -> Merged:
    """Merge the corrections of ``marks`` into the file ``path``, where they replace older ones; sort it by id.

    Args:
        known: the ids of bins there are; empty: not known.
        products: what the record of one of the known bins lists.

    Raises UserError, and changes nothing, if one of the files is malformed, ``marks`` does not exist, one of its ids
    has probably lost its leading zeros, or what it says of a product does not fit the record.
    """
    if not marks.is_file():
        why = "is a folder" if marks.is_dir() else "does not exist"
        raise UserError(f"'{marks}' {why}; export marks from the audit's page")
    new, uncounted = _read(marks)
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
        for bin_id, line in new.items():
            if products and bin_id in known and line.correction.product is not None:
                _check_products(line, products(bin_id))
        corrections = old | {bin_id: _keep_product(line.correction, old.get(bin_id)) for bin_id, line in new.items()}
        _write(path, corrections)
    changed = sum(bin_id in old and old[bin_id] != corrections[bin_id] for bin_id in new)
    added = len(new.keys() - old.keys())
    return Merged(added, changed, len(new) - added - changed, tuple(unknown), uncounted)


def _keep_product(new: Correction, old: Correction | None) -> Correction:
    """The new correction; the old one if that has the same count and names the product, and the new one does not."""
    return old if old and old.product and new == Correction(old.count) else new


def _check_products(line: _Line, listed: Sequence[Product]) -> None:
    """Raises UserError if the product is not in the record, or the count is not that of its items and the others."""
    product, quantity = line.correction.product, line.correction.quantity or 0
    keys = {one.key for one in listed}
    if product not in (UNLISTED, *keys):
        lost = with_lost_zeros([product or ""], keys).get(product or "")
        is_lost = f"but {lost} is: a spreadsheet removes zeros in front; write it with them"
        remedy = is_lost if lost else f"write {UNLISTED} for what the record does not list"
        raise UserError(f"{line.where} names a product that is not in the record of this bin, {remedy}")
    others = sum(one.quantity for one in listed if one.key != product)
    if line.correction.count != others + quantity:
        raise UserError(
            f"{line.where} does not fit the record: {quantity} beside {others} items of other products are "
            f"{others + quantity}; correct the line, or leave product and quantity empty"
        )


def _write(path: Path, corrections: dict[str, Correction]) -> None:
    """Write the corrections, with the columns of products only where one is named."""
    named = any(one.product is not None for one in corrections.values())
    header = HEADER_WITH_ITEMS if named else HEADER
    rows = [(bin_id, *astuple(one))[: len(header)] for bin_id, one in sorted(corrections.items())]
    write_csv(path, header, rows)  # None is written as nothing
