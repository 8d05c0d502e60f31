"""Which records are wrong, and in what way: the probability of each possible error, by Bayes' rule.

A record may be right, or the true contents of the bin may be others that an error turned into it: another quantity of
a listed product, one more product, or one fewer. Each of these has a probability before the photograph is seen: how
frequent such contents are, times how often that error happens. The photograph's evidence for its number of items
multiplies it.

Where a record gives the number of items alone, the errors are those of a count, and the photograph says how frequent
each count is.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bintally.scoring.compositions import convolve, quantity_tables
from bintally.scoring.lists import PRODUCTS_AT_ONCE, Lists
from bintally.scoring.metrics import Counts, Floats
from bintally.scoring.record_errors import DECIMALS, error_model, offsets, possible_errors, quotient
from bintally.scoring.record_model import FLOOR, RecordModel

NEVER = -1e30  # a logarithm of 0 that can be subtracted from itself


@dataclass(frozen=True)
class Judgements:
    """Probabilities of what lies in n bins, whose records list m products at most."""

    quantities: Floats
    """(n, m, last + 1) that the only error is in the quantity of one product, which is truly 0, 1, …; 0: not there."""
    unlisted: Floats
    """(n, last) that 1, 2, … items of a product lie there that is not listed."""
    counts: Floats
    """(n, counts) of the number of items."""
    error: Floats
    """(n,) that the record is wrong, to DECIMALS."""
    error_by_list: Floats
    """(n,) the same before the photograph is seen."""

    def take(self, rows: Counts) -> "Judgements":
        return Judgements(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


def judge(model: RecordModel, probabilities: Floats, lists: Lists, error_rate: float) -> Judgements:
    """Judge records whose number of items is one of the model's counts.

    Args:
        probabilities: (n, counts) of the photograph alone, calibrated.
        lists: what the records list.
        error_rate: fraction of records that are wrong, before a record and its photograph are seen.
    """
    number, last = lists.quantities.shape[0], max(model.totals.last, 1)
    judged = Judgements(
        np.zeros((*lists.quantities.shape, last + 1)),
        np.zeros((number, last)),
        np.zeros((number, len(model.totals.counts))),
        np.zeros(number),
        np.zeros(number),
    )
    evidence = model.evidence(probabilities)
    for rows, places, packed in lists.by_length():  # so that one long list costs the others nothing
        if packed.named.all():
            part = _judge(model, evidence[rows], packed, error_rate)
        else:
            part = _judge_by_count(model, probabilities[rows], packed, error_rate)
        judged.quantities[rows[:, None], places] = part.quantities
        for name in ("unlisted", "counts", "error", "error_by_list"):
            getattr(judged, name)[rows] = getattr(part, name)
    return judged


def _judge_by_count(model: RecordModel, probabilities: Floats, lists: Lists, error_rate: float) -> Judgements:
    """The judgements of records of which the number of items is all that is known, as of one product's."""
    (number, most), columns = lists.quantities.shape, model.totals.column(lists.totals)
    counts, last = np.asarray(model.totals.counts), max(model.totals.last, 1)
    chances = error_rate * error_model(model.totals.counts)[:, columns].T
    chances[np.arange(number), columns] = 1 - error_rate
    posterior = probabilities * chances + FLOOR * (chances > 0)
    posterior /= posterior.sum(1, keepdims=True)
    wrong = posterior * (np.arange(len(counts)) != columns[:, None])
    quantities = np.zeros((number, most, last + 1))
    quantities[:, :1, counts] = wrong[:, None]
    able = np.full(number, error_rate * (len(counts) > 1)).round(DECIMALS)
    return Judgements(quantities, np.zeros((number, last)), posterior, wrong.sum(1).round(DECIMALS), able)


def _judge(model: RecordModel, evidence: Floats, lists: Lists, error_rate: float) -> Judgements:
    """The judgements of records that all list as many products."""
    hypotheses = _Hypotheses(model, lists)
    before = hypotheses.log_weights(error_rate)
    by_list = _normalised(before)
    columns, number = hypotheses.columns, len(evidence)
    of_none = np.zeros((number, 1))  # the column of what is not allowed
    posterior = _normalised(before + np.take_along_axis(np.concatenate([evidence, of_none], 1), columns, 1))
    counts = np.zeros((number, evidence.shape[1] + 1))
    np.add.at(counts, (np.arange(number)[:, None], columns), posterior)
    quantities, unlisted = hypotheses.unpack(posterior)
    return Judgements(
        quantities, unlisted, counts[:, :-1], (1 - posterior[:, 0]).round(DECIMALS), (1 - by_list[:, 0]).round(DECIMALS)
    )


