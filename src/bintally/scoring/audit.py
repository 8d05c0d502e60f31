"""The probability that a record is wrong, given the photograph, and how well a ranking by it finds wrong records."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bintally.scoring.metrics import Counts, Floats

OFFSETS = (-2, -1, 1, 2)  # of most wrong records from the true count, all equally likely
TAIL = 0.1  # each item further off is this much as likely as the one before
MAX_EXPONENT = 300
ERROR_KINDS = ("one_off", "two_off", "left_out")
RECOUNT_SHARES = (0.05, 0.1, 0.2)
DECIMALS = 9  # of probabilities that are ranked: further ones depend on the CPU


def error_model(counts: Sequence[int]) -> Floats:
    """The probability of each wrong record (column) given the true count (row): (counts, counts).

    Those one or two off (OFFSETS) are equally likely, each further one TAIL times as likely as one an item nearer: no
    error is impossible. If every other count is further off than that, the nearest ones take the place of these.
    """
    distances = np.abs(np.subtract.outer(counts, counts)).astype(np.float64)
    is_wrong = distances > 0
    beyond = np.clip(distances - max(OFFSETS), 0, None)
    nearest = np.where(is_wrong, beyond, beyond.max()).min(1, keepdims=True)
    # The exponent is bounded, so that no probability becomes 0 by underflow.
    possible = np.where(is_wrong, TAIL ** np.clip(beyond - nearest, 0, MAX_EXPONENT), 0)
    return np.asarray(possible / possible.sum(1, keepdims=True).clip(1))


def error_probability(probabilities: Floats, counts: Sequence[int], records: Counts, share: float) -> Floats:
    """The probability that each record is wrong, (n,), by Bayes' rule, to DECIMALS.

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


def rank_records(
    probabilities: Floats, counts: Sequence[int], records: Counts, share: float, ids: Sequence[str]
) -> tuple[NDArray[np.int64], Floats]:
    """Rank bins by :func:`error_probability`, equal ones by id; records that are none of ``counts`` come last.

    Returns (n,) the rows in order, and the probabilities of those that can be ranked, descending.
    """
    known = np.flatnonzero(np.isin(records, counts))
    values = error_probability(probabilities[known], counts, records[known], share)
    order = np.lexsort((np.asarray(ids)[known], -values))
    unknown = np.setdiff1d(np.arange(len(records)), known)
    return np.concatenate([known[order], unknown]), values[order]


def inject_errors(
    records: Counts,
    quantities: Sequence[Sequence[int]],
    counts: Sequence[int],
    share: float,
    random: np.random.Generator,
) -> tuple[Counts, list[str]]:
    """Replace a share of the records, (n,) each one of ``counts``, by wrong ones: at least one, and not all.

    Half of these leave out one of the bin's products, where it has several (``quantities``: of each product in each
    bin) and the rest is one of ``counts``; the others are one or two off.

    Returns (n,) records, and the kind of each one's error: one of ERROR_KINDS, or "".
    """
    changed, kinds = records.copy(), [""] * len(records)
    number = min(max(1, round(share * len(records))), len(records) - 1)
    for row in random.choice(len(records), number, replace=False):
        truth = int(records[row])
        remainders = [truth - quantity for quantity in quantities[row] if truth - quantity in counts]
        near = [truth + offset for offset in OFFSETS if truth + offset in counts]
        left_out = remainders and random.random() < 0.5
        changed[row] = random.choice(remainders if left_out else near or [count for count in counts if count != truth])
        kinds[row] = "left_out" if left_out else ERROR_KINDS[min(abs(int(changed[row]) - truth), 2) - 1]
    return changed, kinds


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


def _found(scores: Floats, is_wrong: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Numbers of records ranked, and of wrong ones among them, at the end of each group of equal scores, from 0."""
    _, tie, sizes = np.unique(-scores, return_inverse=True, return_counts=True)
    return np.append(0.0, sizes.cumsum()), np.append(0.0, np.bincount(tie, is_wrong).cumsum())
