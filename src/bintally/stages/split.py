"""Share the bins out to training, validation and test, keeping photographs of one bin together.

Bins are shared out by their records, so that a correction changes a label and moves no bin; what was recounted to be
none of the counts is left out.
"""

import logging
from pathlib import Path

from bintally.bins.corrections import read_corrections
from bintally.bins.groups import split_groups, split_with_test_set
from bintally.bins.shards import Entry, read_index
from bintally.bins.subset import read_id_list
from bintally.errors import UserError
from bintally.files import write_csv
from bintally.params import Fetch, Params
from bintally.paths import BINS, CORRECTIONS, SPLITS
from bintally.stages import run

log = logging.getLogger("bintally")


def main(params: Params) -> None:
    split = params.split
    entries = read_index(BINS)
    groups, counts = [entry.group for entry in entries], [entry.count for entry in entries]
    shares = {name: getattr(split, name) for name in ("train", "validation", "test")}
    if split.test_ids is None:
        splits = split_groups(groups, counts, shares, split.seed)
    else:
        listed = set(read_id_list(Path(split.test_ids), "split.test_ids"))
        splits = split_with_test_set([entry.id in listed for entry in entries], groups, counts, shares, split.seed)
    counts, splits = _corrected(params.fetch, entries, splits)
    for name in shares:
        if name not in splits:
            of_list = f" or '{split.test_ids}' lists others" if split.test_ids else ""
            raise UserError(
                f"no bin is left for {name}: {len(entries)} bins are too few{of_list}; raise fetch.per_count"
            )
    rows = [(e.id, count, e.group, split) for e, count, split in zip(entries, counts, splits, strict=True)]
    write_csv(SPLITS, ["id", "count", "group", "split"], rows)


def _corrected(fetch: Fetch, entries: list[Entry], splits: list[str]) -> tuple[list[int], list[str]]:
    """The count and the split of each bin, after the corrections."""
    corrections = read_corrections(CORRECTIONS)
    counts = [corrections.get(entry.id, entry.count) for entry in entries]
    if fetch.open_ended:
        counts = [min(count, fetch.counts[-1]) for count in counts]
    splits = [split if count in fetch.counts else "left_out" for count, split in zip(counts, splits, strict=True)]
    if corrections:
        unknown = len(corrections.keys() - {entry.id for entry in entries})
        changed = sum(count != entry.count for count, entry in zip(counts, entries, strict=True))
        log.info(
            "%d bins were recounted, %d with another count than the record; %d more in %s are none of %s",
            *(len(corrections) - unknown, changed, unknown, CORRECTIONS, BINS),
        )
    return counts, splits


if __name__ == "__main__":
    run("split", main)
