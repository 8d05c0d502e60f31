"""What an audit reads: the bins of a source, their records and what the model sees in their photographs."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from bintally import paths
from bintally.apps.arguments import require_outs
from bintally.apps.photographs import Photographs, ReadFile
from bintally.apps.records import ReadRecord, read_record
from bintally.apps.scores import score_photographs
from bintally.bins.corrections import read_corrections
from bintally.bins.images import BadImage
from bintally.bins.products import Product
from bintally.bins.record import BadBin, with_photograph
from bintally.bins.trained_on import FILE, TrainedOn
from bintally.errors import UserError
from bintally.model.card import load_card
from bintally.progress import progress
from bintally.scoring.calibration import Calibration, Floats
from bintally.scoring.metrics import Counts

# The reason of photographs that are not scored, and are no rejects.
LEARNED = "the model was trained on their photographs and repeats their records; --all includes them"


@dataclass(frozen=True)
class AuditedBins:
    """Bins with a usable photograph and a usable record."""

    source: str
    calibration: Calibration
    ids: list[str]
    records: list[list[Product]]
    """The products that each lists."""
    locations: list[str]
    """Where each bin is; "" where the record does not say."""
    photographs: list[str]
    """The path of each photograph; "" where the record does not say."""
    bins: dict[str, str]
    """Which bin a photograph shows, where its record says so."""
    probabilities: Floats
    """(bins, counts) of the photographs alone,"""
    tables: Floats
    """and (bins, features, counts) of evidence."""
    left_out: dict[str, int]
    """Number of other bins by reason."""
    rejected: list[tuple[str, str]]
    """Id and reason of those that could not be used."""

    def take(self, rows: Counts) -> "AuditedBins":
        """The same with other rows of the bins."""
        return replace(
            self,
            ids=[self.ids[row] for row in rows],
            records=[self.records[row] for row in rows],
            locations=[self.locations[row] for row in rows],
            photographs=[self.photographs[row] for row in rows],
            probabilities=self.probabilities[rows],
            tables=self.tables[rows],
        )


@contextmanager
def read_bins(photographs: Photographs, model_folder: Path, with_learned: bool) -> Iterator[AuditedBins]:
    """Read all bins that have not been recounted; photographs are scored again unless the block ends well.

    Args:
        with_learned: also those that the model was trained on.

    Raises UserError if there is nothing to audit, or as :func:`bintally.apps.scores.score_photographs` does.
    """
    if photographs.records is None:
        raise UserError(
            f"{photographs.name} has no records to audit: `bintally predict` counts the items in photographs"
        )
    if not with_learned:
        photographs = _without_learned(photographs, model_folder)
    recounted = read_corrections(paths.CORRECTIONS).keys()
    ids = [bin_id for bin_id in photographs.ids if bin_id not in recounted]
    skipped = len(photographs.ids) - len(ids)
    left_out = {f"recounted already ({paths.CORRECTIONS})": skipped} if skipped else {}
    records, rejected = _read_records(photographs, ids)
    if not records:
        raise _nothing_to_audit(photographs.name, left_out, rejected)
    with score_photographs(replace(photographs, ids=list(records)), model_folder) as scores:
        parts = list(scores)
        unscored = [row for part in parts for row in part.rejected]
        rejected += [row for row in unscored if row[1] != LEARNED]
        if learned := sum(reason == LEARNED for _, reason in unscored):
            left_out[LEARNED] = learned
        ids = [bin_id for part in parts for bin_id in part.ids]
        if not ids:
            raise _nothing_to_audit(photographs.name, left_out, rejected)
        yield AuditedBins(
            source=photographs.name,
            calibration=scores.calibration,
            ids=ids,
            records=[records[bin_id].products for bin_id in ids],
            locations=[records[bin_id].location for bin_id in ids],
            photographs=[records[bin_id].photograph for bin_id in ids],
            bins={bin_id: name for bin_id in ids if (name := records[bin_id].bin) is not None},
            probabilities=np.concatenate([part.probabilities for part in parts]),
            tables=np.concatenate([part.tables for part in parts]),
            left_out=left_out,
            rejected=[
                (bin_id, with_photograph(why, records[bin_id].photograph) if bin_id in records else why)
                for bin_id, why in rejected
            ],
        )


def _without_learned(photographs: Photographs, model_folder: Path) -> Photographs:
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


def _read_records(photographs: Photographs, ids: Sequence[str]) -> tuple[dict[str, ReadRecord], list[tuple[str, str]]]:
    """What each usable record lists and where the bin is, by id, and the ids of the others with the reason."""
    assert photographs.records
    records: dict[str, ReadRecord] = {}
    rejected = []
    with progress("records", len(ids), "bins", brief=True) as advance:
        for bin_id, read in photographs.records(ids):
            try:
                records[bin_id] = read_record(read)
            except BadBin as error:
                rejected.append((bin_id, str(error)))
            advance(1)
    return records, rejected


def _nothing_to_audit(name: str, left_out: dict[str, int], rejected: list[tuple[str, str]]) -> UserError:
    why = [f"{number:,} left out: {reason}" for reason, number in left_out.items()]
    if rejected:
        reason, number = Counter(reason for _, reason in rejected).most_common(1)[0]
        why.append(f"{len(rejected):,} without a usable record or photograph ({reason}: {number:,})")
    return UserError(f"{name} has no bin to audit: {', '.join(why)}")
