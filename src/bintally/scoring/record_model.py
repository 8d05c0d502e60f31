"""The count given the products: how a photograph and the list of products in its record are weighed.

The list says which products should lie in the bin; how many of each it says, too, is not used for this count. The
model is learned from training records (:mod:`bintally.scoring.compositions`) and, for the weight of the photograph, on
validation, where the network has not learned.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from bintally.errors import UserError, first_wrong_field
from bintally.files import write_text
from bintally.hashing import file_digest, sha256_hex
from bintally.params import ErrorShares
from bintally.scoring.calibration import Calibration
from bintally.scoring.compositions import MAX_NUMBER, CompositionModel, count_by_products
from bintally.scoring.evidence import ListFeatures, log_evidence
from bintally.scoring.lists import Lists
from bintally.scoring.metrics import Counts, Floats
from bintally.scoring.record_errors import Totals

FILE = "records.json"
FLOOR = 1e-12  # of a probability whose logarithm is taken
PENALTY = 1.0  # of a squared offset of a count
WEIGHT_PENALTY = 1e-3  # of a squared weight: unbounded where it tells few bins apart, or all photographs say the same
DIGITS = 5  # of a saved number, behind the point
STEPS = 100
TOLERANCE = 1e-9  # of a step
MAX_BYTES = 4_000_000


class ReadWithList(BaseModel):
    """How a photograph that was read with the list of products in its bin is weighed for the count."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    features: ListFeatures
    evidence_weight: float
    """Factor of the network's evidence,"""
    photograph_weight: float
    """of the log-probabilities of the photograph alone,"""
    offsets: list[float]
    """and of each count, added to these."""


class RecordModel(BaseModel):
    """What is needed to read a record beside a photograph."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    compositions: CompositionModel
    photograph_weight: float
    """Factor of the photograph's log-probabilities: below 1 where it repeats what the products say."""
    offsets: list[float]
    """Of each count, added to these."""
    with_list: ReadWithList | None = None
    """For the count; None for a network that reads photographs alone. Errors are judged without, where the list itself
    may be what is wrong."""
    error_shares: ErrorShares
    """The kinds of errors among wrong records."""
    answers: Calibration
    """Prediction sets and thresholds of the count given the products."""

    @model_validator(mode="after")
    def _check(self) -> "RecordModel":
        counts = self.answers.counts
        if len(self.offsets) != len(counts):
            raise ValueError(f"{len(self.offsets)} offsets do not fit {len(counts)} counts")
        if len(self.compositions.quantities) != max(counts[-1], 1):
            raise ValueError(f"{len(self.compositions.quantities)} quantities do not fit counts up to {counts[-1]}")
        numbers = [self.photograph_weight, *self.offsets]
        if one := self.with_list:
            if len(one.offsets) != len(counts):
                raise ValueError(f"{len(one.offsets)} offsets of with_list do not fit {len(counts)} counts")
            numbers += [one.evidence_weight, one.photograph_weight, *one.offsets]
        if not all(abs(value) <= MAX_NUMBER for value in numbers):
            raise ValueError(f"weights and offsets must be within {MAX_NUMBER:,}")
        return self

    @property
    def totals(self) -> Totals:
        return Totals(self.answers.counts, self.answers.open_ended)

    def evidence(self, probabilities: Floats) -> Floats:
        """The logarithm of how much a photograph speaks for each count, up to a constant: (n, counts).

        ``probabilities``: (n, counts) of the photograph alone, calibrated.
        """
        return weighted([log_probabilities(probabilities)], [self.photograph_weight], self.offsets)

    def can_count(self, lists: Lists) -> NDArray[np.bool_]:
        """Whether each record names its products, and some count is possible with them: (n,)."""
        number = lists.present.sum(1)
        fits = (number <= self.totals.last) | self.totals.open_ended
        return np.asarray(np.where(number > 0, fits, self.totals.allow(number)) & lists.named)

    def count_given_products(self, probabilities: Floats, tables: NDArray[np.floating], lists: Lists) -> Floats:
        """Probabilities of the counts, (n, counts), given a photograph and which products lie in the bin.

        Where no count is possible with these products (:meth:`can_count`), the photograph alone decides.

        Args:
            probabilities: (n, counts) of the photograph alone, calibrated.
            tables: (n, features, counts) of evidence; not used without ``with_list``.
            lists: of the same bins; their quantities say no more than which products there are.
        """
        by_products = count_by_products(self.compositions, self.totals, lists)
        evidence = self.evidence(probabilities)
        if one := self.with_list:
            read = log_evidence(tables, one.features.of(lists.present, lists.sizes))
            logs = [read, log_probabilities(probabilities)]
            evidence = weighted(logs, [one.evidence_weight, one.photograph_weight], one.offsets)
        return combined(by_products, evidence, probabilities)


class _SavedRecordModel(RecordModel):
    """The content of FILE."""

    calibration: str
    """SHA-256 of the calibration.json that it was fitted for."""


