"""Take a subset of bins from a source, check every one, and keep the good ones as tar shards."""

import hashlib
import logging
import shutil
from collections import Counter

from bintally.bins.shards import write_shards
from bintally.bins.source import open_source
from bintally.bins.staging import Staging
from bintally.bins.subset import choose, iter_bins
from bintally.files import SCRATCH, write_csv
from bintally.params import Params
from bintally.paths import BINS
from bintally.stages import run

log = logging.getLogger("bintally")


def main(params: Params) -> None:
    fetch = params.fetch
    source = open_source(fetch)
    origin = f"{fetch.source} {fetch.endpoint} {(fetch.demo_bins, fetch.seed) if fetch.source == 'demo' else ''}"
    scratch = SCRATCH / "fetch" / hashlib.sha256(origin.encode()).hexdigest()[:16]
    staging = Staging(scratch / "objects.sqlite")
    try:
        subset = choose(source, fetch, staging)
        written = scratch / "bins"
        shutil.rmtree(written, ignore_errors=True)
        write_shards(written, iter_bins(subset, staging))
        write_csv(written / "rejected.csv", ["id", "reason"], sorted(subset.rejected.items()))
    finally:
        staging.close()
    shutil.rmtree(BINS, ignore_errors=True)
    BINS.parent.mkdir(exist_ok=True)
    shutil.move(written, BINS)
    shutil.rmtree(scratch)
    log.info("%d bins, %s", len(subset.counts), dict(sorted(Counter(subset.counts.values()).items())))
    for reason, number in Counter(subset.rejected.values()).most_common(5):
        log.info("rejected %d: %s", number, reason)


if __name__ == "__main__":
    run("fetch", main)
