"""Calibration of a model's distribution on validation: temperature, prediction sets, when an answer is unsure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from bintally.errors import UserError, first_wrong_field
from bintally.files import write_text
from bintally.hashing import file_digest, sha256_hex
from bintally.scoring.decoding import DECODINGS, Decoding, decode_counts

Floats = NDArray[np.float64]
TEMPERATURES = (0.05, 20.0)
TEMPERATURE_DIGITS = 5
THRESHOLD_STEP = 1e-6
MAX_BYTES = 1_000_000  # of a file
NAME_DIGITS = 12  # hexadecimal
MARGIN = 1e-9  # of a threshold to the probabilities it was fitted on: their last digits depend on the CPU


class Calibration(BaseModel):
    """How a model's distribution is turned into answers."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    counts: list[int] = Field(min_length=1)
    """The counts to answer with, ascending: the model's classes, or some of them."""
    open_ended: bool
    """Whether the last count stands for itself and all above it."""
    temperature: float = Field(ge=TEMPERATURES[0], le=TEMPERATURES[1])
    """Divisor of the log-probabilities."""
    rmse_decoding: Decoding
    """The decoding rule with the least squared error."""
    coverage: float = Field(gt=0, lt=1)
    """Fraction of bins whose prediction set is to contain the true count."""
    conformal_threshold: float = Field(ge=0, le=1)
    """A prediction set takes in the next count while it holds no more probability than this."""
    target_precision: float = Field(gt=0, lt=1)
    """Fraction of answers to be right among those not marked unsure."""
    confidence_threshold: float | None
    """An answer with less probability than this is marked unsure; None: every answer is."""
    record_error_rate: float = Field(gt=0, lt=1)
    """Fraction of records assumed to be wrong before their photographs are seen."""
    unsure: float | None = Field(default=None, ge=0, le=1)
    """Fraction of the validation photographs' answers that are marked unsure; None: of an older calibration."""

    @field_validator("counts")
    @classmethod
    def _ascending(cls, counts: list[int]) -> list[int]:
        if counts != sorted(set(counts)):
            raise ValueError(f"{counts} do not ascend")
        return counts


class _SavedCalibration(Calibration):
    """The content of ``calibration.json``."""

    model: str
    """SHA-256 of the model that it was fitted for: weights and card."""


@dataclass(frozen=True)
class CountPredictions:
    """Answers for n photographs."""

    by_rule: dict[Decoding, NDArray[np.int64]]
    """(n,) the count by each decoding rule."""
    low: NDArray[np.int64]
    """(n,) the lowest count of each prediction set."""
    high: NDArray[np.int64]
    """(n,) the highest."""
    unsure: NDArray[np.bool_]


def predict_counts(probabilities: Floats, calibration: Calibration) -> CountPredictions:
    """Counts, prediction sets and doubt from calibrated probabilities, (n, counts)."""
    low, high = prediction_sets(probabilities, calibration.conformal_threshold)
    counts, threshold = np.asarray(calibration.counts), calibration.confidence_threshold
    return CountPredictions(
        {rule: decode_counts(probabilities, calibration.counts, rule) for rule in DECODINGS},
        counts[low],
        counts[high],
        probabilities.max(1) < (math.inf if threshold is None else threshold),
    )


def save_calibration(folder: Path, calibration: Calibration) -> None:
    """Write ``calibration.json`` beside the model that it was fitted for."""
    saved = _SavedCalibration(**calibration.model_dump(), model=_model_digest(folder))
    write_text(folder / "calibration.json", saved.model_dump_json(indent=2) + "\n")


def load_calibration(folder: Path, beside_model: bool = True) -> Calibration:
    """Read ``calibration.json``.

    Args:
        beside_model: check that it was fitted for the model in the folder; not for stages that do without the model.

    Raises UserError if it is missing, damaged or another model's.
    """
    try:
        with (folder / "calibration.json").open("rb") as file:
            saved = _SavedCalibration.model_validate_json(file.read(MAX_BYTES))
        digest = _model_digest(folder) if beside_model else saved.model
    except (OSError, ValidationError) as error:
        reason = first_wrong_field(error) if isinstance(error, ValidationError) else str(error)
        raise UserError(f"{folder} holds no calibration: {reason[:200]}; `dvc repro` writes it") from error
    if digest != saved.model:
        raise UserError(
            f"{folder}: calibration.json was fitted for another model than model.safetensors and card.json beside it; "
            "copy all files of one model, or `dvc repro`"
        )
    return Calibration(**saved.model_dump(exclude={"model"}))


def model_name(folder: Path) -> str:
    """How predictions name the model in a folder: NAME_DIGITS of the hash of its calibration, which holds the others'.

    Raises UserError if there is none.
    """
    try:
        return file_digest(folder / "calibration.json").hex()[:NAME_DIGITS]
    except OSError as error:
        raise UserError(f"{folder} holds no calibration: {error}; `dvc repro` writes it") from error


