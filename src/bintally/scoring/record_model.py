"""The count given the products: how a photograph and the list of products in its record are weighed.

The list says which products should lie in the bin; how many of each it says, too, is not used for this count. The
model is learned from training records (:mod:`bintally.scoring.compositions`) and, for the weight of the photograph, on
validation, where the network has not learned.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from bintally.bins.products import Product, product_arrays
from bintally.errors import UserError, first_wrong_field
from bintally.files import write_text
from bintally.hashing import file_digest, sha256_hex
from bintally.params import ErrorShares
from bintally.scoring.calibration import Calibration
from bintally.scoring.compositions import MAX_NUMBER, CompositionModel, convolve, quantity_tables
from bintally.scoring.metrics import Counts, Floats
from bintally.scoring.record_errors import Totals

FILE = "records.json"
PRODUCTS_AT_ONCE = 100_000
FLOOR = 1e-12  # of a probability whose logarithm is taken
PENALTY = 1.0  # of a squared offset of a count
DIGITS = 5  # of a saved number, behind the point
STEPS = 100
TOLERANCE = 1e-9  # of a step
RIDGE = 1e-9  # where all photographs say the same, any weight is as good
MAX_BYTES = 4_000_000


@dataclass(frozen=True)
class Lists:
    """The products that n records list, m at most."""

    quantities: Counts
    """(n, m) of each product; 0 where a record lists fewer than m."""
    sizes: Floats
    """(n, m, sizes) as in :data:`bintally.bins.products.SIZES`, NaN where not known."""

    @classmethod
    def of(cls, bins: Sequence[Sequence[Product]]) -> "Lists":
        """What the products of each bin are as arrays."""
        return cls(*product_arrays(bins))

    @property
    def present(self) -> NDArray[np.bool_]:
        return self.quantities > 0

    @property
    def totals(self) -> Counts:
        """(n,) the number of items."""
        return np.asarray(self.quantities.sum(1))

    def take(self, rows: Counts) -> "Lists":
        return Lists(self.quantities[rows], self.sizes[rows])

    def by_length(self) -> Iterator[tuple[Counts, Counts, "Lists"]]:
        """Records of the same number of products: their rows, (k,), the places of the products, (k, number), and
        lists, (k, number), without empty places. No more at once than PRODUCTS_AT_ONCE, so that memory has a bound.
        """
        number = self.present.sum(1)
        for length in np.unique(number).tolist():
            at_once = max(1, PRODUCTS_AT_ONCE // max(1, length))
            of_length = np.flatnonzero(number == length)
            yield from (
                self._packed(of_length[start : start + at_once], length) for start in range(0, len(of_length), at_once)
            )

    def _packed(self, rows: Counts, length: int) -> tuple[Counts, Counts, "Lists"]:
        places = np.argsort(~self.present[rows], 1, kind="stable")[:, :length]
        chosen = rows[:, None], places
        return rows, places, Lists(self.quantities[chosen], self.sizes[chosen])


class RecordModel(BaseModel):
    """What is needed to read a record beside a photograph."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    compositions: CompositionModel
    photograph_weight: float
    """Factor of the photograph's log-probabilities: below 1 where it repeats what the products say."""
    offsets: list[float]
    """Of each count, added to these."""
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
        if not all(abs(value) <= MAX_NUMBER for value in (self.photograph_weight, *self.offsets)):
            raise ValueError(f"photograph_weight and offsets must be within {MAX_NUMBER:,}")
        return self

    @property
    def totals(self) -> Totals:
        return Totals(self.answers.counts, self.answers.open_ended)

    def evidence(self, probabilities: Floats) -> Floats:
        """The logarithm of how much a photograph speaks for each count, up to a constant: (n, counts).

        ``probabilities``: (n, counts) of the photograph alone, calibrated.
        """
        return photograph_evidence(probabilities, self.photograph_weight, self.offsets)

    def can_count(self, lists: Lists) -> NDArray[np.bool_]:
        """Whether some count is possible with the products of each record: (n,)."""
        number = lists.present.sum(1)
        fits = (number <= self.totals.last) | self.totals.open_ended
        return np.asarray(np.where(number > 0, fits, self.totals.allow(number)))

    def count_given_products(self, probabilities: Floats, lists: Lists) -> Floats:
        """Probabilities of the counts, (n, counts), given a photograph and which products lie in the bin.

        Where no count is possible with these products (:meth:`can_count`), the photograph alone decides.

        Args:
            probabilities: (n, counts) of the photograph alone, calibrated.
            lists: of the same bins; their quantities say no more than which products there are.
        """
        by_products = count_by_products(self.compositions, self.totals, lists)
        return combined(by_products, self.evidence(probabilities), probabilities)


