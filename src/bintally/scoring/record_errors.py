"""The errors of records: which there are and how likely each is. The one definition for judging and for measuring.

A record is wrong in one of three ways: the quantity of a listed product is another one; a product that lies in the bin
is not listed; a listed product is not there. Counts are whole numbers of items; a count above the last of an open-ended
list stands for that.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from numpy.typing import NDArray

from bintally.params import ErrorShares
from bintally.scoring.metrics import Counts, Floats

OFFSETS = (-2, -1, 1, 2)  # of most wrong quantities from the true one, all equally likely
TAIL = 0.1  # each item further off is this much as likely as the one before
FURTHEST = 8  # items; an offset beyond is never assumed
MAX_EXPONENT = 300
DECIMALS = 9  # of probabilities that are ranked: further ones depend on the CPU
ERROR_KINDS = ("one_off", "two_off", "left_out", "not_there")


@dataclass(frozen=True)
class Totals:
    """The numbers of items that a bin may hold."""

    counts: Sequence[int]
    """Ascending."""
    open_ended: bool
    """Whether the last one stands for itself and all above it."""

    @property
    def last(self) -> int:
        return self.counts[-1]

    @cached_property
    def _columns(self) -> Counts:
        """The place among the counts of 0, 1, …, the last and all above it; -1: none."""
        columns = np.full(self.last + 2, -1)
        columns[self.counts] = np.arange(len(self.counts))
        columns[-1] = len(self.counts) - 1 if self.open_ended else -1
        return columns

    def column(self, totals: Counts) -> Counts:
        """The place of each number of items, 0 or more, among the counts; -1 if it is none of them."""
        return self._columns[np.minimum(totals, self.last + 1)]

    def allow(self, totals: Counts) -> NDArray[np.bool_]:
        """Whether each number of items is one of the counts; one below 0 is not."""
        return (totals >= 0) & (self.column(np.maximum(totals, 0)) >= 0)


def offsets(last: int) -> list[int]:
    """The offsets of a wrong quantity from the true one, where no bin holds more than ``last`` items."""
    furthest = min(FURTHEST, max(last, 2))
    return [offset for offset in range(-furthest, furthest + 1) if offset]


def offset_weight(offset: int) -> float:
    """How likely an offset is, beside one of one or two items."""
    return float(TAIL ** max(abs(offset) - max(OFFSETS), 0))


@dataclass(frozen=True)
class PossibleErrors:
    """How n true compositions may be recorded wrongly."""

    shares: dict[str, Floats]
    """(n,) of ``quantity``, ``unlisted`` and ``missing`` among the wrong records of each; all 0 if none is possible."""
    offsets: Floats
    """(n, :func:`offsets`) the probability that a wrong quantity has each offset, and is that of a given product."""
    removable: Counts
    """(n,) the number of products that a record may leave out."""

    @property
    def is_any(self) -> NDArray[np.bool_]:
        """(n,) whether any error is possible."""
        return np.asarray(sum(self.shares.values(), np.zeros(len(self.removable))) > 0)


def possible_errors(quantities: Counts, shares: ErrorShares, totals: Totals) -> PossibleErrors:
    """Which errors are possible, such that the record's number of items is allowed, too.

    A wrong quantity has one of the possible offsets, by :func:`offset_weight`, in one of the products that can have it;
    a product of which no item is left is not listed.

    Args:
        quantities: (n, m) of each product that truly lies in a bin; 0 where there are fewer than m.
    """
    total, lies = quantities.sum(1), quantities > 0
    steps = offsets(totals.last)
    able = np.stack([(lies & (quantities + step >= 0)).sum(1) * totals.allow(total + step) for step in steps], 1)
    weights = (able > 0) * np.array([offset_weight(step) for step in steps])
    of_a_product = quotient(weights, weights.sum(1, keepdims=True) * able)
    removable = (lies & totals.allow(total[:, None] - quantities)).sum(1)
    addable = totals.allow(total[:, None] + np.arange(1, totals.last + 1)).any(1)
    possible_shares = {
        "quantity": shares.quantity * able.any(1),
        "unlisted": shares.unlisted * (removable > 0),
        "missing": shares.missing * addable,
    }
    summed = sum(possible_shares.values(), np.zeros(len(quantities)))
    return PossibleErrors(
        {kind: quotient(value, summed) for kind, value in possible_shares.items()}, of_a_product, removable
    )


def quotient(dividend: Floats, divisor: Floats | Counts) -> Floats:
    """The quotient; 0 where the divisor is 0."""
    return np.divide(dividend, divisor, out=np.zeros(np.shape(dividend)), where=divisor > 0)


@dataclass(frozen=True)
class AlteredRecords:
    """Records of which some have been made wrong."""

    quantities: Counts
    """(n, m + 1) one column more than before: of a product that is not there."""
    sizes: Floats
    """(n, m + 1, sizes)."""
    kinds: NDArray[np.str_]
    """(n,) one of ERROR_KINDS, or "" for a record that is right."""

    @property
    def is_wrong(self) -> NDArray[np.bool_]:
        return np.asarray(self.kinds != "")


def inject_errors(
    quantities: Counts,
    sizes: Floats,
    share: float,
    shares: ErrorShares,
    totals: Totals,
    random: np.random.Generator,
    furthest: int = FURTHEST,
) -> AlteredRecords:
    """Make a share of the records wrong, by :func:`possible_errors`: not all, and at least one if one can be.

    Args:
        quantities: (n, m) of the products that truly lie in each bin, whose sum is one of ``totals``; 0 for none.
        sizes: (n, m, sizes) of these products; products that are not there are drawn from them all.
        share: the fraction of records to make wrong, of those that can be.
        furthest: wrong quantities are so many items off at most.
    """
    number, most = quantities.shape
    changed = np.pad(quantities, ((0, 0), (0, 1)))
    new_sizes = np.pad(sizes, ((0, 0), (0, 1), (0, 0)), constant_values=np.nan)
    kinds = np.full(number, "", dtype="<U9")
    possible = possible_errors(quantities, shares, totals)
    able = np.flatnonzero(possible.is_any)
    wrong = min(max(1, round(share * len(able))), len(able), number - 1)
    pool, steps = np.argwhere(quantities > 0), np.array(offsets(totals.last))

    @cache
    def addable(total: int) -> Counts:
        """Those of the pool that fit beside so many items."""
        return pool[totals.allow(total + quantities[tuple(pool.T)])]

    for row in random.choice(able, max(wrong, 0), replace=False):
        present, total = quantities[row], quantities[row].sum()
        kind = random.choice(list(possible.shares), p=[values[row] for values in possible.shares.values()])
        if kind == "quantity":
            fits = (present > 0)[:, None] & (present[:, None] + steps >= 0)
            chances = (fits * possible.offsets[row] * (np.abs(steps) <= furthest)).ravel()
            if not chances.any():
                continue
            place, step = divmod(random.choice(len(chances), p=chances / chances.sum()), len(steps))
            changed[row, place] += steps[step]
            kinds[row] = ERROR_KINDS[min(abs(int(steps[step])), 2) - 1]
        elif kind == "unlisted":
            changed[row, random.choice(np.flatnonzero((present > 0) & totals.allow(total - present)))] = 0
            kinds[row] = "left_out"
        else:
            fitting = addable(int(total))
            if not len(fitting):
                continue
            other, place = fitting[random.integers(len(fitting))]
            changed[row, most], new_sizes[row, most] = quantities[other, place], sizes[other, place]
            kinds[row] = "not_there"
    return AlteredRecords(changed, new_sizes, kinds)


def error_model(counts: Sequence[int]) -> Floats:
    """The probability of each wrong count of a record (column) given the true one (row): (counts, counts).

    For records of which the count alone is known. Those one or two off (OFFSETS) are equally likely, each further one
    TAIL times as likely as one an item nearer: no error is impossible. If every other count is further off than that,
    the nearest ones take the place of these.
    """
    distances = np.abs(np.subtract.outer(counts, counts)).astype(np.float64)
    is_wrong = distances > 0
    beyond = np.clip(distances - max(OFFSETS), 0, None)
    nearest = np.where(is_wrong, beyond, beyond.max()).min(1, keepdims=True)
    # The exponent is bounded, so that no probability becomes 0 by underflow.
    possible = np.where(is_wrong, TAIL ** np.clip(beyond - nearest, 0, MAX_EXPONENT), 0)
    return np.asarray(possible / possible.sum(1, keepdims=True).clip(1))


def error_probability(probabilities: Floats, counts: Sequence[int], records: Counts, share: float) -> Floats:
    """The probability that the count of each record is wrong, (n,), by Bayes' rule, to DECIMALS.

    Args:
        probabilities: (n, counts) of the true count given the photograph, calibrated.
        counts: ascending.
        records: (n,) each one of ``counts``.
        share: the prior, the fraction of records that are wrong; a wrong one follows :func:`error_model`.
    """
    column = np.searchsorted(counts, records)
    right = probabilities[np.arange(len(column)), column] * (1 - share)
    wrong = (probabilities * error_model(counts)[:, column].T).sum(1) * share
    # A record that is impossible, right or wrong, beside this photograph is wrong.
    share_wrong = np.divide(wrong, right + wrong, out=np.ones(len(column)), where=right + wrong > 0)
    return np.asarray(share_wrong.round(DECIMALS))