def _model_digest(folder: Path) -> str:
    return sha256_hex(*(file_digest(folder / name) for name in ("model.safetensors", "card.json")))


def calibrated(
    log_probabilities: NDArray[np.floating], classes: Sequence[int], counts: Sequence[int], temperature: float
) -> Floats:
    """Probabilities of ``counts``, given that the count is one of them: (n, len(counts)), rows sum to 1.

    Args:
        log_probabilities: (n, classes).
        classes: the count each class of the model stands for, ascending.
        counts: some of ``classes``, ascending.
    """
    scaled = log_probabilities[:, np.searchsorted(classes, counts)].astype(np.float64) / temperature
    weights = np.exp(scaled - scaled.max(1, keepdims=True))
    return np.asarray(weights / weights.sum(1, keepdims=True))


def fit_temperature(log_probabilities: NDArray[np.floating], true_class: NDArray[np.int64]) -> float:
    """The temperature with the least cross-entropy, to TEMPERATURE_DIGITS (Guo et al. 2017, arXiv:1706.04599).

    ``log_probabilities``: (n, classes); ``true_class``: (n,) the column of the true count.
    """
    logs = log_probabilities.astype(np.float64)
    expected = logs[np.arange(len(logs)), true_class].mean()

    def too_hot(temperature: float) -> bool:
        # The loss is convex in 1 / temperature, so the sign of its derivative says on which side the minimum lies,
        # exactly; a minimiser of the loss itself would leave the eighth digit to the CPU.
        classes = range(logs.shape[1])
        return float((calibrated(logs, classes, classes, temperature) * logs).sum(1).mean()) < float(expected)

    low, high = map(math.log, TEMPERATURES)
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (low, middle) if too_hot(math.exp(middle)) else (middle, high)
    return float(f"{math.exp((low + high) / 2):.{TEMPERATURE_DIGITS}g}")


def conformal_scores(probabilities: Floats) -> Floats:
    """The probability a set of neighbouring counts holds before each count joins it: (n, classes).

    Sets grow from the most probable count, each time by the more probable of the two beside it.
    """
    number, classes = probabilities.shape
    rows = np.arange(number)
    low = high = probabilities.argmax(1)
    total = probabilities[rows, low].copy()
    scores = np.zeros((number, classes))
    padded = np.pad(probabilities, ((0, 0), (1, 1)), constant_values=-1.0)
    for _ in range(classes - 1):
        downwards = padded[rows, low] >= padded[rows, high + 2]
        low, high = low - downwards, high + ~downwards
        added = np.where(downwards, low, high)
        scores[rows, added] = total.clip(max=1)  # rounding may exceed it
        total += probabilities[rows, added]
    return scores


def fit_conformal_threshold(probabilities: Floats, true_class: NDArray[np.int64], coverage: float) -> float:
    """The threshold by which sets contain the true count of a new bin with probability ``coverage``, rounded up.

    Split conformal prediction (Vovk et al. 2005; with these scores Romano et al. 2020, arXiv:2006.02544), which
    requires that bins are exchangeable.
    """
    scores = np.sort(conformal_scores(probabilities)[np.arange(len(true_class)), true_class])
    rank = math.ceil((len(scores) + 1) * coverage)
    if rank > len(scores):
        return 1.0
    steps = math.ceil((float(scores[rank - 1]) + MARGIN) / THRESHOLD_STEP)
    return min(1.0, round(steps * THRESHOLD_STEP, 6))


def prediction_sets(probabilities: Floats, conformal_threshold: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The lowest and the highest class of each row's set, which always holds the most probable one: two int64 (n,)."""
    inside = conformal_scores(probabilities) <= conformal_threshold
    classes = probabilities.shape[1]
    return inside.argmax(1), classes - 1 - inside[:, ::-1].argmax(1)


def fit_confidence_threshold(
    probabilities: Floats, true_class: NDArray[np.int64], target_precision: float
) -> float | None:
    """The lowest confidence from which on ``target_precision`` of the answers are right, rounded down.

    None if no threshold has that precision.
    """
    # Rounded first, so that the threshold selects exactly the answers that the precision was measured on.
    confidence = np.floor((probabilities.max(1) - MARGIN) / THRESHOLD_STEP)
    order = np.argsort(-confidence, kind="stable")
    right = (probabilities.argmax(1) == true_class)[order]
    precision = right.cumsum() / np.arange(1, len(right) + 1)
    last_of_equals = np.append(np.diff(confidence[order]) < 0, True)
    enough = np.flatnonzero((precision >= target_precision) & last_of_equals)
    return round(float(confidence[order[enough[-1]]]) * THRESHOLD_STEP, 6) if len(enough) else None
