"""Predictions of new photographs beside those that the model was measured on: has anything changed since?"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset
from numpy.typing import NDArray

from bintally.apps.predictions import DISTANCE, MODEL
from bintally.errors import UserError
from bintally.model.card import DistanceReference
from bintally.scoring.decoding import FOR_ACCURACY
from bintally.scoring.metrics import Counts, Floats

STEPS = 20  # of a distribution from 0 to 1
Z = 1.96  # of a 95 % interval
# Beyond these, above what chance explains, the page speaks of a change.
FAR, MORE_UNSURE = 0.55, 0.05


@dataclass(frozen=True)
class Answers:
    """Answers for any number of photographs, as sums."""

    by_count: Counts
    """(counts,) photographs by the most probable count."""
    by_confidence: Counts
    """(STEPS,) by the highest probability."""
    unsure: int
    confidence: float
    """Sum of the highest probabilities."""
    by_rank: Counts
    """(STEPS,) by the rank of their distance (:meth:`DistanceReference.ranks`), where it is known,"""
    rank: float
    """its sum,"""
    rank_squared: float
    """and the sum of its squares."""

    @classmethod
    def of(
        cls, counts: Sequence[int], most_probable: Counts, confidence: Floats, unsure: NDArray[np.bool_], ranks: Floats
    ) -> "Answers":
        """The sums over photographs; ``ranks`` are NaN where they are not known."""
        known = ranks[~np.isnan(ranks)]
        return cls(
            (most_probable[:, None] == np.array(counts)).sum(0),
            np.histogram(confidence, STEPS, (0, 1))[0],
            int(unsure.sum()),
            float(confidence.sum()),
            np.histogram(known, STEPS, (0, 1))[0],
            float(known.sum()),
            float((known**2).sum()),
        )

    def __add__(self, other: "Answers") -> "Answers":
        return Answers(*(mine + theirs for mine, theirs in zip(vars(self).values(), vars(other).values(), strict=True)))

    @property
    def photographs(self) -> int:
        return int(self.by_count.sum())

    @property
    def unsure_share(self) -> float:
        return self.unsure / self.photographs

    def mean_rank(self, reference: DistanceReference) -> tuple[float, float]:
        """The mean rank, and half the length of its 95 % interval: of two means, as both samples are drawn."""
        number = int(self.by_rank.sum())
        mean = self.rank / number
        variance = max(self.rank_squared / number - mean**2, 0.0)
        return mean, Z * math.sqrt(variance / number + 1 / (12 * reference.photographs))


def read_answers(path: Path, counts: Sequence[int], model: str) -> Answers:
    """The answers in a CSV or Parquet file, or a folder of parts, that `bintally predict` wrote.

    Args:
        counts: that the model answers with.
        model: its name of :func:`bintally.scoring.calibration.model_name`.

    Raises UserError if there are none, or if they are not all by this model.
    """
    files = sorted(path.glob("part-*.parquet")) if path.is_dir() else [path]
    if not files:
        raise UserError(f"--since: {path} holds no part-*.parquet; give what `bintally predict --to` has written")
    _require_all_parts(path, files)
    probabilities = [f"p{count}" for count in counts]
    kinds = dict.fromkeys([*probabilities, DISTANCE], pa.float64()) | {FOR_ACCURACY: pa.int64(), MODEL: pa.string()}
    convert = pyarrow.csv.ConvertOptions(column_types=kinds)
    of_csv = pyarrow.dataset.CsvFileFormat(convert_options=convert)
    is_parquet = path.is_dir() or path.suffix == ".parquet"
    try:
        table = pyarrow.dataset.dataset([str(file) for file in files], format="parquet" if is_parquet else of_csv)
        names = {name for name in table.schema.names if re.fullmatch("p[0-9]+", name)}
        missing = {*kinds, "unsure"} - {*table.schema.names}
        if missing or names != set(probabilities):
            reason = f"no column {min(missing)}" if missing else f"probabilities of other counts than {list(counts)}"
            raise UserError(f"--since: {path} has {reason}: predict anew with the model of this report")
        answers = Answers.of(counts, np.zeros(0, np.int64), np.zeros(0), np.zeros(0, bool), np.zeros(0))
        for batch in table.to_batches(columns=[*kinds, "unsure"]):
            if others := {*batch[MODEL].unique().to_pylist()} - {model}:
                raise UserError(
                    f"--since: {path} has predictions by the model '{others.pop()}', and this report is of '{model}': "
                    "predict anew with it"
                )
            column = {name: batch[name].to_numpy(zero_copy_only=False) for name in batch.schema.names}
            confidence = np.stack([column[name] for name in probabilities], 1).max(1)
            ranks = column[DISTANCE].astype(np.float64)  # null is NaN
            answers += Answers.of(counts, column[FOR_ACCURACY], confidence, column["unsure"].astype(bool), ranks)
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"--since: {path} is not what `bintally predict --to` writes: {reason}") from error
    if not answers.photographs:
        raise UserError(f"--since: {path} has no predictions; its photographs were rejected, or there were none")
    return answers


def _require_all_parts(path: Path, files: Sequence[Path]) -> None:
    found = re.fullmatch(r"part-[0-9]+-of-([0-9]+)\.parquet", files[0].name)
    if path.is_dir() and found and len(files) != int(found[1]):
        raise UserError(f"--since: {path} has {len(files):,} of {int(found[1]):,} parts; predict the others first")


def meaning(new: Answers, measured: Answers, reference: DistanceReference | None) -> str:
    """What the comparison says of the metrics, in a sentence."""
    if reference is None or not new.by_rank.sum():
        return (
            "Whether these photographs are like those that the model was validated on is not known, as it was trained "
            "before models kept what is needed; `dvc repro` trains one that does."
        )
    rank, margin = new.mean_rank(reference)
    if rank - margin > FAR:
        return (
            "These photographs are not like those that the model was validated on: look at some, as the metrics above "
            f"may not hold for them. One lies farther from the training photographs than one of validation with "
            f"probability {rank:.0%} ± {margin:.0%}; 50% if they were alike."
        )
    shares = ((one.unsure_share, one.photographs) for one in (new, measured))
    error = Z * math.sqrt(sum(share * (1 - share) / number for share, number in shares))
    if new.unsure_share - measured.unsure_share - error > MORE_UNSURE:
        return (
            f"These photographs look like those that the model was validated on, but more answers are unsure, "
            f"{new.unsure_share:.0%} instead of {measured.unsure_share:.0%}: their contents differ, and more answers "
            "will be wrong than the metrics above say."
        )
    return (
        "Nothing speaks against the metrics above for these photographs: they lie as far from the training photographs "
        f"as those of validation (one lies farther with probability {rank:.0%} ± {margin:.0%}; 50% if they are "
        "alike), and no more answers are unsure."
    )
