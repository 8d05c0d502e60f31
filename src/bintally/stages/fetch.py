"""Fetch bins from a source, check each one, and write the good ones to shards."""

import hashlib
import logging
import shutil
from collections import Counter

from bintally.bins.objects import record_key
from bintally.bins.record import BadBin, parse_record, with_photograph
from bintally.bins.shards import write_shards
from bintally.bins.source import Source, open_source
from bintally.bins.staging import Staging
from bintally.bins.subset import iter_bins, select_bins
from bintally.bins.table_source import TableSource
from bintally.demo.edition import EDITION
from bintally.files import SCRATCH, check_writable, file_lock, spreadsheet_text, write_csv
from bintally.params import Params
from bintally.paths import BINS
from bintally.stages import run

log = logging.getLogger("bintally")


def main(params: Params) -> None:
    fetch = params.fetch
    origin = f"{fetch.source} {fetch.endpoint}"
    if fetch.source == "demo":
        from bintally.demo.warehouse import DemoSource  # not needed for real bins

        source: Source = DemoSource(fetch.demo_bins, fetch.seed)
        origin += f" {EDITION} {fetch.demo_bins} {fetch.seed}"
    else:
        source = open_source(fetch)
    check_writable(BINS.with_name("bins.new"))
    scratch = SCRATCH / "fetch" / hashlib.sha256(origin.encode()).hexdigest()[:16]
    staging = Staging(scratch / "objects.sqlite")
    try:
        staging.verify(source)
        subset = select_bins(source, fetch, staging)
        new_bins = scratch / "bins"
        shutil.rmtree(new_bins, ignore_errors=True)
        write_shards(new_bins, iter_bins(subset, staging))
        reasons = ((one, _reason(source, staging, one, why)) for one, why in sorted(subset.rejected.items()))
        rejected = ((one, spreadsheet_text(reason)) for one, reason in reasons)
        write_csv(new_bins / "rejected.csv", ["id", "reason"], rejected)
        with file_lock(BINS):
            shutil.rmtree(BINS, ignore_errors=True)
            shutil.move(new_bins, BINS)
    finally:
        staging.close()
    shutil.rmtree(scratch)
    log.info("%d bins, %s", len(subset.counts), dict(sorted(Counter(subset.counts.values()).items())))
    for reason, number in Counter(subset.rejected.values()).most_common(5):
        log.info("rejected %d: %s", number, reason)


def _reason(source: Source, staging: Staging, bin_id: str, why: str) -> str:
    """Why a bin is rejected, with the path of its photograph where a table or its record has one."""
    if isinstance(source, TableSource):
        return with_photograph(why, source.path(bin_id))
    record = staging.get(record_key(bin_id))
    try:
        return with_photograph(why, parse_record(record).photograph) if isinstance(record, bytes) else why
    except BadBin:
        return why


if __name__ == "__main__":
    run("fetch", main)
