"""The evidence that the rules of a diagnosis are checked against."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.neighbors import NearestNeighbors

from bintally.scoring.metrics import Floats, LabelledPredictions, evaluate

NEAR_DUPLICATE = 0.1  # distance to another bin, as a fraction of the median distance to the nearest
RESAMPLES = 500


class NoEvidence(Exception):
    """A rule cannot be checked; the message is the reason."""


@dataclass(frozen=True)
class ValidationOutputs:
    """The outputs of a finished model for the validation bins."""

    predictions: LabelledPredictions  # not calibrated
    dead_units: float  # share of the head's hidden units that are zero for every bin

    def accuracy(self) -> tuple[float, float]:
        """Return the accuracy and the lower end of its 95 % interval, bootstrapped by group."""
        metrics = evaluate(self.predictions, RESAMPLES, seed=0)
        return metrics["most_probable"]["accuracy"], metrics["interval_95"]["most_probable"]["accuracy"][0]

    def majority_share(self) -> float:
        """Return the share of the most frequent count: the accuracy of always predicting it."""
        _, numbers = np.unique(self.predictions.truth, return_counts=True)
        return float(numbers.max() / numbers.sum())


@dataclass(frozen=True)
class Evidence:
    """The evidence on one set of parameters. The methods raise NoEvidence if theirs is missing."""

    profile: Mapping[str, Any]  # see bintally.diagnosis.profiling.profile_steps
    epochs: Sequence[Mapping[str, float]]  # EpochMetrics of a run, finished or not
    failure: str  # the error that ended the run; empty if there was none
    outputs: ValidationOutputs | None  # None if no model was trained with these parameters
    train_counts: Mapping[int, int]  # number of training bins by count
    near_duplicates: float  # see near_duplicate_share

    def profile_value(self, key: str) -> Any:
        if key not in self.profile:
            raise NoEvidence(f"the profiled steps failed: {self.profile.get('failure', 'unknown reason')}")
        return self.profile[key]

    def solo_step_s(self) -> Sequence[float]:
        """Return the seconds per step of each rank without the others."""
        self.profile_value("step_s")
        if "solo_step_s" not in self.profile:
            raise NoEvidence("there is only one rank")
        seconds: Sequence[float] = self.profile["solo_step_s"]
        return seconds

    def failure_containing(self, text: str) -> str:
        """Return the failure of the run or of the profiled steps if it contains ``text``, else an empty string."""
        return next((failure for failure in (self.failure, self.profile.get("failure", "")) if text in failure), "")

    def curve(self, name: str, min_epochs: int) -> Floats:
        """Return a metric by epoch, if there are enough epochs and all values are finite."""
        if len(self.epochs) < min_epochs:
            raise NoEvidence(f"{len(self.epochs)} epochs of these parameters, {min_epochs} are needed; run `dvc repro`")
        values = np.array([epoch[name] for epoch in self.epochs])
        if not np.isfinite(values).all():
            raise NoEvidence(f"{name.replace('_', ' ')} is not finite in {int((~np.isfinite(values)).sum())} epochs")
        return values

    def validation_outputs(self) -> ValidationOutputs:
        if self.outputs is None:
            raise NoEvidence("no model of these parameters; run `dvc repro`")
        return self.outputs


def near_duplicate_share(signatures: Floats, counts: Sequence[int]) -> float:
    """Return the share of bins that have a near-duplicate with another count.

    A near-duplicate is closer than NEAR_DUPLICATE of the median distance of a bin to its nearest neighbour.

    Args:
        signatures: (bins, width) vectors to measure Euclidean distances between.
        counts: (bins,) of the records.
    """
    labels = np.asarray(counts)
    if len(distinct := np.unique(labels)) < 2:
        return 0.0
    # scikit-learn computes the distances in chunks; a query without bins leaves out each bin's distance to itself.
    nearest, _ = NearestNeighbors(n_neighbors=1).fit(signatures).kneighbors()
    limit = NEAR_DUPLICATE * np.median(nearest)
    near_duplicates = 0
    for count in distinct:
        neighbours = NearestNeighbors(n_neighbors=1).fit(signatures[labels != count])
        near_duplicates += int((neighbours.kneighbors(signatures[labels == count])[0] < limit).sum())
    return near_duplicates / len(labels)
