"""What lies in bins by their records and corrections, read from the shards."""

from collections.abc import Iterable, Iterator
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


def read_contents(bins: Path, corrections: Path, ids: Iterable[str]) -> Iterator[Contents]:
    """Yield the contents of bins in a folder of shards.

    Args:
        ids: in the order of the index, which is read along with them: half a million of its entries take 200 MiB.

    Raises UserError if a file is damaged, KeyError if there is no such bin or it is out of order.
    """
    reader, entries, corrected = ShardReader(bins), iter_index(bins), read_corrections(corrections)
    for bin_id in ids:
        entry = next((one for one in entries if one.id == bin_id), None)
        if entry is None:
            raise KeyError(bin_id)
        listed = listed_products(reader.record(entry))
        products = corrected_products(listed, corrected.get(bin_id))
        is_known = products is not None and are_named(listed)
        yield Contents(listed if products is None else products, is_known)
