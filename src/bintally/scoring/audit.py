"""Bins ranked by how likely their record is wrong: the ranking, what recounting will find, how rankings are scored."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bintally.scoring.judgement import Judgements, judge
from bintally.scoring.lists import Lists
from bintally.scoring.metrics import Counts, Floats
from bintally.scoring.record_errors import DECIMALS, ERROR_KINDS
from bintally.scoring.record_model import RecordModel

RECOUNT_SHARES = (0.05, 0.1, 0.2)


@dataclass(frozen=True)
class Stakes:
    """What makes an error worth finding: the number of items that are wrong, or their value."""

    tolerance: int = 0
    """Errors of no more items do not matter."""
    values: Floats | None = None
    """(n, m) of one item of each product that is listed, NaN where not known; None: every error counts as one."""

    def of(self, judged: Judgements, lists: Lists) -> Floats:
        """(n,) the probability of an error that matters, or the expected value of the items that are wrong."""
        if not self.tolerance and self.values is None:
            return judged.error
        last = judged.quantities.shape[2] - 1
        of_products = np.abs(np.arange(last + 1) - lists.quantities[..., None])  # (n, m, last + 1) items
        unlisted = np.arange(1, last + 1)
        if self.values is None:
            worth = of_products > self.tolerance, (unlisted > self.tolerance)[None]
        else:
            known = self.values[np.isfinite(self.values) & lists.present]
            typical = float(np.median(known)) if len(known) else 0.0
            values = np.where(np.isfinite(self.values), self.values, typical)
            of_none = np.where(
                lists.present.any(1), values.mean(1, where=lists.present), typical
            )  # as the others there
            worth = (
                of_products * (of_products > self.tolerance) * values[..., None],
                unlisted * (unlisted > self.tolerance) * of_none[:, None],
            )
        stakes = (judged.quantities * worth[0]).sum((1, 2)) + (judged.unlisted * worth[1]).sum(1)
        return np.asarray(stakes.round(DECIMALS))

    def take(self, rows: Counts) -> "Stakes":
        return self if self.values is None else Stakes(self.tolerance, self.values[rows])


def rank_records(
    model: RecordModel,
    probabilities: Floats,
    lists: Lists,
    error_rate: float,
    ids: Sequence[str],
    stakes: Stakes = Stakes(),
) -> tuple[Counts, Judgements, Floats]:
    """Rank bins by what is at stake, as it is the probability that their record is wrong; equal ones by id.

    Records whose number of items is none of the model's counts cannot be judged and come last, by id.

    Args:
        probabilities: (n, counts) of the photograph alone, calibrated.
        lists: what the records list.
        error_rate: fraction of records assumed to be wrong.

    Returns (n,) the rows in order, and the judgements and stakes of those that can be judged, in this order.
    """
    names = np.asarray(ids)
    known = model.totals.allow(lists.totals)
    rows = np.flatnonzero(known)
    judged = judge(model, probabilities[rows], lists.take(rows), error_rate)
    at_stake = stakes.take(rows).of(judged, lists.take(rows))
    order = np.lexsort((names[rows], -judged.error, -at_stake))
    unknown = np.flatnonzero(~known)
    return np.concatenate([rows[order], unknown[np.argsort(names[unknown])]]), judged.take(order), at_stake[order]


@dataclass(frozen=True)
class RecountEstimate:
    """What recounting the first bins of a ranking is expected to find."""

    recounts: int
    errors: float
    """Expected number of wrong records among them."""
    recall: float
    """Their fraction of all expected wrong records."""


def estimate_recounts(error_probabilities: Floats, recounts: int) -> RecountEstimate:
    """The expected result of recounting the bins with the highest probabilities, (n,), of a wrong record."""
    recounts = min(recounts, len(error_probabilities))
    recall = float(expected_recall_curve(error_probabilities)[recounts])
    return RecountEstimate(recounts, recall * float(error_probabilities.sum()), recall)


def expected_recall_curve(error_probabilities: Floats) -> Floats:
    """The expected fraction of the wrong records among the first 0, 1, … of a ranking by probability: (n + 1,)."""
    found = np.concatenate([[0], np.sort(error_probabilities)[::-1]]).cumsum()
    return np.asarray(found / max(float(found[-1]), 1e-12))


def recall_curve(scores: Floats, is_wrong: NDArray[np.bool_]) -> Floats:
    """The fraction of the wrong records among the first 0, 1, … of a ranking, ties in random order: (n + 1,)."""
    ranked, found = _found(scores, is_wrong)
    return np.asarray(np.interp(np.arange(len(scores) + 1), ranked, found / found[-1]))


def ranking_metrics(scores: Floats, is_wrong: NDArray[np.bool_]) -> dict[str, float]:
    """ROC AUC, average precision, and the fraction of the wrong records among the first RECOUNT_SHARES.

    AUC and average precision are scikit-learn's, whose functions would take most of an experiment's audit.
    """
    ranked, found = _found(scores, is_wrong)
    fractions, curve = np.linspace(0, 1, len(scores) + 1), recall_curve(scores, is_wrong)
    return {
        "auc": float(np.trapezoid(found, ranked - found) / (found[-1] * (ranked[-1] - found[-1]))),
        "average_precision": float((np.diff(found) * found[1:] / ranked[1:]).sum() / found[-1]),
        **{f"found_at_{share * 100:.0f}": float(np.interp(share, fractions, curve)) for share in RECOUNT_SHARES},
    }


def found_by_kind(scores: Floats, kinds: NDArray[np.str_], share: float) -> dict[str, float]:
    """The fraction of each kind of error that there is among the first ``share`` of a ranking, ties in order."""
    first = np.argsort(-scores, kind="stable")[: round(share * len(scores))]
    return {
        f"{kind}_found_at_{share * 100:.0f}": float((kinds[first] == kind).sum() / (kinds == kind).sum())
        for kind in ERROR_KINDS
        if kind in kinds
    }


def _found(scores: Floats, is_wrong: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Numbers of records ranked, and of wrong ones among them, at the end of each group of equal scores, from 0."""
    _, tie, sizes = np.unique(-scores, return_inverse=True, return_counts=True)
    return np.append(0.0, sizes.cumsum()), np.append(0.0, np.bincount(tie, is_wrong).cumsum())
