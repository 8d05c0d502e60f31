"""How likely a record is wrong, given the photograph, and how well a ranking by that finds wrong records."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from bintally.model.kinship import leanings, members, together
from bintally.scoring.metrics import Counts, Floats

OFF = (-2, -1, 1, 2)  # what a wrong record is taken to be away from what lies in the bin, one as likely as another
KINDS = ("one_off", "two_off", "left_out")
RECOUNTED = (0.05, 0.1, 0.2)


def error_model(counts: Sequence[int]) -> Floats:
    """(counts, counts) the probability that a wrong record of a bin that holds the first says the second."""
    off = np.subtract.outer(np.asarray(counts), np.asarray(counts))
    possible = np.isin(off, OFF).astype(np.float64)
    lonely = possible.sum(1) == 0
    possible[lonely] = off[lonely] != 0  # of counts far apart any other will do
    return np.asarray(possible / possible.sum(1, keepdims=True).clip(1))


def wrong(
    probabilities: Floats,
    counts: Sequence[int],
    records: Counts,
    share: float,
    groups: Sequence[str] | None = None,
    kinship: float = 0.0,
) -> Floats:
    """The probability that each record is wrong, (n,), by Bayes' rule.

    Before the photograph is seen a record is wrong with probability ``share`` and then says what :func:`error_model`
    allows; of what lies in the bin the photograph says ``probabilities``. Photographs of one group are seen together,
    as :mod:`bintally.model.kinship` has it: where the records of two differ and the photographs do not, one of them is
    likely wrong, and a lean that two photographs share is no evidence against either.

    Args:
        probabilities: (n, counts), calibrated.
        records: (n,) each one of ``counts``.
        groups: (n,) which are photographs of one bin; None: each is alone.
    """
    here, said = np.arange(len(records)), np.searchsorted(counts, records)
    alone = _right_and_wrong(probabilities[None], said, error_model(counts), share)
    result = (alone[1] / alone.sum(0))[0]
    if groups is None or not kinship or not len(records):
        return np.asarray(result)
    member = members(groups)
    several = here[np.bincount(member)[member] > 1]
    if len(several):
        member = np.unique(member[several], return_inverse=True)[1]
        leaning, weights = leanings(probabilities[several], counts, kinship)
        right_or_wrong = _right_and_wrong(leaning, said[several], error_model(counts), share)
        seen = right_or_wrong.sum(0)
        _, after = together(seen, weights, member)
        result[several] = (after[:, member] * right_or_wrong[1] / seen).sum(0)
    return np.asarray(result)


def _right_and_wrong(leaning: Floats, said: NDArray[np.intp], mistaken: Floats, share: float) -> Floats:
    """(2, nodes, n) the probability of the record where it is right, and where it is wrong."""
    right = leaning[:, np.arange(len(said)), said] * (1 - share)
    return np.stack([right, (leaning * mistaken[:, said].T).sum(2) * share])


def inject_errors(
    records: Counts, products: Sequence[Sequence[int]], counts: Sequence[int], share: float, random: np.random.Generator
) -> tuple[Counts, list[str]]:
    """Records of which a share is made wrong, to see whether that is found.

    Half of those lack one of the bin's products, where it has several and what is left is one of ``counts``; the others
    say one or two more or less.

    Args:
        records: (n,) each one of ``counts``.
        products: of each bin, the quantity of every product.

    Returns:
        (n,) records, and of each what was done to it: "", or one of KINDS.
    """
    said, kinds = records.copy(), [""] * len(records)
    for at in random.choice(len(records), max(1, round(share * len(records))), replace=False):
        truth = int(records[at])
        left = [truth - quantity for quantity in products[at] if truth - quantity in counts]
        others = [truth + off for off in OFF if truth + off in counts] or [count for count in counts if count != truth]
        left_out = left and random.random() < 0.5
        said[at] = random.choice(left if left_out else others)
        kinds[at] = "left_out" if left_out else KINDS[min(abs(int(said[at]) - truth), 2) - 1]
    return said, kinds


@dataclass(frozen=True)
class Budget:
    """What recounting the bins ranked first is worth."""

    recounts: int
    errors: float
    """Wrong records expected among them."""
    share: float
    """Of all wrong records expected."""


def budget(probabilities: Floats, recounts: int) -> Budget:
    """What is expected of recounting so many bins, those likeliest to be wrong; (n,) probabilities of that."""
    recounts = min(recounts, len(probabilities))
    share = float(expected_recall_curve(probabilities)[recounts])
    return Budget(recounts, share * float(probabilities.sum()), share)


def expected_recall_curve(probabilities: Floats) -> Floats:
    """(n + 1,) the share of the wrong records expected among the 0, 1, … likeliest to be wrong."""
    ranked = np.concatenate([[0], np.sort(probabilities)[::-1]]).cumsum()
    return np.asarray(ranked / max(float(ranked[-1]), 1e-12))


def recall_curve(scores: Floats, is_wrong: NDArray[np.bool_]) -> Floats:
    """(n + 1,) the share of the wrong records among the 0, 1, … ranked first; of equal scores any may come first."""
    levels, member = np.unique(-scores, return_inverse=True)
    sizes = np.bincount(member, minlength=len(levels))
    hits = np.bincount(member, weights=is_wrong, minlength=len(levels))
    ends = np.concatenate([[0], sizes.cumsum()])
    found = np.concatenate([[0], hits.cumsum()]) / max(is_wrong.sum(), 1)
    return np.asarray(np.interp(np.arange(len(scores) + 1), ends, found))


def ranking_metrics(scores: Floats, is_wrong: NDArray[np.bool_]) -> dict[str, float]:
    """ROC AUC, average precision, and the share of the wrong records among the first RECOUNTED of a ranking."""
    curve = recall_curve(scores, is_wrong)
    places = np.arange(len(curve)) / len(scores)
    return {
        "auc": float(roc_auc_score(is_wrong, scores)),
        "average_precision": float(average_precision_score(is_wrong, scores)),
        **{f"found_at_{share:.0%}".rstrip("%"): float(np.interp(share, places, curve)) for share in RECOUNTED},
    }
