"""What the rules of a diagnosis are held against."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bintally.scoring.metrics import Floats, LabelledPredictions, evaluate

COPY = 0.1
RESAMPLES = 500


class NoEvidence(Exception):
    """There is no evidence; why."""


@dataclass(frozen=True)
class Learned:
    """What a finished model says of the validation bins."""

    scored: LabelledPredictions
    """The probabilities of all it has learned, not calibrated."""
    dead_units: float
    """Share of the head's hidden units that are zero for every one of them."""

    def against_chance(self) -> tuple[float, float, float]:
        """Accuracy, the lower end of its 95 % interval (by group), and the share of the most frequent count."""
        figures = evaluate(self.scored, RESAMPLES, seed=0)
        _, numbers = np.unique(self.scored.truth, return_counts=True)
        low = figures["interval_95"]["most_probable"]["accuracy"][0]
        return figures["most_probable"]["accuracy"], low, float(numbers.max() / numbers.sum())


@dataclass(frozen=True)
class Evidence:
    """Of one configuration. What is read of it raises NoEvidence where it is not there."""

    profile: Mapping[str, Any]
    """As :func:`bintally.diagnosis.profiling.profile_steps` gives it."""
    epochs: Sequence[Mapping[str, float]]
    """The curves of a run, finished or not: see :class:`bintally.training.loop.EpochMetrics`."""
    fault: str
    """Why the run failed; empty: it did not."""
    learned: Learned | None
    """None: there is no model of these parameters."""
    bins: Mapping[int, int]
    """Number of training bins by count."""
    copies: float
    """Share of bins whose picture is all but that of another bin with another count: see :func:`near_duplicate_share`."""

    def profiled(self, key: str) -> Any:
        """A figure of the profile."""
        if key not in self.profile:
            raise NoEvidence(f"the steps to be profiled failed: {self.profile.get('fault', 'no reason was given')}")
        return self.profile[key]

    def alone_s(self) -> Sequence[float]:
        """Seconds a step of each of several ranks alone."""
        self.profiled("step_s")
        if "alone_s" not in self.profile:
            raise NoEvidence("one rank has nobody to wait for")
        alone: Sequence[float] = self.profile["alone_s"]
        return alone

    def fault_with(self, words: str) -> str:
        """The fault of the run, or of the profiled steps, that holds these words; empty: neither does."""
        return next((fault for fault in (self.fault, self.profile.get("fault", "")) if words in fault), "")

    def curve(self, name: str, least: int) -> Floats:
        """A figure by epoch, finite, of at least so many."""
        if len(self.epochs) < least:
            raise NoEvidence(f"{len(self.epochs)} epochs of these parameters are here, {least} are needed: `dvc repro`")
        values = np.array([epoch[name] for epoch in self.epochs])
        if not np.isfinite(values).all():
            raise NoEvidence(f"{name.replace('_', ' ')}: not finite in {int((~np.isfinite(values)).sum())} epochs")
        return values

    def model(self) -> Learned:
        """What the finished model says."""
        if self.learned is None:
            raise NoEvidence("no model of these parameters is here: `dvc repro`")
        return self.learned


def near_duplicate_share(signatures: Floats, counts: Sequence[int]) -> float:
    """The share of bins whose picture is all but that of another bin with another count.

    All but: nearer than COPY of the median distance to the nearest.

    Args:
        signatures: (bins, width), what pictures are compared by.
        counts: (bins,) of their records.
    """
    values, of_bins = np.asarray(signatures, dtype=np.float64), np.asarray(counts)
    norms = (values**2).sum(1)
    nearest, other = np.full(len(values), np.inf), np.full(len(values), np.inf)
    for start in range(0, len(values), 512):  # so that not all distances are held at once
        rows = slice(start, start + 512)
        squares = (norms[rows, None] + norms - 2 * values[rows] @ values.T).clip(0)
        squares[np.arange(len(squares)), np.arange(start, start + len(squares))] = np.inf
        nearest[rows] = squares.min(1)
        other[rows] = np.where(of_bins[rows, None] != of_bins, squares, np.inf).min(1)
    return float((np.sqrt(other) < COPY * np.median(np.sqrt(nearest))).mean())
