"""How frequent compositions are: how many products lie together in a bin, and how many items there are of each.

Learned from records alone, without their photographs. The number of products depends on how large they are on average.
The probability of their quantities is that of a log-linear model: each product adds a term for its quantity, which
depends on its sizes and on the number of products, and the terms of all quantities whose sum is allowed are normalised
together. Every composition has some probability, however rare.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from bintally.bins.contents import read_contents
from bintally.scoring.lists import Lists
from bintally.scoring.metrics import Counts, Floats
from bintally.scoring.record_errors import Totals

PENALTY = 10.0  # of a squared coefficient of a size; 1 made no difference on validation of real bins
COMMON_PENALTY = 1.0  # of one of a number of products, which is learned from many more
NUMBER_PENALTIES = (0.01, 0.5)  # of the share of a number of products, and of how it depends on a size
MOST_PRODUCTS = 8  # from here on, one more product beside a product changes nothing
FALL = 0.5  # share of bins with one product more than the last known number
LIMIT = 3.0  # standard deviations; a size further off is taken for this
MAX_NUMBER = 1000.0  # of a coefficient, and far from any that was ever fitted
DIGITS = 4  # of a saved number; further ones depend on the CPU
MOST_RECORDS = 20_000  # to learn from: the time grows with them, and a coefficient has thousands of products by then
SEED = 1  # of those drawn
TOLERANCE = 1e-12  # of the loss, relative


class CompositionModel(BaseModel):
    """The frequency of compositions of bins, fitted by :func:`fit_compositions`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    empty: float
    """Share of bins without products."""
    numbers: list[list[float]] = Field(min_length=1)
    """(1 + sizes, numbers of products from 1): the logits of the others, a constant and factors of the mean sizes."""
    quantities: list[float]
    """Share of products with 1, 2, … items."""
    means: list[float]
    """Of each size,"""
    deviations: list[float]
    """and its standard deviation."""
    coefficients: list[list[float]] = Field(min_length=1)
    """(features, quantities)."""

    @model_validator(mode="after")
    def _check(self) -> "CompositionModel":
        sizes, last = len(self.means), len(self.quantities)
        shapes = [(len(rows), {*map(len, rows)}) for rows in (self.numbers, self.coefficients)]
        if shapes != [(1 + sizes, {min(MOST_PRODUCTS, last)}), (MOST_PRODUCTS + 1 + 5 * sizes, {last})]:
            raise ValueError(f"numbers and coefficients do not fit {sizes} sizes and {last} quantities")
        if len(self.deviations) != sizes or not all(value > 0 for value in self.deviations):
            raise ValueError("deviations must be above 0, one for each of the means")
        if not all(0 < share <= 1 for share in (self.empty, *self.quantities)):
            raise ValueError("empty and quantities must be shares above 0")
        if any(abs(value) > MAX_NUMBER for row in (*self.numbers, *self.coefficients) for value in row):
            raise ValueError(f"numbers and coefficients must be within {MAX_NUMBER:,}")
        return self

    def log_numbers(self, number: Counts, sizes: Floats) -> Floats:
        """The logarithm of the share of bins with each number of products, (n,), among bins with such products.

        Args:
            number: (n,) 0 or more.
            sizes: (n, m, sizes) of some or all products of the bin, NaN where there are none or they are not known.
        """
        scores = _mean_features(self._standard(sizes)) @ self.numbers
        shares = scores - np.logaddexp.reduce(scores, 1, keepdims=True)
        last = shares.shape[1]
        known = np.take_along_axis(shares, number.clip(1, last)[:, None] - 1, 1)[:, 0]
        several = known + np.log1p(-self.empty) + np.maximum(number - last, 0) * np.log(FALL)
        return np.asarray(np.where(number > 0, several, np.log(self.empty)))

    def terms(self, sizes: Floats, number: Counts) -> Floats:
        """Log-probability of each quantity, from 1, of products in n bins: (n, m, quantities).

        Args:
            sizes: (n, m, sizes), NaN where they are not known.
            number: (n, m) of products in the bin of each.
        """
        scores = _features(self._standard(sizes), number) @ self.coefficients
        return np.asarray(scores - np.logaddexp.reduce(scores, -1, keepdims=True))

    def _standard(self, sizes: Floats) -> Floats:
        return _standardised(sizes, np.asarray(self.means), np.asarray(self.deviations))


