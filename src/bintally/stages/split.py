"""Split the bins into training, validation and test; photographs of the same bin stay together.

The split is stratified by the counts of the records, so a correction changes a label and moves no bin. A bin with a
corrected count that is not among `fetch.counts` is left out, and so is, of the training bins alone, what
`split.exclude` and `split.exclude_wrong` name.
"""

import logging
from pathlib import Path

from bintally.bins.corrections import Correction, corrected_products, read_corrections
from bintally.bins.groups import in_another_split, split_groups, split_with_test_set
from bintally.bins.id_list import read_id_list, with_lost_zeros
from bintally.bins.products import listed_products
from bintally.bins.shards import Entry, ShardReader, read_index
from bintally.errors import UserError
from bintally.files import read_columns, write_csv
from bintally.params import Fetch, Params, Split
from bintally.paths import BINS, CORRECTIONS, QUALITY, SPLITS
from bintally.stages import run

NAMED = 5  # ids in a message

log = logging.getLogger("bintally")


def main(params: Params) -> None:
    split = params.split
    entries = read_index(BINS)
    groups, counts = [entry.group for entry in entries], [entry.count for entry in entries]
    shares = {"train": split.train, "validation": split.validation, "test": split.test}
    if split.test_ids is None:
        splits = split_groups(groups, counts, shares, split.seed)
    else:
        test_ids = _read_test_ids(split.test_ids, {entry.id for entry in entries})
        is_test = [entry.id in test_ids for entry in entries]
        splits = split_with_test_set(is_test, groups, counts, shares, split.seed)
    counts, splits = _apply_corrections(params.fetch, entries, splits)
    splits = _without_bad(split, entries, splits)
    for name in shares:
        if name not in splits:
            remedy = f", or change the ids in '{split.test_ids}'" if split.test_ids else ""
            raise UserError(
                f"the split {name} is empty: {len(entries)} bins are too few; raise fetch.per_count{remedy}"
            )
    rows = zip((entry.id for entry in entries), counts, groups, splits, strict=True)
    write_csv(SPLITS, ["id", "count", "group", "split"], rows)


def _read_test_ids(path: str, ids: set[str]) -> set[str]:
    """The ids of the test set. Raises UserError where one has lost its zeros: its bin would be trained on."""
    listed = read_id_list(Path(path), "split.test_ids")
    unknown = [bin_id for bin_id in listed if bin_id not in ids]
    if lost := with_lost_zeros(unknown, ids):
        bin_id, likely = next(iter(lost.items()))
        raise UserError(
            f"split.test_ids: {len(lost)} ids of '{path}' have probably lost their zeros in a spreadsheet, such as "
            f"{bin_id} for {likely}: save the list as text"
        )
    if unknown:
        log.info("%d of the %d ids of %s are not in %s, such as %s", len(unknown), len(listed), path, BINS, unknown[0])
    return set(listed)


def _apply_corrections(fetch: Fetch, entries: list[Entry], splits: list[str]) -> tuple[list[int], list[str]]:
    """The corrected count and the split of each bin."""
    corrections = read_corrections(CORRECTIONS)
    counts = [corrections[entry.id].count if entry.id in corrections else entry.count for entry in entries]
    if fetch.open_ended:
        counts = [min(count, fetch.counts[-1]) for count in counts]
    splits = [split if count in fetch.counts else "left_out" for count, split in zip(counts, splits, strict=True)]
    if corrections:
        ids = {entry.id for entry in entries}
        unknown = corrections.keys() - ids
        if lost := with_lost_zeros(sorted(unknown), ids):
            pairs = ", ".join(f"{bin_id} (not {likely}?)" for bin_id, likely in list(lost.items())[:NAMED])
            log.warning("%s: %d ids have perhaps lost zeros in a spreadsheet: %s", CORRECTIONS, len(lost), pairs)
        changed = sum(count != entry.count for count, entry in zip(counts, entries, strict=True))
        log.info(
            "%d bins have corrections, %d with a count other than the record's; %d more in %s are not in %s",
            *(len(corrections) - len(unknown), changed, len(unknown), CORRECTIONS, BINS),
        )
        _report_products(corrections, entries)
    return counts, splits


def _without_bad(settings: Split, entries: list[Entry], splits: list[str]) -> list[str]:
    """The splits with what is to be excluded from training left out; what leaks from training is logged."""
    ids, reasons, probabilities, duplicates = read_columns(
        QUALITY, "id", "reasons", "record_probability", "near_duplicate_of"
    )
    if ids != [entry.id for entry in entries]:
        raise UserError(f"{QUALITY} has other bins than {BINS}; run `dvc repro`")
    train = [row for row, split in enumerate(splits) if split == "train"]
    excluded = {row for row in train if set(settings.exclude) & set(reasons[row].split())}
    corrected = read_corrections(CORRECTIONS)
    known = (row for row in train if probabilities[row] and ids[row] not in corrected)
    doubted = sorted(known, key=lambda row: float(probabilities[row]))
    excluded.update(doubted[: round(settings.exclude_wrong * len(train))])
    if excluded:
        log.info("%d of %d training bins are left out, as split.exclude* says", len(excluded), len(train))
    splits = ["left_out" if row in excluded else split for row, split in enumerate(splits)]
    row_of = {bin_id: row for row, bin_id in enumerate(ids)}
    if leaks := in_another_split(splits, [row_of.get(first) for first in duplicates]):
        named = ", ".join(f"{ids[row]} of {duplicates[row]}" for row in leaks[:NAMED])
        log.warning("%d photographs are near-duplicates of one in another split, which leaks: %s", len(leaks), named)
    return splits


def _report_products(corrections: dict[str, Correction], entries: list[Entry]) -> None:
    """Log how many corrections name a product, and those that do not fit the record: what lies there is not known."""
    named = [entry for entry in entries if entry.id in corrections and corrections[entry.id].product is not None]
    if not named:
        return
    reader = ShardReader(BINS)
    wrong = [
        entry.id
        for entry in named
        if corrected_products(listed_products(reader.record(entry)), corrections[entry.id]) is None
    ]
    log.info("%d corrections name the product that was recounted", len(named))
    if wrong:
        log.warning(
            "%s: %d of them do not fit the record, and count as corrections of the number of items alone: %s",
            *(CORRECTIONS, len(wrong), ", ".join(wrong[:NAMED])),
        )


if __name__ == "__main__":
    run("split", main)
