"""Bins ranked by the probability that their record is wrong."""

from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np

from bintally.apps.audit_records import AuditRecords, BinContents
from bintally.apps.scores import Scores, prediction_rows
from bintally.bins.groups import group_bins
from bintally.errors import UserError
from bintally.scoring.audit import rank_records
from bintally.scoring.calibration import Floats


@dataclass(frozen=True)
class Audit:
    """Bins, those whose record is most likely wrong first, those that cannot be ranked last."""

    error_rate: float
    counts: list[int]
    ids: list[str]
    contents: list[BinContents]
    groups: list[str]
    probabilities: Floats
    """(bins, counts)."""
    predictions: list[list[int]]
    """(bins, PREDICTION_COLUMNS)."""
    error_probabilities: Floats
    """(ranked,) of the first bins, descending."""
    left_out: dict[str, int]
    """Number of bins by reason."""
    rejected: list[tuple[str, str]]
    """Id and reason."""

    @cached_property
    def ranked(self) -> int:
        """The number of bins whose record is one of the counts."""
        return len(self.error_probabilities)


def rank_bins(records: AuditRecords, scores: Scores, error_rate: float | None) -> Audit:
    """Rank all bins that have a score.

    Args:
        error_rate: fraction of records assumed to be wrong; None: that of the calibration.

    Raises UserError if no bin has a score.
    """
    calibration = scores.calibration
    parts = list(scores)
    rejected = [*records.rejected, *chain.from_iterable(part.rejected for part in parts)]
    ids = [bin_id for part in parts for bin_id in part.ids]
    if not ids:
        raise UserError(f"none of the photographs can be scored: {parts[0].rejected[0][1]}")
    probabilities = np.concatenate([part.probabilities for part in parts])
    counts_in_records = np.array([records.bins[bin_id].record.count for bin_id in ids])
    if calibration.open_ended:
        counts_in_records = np.minimum(counts_in_records, calibration.counts[-1])
    share = error_rate or calibration.record_error_rate
    order, error_probabilities = rank_records(probabilities, calibration.counts, counts_in_records, share, ids)
    groups = group_bins({bin_id: records.bins[bin_id].record.asins for bin_id in ids})
    ids = [ids[row] for row in order]
    return Audit(
        share,
        calibration.counts,
        ids,
        [records.bins[bin_id] for bin_id in ids],
        [groups[bin_id] for bin_id in ids],
        probabilities[order],
        prediction_rows(probabilities[order], calibration),
        error_probabilities,
        records.left_out,
        rejected,
    )
