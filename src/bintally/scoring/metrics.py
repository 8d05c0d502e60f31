"""Metrics of predictions for bins of known count, with intervals bootstrapped by group."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bintally.scoring.decoding import DECODINGS, decode_counts

BINS = 10  # of confidence
WEIGHTS_AT_ONCE = 4_000_000  # of resampled groups
DECIMALS = 9  # of a confidence that is compared: further ones depend on the CPU
Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class LabelledPredictions:
    """Predictions for bins of known count."""

    probabilities: Floats
    """(n, classes), rows sum to 1."""
    truth: Counts
    """(n,) the counts of the records."""
    groups: Sequence[str]
    """(n,) photographs of the same bin have the same group."""
    counts: Sequence[int]
    """The count each class stands for, ascending."""


def columns(scored: LabelledPredictions) -> dict[str, Floats]:
    """The values of each image that metrics are sums of: (n,) each, ``bin_*`` (n, BINS)."""
    true_class = np.searchsorted(scored.counts, scored.truth)
    result: dict[str, Floats] = {
        # A probability that underflowed to 0 would make the mean infinite.
        "loss": -np.log(scored.probabilities[np.arange(len(true_class)), true_class].clip(1e-12))
    }
    for rule in DECODINGS:
        error = (decode_counts(scored.probabilities, scored.counts, rule) - scored.truth).astype(np.float64)
        result[f"{rule}.accuracy"] = (error == 0).astype(np.float64)
        result[f"{rule}.square"] = error**2
        result[f"{rule}.mae"] = np.abs(error)
        result[f"{rule}.within_one"] = (np.abs(error) <= 1).astype(np.float64)
    confidence = scored.probabilities.max(1)
    member = np.eye(BINS)[confidence_bins(scored.probabilities)]
    result["bin_confidence"] = member * confidence[:, None]
    result["bin_correct"] = member * result["most_probable.accuracy"][:, None]
    return result


def confidence_bins(probabilities: Floats) -> NDArray[np.int64]:
    """The one of BINS equal bins that the confidence of each row, (n, classes), falls into: (n,)."""
    return np.asarray(np.minimum(probabilities.max(1).round(DECIMALS) * BINS, BINS - 1), np.int64)


def _metrics(sums: dict[str, Floats], number: Floats) -> dict[str, Floats]:
    """Metrics from sums over images; a leading axis of resamples is kept."""
    gap = np.abs(sums["bin_confidence"] - sums["bin_correct"]).sum(-1)
    metrics = {"loss": sums["loss"] / number, "calibration_error": gap / number}
    for rule in DECODINGS:
        for name in ("accuracy", "mae", "within_one"):
            metrics[f"{rule}.{name}"] = sums[f"{rule}.{name}"] / number
        metrics[f"{rule}.rmse"] = np.sqrt(sums[f"{rule}.square"] / number)
    return metrics


def evaluate(scored: LabelledPredictions, resamples: int, seed: int) -> dict[str, Any]:
    """Metrics over all images, each with a 95 % percentile interval bootstrapped by group.

    Loss is the mean cross-entropy in nats; calibration error the expected calibration error over BINS equal bins of
    confidence (Guo et al. 2017, arXiv:1706.04599); RMSE and MAE are of whole counts, in items; ``within_one`` is the
    fraction at most one item off. Returns ``images``, ``groups``, ``loss``, ``calibration_error``, one dict per
    decoding rule, and ``interval_95`` of the same shape with [low, high].
    """
    values = columns(scored)
    number = np.asarray(len(scored.truth), np.float64)
    metrics = _metrics({name: column.sum(0) for name, column in values.items()}, number)

    names, member = np.unique(list(scored.groups), return_inverse=True)
    by_group = {name: np.zeros((len(names), *column.shape[1:])) for name, column in values.items()}
    for name, column in values.items():
        np.add.at(by_group[name], member, column)
    size = np.bincount(member).astype(np.float64)
    resampled = _resampled(by_group | {"size": size}, resamples, seed)
    return {
        "images": len(scored.truth),
        "groups": len(names),
        **_nested({name: float(value) for name, value in metrics.items()}),
        "interval_95": _nested({name: np.percentile(resampled[name], [2.5, 97.5]).tolist() for name in metrics}),
    }


def _resampled(by_group: dict[str, Floats], resamples: int, seed: int) -> dict[str, Floats]:
    """The metrics, (resamples,) each, of as many groups drawn with replacement, from sums over each group."""
    groups, random = len(by_group["size"]), np.random.default_rng(seed)
    chances, at_once = np.full(groups, 1 / groups), max(1, WEIGHTS_AT_ONCE // groups)
    parts = []
    for start in range(0, resamples, at_once):  # the draws are those of one call, the memory is not
        drawn = random.multinomial(groups, chances, min(at_once, resamples - start)).astype(np.float64)
        sums = {name: drawn @ column for name, column in by_group.items()}
        parts.append(_metrics(sums, sums["size"]))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def per_class(scored: LabelledPredictions, rule: str) -> list[dict[str, float]]:
    """Accuracy and RMSE of the bins of each count that occurs."""
    errors = decode_counts(scored.probabilities, scored.counts, rule) - scored.truth
    return [
        {
            "count": count,
            "images": len(of_count),
            "accuracy": float((of_count == 0).mean()),
            "rmse": float(np.sqrt((of_count**2).mean())),
        }
        for count in scored.counts
        if len(of_count := errors[scored.truth == count])
    ]


def reliability(scored: LabelledPredictions) -> list[dict[str, float]]:
    """Mean confidence and accuracy of the images in each bin of confidence that has any."""
    confidence, inside = scored.probabilities.max(1), confidence_bins(scored.probabilities)
    right = columns(scored)["most_probable.accuracy"]
    return [
        {
            "confidence": float(confidence[inside == place].mean()),
            "accuracy": float(right[inside == place].mean()),
            "images": int((inside == place).sum()),
        }
        for place in np.unique(inside)
    ]


def risk_coverage(scored: LabelledPredictions) -> list[dict[str, float]]:
    """The fraction of wrong answers among the most confident ones, for every twentieth of the images."""
    ranked = np.argsort(-scored.probabilities.max(1).round(DECIMALS), kind="stable")
    wrong = 1 - columns(scored)["most_probable.accuracy"][ranked]
    ends = [max(1, round(len(wrong) * share / 20)) for share in range(1, 21)]
    return [{"answered": end / len(wrong), "risk": float(wrong[:end].mean())} for end in dict.fromkeys(ends)]


def confusion(scored: LabelledPredictions, rule: str) -> Counts:
    """The number of bins by true count (row) and predicted count (column): (classes, classes)."""
    predicted = np.searchsorted(scored.counts, decode_counts(scored.probabilities, scored.counts, rule))
    table = np.zeros((len(scored.counts),) * 2, dtype=np.int64)
    np.add.at(table, (np.searchsorted(scored.counts, scored.truth), predicted), 1)
    return table


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in flat.items():
        section, _, key = name.rpartition(".")
        (result.setdefault(section, {}) if section else result)[key] = value
    return result
