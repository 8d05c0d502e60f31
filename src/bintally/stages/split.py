"""Share the bins out to training, validation and test, keeping photographs of one bin together."""

from bintally.bins.groups import split_groups
from bintally.bins.shards import read_index
from bintally.faults import Fault
from bintally.files import write_csv
from bintally.params import Params
from bintally.stages import run
from bintally.stages.paths import BINS, SPLITS


def main(params: Params) -> None:
    entries = read_index(BINS)
    shares = {name: getattr(params.split, name) for name in ("train", "validation", "test")}
    splits = split_groups([e.group for e in entries], [e.count for e in entries], shares, params.split.seed)
    for name in shares:
        if name not in splits:
            raise Fault(f"no bin is left for {name}: {len(entries)} bins are too few; raise fetch.per_count")
    rows = [(e.id, e.count, e.group, split) for e, split in zip(entries, splits, strict=True)]
    write_csv(SPLITS, ["id", "count", "group", "split"], rows)


if __name__ == "__main__":
    run("split", main)
