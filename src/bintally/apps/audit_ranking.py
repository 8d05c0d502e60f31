"""The records of bins, ranked by the probability that they are wrong."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from bintally import paths
from bintally.apps.arguments import require_outs
from bintally.apps.items import listed_items
from bintally.apps.photographs import Photographs, ReadFile
from bintally.apps.scores import Scores, prediction_rows
from bintally.bins.corrections import read_corrections
from bintally.bins.groups import group_bins
from bintally.bins.images import BadImage
from bintally.bins.record import BadBin, Record, parse_record
from bintally.bins.trained_on import FILE, TrainedOn
from bintally.errors import UserError
from bintally.model.card import load_card
from bintally.progress import progress
from bintally.scoring.audit import rank_records
from bintally.scoring.calibration import Floats
from bintally.scoring.metrics import Counts

# The reason of photographs that are not scored, and are no rejects.
LEARNED = "the model was trained on their photographs and repeats their records; --all includes them"


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


def read_records(photographs: Photographs) -> AuditRecords:
    """Read the records of all bins that have not been recounted. Raises UserError if there are none."""
    if photographs.records is None:
        raise UserError(
            f"{photographs.name} has no records to audit: `bintally predict` counts the items in photographs"
        )
    recounted = read_corrections(paths.CORRECTIONS).keys()
    ids = [bin_id for bin_id in photographs.ids if bin_id not in recounted]
    skipped = len(photographs.ids) - len(ids)
    left_out = {f"recounted already ({paths.CORRECTIONS})": skipped} if skipped else {}
    bins: dict[str, BinContents] = {}
    rejected = []
    with progress("records", len(ids), "bins", brief=True) as advance:
        for bin_id, read in photographs.records(ids):
            try:
                body = read()
                bins[bin_id] = BinContents(parse_record(body), listed_items(body))
            except OSError as error:
                rejected.append((bin_id, f"record: {error.strerror or error}"))
            except BadBin as error:
                rejected.append((bin_id, str(error)))
            advance(1)
    if not bins:
        raise _nothing_to_audit(photographs.name, left_out, rejected)
    return AuditRecords(bins, left_out, rejected)


def without_training(photographs: Photographs, model_folder: Path) -> Photographs:
    """The same photographs, of which those that the model was trained on cannot be read, with the reason LEARNED.

    They are known by their content: the same bins may come from a copy of the source, or from its other names.
    Raises UserError if the folder does not say what the model was trained on.
    """
    require_outs(model_folder / "card.json")
    trained_on = TrainedOn(model_folder / FILE, load_card(model_folder).trained_on)

    def unknown(read: ReadFile) -> bytes:
        if (body := read()) in trained_on:
            raise BadImage(LEARNED)
        return body

    def images(ids: Sequence[str]) -> Iterator[tuple[str, ReadFile]]:
        return ((bin_id, partial(unknown, read)) for bin_id, read in photographs.images(ids))

    return replace(photographs, images=images, version=f"{photographs.version} without {trained_on.version}")


def _nothing_to_audit(name: str, left_out: dict[str, int], rejected: list[tuple[str, str]]) -> UserError:
    why = [f"{number:,} left out: {reason}" for reason, number in left_out.items()]
    if rejected:
        reason, number = Counter(reason for _, reason in rejected).most_common(1)[0]
        why.append(f"{len(rejected):,} without a usable record or photograph ({reason}: {number:,})")
    return UserError(f"{name} has no bin to audit: {', '.join(why)}")


def rank_bins(name: str, records: AuditRecords, scores: Scores, error_rate: float | None) -> Audit:
    """Rank all bins that have a score.

    Args:
        name: of the source, for messages.
        error_rate: fraction of records assumed to be wrong; None: that of the calibration.

    Raises UserError if no bin has a score.
    """
    calibration, parts = scores.calibration, list(scores)
    unscored = [row for part in parts for row in part.rejected]
    ids = [bin_id for part in parts for bin_id in part.ids]
    probabilities = np.concatenate([part.probabilities for part in parts])
    rejected = records.rejected + [row for row in unscored if row[1] != LEARNED]
    learned = sum(reason == LEARNED for _, reason in unscored)
    left_out = records.left_out | ({LEARNED: learned} if learned else {})
    if not ids:
        raise _nothing_to_audit(name, left_out, rejected)
    counts_in_records = np.array([records.bins[bin_id].record.count for bin_id in ids])
    if calibration.open_ended:
        counts_in_records = counts_in_records.clip(max=calibration.counts[-1])
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
        left_out=left_out,
        rejected=rejected,
    )
