"""From what a network says to probabilities that mean something, learned on validation. No torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy.optimize import minimize_scalar

from bintally.errors import UserError
from bintally.files import write_text
from bintally.scoring.decoding import DECODINGS, Decoding, decode_counts

Floats = NDArray[np.float64]
TEMPERATURES = (0.05, 20.0)


class Calibration(BaseModel):
    """How a model's distribution is read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    counts: list[int]
    """The counts there are to answer with, ascending: all the model tells apart, or some of them."""
    open_ended: bool
    """Whether the last of them stands for itself and all above it."""
    temperature: float = Field(gt=0)
    """What the log-probabilities are divided by."""
    rmse_decoding: Decoding
    """The rule with the least squared error."""
    coverage: float = Field(gt=0, lt=1)
    """The share of bins whose count is in their set."""
    mass: float = Field(ge=0, le=1)
    """A set takes in counts for as long as it holds no more probability than this."""
    sure: float = Field(gt=0, lt=1)
    """The share of answers that are right where the model does not say that it is unsure."""
    confidence: float | None
    """The least probability of an answer that is no "unsure"; None: every answer is."""
    record_error_rate: float = Field(gt=0, lt=1)
    """The share of records that is taken to be wrong, before their photographs are looked at."""
    kinship: float = Field(ge=0)
    """How far the model errs alike on photographs of one bin: :func:`bintally.model.kinship.fit_kinship`."""


@dataclass(frozen=True)
class Answers:
    """What is answered for n photographs."""

    decoded: dict[Decoding, NDArray[np.int64]]
    """(n,) the count by each rule."""
    low: NDArray[np.int64]
    """(n,) the lowest count of each set."""
    high: NDArray[np.int64]
    unsure: NDArray[np.bool_]


def answer(probabilities: Floats, calibration: Calibration) -> Answers:
    """Counts, sets and doubt, of (n, counts) calibrated probabilities."""
    low, high = (np.asarray(calibration.counts)[ends] for ends in sets(probabilities, calibration.mass))
    least = math.inf if calibration.confidence is None else calibration.confidence
    return Answers(
        {rule: decode_counts(probabilities, calibration.counts, rule) for rule in DECODINGS},
        low,
        high,
        probabilities.max(1) < least,
    )


def save_calibration(folder: Path, calibration: Calibration) -> None:
    write_text(folder / "calibration.json", calibration.model_dump_json(indent=2) + "\n")


def load_calibration(folder: Path) -> Calibration:
    """Read ``calibration.json``. Raises UserError if it is missing or damaged."""
    try:
        return Calibration.model_validate_json((folder / "calibration.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} holds no calibration: {' '.join(str(error).split())[:200]}; `dvc repro`") from error


def calibrated(logs: Floats, learned: Sequence[int], counts: Sequence[int], temperature: float) -> Floats:
    """Probabilities of ``counts``, given that it is one of them.

    Args:
        logs: (n, classes) log-probabilities of the counts ``learned``, ascending.
        counts: some of ``learned``, ascending.

    Returns:
        float64 (n, len(counts)); rows sum to 1.
    """
    chosen = logs[:, np.searchsorted(learned, counts)].astype(np.float64) / temperature
    weights = np.exp(chosen - chosen.max(1, keepdims=True))
    return np.asarray(weights / weights.sum(1, keepdims=True))


def fit_temperature(logs: Floats, classes: NDArray[np.int64]) -> float:
    """The temperature with the least cross-entropy (Guo et al. 2017, arXiv:1706.04599).

    Args:
        logs: (n, classes) log-probabilities.
        classes: (n,) the true class of each row.
    """
    here = np.arange(len(classes))

    def loss(log_temperature: float) -> float:
        scaled = logs / math.exp(log_temperature)
        top = scaled.max(1)
        return float((top + np.log(np.exp(scaled - top[:, None]).sum(1)) - scaled[here, classes]).mean())

    low, high = map(math.log, TEMPERATURES)
    return math.exp(minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6}).x)


def conformal_scores(probabilities: Floats) -> Floats:
    """The probability a set of neighbouring counts holds before each count joins it: (n, classes), as given.

    Sets grow from the most probable count, each time by the more probable of the two beside it.
    """
    rows, classes = probabilities.shape
    here = np.arange(rows)
    low = high = probabilities.argmax(1)
    total = probabilities[here, low].copy()
    before = np.zeros((rows, classes))
    padded = np.pad(probabilities, ((0, 0), (1, 1)), constant_values=-1.0)
    for _ in range(classes - 1):
        downwards = padded[here, low] >= padded[here, high + 2]
        low, high = low - downwards, high + ~downwards
        added = np.where(downwards, low, high)
        before[here, added] = total.clip(max=1)  # as rounding may not
        total += probabilities[here, added]
    return before


def fit_conformal_threshold(probabilities: Floats, classes: NDArray[np.int64], coverage: float) -> float:
    """The mass by which sets hold the true count of a new bin with probability ``coverage``.

    Split conformal prediction (Vovk et al. 2005; with these scores Romano et al. 2020, arXiv:2006.02544), which asks
    that bins are exchangeable.
    """
    scores = np.sort(conformal_scores(probabilities)[np.arange(len(classes)), classes])
    rank = math.ceil((len(scores) + 1) * coverage)
    return float(scores[rank - 1]) if rank <= len(scores) else 1.0


def sets(probabilities: Floats, mass: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The lowest and the highest class of each row's set, which always holds the most probable one: two int64 (n,)."""
    inside = conformal_scores(probabilities) <= mass
    classes = probabilities.shape[1]
    return inside.argmax(1), classes - 1 - inside[:, ::-1].argmax(1)


def fit_confidence_threshold(probabilities: Floats, classes: NDArray[np.int64], sure: float) -> float | None:
    """The least confidence above which the share ``sure`` of answers is right; None if there is none."""
    confidence = probabilities.max(1)
    order = np.argsort(-confidence, kind="stable")
    right = (probabilities.argmax(1) == classes)[order]
    share = right.cumsum() / np.arange(1, len(right) + 1)
    last_of_equals = np.append(np.diff(confidence[order]) < 0, True)
    enough = np.flatnonzero((share >= sure) & last_of_equals)
    return float(confidence[order[enough[-1]]]) if len(enough) else None
