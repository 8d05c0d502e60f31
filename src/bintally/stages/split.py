"""Share the bins out to training, validation and test, keeping photographs of one bin together."""

from pathlib import Path

from bintally.bins.groups import split_around, split_groups
from bintally.bins.shards import read_index
from bintally.bins.subset import read_id_list
from bintally.faults import Fault
from bintally.files import write_csv
from bintally.params import Params
from bintally.stages import run
from bintally.stages.paths import BINS, SPLITS


def main(params: Params) -> None:
    split = params.split
    entries = read_index(BINS)
    groups, counts = [entry.group for entry in entries], [entry.count for entry in entries]
    shares = {name: getattr(split, name) for name in ("train", "validation", "test")}
    if split.test_ids is None:
        splits = split_groups(groups, counts, shares, split.seed)
    else:
        listed = set(read_id_list(Path(split.test_ids), "split.test_ids"))
        splits = split_around([entry.id in listed for entry in entries], groups, counts, shares, split.seed)
    for name in shares:
        if name not in splits:
            of_list = f" or '{split.test_ids}' lists others" if split.test_ids else ""
            raise Fault(f"no bin is left for {name}: {len(entries)} bins are too few{of_list}; raise fetch.per_count")
    rows = [(e.id, e.count, e.group, split) for e, split in zip(entries, splits, strict=True)]
    write_csv(SPLITS, ["id", "count", "group", "split"], rows)


if __name__ == "__main__":
    run("split", main)