def log_probabilities(probabilities: Floats) -> Floats:
    """The logarithms of probabilities, those of 0 and close to it as of FLOOR."""
    return np.asarray(np.log(probabilities.clip(FLOOR)))


def weighted(logs: Sequence[Floats], weights: Sequence[float], offsets: Sequence[float]) -> Floats:
    """The weighted sum of logarithms, each (n, counts), plus the offset of each count."""
    return np.asarray(sum(weight * one for weight, one in zip(weights, logs, strict=True)) + np.asarray(offsets))


def combined(by_products: Floats, evidence: Floats, otherwise: Floats) -> Floats:
    """The normalised product of probabilities by the products and the photograph's evidence: (n, counts).

    ``otherwise`` takes the place of rows in which no count is possible.
    """
    joint = by_products * np.exp(evidence - evidence.max(1, keepdims=True))
    whole = joint.sum(1, keepdims=True)
    return np.asarray(np.where(whole > 0, joint / np.where(whole > 0, whole, 1), otherwise))


def fit_weights(by_products: Floats, logs: Sequence[Floats], true_class: Counts) -> tuple[list[float], list[float]]:
    """The weights of logarithms and the offset of each count, for :func:`weighted`, with the least cross-entropy.

    Args:
        by_products: (n, counts) of :func:`count_by_products`; rows in which the true count is impossible are ignored.
        logs: each (n, counts), of the photograph.
        true_class: (n,) the column of the true count.
    """
    sources, number = len(logs), by_products.shape[1]
    usable = by_products[np.arange(len(true_class)), true_class] > 0
    if not usable.any():
        return [1 / sources] * sources, [0.0] * number
    with np.errstate(divide="ignore"):
        prior = np.log(by_products[usable])
    truth = true_class[usable]
    rows = np.arange(len(truth))
    penalties = np.append(np.full(sources, WEIGHT_PENALTY), np.full(number, PENALTY))
    # Of the score of each count in each row by each of the parameters: (n, counts, parameters).
    counts = np.broadcast_to(np.eye(number), (len(truth), number, number))
    slopes = np.concatenate([np.stack([one[usable] for one in logs], 2), counts], 2)
    values = np.append(np.full(sources, 1 / sources), np.zeros(number))

    def scored(values: Floats) -> Floats:
        scores = prior + slopes @ values
        return np.asarray(scores - np.logaddexp.reduce(scores, 1, keepdims=True))

    def loss(values: Floats) -> float:
        return float((penalties * values**2).sum() - scored(values)[rows, truth].sum())

    for _ in range(STEPS):  # Newton's, which leaves no digit to the CPU as it converges
        expected = np.exp(scored(values))
        means = np.einsum("nc,ncp->np", expected, slopes)
        gradient = (means - slopes[rows, truth]).sum(0) + 2 * penalties * values
        hessian = np.einsum("nc,ncp,ncq->pq", expected, slopes, slopes) - means.T @ means + np.diag(2 * penalties)
        step = np.linalg.solve(hessian, gradient)
        while loss(values - step) > loss(values) and np.abs(step).max() > TOLERANCE:
            step = step / 2
        values = values - step
        if np.abs(step).max() <= TOLERANCE:
            break
    rounded = [float(f"{value:.{DIGITS}f}") + 0.0 for value in values]
    return rounded[:sources], rounded[sources:]


def save_record_model(folder: Path, model: RecordModel) -> None:
    """Write FILE beside the calibration that it was fitted for."""
    saved = _SavedRecordModel(**dict(model), calibration=_calibration_digest(folder))
    write_text(folder / FILE, saved.model_dump_json(indent=1) + "\n")


def load_record_model(folder: Path, beside_calibration: bool = True) -> RecordModel | None:
    """Read FILE; None if the folder has none: its model was made before there were such files, or without records.

    Args:
        beside_calibration: check that it was fitted for the calibration in the folder.

    Raises UserError if it is damaged or another model's.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        with path.open("rb") as file:
            saved = _SavedRecordModel.model_validate_json(file.read(MAX_BYTES))
        digest = _calibration_digest(folder) if beside_calibration else saved.calibration
    except (OSError, ValidationError) as error:
        reason = first_wrong_field(error) if isinstance(error, ValidationError) else str(error)
        raise UserError(f"{path} is damaged: {reason[:200]}; `dvc repro` writes it") from error
    if digest != saved.calibration:
        raise UserError(
            f"{folder}: {FILE} was fitted for another model than calibration.json beside it; copy all files of one "
            "model, or `dvc repro`"
        )
    return RecordModel(**{name: getattr(saved, name) for name in RecordModel.model_fields})


def require_record_model(folder: Path, beside_calibration: bool = True) -> RecordModel:
    """The same. Raises UserError if the folder has none, too."""
    model = load_record_model(folder, beside_calibration)
    if model is None:
        raise UserError(
            f"{folder} holds no {FILE}, so this model cannot read records: it was made before 0.4.0; "
            "`dvc repro` makes one that can"
        )
    return model


def _calibration_digest(folder: Path) -> str:
    return sha256_hex(file_digest(folder / "calibration.json"))
