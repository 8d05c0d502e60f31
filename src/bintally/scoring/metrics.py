"""What a set of predictions is worth, with intervals that know photographs of one bin are not independent."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bintally.scoring.decoding import DECODINGS, decode_counts

BINS = 10
Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class LabelledPredictions:
    """Predictions for bins whose count is known."""

    probabilities: Floats
    """(n, classes), rows sum to 1."""
    truth: Counts
    """(n,) the counts of the records."""
    groups: Sequence[str]
    """(n,) which bins are photographs of one and the same."""
    counts: Sequence[int]
    """The count each class stands for, ascending."""


def columns(scored: LabelledPredictions) -> dict[str, Floats]:
    """Per image, everything whose mean or sum a metric is made of; each (n,), ``bin_*`` (n, BINS)."""
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
    member = np.eye(BINS)[np.minimum((confidence * BINS).astype(int), BINS - 1)]
    result["bin_confidence"] = member * confidence[:, None]
    result["bin_correct"] = member * result["most_probable.accuracy"][:, None]
    return result


def _figures(sums: dict[str, Floats], number: Floats) -> dict[str, Floats]:
    """Metrics from sums over images; a leading axis of resamples is kept."""
    figures = {"loss": sums["loss"] / number}
    gap = np.abs(sums["bin_confidence"] - sums["bin_correct"]).sum(-1)
    figures["calibration_error"] = gap / number
    for rule in DECODINGS:
        for name in ("accuracy", "mae", "within_one"):
            figures[f"{rule}.{name}"] = sums[f"{rule}.{name}"] / number
        figures[f"{rule}.rmse"] = np.sqrt(sums[f"{rule}.square"] / number)
    return figures


def evaluate(scored: LabelledPredictions, resamples: int, seed: int) -> dict[str, Any]:
    """Overall figures of a test set, each with a 95 % percentile interval bootstrapped by group.

    Loss is mean cross-entropy in nats; calibration error the expected calibration error over ten equal bins of
    confidence (Guo et al. 2017, arXiv:1706.04599); RMSE and MAE are of whole counts, in items; ``within_one`` is
    the share at most one item off.

    Returns:
        Nested dict: ``images``, ``groups``, ``loss``, ``calibration_error``, one dict a decoding rule, and
        ``interval_95`` of the same shape with [low, high].
    """
    values = columns(scored)
    number = np.float64(len(scored.truth))
    point = _figures({name: column.sum(0) for name, column in values.items()}, np.asarray(number))

    names, member = np.unique(list(scored.groups), return_inverse=True)
    by_group = {name: _sum_by(column, member, len(names)) for name, column in values.items()}
    size = np.bincount(member).astype(np.float64)
    random = np.random.default_rng(seed)
    drawn = [random.multinomial(len(names), np.full(len(names), 1 / len(names))) for _ in range(resamples)]
    weights = np.array(drawn, dtype=np.float64)
    spread = _figures({name: weights @ column for name, column in by_group.items()}, weights @ size)
    interval = {name: np.percentile(spread[name], [2.5, 97.5]).tolist() for name in point}
    return {
        "images": len(scored.truth),
        "groups": len(names),
        **_nested({name: float(value) for name, value in point.items()}),
        "interval_95": _nested(interval),
    }


def per_class(scored: LabelledPredictions, rule: str) -> list[dict[str, float]]:
    """Accuracy and RMSE of the bins of each count."""
    predicted = decode_counts(scored.probabilities, scored.counts, rule)
    rows = []
    for count in scored.counts:
        of_count = scored.truth == count
        if of_count.any():
            error = (predicted - scored.truth)[of_count]
            rows.append(
                {
                    "count": count,
                    "images": int(of_count.sum()),
                    "accuracy": float((error == 0).mean()),
                    "rmse": float(np.sqrt((error**2).mean())),
                }
            )
    return rows


def reliability(scored: LabelledPredictions) -> list[dict[str, float]]:
    """Mean confidence and accuracy in each bin of confidence that holds an image."""
    values = columns(scored)
    inside = np.minimum((scored.probabilities.max(1) * BINS).astype(int), BINS - 1)
    rows = []
    for place in np.unique(inside):
        images = inside == place
        rows.append(
            {
                "confidence": float(values["bin_confidence"][images, place].mean()),
                "accuracy": float(values["bin_correct"][images, place].mean()),
                "images": int(images.sum()),
            }
        )
    return rows


def risk_coverage(scored: LabelledPredictions) -> list[dict[str, float]]:
    """The share of wrong answers among the surest: a row for every twentieth of the images, ties in order of image."""
    wrong = 1 - columns(scored)["most_probable.accuracy"][np.argsort(-scored.probabilities.max(1), kind="stable")]
    ends = [max(1, round(len(wrong) * share / 20)) for share in range(1, 21)]
    return [{"answered": end / len(wrong), "risk": float(wrong[:end].mean())} for end in dict.fromkeys(ends)]


def confusion(scored: LabelledPredictions, rule: str) -> Counts:
    """(classes, classes) number of bins by true count (row) and predicted count (column)."""
    predicted = np.searchsorted(scored.counts, decode_counts(scored.probabilities, scored.counts, rule))
    table = np.zeros((len(scored.counts),) * 2, dtype=np.int64)
    np.add.at(table, (np.searchsorted(scored.counts, scored.truth), predicted), 1)
    return table


def _sum_by(column: Floats, member: NDArray[np.intp], groups: int) -> Floats:
    sums = np.zeros((groups, *column.shape[1:]))
    np.add.at(sums, member, column)
    return sums


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in flat.items():
        *path, last = name.split(".")
        inner = result
        for part in path:
            inner = inner.setdefault(part, {})
        inner[last] = value
    return result
