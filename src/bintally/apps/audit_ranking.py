"""The records of bins, ranked by the probability that they are wrong."""

import json
from dataclasses import dataclass

import numpy as np

from bintally import paths
from bintally.apps.photographs import Photographs
from bintally.apps.scores import Scores, prediction_rows
from bintally.bins.corrections import read_corrections
from bintally.bins.groups import group_bins
from bintally.bins.record import BadBin, Record, parse_record
from bintally.errors import UserError
from bintally.files import read_csv
from bintally.params import load_params
from bintally.progress import progress
from bintally.scoring.audit import rank_records
from bintally.scoring.calibration import Floats
from bintally.scoring.metrics import Counts

MAX_NAME = 120  # characters of an item's name


@dataclass(frozen=True)
class BinContents:
    """What a record lists."""

    record: Record
    items: list[tuple[int, str]]  # quantity and name, without those of quantity 0


@dataclass(frozen=True)
class AuditRecords:
    """The bins to audit, and those that are not audited."""

    bins: dict[str, BinContents]  # by id
    left_out: dict[str, int]  # number of bins by reason
    rejected: list[tuple[str, str]]  # id and reason


@dataclass(frozen=True)
class Audit:
    """Bins in order: the most probably wrong record first, records that cannot be ranked last."""

    error_rate: float
    counts: list[int]
    ids: list[str]
    contents: list[BinContents]
    groups: list[str]
    probabilities: Floats  # (bins, counts)
    predictions: Counts  # (bins, PREDICTION_COLUMNS)
    error_probabilities: Floats  # (ranked,) of the first bins, descending
    left_out: dict[str, int]
    rejected: list[tuple[str, str]]

    @property
    def ranked(self) -> int:
        """The number of records that are one of the counts."""
        return len(self.error_probabilities)


def read_records(photographs: Photographs, source: str, include_training: bool) -> AuditRecords:
    """Read the records of all bins that have not been recounted, without the training bins unless they are included.

    Raises UserError if there are none.
    """
    if photographs.records is None:
        raise UserError(
            f"{photographs.name} has no records to audit: `bintally predict` counts the items in photographs"
        )
    training = set() if include_training else _training_ids(source)
    recounted = read_corrections(paths.CORRECTIONS).keys() - training
    trained_on = f"the model was trained on them ({paths.SPLITS}) and repeats their records; --all includes them"
    reasons = {trained_on: training, f"recounted already ({paths.CORRECTIONS})": recounted}
    numbers = {reason: len(ids.intersection(photographs.ids)) for reason, ids in reasons.items()}
    left_out = {reason: number for reason, number in numbers.items() if number}
    ids = [bin_id for bin_id in photographs.ids if bin_id not in training and bin_id not in recounted]
    bins: dict[str, BinContents] = {}
    rejected = []
    with progress("records", len(ids), "bins", brief=True) as advance:
        for bin_id, read in photographs.records(ids):
            try:
                body = read()
                record = parse_record(body)
            except OSError as error:
                rejected.append((bin_id, f"record: {error.strerror or error}"))
            except BadBin as error:
                rejected.append((bin_id, str(error)))
            else:
                items = json.loads(body)["BIN_FCSKU_DATA"].values()
                named = [(item["quantity"], str(item.get("name") or "no name")[:MAX_NAME]) for item in items]
                bins[bin_id] = BinContents(record, [item for item in named if item[0]])
            advance(1)
    if not bins:
        why = [f"{number:,} left out: {reason}" for reason, number in left_out.items()]
        why.append(f"{len(rejected):,} without a usable record")
        raise UserError(f"{photographs.name} has no bin to audit: {', '.join(why)}")
    return AuditRecords(bins, left_out, rejected)


def _training_ids(source: str) -> set[str]:
    """The bins of a source that the model was trained on."""
    if source != "data" and source.rstrip("/") != load_params().fetch.source.rstrip("/"):
        return set()
    if not paths.SPLITS.is_file():
        raise UserError(f"{paths.SPLITS}, which lists the training bins, does not exist: `dvc repro`, or --all")
    return {row["id"] for row in read_csv(paths.SPLITS) if row["split"] == "train"}


def rank_bins(records: AuditRecords, scores: Scores, error_rate: float | None) -> Audit:
    """Rank all bins that have a score.

    Args:
        error_rate: fraction of records assumed to be wrong; None: that of the calibration.

    Raises UserError if no bin has a score.
    """
    calibration, parts = scores.calibration, list(scores)
    rejected = [row for part in parts for row in part.rejected]
    ids = [bin_id for part in parts for bin_id in part.ids]
    if not ids:
        raise UserError(f"none of the photographs can be scored: {rejected[0][1]}")
    probabilities = np.concatenate([part.probabilities for part in parts])
    counts_in_records = np.array([records.bins[bin_id].record.count for bin_id in ids])
    if calibration.open_ended:
        counts_in_records = np.minimum(counts_in_records, calibration.counts[-1])
    share = error_rate or calibration.record_error_rate
    order, error_probabilities = rank_records(probabilities, calibration.counts, counts_in_records, share, ids)
    groups = group_bins({bin_id: records.bins[bin_id].record.asins for bin_id in ids})
    ids, probabilities = [ids[row] for row in order], probabilities[order]
    return Audit(
        error_rate=share,
        counts=calibration.counts,
        ids=ids,
        contents=[records.bins[bin_id] for bin_id in ids],
        groups=[groups[bin_id] for bin_id in ids],
        probabilities=probabilities,
        predictions=prediction_rows(probabilities, calibration),
        error_probabilities=error_probabilities,
        left_out=records.left_out,
        rejected=records.rejected + rejected,
    )
