"""Recount the first bins of an audit of the demo, which knows what lies in its bins, and write marks.csv.

python docs/recount_demo.py 50

A product is named where it alone explains the difference, as a person would on the page.
"""

import argparse
from pathlib import Path

from bintally import paths
from bintally.bins.corrections import HEADER_WITH_ITEMS, UNLISTED, Correction
from bintally.bins.products import Product, listed_products
from bintally.bins.shards import ShardReader, read_index
from bintally.demo.warehouse import DefectKind, DemoWarehouse
from bintally.files import read_csv, write_csv
from bintally.params import load_params

AUDIT, MARKS = Path("exports/audit/audit.csv"), Path("marks.csv")


class TrueWarehouse(DemoWarehouse):
    """The same bins, with records that are right."""

    def defect(self, number: int) -> DefectKind | None:
        return None


def recount(listed: list[Product], there: list[Product]) -> Correction:
    """What a person finds in a bin whose record lists these products."""
    before, after = ({one.key: one.quantity for one in products} for products in (listed, there))
    count = sum(after.values())
    wrong = [key for key in sorted({*before, *after}) if before.get(key, 0) != after.get(key, 0)]
    if len(wrong) != 1:
        return Correction(count)
    return Correction(count, wrong[0] if wrong[0] in before else UNLISTED, after.get(wrong[0], 0))


def main() -> None:
    parser = argparse.ArgumentParser(description="Recount the first bins of an audit of the demo.")
    parser.add_argument("number", type=int, help="of bins to recount")
    number = parser.parse_args().number
    warehouse, reader = TrueWarehouse(load_params().fetch.seed), ShardReader(paths.BINS)
    entries = {entry.id: entry for entry in read_index(paths.BINS)}
    ranked = [row for row in read_csv(AUDIT) if row["rank"]]
    marks, is_wrong = {}, []
    for row in ranked:
        listed = listed_products(reader.record(entries[row["id"]]))
        there = listed_products(warehouse.record(int(row["id"])))
        marks[row["id"]] = recount(listed, there)
        is_wrong.append({(one.key, one.quantity) for one in listed} != {(one.key, one.quantity) for one in there})
    first = sorted(list(marks.items())[:number])
    write_csv(MARKS, HEADER_WITH_ITEMS, ((bin_id, one.count, one.product, one.quantity) for bin_id, one in first))
    found, named = sum(is_wrong[:number]), sum(one.product is not None for _, one in first)
    print(f"{MARKS}: {len(first):,} bins recounted, {found:,} wrong records found, the item named in {named:,}")
    print(f"{sum(is_wrong):,} of all {len(ranked):,} ranked records are wrong")


if __name__ == "__main__":
    main()
