"""What lies in bins by their records and corrections, read from the shards."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bintally.bins.corrections import corrected_products, read_corrections
from bintally.bins.products import Product, are_named, listed_products
from bintally.bins.shards import ShardReader, iter_index


@dataclass(frozen=True)
class Contents:
    """What lies in a bin."""

    products: list[Product]
    """Of the record, as corrected."""
    is_known: bool
    """False: the record does not name products, or a recount found another number of items, and does not say of which
    product."""


def read_contents(bins: Path, corrections: Path, ids: Sequence[str]) -> Iterator[Contents]:
    """Yield the contents of bins in a folder of shards, in the order of ``ids``.

    Raises UserError if a file is damaged, KeyError if there is no such bin.
    """
    wanted = set(ids)
    reader, entries = ShardReader(bins), {entry.id: entry for entry in iter_index(bins) if entry.id in wanted}
    corrected = read_corrections(corrections)
    for bin_id in ids:
        listed = listed_products(reader.record(entries[bin_id]))
        products = corrected_products(listed, corrected.get(bin_id))
        is_known = products is not None and are_named(listed)
        yield Contents(listed if products is None else products, is_known)
