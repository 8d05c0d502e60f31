"""The records of the bins to audit."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from bintally import paths
from bintally.apps.photographs import Photographs, ReadFiles
from bintally.bins.corrections import read_corrections
from bintally.bins.record import BadBin, Record, parse_record
from bintally.errors import UserError
from bintally.files import read_csv
from bintally.params import load_params
from bintally.progress import progress

MAX_NAME = 120  # characters of an item's name


@dataclass(frozen=True)
class BinContents:
    """What a record lists."""

    record: Record
    items: list[tuple[int, str]]
    """Quantity and name, without those of quantity 0."""


@dataclass(frozen=True)
class AuditRecords:
    """The bins to audit, and those that are not audited."""

    bins: dict[str, BinContents]
    """By id."""
    left_out: dict[str, int]
    """Number of bins by reason."""
    rejected: list[tuple[str, str]]
    """Id and reason."""


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
    bins, rejected = _parse_records(photographs.records, ids)
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


def _parse_records(read_all: ReadFiles, ids: Sequence[str]) -> tuple[dict[str, BinContents], list[tuple[str, str]]]:
    bins: dict[str, BinContents] = {}
    rejected = []
    with progress("records", len(ids), "bins", brief=True) as advance:
        for bin_id, read in read_all(ids):
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
    return bins, rejected
