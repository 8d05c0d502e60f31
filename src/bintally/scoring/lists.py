"""The products that records list, as arrays."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bintally.bins.contents import Contents
from bintally.bins.products import Product, are_named, product_arrays
from bintally.scoring.metrics import Counts, Floats

PRODUCTS_AT_ONCE = 100_000


@dataclass(frozen=True)
class Lists:
    """The products that n records list, m at most."""

    quantities: Counts
    """(n, m) of each product; 0 where a record lists fewer than m."""
    sizes: Floats
    """(n, m, sizes) as in :data:`bintally.bins.products.SIZES`, NaN where not known."""
    named: NDArray[np.bool_] = field(default_factory=lambda: np.array(True))
    """(n,), or one for all: whether a record names its products, and not only their number of items."""

    @classmethod
    def of(cls, bins: Iterable[Sequence[Product]]) -> "Lists":
        """What the products of each bin are as arrays; the bins are held one at a time."""
        named = list[bool]()

        def noted() -> Iterator[Sequence[Product]]:
            for products in bins:
                named.append(are_named(products))
                yield products

        return cls(*product_arrays(noted()), np.array(named, bool))

    @classmethod
    def of_contents(cls, contents: Iterable[Contents]) -> tuple["Lists", NDArray[np.bool_]]:
        """What lies in each bin, and whether that is known, (n,)."""
        known = list[bool]()

        def noted() -> Iterator[Sequence[Product]]:
            for one in contents:
                known.append(one.is_known)
                yield one.products

        return cls.of(noted()), np.array(known, bool)

    @property
    def present(self) -> NDArray[np.bool_]:
        return self.quantities > 0

    @property
    def totals(self) -> Counts:
        """(n,) the number of items."""
        return np.asarray(self.quantities.sum(1))

    def take(self, rows: Counts) -> "Lists":
        return Lists(self.quantities[rows], self.sizes[rows], self._named_of(rows))

    def by_length(self) -> Iterator[tuple[Counts, Counts, "Lists"]]:
        """Records of the same number of products, all named or none: their rows, (k,), the places of the products,
        (k, number), and lists, (k, number), without empty places. No more at once than PRODUCTS_AT_ONCE, so that memory
        has a bound.
        """
        kinds = 2 * self.present.sum(1) + ~self.named
        for kind in np.unique(kinds).tolist():
            length = kind // 2
            at_once = max(1, PRODUCTS_AT_ONCE // max(1, length))
            of_length = np.flatnonzero(kinds == kind)
            yield from (
                self._packed(of_length[start : start + at_once], length) for start in range(0, len(of_length), at_once)
            )

    def _packed(self, rows: Counts, length: int) -> tuple[Counts, Counts, "Lists"]:
        places = np.argsort(~self.present[rows], 1, kind="stable")[:, :length]
        chosen = rows[:, None], places
        return rows, places, Lists(self.quantities[chosen], self.sizes[chosen], self._named_of(rows))

    def _named_of(self, rows: Counts) -> NDArray[np.bool_]:
        return np.broadcast_to(self.named, len(self.quantities))[rows]
