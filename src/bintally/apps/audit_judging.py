"""An audit's judgement: the order in which to recount bins, and what is likely wrong with each record."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bintally.apps.audit_reading import AuditedBins
from bintally.apps.predictions import prediction_rows
from bintally.apps.records import explain_record
from bintally.bins.groups import group_bins
from bintally.errors import UserError
from bintally.scoring.audit import Stakes, rank_records
from bintally.scoring.calibration import Floats
from bintally.scoring.explain import Evidence, Hypothesis, evidence, likely_counts
from bintally.scoring.judgement import Judgements
from bintally.scoring.lists import Lists
from bintally.scoring.metrics import Counts
from bintally.scoring.record_model import RecordModel


@dataclass(frozen=True)
class Audit:
    """Bins in order: the most probably wrong record first, records that cannot be judged last."""

    bins: AuditedBins
    groups: list[str]
    error_rate: float
    """Fraction of records assumed to be wrong before anything is seen."""
    record_counts: Counts
    """(bins,) the number of items that the record lists."""
    photograph: Counts
    """(bins, PREDICTION_COLUMNS) of the photograph alone."""
    given_products: Counts
    """(bins, PREDICTION_COLUMNS) of the photograph and the products that the record lists,"""
    given_products_probabilities: Floats
    """and the probabilities: (bins, counts)."""
    can_count: NDArray[np.bool_]
    """(bins,) whether some count is possible with these products."""
    judged: Judgements
    """Of the first bins, whose number of items the model predicts."""
    at_stake: Floats
    """(judged,) what they are ranked by, the largest first: the probability of an error that matters, or the value of
    what is expected to be wrong."""
    stakes: Stakes
    evidence: Evidence
    likely_counts: Counts
    """(judged,) the most probable number of items."""

    @property
    def ranked(self) -> int:
        """The number of bins whose record could be judged."""
        return len(self.judged.error)

    def explain(self, row: int) -> tuple[list[Hypothesis], str]:
        """What may be wrong with the record of a ranked bin, and the verdict in words."""
        return explain_record(self.judged, row, self.bins.records[row])


def judge_bins(
    bins: AuditedBins, model: RecordModel, error_rate: float | None, by_value: bool = False, tolerance: int = 0
) -> Audit:
    """Judge all records and rank their bins.

    Args:
        error_rate: fraction of records assumed to be wrong; None: that of the calibration.
        by_value: rank by the value of what is expected to be wrong.
        tolerance: errors of no more items do not matter.

    Raises UserError if values are wanted and no record has one.
    """
    share = error_rate or bins.calibration.record_error_rate
    lists = Lists.of(bins.records)
    stakes = Stakes(tolerance, _values(bins, lists) if by_value else None)
    order, judged, at_stake = rank_records(model, bins.probabilities, lists, share, bins.ids, stakes)
    bins, lists = bins.take(order), lists.take(order)
    given_products = model.count_given_products(bins.probabilities, bins.tables, lists)
    groups = group_bins(
        {
            bin_id: frozenset(one.key for one in products)
            for bin_id, products in zip(bins.ids, bins.records, strict=True)
        },
        bins.bins,
    )
    return Audit(
        bins=bins,
        groups=[groups[bin_id] for bin_id in bins.ids],
        error_rate=share,
        record_counts=lists.totals,
        photograph=prediction_rows(bins.probabilities, bins.calibration),
        given_products=prediction_rows(given_products, model.answers),
        given_products_probabilities=given_products,
        can_count=model.can_count(lists),
        judged=judged,
        at_stake=at_stake,
        stakes=stakes,
        evidence=evidence(judged, share),
        likely_counts=likely_counts(judged, model.answers.counts),
    )


def _values(bins: AuditedBins, lists: Lists) -> Floats:
    """(bins, m) of one item of each product, NaN where not known."""
    values = np.full(lists.quantities.shape, np.nan)
    for row, products in enumerate(bins.records):
        values[row, : len(products)] = [one.value for one in products]
    if not np.isfinite(values).any():
        remedy = "name the column that has it in fetch.table.value"
        raise UserError(f"--by value: no record of {bins.source} says what an item is worth; {remedy}")
    return values