@dataclass(frozen=True)
class Convolutions:
    """Sums of the quantities of several products in n bins, each quantity with its probability."""

    of_all: Floats
    """(n, last + 1) the probability that the products of a bin have 0, 1, … items together."""
    of_others: Floats
    """(n, m, last + 1) the same without one of them."""


def quantity_tables(terms: Floats, present: NDArray[np.bool_]) -> Floats:
    """Probabilities of 0, 1, … items of each product, (n, m, last + 1), from (n, m, last) log-probabilities.

    A product that is not present has 0 items.
    """
    tables = np.zeros((*present.shape, terms.shape[-1] + 1))
    tables[..., 1:] = np.exp(terms) * present[..., None]
    tables[..., 0] = ~present
    return tables


def convolve(tables: Floats, saturate: bool) -> Convolutions:
    """Convolve the tables, (n, m, last + 1), of the products of each bin.

    Args:
        saturate: a sum above the last counts as the last; otherwise it has no place.
    """
    number, most, width = tables.shape
    by_quantity = np.ascontiguousarray(tables.transpose(1, 2, 0))  # numpy is several times as fast along the bins
    nothing = np.zeros((width, number))
    nothing[0] = 1
    before, after = [nothing], [nothing]
    for place in range(most):
        before.append(_convolved(before[-1], by_quantity[place], saturate))
        after.append(_convolved(after[-1], by_quantity[most - 1 - place], saturate))
    others = np.empty((most, width, number))
    for place in range(most):
        others[place] = _convolved(before[place], after[most - 1 - place], saturate)
    return Convolutions(before[-1].T, others.transpose(2, 0, 1))


def _convolved(left: Floats, right: Floats, saturate: bool) -> Floats:
    """(quantities, n) of two such."""
    width = len(left)
    result = np.zeros_like(left)
    for quantity in range(width):
        result[quantity:] += left[: width - quantity] * right[quantity]
    if saturate:
        result[-1] += (left[:0:-1].cumsum(0) * right[1:]).sum(0)
    return result


def count_by_products(compositions: CompositionModel, totals: Totals, lists: Lists) -> Floats:
    """Probabilities of the counts given the products alone, (n, counts).

    Rows of zeros where no count is possible, or the products are not named.
    """
    sums = np.zeros((len(lists.quantities), len(totals.counts)))
    for rows, _, packed in lists.by_length():  # so that one long list costs the others nothing
        number = np.full(packed.quantities.shape, packed.quantities.shape[1])
        tables = quantity_tables(compositions.terms(packed.sizes, number), packed.present)
        sums[rows] = convolve(tables, totals.open_ended).of_all[:, totals.counts]
    sums = sums * lists.named.reshape(-1, 1)
    whole = sums.sum(1, keepdims=True)
    return np.asarray(sums / np.where(whole > 0, whole, 1))


def learn_compositions(bins: Path, corrections: Path, ids: Sequence[str], totals: Totals) -> CompositionModel:
    """Fit the model to those of the bins of which it is known what lies in them.

    Of more than MOST_RECORDS, as many are drawn at random.

    Args:
        bins, corrections, ids: as of :func:`bintally.bins.contents.read_contents`.
    """
    contents = read_contents(bins, corrections, ids)
    items = [sum(product.quantity for product in one.products) if one.is_known else -1 for one in contents]
    usable = np.flatnonzero(totals.allow(np.array(items, np.int64)))
    drawn = usable[np.sort(np.random.default_rng(SEED).permutation(len(usable))[:MOST_RECORDS])]
    # Read again, as all of them would take much memory.
    lists, _ = Lists.of_contents(read_contents(bins, corrections, [ids[row] for row in drawn]))
    return fit_compositions(lists.quantities, lists.sizes, totals)