class _SavedRecordModel(RecordModel):
    """The content of FILE."""

    calibration: str
    """SHA-256 of the calibration.json that it was fitted for."""


def count_by_products(compositions: CompositionModel, totals: Totals, lists: Lists) -> Floats:
    """Probabilities of the counts given the products alone, (n, counts); rows of zeros where no count is possible."""
    sums = np.zeros((len(lists.quantities), len(totals.counts)))
    for rows, _, packed in lists.by_length():  # so that one long list costs the others nothing
        number = np.full(packed.quantities.shape, packed.quantities.shape[1])
        tables = quantity_tables(compositions.terms(packed.sizes, number), packed.present)
        sums[rows] = convolve(tables, totals.open_ended).of_all[:, totals.counts]
    whole = sums.sum(1, keepdims=True)
    return np.asarray(sums / np.where(whole > 0, whole, 1))


def photograph_evidence(probabilities: Floats, weight: float, offsets: Sequence[float]) -> Floats:
    """The weighted logarithms of the photograph's probabilities, (n, counts), plus the offset of each count."""
    return np.asarray(weight * np.log(probabilities.clip(FLOOR)) + offsets)


def combined(by_products: Floats, evidence: Floats, otherwise: Floats) -> Floats:
    """The normalised product of probabilities by the products and the photograph's evidence: (n, counts).

    ``otherwise`` takes the place of rows in which no count is possible.
    """
    joint = by_products * np.exp(evidence - evidence.max(1, keepdims=True))
    whole = joint.sum(1, keepdims=True)
    return np.asarray(np.where(whole > 0, joint / np.where(whole > 0, whole, 1), otherwise))


def fit_photograph(by_products: Floats, probabilities: Floats, true_class: Counts) -> tuple[float, list[float]]:
    """The weight of the photograph's log-probabilities and the offset of each count with the least cross-entropy.

    Args:
        by_products: (n, counts) of :func:`count_by_products`; rows in which the true count is impossible are ignored.
        probabilities: (n, counts) of the photograph alone, calibrated.
        true_class: (n,) the column of the true count.
    """
    usable = by_products[np.arange(len(true_class)), true_class] > 0
    if not usable.any():
        return 1.0, [0.0] * probabilities.shape[1]
    with np.errstate(divide="ignore"):
        prior = np.log(by_products[usable])
    logs, truth = np.log(probabilities[usable].clip(FLOOR)), true_class[usable]
    rows, number = np.arange(len(truth)), probabilities.shape[1]
    penalties = np.append(0.0, np.full(number, PENALTY))
    # Of the score of each count in each row by each of the parameters: (n, counts, parameters).
    slopes = np.concatenate([logs[..., None], np.broadcast_to(np.eye(number), (len(truth), number, number))], 2)
    values = np.append(1.0, np.zeros(number))

    def log_probabilities(values: Floats) -> Floats:
        scores = prior + slopes @ values
        return np.asarray(scores - np.logaddexp.reduce(scores, 1, keepdims=True))

    def loss(values: Floats) -> float:
        return float((penalties * values**2).sum() - log_probabilities(values)[rows, truth].sum())

    for _ in range(STEPS):  # Newton's, which leaves no digit to the CPU as it converges
        expected = np.exp(log_probabilities(values))
        means = np.einsum("nc,ncp->np", expected, slopes)
        gradient = (means - slopes[rows, truth]).sum(0) + 2 * penalties * values
        hessian = np.einsum("nc,ncp,ncq->pq", expected, slopes, slopes) - means.T @ means + np.diag(2 * penalties)
        step = np.linalg.solve(hessian + RIDGE * np.eye(len(values)), gradient)
        while loss(values - step) > loss(values) and np.abs(step).max() > TOLERANCE:
            step = step / 2
        values = values - step
        if np.abs(step).max() <= TOLERANCE:
            break
    weight, *offsets = (float(f"{value:.{DIGITS}f}") + 0.0 for value in values)
    return weight, offsets


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
            f"{folder} holds no {FILE}, so this model cannot read records: `dvc repro calibrate` writes it, without "
            "training again"
        )
    return model


def _calibration_digest(folder: Path) -> str:
    return sha256_hex(file_digest(folder / "calibration.json"))