def _normalised(log_weights: Floats) -> Floats:
    weights = np.exp(log_weights - log_weights.max(1, keepdims=True))
    return np.asarray(weights / weights.sum(1, keepdims=True))


class _Hypotheses:
    """What may truly lie in each bin: column 0 the record, then each product and quantity, then unlisted products."""

    def __init__(self, model: RecordModel, lists: Lists) -> None:
        self._model, self._lists = model, lists
        self._totals, self._last = model.totals, max(model.totals.last, 1)
        self._number, self._most = lists.quantities.shape
        self._capped = np.minimum(lists.quantities, self._last)
        self._offsets = np.array(offsets(self._last))
        places = np.arange(self._last + 1)
        # True number of items by hypothesis.
        changed = lists.totals[:, None, None] - lists.quantities[..., None] + places
        added = lists.totals[:, None] + places[1:]
        self._flat = (self._number, self._most * (self._last + 1))
        true_totals = np.concatenate([lists.totals[:, None], changed.reshape(self._flat), added], 1)
        allowed = self._totals.allow(true_totals)
        self.columns = np.where(allowed, self._totals.column(true_totals.clip(0)), len(self._totals.counts))

    def unpack(self, values: Floats) -> tuple[Floats, Floats]:
        """(n, m, last + 1) of products and (n, last) of unlisted ones from (n, hypotheses)."""
        of_products = values[:, 1 : -self._last].reshape(self._number, self._most, self._last + 1)
        return of_products, values[:, -self._last :]

    def log_weights(self, error_rate: float) -> Floats:
        """(n, hypotheses) the logarithm of the probability before the photograph is seen, up to a constant per row."""
        able = possible_errors(self._lists.quantities, self._model.error_shares, self._totals).is_any
        right = self._log_frequency_as_listed() + np.log1p(-error_rate * able)  # some contents no error can change
        wrong = np.concatenate([self._other_quantities(), self._unlisted()], 1) + np.log(error_rate)
        weights = np.concatenate([right[:, None], wrong], 1)
        return np.where(self.columns < len(self._totals.counts), weights, NEVER).clip(NEVER)

    def _log_frequency_as_listed(self) -> Floats:
        """(n,) how frequent compositions such as the listed ones are."""
        tables, whole = self._tables(self._lists.sizes, self._lists.present, 0)
        return np.asarray(self._listed(tables).sum(1) - whole + self._log_numbers(0))

    def _other_quantities(self) -> Floats:
        """(n, m * (last + 1)) of one product in another quantity, or not there."""
        last, lists = self._last, self._lists
        tables, whole = self._tables(lists.sizes, lists.present, 0)
        listed = self._listed(tables)
        fewer = self._log_frequency_without_one()
        result = np.empty((self._number, self._most, last + 1))
        for place in range(self._most):
            others = listed.sum(1) - listed[:, place]
            frequency = self._log_numbers(0)[:, None] + others[:, None] + tables[:, place] - whole[:, None]
            result[:, place] = frequency + self._log_error_of_quantity(place)
            result[:, place, 0] = fewer[:, place] + self._log_error_of_missing(place)
        return result.reshape(self._flat)

    def _log_error_of_quantity(self, place: int) -> Floats:
        """(n, last + 1) the log-probability that the listed quantity of a product was recorded for another one."""
        true = np.repeat(self._lists.quantities[:, None], self._last + 1, 1)
        true[:, :, place] = np.arange(self._last + 1)
        possible = possible_errors(true.reshape(-1, self._most), self._model.error_shares, self._totals)
        chances = possible.offsets.reshape(self._number, self._last + 1, len(self._offsets))
        steps = self._lists.quantities[:, place, None] - np.arange(self._last + 1)
        return _log(possible.shares["quantity"].reshape(steps.shape) * self._of_offset(chances, steps))

    def _of_offset(self, chances: Floats, steps: Counts) -> Floats:
        """The chance of each step, (n, steps), from (n, steps, offsets); 0 for a step that is no offset."""
        places = self._offsets.searchsorted(steps).clip(max=len(self._offsets) - 1)
        found = np.take_along_axis(chances, places[..., None], 2)[..., 0]
        return np.where(self._offsets[places] == steps, found, 0.0)

    def _log_frequency_without_one(self) -> Floats:
        """(n, m) how frequent the listed compositions are without one of their products."""
        number, most = self._number, self._most
        result = np.empty((number, most))
        at_once = max(1, PRODUCTS_AT_ONCE // max(1, number * most))
        for first in range(0, most, at_once):
            places = range(first, min(first + at_once, most))
            others = np.array([[other for other in range(most) if other != place] for place in places], np.int64)
            shape = number * len(places), most - 1
            sizes = self._lists.sizes[:, others]
            fewer = Lists(self._lists.quantities[:, others].reshape(shape), sizes.reshape(*shape, sizes.shape[-1]))
            frequencies = _Hypotheses(self._model, fewer)._log_frequency_as_listed()
            result[:, places] = frequencies.reshape(number, len(places))
        return result

    def _log_error_of_missing(self, place: int) -> Floats:
        """(n,) the log-probability that a product was added to the true contents in the quantity listed."""
        true = self._lists.quantities.copy()
        true[:, place] = 0
        shares = possible_errors(true, self._model.error_shares, self._totals).shares["missing"]
        frequencies = np.asarray(self._model.compositions.quantities)
        fits = self._totals.allow(true.sum(1)[:, None] + np.arange(1, len(frequencies) + 1))
        added = frequencies[self._capped[:, place].clip(1) - 1]
        chance = quotient(added, (fits * frequencies).sum(1)) / self._lists.present.sum(1).clip(1)
        return _log(shares * chance)

    def _unlisted(self) -> Floats:
        """(n, last) of one more product."""
        lists, last = self._lists, self._last
        sizes = np.pad(lists.sizes, ((0, 0), (0, 1), (0, 0)), constant_values=np.nan)
        present = np.pad(lists.present, ((0, 0), (0, 1)), constant_values=True)
        tables, whole = self._tables(sizes, present, 1)
        frequency = self._listed(tables[:, :-1]).sum(1)[:, None] + tables[:, -1, 1:] - whole[:, None]
        number = present.sum(1)
        true = np.repeat(np.pad(lists.quantities, ((0, 0), (0, 1)))[:, None], last, 1)
        true[:, :, -1] = np.arange(1, last + 1)
        possible = possible_errors(true.reshape(-1, self._most + 1), self._model.error_shares, self._totals)
        steps = np.broadcast_to(-np.arange(1, last + 1), (self._number, last))
        lost = self._of_offset(
            possible.offsets.reshape(self._number, last, len(self._offsets)), steps
        )  # by a wrong quantity
        left_out = quotient(possible.shares["unlisted"], possible.removable).reshape(self._number, last)
        errors = left_out + possible.shares["quantity"].reshape(self._number, last) * lost
        # Any of its products may be the one that is not listed.
        return np.asarray(frequency + (self._log_numbers(1) + np.log(number))[:, None] + _log(errors))

    def _tables(self, sizes: Floats, present: NDArray[np.bool_], more: int) -> tuple[Floats, Floats]:
        """Log-probabilities, (n, m, last + 1), of the quantities of each product in bins of so many more products than
        are listed, and the log-probability, (n,), that their sum is allowed.
        """
        number = (self._lists.present.sum(1) + more).clip(1)
        terms = self._model.compositions.terms(sizes, np.broadcast_to(number[:, None], present.shape))
        tables = quantity_tables(terms, present)
        sums = convolve(tables, self._totals.open_ended).of_all[:, self._totals.counts].sum(1)
        return _log(tables), _log(sums)

    def _listed(self, tables: Floats) -> Floats:
        """(n, m) the entries of the listed quantities."""
        return np.take_along_axis(tables, self._capped[..., None], 2)[..., 0]

    def _log_numbers(self, more: int) -> Floats:
        """(n,) the logarithm of the share of bins with so many more products than are listed."""
        sizes = np.where(self._lists.present[..., None], self._lists.sizes, np.nan)
        return self._model.compositions.log_numbers((self._lists.present.sum(1) + more).clip(0), sizes)


def _log(values: Floats) -> Floats:
    with np.errstate(divide="ignore"):
        return np.log(values).clip(NEVER)