def fit_compositions(quantities: Counts, sizes: Floats, totals: Totals) -> CompositionModel:
    """Fit the model to records by penalised maximum likelihood, each given the products in it.

    Args:
        quantities: (n, m) of each product, 0 where there are fewer than m; their sums are allowed by ``totals``.
        sizes: (n, m, sizes), NaN where they are not known.
    """
    present = quantities > 0
    number = present.sum(1)
    means, deviations = _moments(sizes[present])
    standard = _standardised(sizes, means, deviations)
    last = max(totals.last, 1)
    capped = np.minimum(quantities, last)
    items = np.bincount(capped[present] - 1, minlength=last) + 1.0
    features = _features(standard, np.broadcast_to(number[:, None], present.shape))
    several = number > 0
    return CompositionModel(
        empty=_shares(np.array([1 + (~several).sum(), last + several.sum()]))[0],
        numbers=_fit_numbers(number[several], _mean_features(standard[several]), min(MOST_PRODUCTS, last)),
        quantities=_shares(items),
        means=_rounded(means),
        deviations=_rounded(deviations),
        coefficients=_fit_quantities(capped, features, totals),
    )


def _fit_numbers(number: Counts, features: Floats, last: int) -> list[list[float]]:
    """The logits of 1, 2, … products, (features, last), by penalised maximum likelihood."""
    observed = np.eye(last)[np.minimum(number, last) - 1]
    constant, factor = NUMBER_PENALTIES
    penalties = np.full((features.shape[1], 1), factor)
    penalties[0] = constant

    def objective(flat: Floats) -> tuple[float, Floats]:
        coefficients = flat.reshape(features.shape[1], last)
        scores = features @ coefficients
        logs = scores - np.logaddexp.reduce(scores, 1, keepdims=True)
        gradient = features.T @ (observed - np.exp(logs))
        loss = (penalties * coefficients**2).sum() - (logs * observed).sum()
        return float(loss), (2 * penalties * coefficients - gradient).ravel()

    return [_rounded(row) for row in _minimise(objective, (features.shape[1], last))]


def _fit_quantities(quantities: Counts, features: Floats, totals: Totals) -> list[list[float]]:
    """The coefficients of the quantities, (features, last), by penalised maximum likelihood.

    Args:
        quantities: (n, m), the last quantity stands for all above.
        features: (n, m, features).
    """
    last, width = max(totals.last, 1), features.shape[-1]
    penalties = np.full((width, 1), PENALTY)
    penalties[:MOST_PRODUCTS] = COMMON_PENALTY
    allowed = totals.allow(np.arange(last + 1))
    allowed_after = _allowed_after(allowed, totals.open_ended)
    present = quantities > 0
    number = present.sum(1)
    groups = []  # of as many products, so that one long list costs the others nothing
    for many in np.unique(number[number > 0]).tolist():
        places = present & (number == many)[:, None]
        observed = np.eye(last)[quantities[places] - 1]
        groups.append((features[places].reshape(-1, many, width), observed.reshape(-1, many, last)))

    def objective(flat: Floats) -> tuple[float, Floats]:
        coefficients = flat.reshape(width, last)
        loss, gradient = (penalties * coefficients**2).sum(), 2 * penalties * coefficients
        for inputs, observed in groups:
            scores = inputs @ coefficients
            terms = scores - np.logaddexp.reduce(scores, -1, keepdims=True)
            tables = quantity_tables(terms, np.ones(terms.shape[:2], np.bool_))
            sums = convolve(tables, totals.open_ended)
            whole = (sums.of_all @ allowed).clip(1e-300)
            # The probability of each quantity of each product, given that the sum is allowed.
            expected = tables[..., 1:] * (sums.of_others @ allowed_after) / whole[:, None, None]
            # The terms of a product are normalised, too; the derivative of that drops out of the difference.
            gradient = gradient - np.tensordot(inputs, observed - expected, ((0, 1), (0, 1)))
            loss += np.log(whole).sum() - (terms * observed).sum()
        return float(loss), np.asarray(gradient).ravel()

    return [_rounded(row) for row in _minimise(objective, (width, last))]


def _minimise(objective: Callable[[Floats], tuple[float, Floats]], shape: tuple[int, int]) -> Floats:
    from scipy.optimize import minimize  # servers do without it

    options = {"maxiter": 1000, "ftol": TOLERANCE, "gtol": 0.0}
    found = minimize(objective, np.zeros(shape).ravel(), jac=True, method="L-BFGS-B", options=options)
    return np.asarray(found.x.reshape(shape))


def _allowed_after(allowed: NDArray[np.bool_], saturate: bool) -> Floats:
    """1 where a sum of 0, 1, … is allowed once a product with 1, 2, … items is added, (last + 1, last)."""
    width = len(allowed)
    ends = np.add.outer(np.arange(width), np.arange(1, width))
    return np.where(saturate | (ends < width), allowed[np.minimum(ends, width - 1)], 0.0)


def _standardised(sizes: Floats, means: Floats, deviations: Floats) -> Floats:
    return np.asarray(((sizes - means) / deviations).clip(-LIMIT, LIMIT))  # NaN stays


def _features(standard: Floats, number: Counts) -> Floats:
    """What a quantity depends on, (n, m, features), from (n, m, sizes) and (n, m).

    The number of products, whether a size is unknown, the sizes, their squares, the sizes among few products, and the
    mean sizes of all products in the bin.
    """
    unknown = ~np.isfinite(standard)
    known = np.where(unknown, 0.0, standard)
    numbers = np.minimum(number, MOST_PRODUCTS)[..., None]
    among = (numbers == np.arange(1, MOST_PRODUCTS + 1)).astype(np.float64)
    few = [known * (numbers == one) for one in (1, 2)]
    of_all = np.broadcast_to(_means(standard)[:, None], known.shape) * (numbers > 1)
    return np.concatenate([among, unknown.any(-1, keepdims=True), known, known**2, *few, of_all], -1)


def _mean_features(standard: Floats) -> Floats:
    """(n, 1 + sizes): a constant and the mean of each size."""
    return np.concatenate([np.ones((len(standard), 1)), _means(standard)], 1)


def mean_sizes(sizes: Floats, means: Floats, deviations: Floats) -> Floats:
    """The mean of each size over the products of n bins, (n, sizes), standardised; 0 where none is known.

    Args:
        sizes: (n, m, sizes), NaN where they are not known.
        means, deviations: (sizes,).
    """
    return _means(_standardised(sizes, means, deviations))


def _means(standard: Floats) -> Floats:
    """(n, sizes): the mean of each size over the products of a bin, 0 where none is known."""
    known = np.isfinite(standard)
    return np.asarray(np.where(known, standard, 0.0).sum(1) / known.sum(1).clip(1))


def _moments(known: Floats) -> tuple[Floats, Floats]:
    """Mean and standard deviation of each size, 0 and 1 where none is known."""
    present = np.isfinite(known)
    number = present.sum(0).clip(1)
    means = np.where(present, known, 0).sum(0) / number
    deviations = np.sqrt((np.where(present, known - means, 0) ** 2).sum(0) / number)
    return np.asarray(means), np.where(deviations > 1e-6, deviations, 1.0)


def _rounded(values: Floats) -> list[float]:
    """The values with DIGITS behind the point: where the first ones are 0, the others are the optimiser's noise."""
    return [round(float(value), DIGITS) + 0.0 for value in values]


def _shares(numbers: NDArray[np.floating]) -> list[float]:
    """The share of each number in their sum, with DIGITS significant ones, none of them 0."""
    return [float(f"{share:.{DIGITS}g}") for share in numbers / numbers.sum()]
